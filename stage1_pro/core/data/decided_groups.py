"""Whether cases can be decided group by group: one label a group, an order where one is needed."""

from collections.abc import Iterable

import pandas as pd

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.errors import counted, raise_problems

SHOWN = 3


def demand_groups(cases: CaseTable, config: Stage1ProConfig) -> None:
    """Raise UserError with everything that keeps these cases from being decided by group, where the config says so."""
    if config.group_views is None:
        return
    raise_problems("decide_by: group cannot be done with these cases:", list(_problems(cases, config)))


def _problems(cases: CaseTable, config: Stage1ProConfig) -> Iterable[str]:
    frame = cases.frame
    if not cases.group_column:
        yield "no case has a group: add a column `group` to the label table, or set decide_by: case"
        return
    if len(cases.class_names) > 2:
        yield f"{len(cases.class_names)} classes: set positive_class and dataset_params.rest: true"
    if cases.merged:
        yield (
            f"{_named(pd.Series(cases.merged))} share an identical image with another group, which would get one "
            "decision together: remove one of each such pair, or give them one group"
        )
    if config.dataset_params.group_label is None:
        mixed = frame["group"][frame.groupby("group")["label"].transform("nunique") > 1].drop_duplicates()
        if len(mixed):
            yield (
                f"{_named(mixed)} hold images of different labels: label them alike, or set "
                "dataset_params.group_label: majority"
            )
    if "order" in frame:
        yield from _order_problems(frame, str(config.dataset_params.order))


def _order_problems(frame: pd.DataFrame, column: str) -> Iterable[str]:
    missing = frame["case_id"][frame["order"].isna()]
    if len(missing):
        yield f"{counted(len(missing), 'case')} without a number in '{column}': {_listed(missing)}"
    twice = frame["case_id"][frame["order"].notna() & frame.duplicated(["group", "order"], keep=False)]
    if len(twice):
        yield f"{counted(len(twice), 'case')} with a '{column}' that another image of the group has: {_listed(twice)}"


def _named(groups: pd.Series) -> str:
    return f"{counted(len(groups), 'group')} ({_listed(groups)})"


def _listed(names: pd.Series) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
