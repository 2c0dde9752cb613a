"""The one draw of the splits that all runs of an A/B test share."""

from stage1_pro.core import artifacts
from stage1_pro.core.ab.plan import Plan
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.splits import read_splits
from stage1_pro.core.training.start import preview


def draw_splits(plan: Plan) -> None:
    """Check the cases and draw their splits; those of a test to go on with must be the same.

    Raises UserError where they are not, or where there are more than two classes.
    """
    cases, splits = preview(plan.arms[0].config)
    if len(cases.class_names) != 2:
        raise UserError(
            f"the labels have {len(cases.class_names)} classes; arms are compared by exit policies, which need "
            "exactly two: set dataset_params.rest: true in the base config."
        )
    if not plan.splits_path.exists():
        plan.folder.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(plan.splits_path, splits.data, "splits")
    elif read_splits(plan.splits_path).digest != splits.digest:
        raise UserError(
            f"{plan.splits_path} was drawn from other data, ratios or another seed: the runs of one test have equal "
            "splits. Name another folder with --out."
        )
