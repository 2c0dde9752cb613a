"""The bundle: the closed set of files that an inference host loads, verified before it is parsed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro import __version__
from stage1_pro.core import artifacts
from stage1_pro.core.bundle.calib_scores import calib_scores
from stage1_pro.core.bundle.contents import (
    CALIB_SCORES,
    GOLDEN,
    MANIFEST,
    BundleContents,
    eval_summary,
    verify_bundle,
)
from stage1_pro.core.bundle.readme import bundle_readme
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.evaluation import read_evaluation
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.verification import demand_consistent, demand_reproduced
from stage1_pro.core.records.looks import look_of, looks_counted
from stage1_pro.core.records.policy_file import read_policy
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.seen import SEEN


@dataclass(frozen=True, slots=True)
class Converted:
    """A file that ships in place of the one that the run was certified with, and how near its outputs are.

    model_digest: of the file that was certified; cases: of val_select, all of which both decide alike;
    largest_difference: of a logit.
    """

    file: Path
    model_digest: str
    cases: int
    largest_difference: float

    def record(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model_digest", "cases", "largest_difference")}


def demand_new(target: Path) -> None:
    """Raise UserError where the bundle exists already."""
    if target.exists():
        raise UserError(
            f"{target} exists, and bundles are never overwritten. Check it with --verify, or name another --out."
        )


def export_bundle(
    run: Run,
    target: Path,
    golden: Callable[[], bytes] | None = None,
    *,
    seen: bool = True,
    converted: Converted | None = None,
    expires: dict[str, Any] | None = None,
    forward_batch: int | None = None,
) -> BundleContents:
    """Build the bundle of a calibrated and evaluated run beside `target`, verify it, and rename it.

    golden: makes the content of golden.npz with the run's model, as `inference.golden` does; None: a bundle without.
    seen: take the run's seen.json along, where it has one; converted: a model that ships under the run's certificate;
    expires: when the certificate ends, as bundle.json says it, None for never; forward_batch: images per forward pass
    of the host, None for those of the run's scores. Raises UserError where the run is not complete or its parts do not
    belong together.
    """
    demand_new(target)
    policy = read_policy(run)
    demand_consistent(policy, run.policy_path)
    calib = run.scores("val_calib")
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(calib)
    demand_reproduced(policy, decisions, calib, run.policy_path)
    _demand_look(policy, run)
    _demand_miss_rule(policy, run)
    evaluation = read_evaluation(run)
    with artifacts.new_folder(target) as building:
        for file in (
            converted.file if converted else run.scored_path,
            run.policy_path,
            run.splits_path,
            run.config_path,
            run.metrics_path,
            run.eval_path,
        ):
            _copy(file, building / file.name)
        license = artifacts.read_json(run.environment_path, "environment")["backbone_license"]
        words = bundle_readme(run, policy, evaluation, license, converted, expires, forward_batch)
        artifacts.write_bytes(building / "README.md", words.encode())
        if seen and (run.path / SEEN).exists():
            _copy(run.path / SEEN, building / SEEN)
        scores = calib_scores(calib.case_id, calib.group, decisions)
        artifacts.write_json(building / CALIB_SCORES, scores, "calib_scores")
        if golden is not None:
            artifacts.write_bytes(building / GOLDEN, golden())
        manifest = {**_manifest(run, evaluation, building, converted), "expires": expires}
        if forward_batch:
            manifest["forward_batch"] = forward_batch
        artifacts.write_json(building / MANIFEST, manifest, "bundle")
        verify_bundle(building)
    return verify_bundle(target)


def _demand_look(policy: dict[str, Any], run: Run) -> None:
    """Raise UserError unless the look that the policy comes from is on record, and no more looks than it counts.

    Policies that older versions wrote name no look.
    """
    if "look" not in policy:
        return
    entry, counted = look_of(run, policy["look"]), looks_counted(run)
    if entry is None:
        raise UserError(
            f"{run.policy_path}: its look {policy['look']} is neither in {run.path / 'looks'} nor in the ledger of its "
            "runs. Copy the whole run, with looks/."
        )
    told = (
        ("run_id", policy["run_id"], entry.run),
        ("target_fnr_exit", policy["target_fnr_exit"], entry.target_fnr_exit),
        ("fnr_confidence", policy["fnr_confidence"], entry.fnr_confidence),
        ("model_digest", policy["model_digest"], entry.model_digest),
    )
    problems = [
        f"$.{name} is {found}, and {known} in the record of its look" for name, found, known in told if found != known
    ]
    if policy["calib_use_count"] < counted:
        problems.append(
            f"$.calib_use_count is {policy['calib_use_count']}, and {counted} looks are in {run.path / 'looks'}"
        )
    raise_problems(f"{run.policy_path}: altered after it was calibrated:", problems, "Restore the policy file.")


def _demand_miss_rule(policy: dict[str, Any], run: Run) -> None:
    """Raise UserError unless the policy counted as misses what the run's scores hold as such."""
    if policy.get("miss_rule") != run.config.miss_rule:
        raise UserError(
            f"{run.policy_path}: $.miss_rule is {policy.get('miss_rule')}, and the run's scores are made with "
            f"{run.config.miss_rule}. Restore config.json or the policy file."
        )


def _manifest(run: Run, evaluation: dict[str, Any], folder: Path, converted: Converted | None) -> dict[str, Any]:
    environment = artifacts.read_json(run.environment_path, "environment")
    task = run.config.task
    preprocessing = environment.pop(task.inputs)
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "version": __version__,
        "created_at": utc_now(),
        "active_exit_policy": run.policy_row.name,
        "policy_file": run.policy_path.name,
        "model_file": (converted.file if converted else run.scored_path).name,
        "scoring_backend": "onnx" if converted else run.config.scoring_backend,
        "scoring_precision": run.config.scoring_precision,
        **({"converted": converted.record()} if converted else {}),
        "splits_file": run.splits_path.name,
        "config_file": run.config_path.name,
        "metrics_file": run.metrics_path.name,
        "files": {
            file.name: {"sha256": artifacts.digest_file(file), "bytes": file.stat().st_size}
            for file in sorted(folder.iterdir())
        },
        task.inputs: preprocessing,
        **({"task": task.name} if task.has_masks else {}),
        **({} if run.config.forward_shape is None else {"forward_batch": run.config.forward_shape}),
        **(views.record() if (views := run.config.group_views) else {}),
        **({"certificate_groups": run.config.certificate_groups} if run.config.certificate_groups else {}),
        "class_names": run.splits.class_names,
        "positive_class": run.splits.positive_class,
        "provenance": {**environment, "run_id": run.name},
        "eval": eval_summary(evaluation),
    }


def _copy(source: Path, target: Path) -> None:
    way_out = f"Run 20_train.py --resume {source.parent}, which writes it again."
    artifacts.write_bytes(target, artifacts.read_bytes(source, way_out))
