"""The cases of an existing run."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.moved import moved_config, roots_of, way_back
from stage1_pro.core.data.sources import read_source
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import SPLITS


def own_cases(run: Run, roots: Sequence[str] | None = None) -> CaseTable:
    """The case table of a trained run by its own config. Raises UserError that names the way back to moved data.

    roots: NAME=PATH of each source whose images have moved.
    """
    config = moved_config(run.config, roots, str(run.path))
    try:
        return cases_of(run, config)
    except UserError as error:
        if "missing" not in str(error):
            raise
        raise UserError(f"{error}\n{way_back(run.config.dataset_params.sources)}") from None


def picture_paths(run: Run, roots: Sequence[str] | None = None) -> dict[str, str] | None:
    """Case id → image file of a trained run, without a look at the files; None, and why, where its data is gone.

    roots: NAME=PATH of each source whose images have moved. None too where cases have masks.
    """
    if run.config.task.has_masks:
        return None
    roots_of(roots, run.config.dataset_params.sources)
    try:
        params = moved_config(run.config, roots, str(run.path)).dataset_params
        read = [read_source(source, params) for source in params.sources]
    except UserError as error:
        say(f"warning: no pictures in the report. {error}")
        return None
    return paths_by_case(pd.concat([source.frame for source in read]))


def paths_by_case(frame: pd.DataFrame) -> dict[str, str]:
    """Case id → image file of a table of cases."""
    return dict(zip(frame["case_id"], frame["path"], strict=True))


def cases_of(run: Run, config: Stage1ProConfig) -> CaseTable:
    """The case table of an existing run, checked to be the one its splits were drawn from."""
    decode = config.dataset_params.on_bad_image == "skip"
    cases: CaseTable = config.task.part("read_cases")(config, decode=decode)
    if list(cases.class_names) != run.splits.class_names:
        drawn, now = ", ".join(run.splits.class_names), ", ".join(cases.class_names)
        raise UserError(
            f"{run.splits_path}: drawn for the classes {drawn}; the config now names {now}. Give both the same config."
        )
    found, expected = len(cases), run.splits.metadata["cases"]
    if cases.digest != run.splits.metadata["case_table_digest"]:
        count = f"{found} cases, not {expected}" if found != expected else "as many cases with other content"
        raise UserError(
            f"{run.splits_path}: images or labels have changed since the splits were drawn ({count}). "
            "Restore them, or begin a new run with 00_make_splits.py."
        )
    split = np.empty(len(cases), dtype=object)
    for name in SPLITS:
        split[run.splits.indices(name)] = name
    crossing = cases.frame["group"][cases.frame.assign(split=split).groupby("group")["split"].transform("nunique") > 1]
    if len(crossing):
        raise UserError(f"{run.splits_path}: group {crossing.iloc[0]} crosses splits. {artifacts.MENDS['splits']}")
    return cases
