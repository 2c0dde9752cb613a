"""The cases of an existing run."""

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import SPLITS


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
