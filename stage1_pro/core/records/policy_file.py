"""The one policy file of a run: when it may be written, what every policy says of its origin, and reading it back."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk, remaining_confidence
from stage1_pro.core.metrics.views import views_of
from stage1_pro.core.records.provenance import utc_now

if TYPE_CHECKING:  # an inference host reads policies, and needs nothing else of runs
    from stage1_pro.core.records.run import Run


def demand_uncalibrated(run: "Run", policy: str) -> None:
    """Raise UserError unless `policy` is the run's own and no policy file exists yet."""
    if policy != run.config.exit_policy:
        row = run.policy_row
        raise UserError(f"{run.path}: exit_policy is '{row.name}'. Run {row.script} --run {run.path} instead.")
    for path in run.policy_files():
        if path != run.policy_path:
            raise UserError(f"{path} exists, and is not the policy of this run ('{policy}'). Remove it.")
        artifacts.read_json(path, path.stem)  # a damaged one is no calibration: the error says how it comes back
        raise UserError(
            f"{path} exists: this run is calibrated already. Go on with 40_eval_selective.py --run "
            f"{shlex.quote(str(run.path))}. Another look at val_calib would weaken the guarantee; to calibrate anew at "
            "full confidence, train a run whose val_calib holds other positives."
        )


def policy_header(run: "Run", risk: Risk, earlier: Sequence[float] = (), look: str | None = None) -> dict[str, Any]:
    """Return the fields that every policy file carries about where it came from.

    earlier: confidences of the other looks at the same positives; look: id of the look that this policy comes from.
    """
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "run_id": run.name,
        "created_at": utc_now(),
        "target_fnr_exit": risk.target_fnr,
        "fnr_confidence": risk.confidence,
        "calib_use_count": 1 + len(earlier),
        "earlier_confidences": list(earlier),
        "remaining_confidence": remaining_confidence([*earlier, risk.confidence]),
        **({"look": look} if look else {}),
        "model_digest": run.model_digest,
        "splits_digest": run.splits.digest,
        **(views.record() if (views := run.config.group_views) else {}),
        **({"certificate_groups": run.config.certificate_groups} if run.config.certificate_groups else {}),
    }


def write_policy(run: "Run", policy: dict[str, Any]) -> Path:
    """Write the run's policy file, checked by its schema, and return its path."""
    artifacts.write_json(run.policy_path, policy, run.policy_row.schema)
    return run.policy_path


def read_policy(run: "Run") -> dict[str, Any]:
    """Read the run's one policy file.

    Raises UserError where there is none or a second one, or where it is of other weights or splits.
    """
    files, path, row = run.policy_files(), run.policy_path, run.policy_row
    if len(files) > 1:
        raise UserError(f"{run.path}: Multiple policy files found! Only {row.file} should exist. Remove the other.")
    mend = f"Run {row.script} --run {run.path} first."
    if files and files[0] != path:
        raise UserError(f"{files[0]} is not the policy of this run ('{row.name}'). {mend}")
    if not files:
        raise UserError(f"{path} does not exist: the run has no certified policy. {mend}")
    policy = artifacts.read_json(path, row.schema)
    for key, expected in (("model_digest", run.model_digest), ("splits_digest", run.splits.digest)):
        if policy.get(key) != expected:
            raise UserError(f"{path}: $.{key} is of another model or other splits. Train and calibrate a new run.")
    if policy.get("certificate_groups") != run.config.certificate_groups:
        raise UserError(f"{path}: $.certificate_groups is not the run's own. Restore the policy file.")
    if views_of(policy) != run.config.group_views:
        raise UserError(f"{path}: $.decide_by, views or view_rule is not the run's own. Restore the policy file.")
    return policy
