"""The bundle: the closed set of files that an inference host loads, verified before it is parsed."""

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro import __version__
from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.evaluation import read_evaluation
from stage1_pro.core.licenses import derivative_notice
from stage1_pro.core.phases import POLICY_TABLE
from stage1_pro.core.policies.base import ExitPolicy
from stage1_pro.core.policies.evidence import demand_consistent, demand_reproduced, evidence_words
from stage1_pro.core.policies.load import policy_from_artifact
from stage1_pro.core.run import Run, utc_now
from stage1_pro.core.splits import parse_splits

MANIFEST = "bundle.json"
COMPANIONS = ("model_best.pth", "splits.json", "config.json", "metrics.csv", "eval.json", "README.md")
"""Every file of a bundle beside the manifest and the one policy file."""
ROLES = ("policy_file", "model_file", "splits_file", "config_file", "metrics_file")


@dataclass(frozen=True, slots=True)
class BundleContents:
    """A bundle of which every file has been verified."""

    path: Path
    manifest: dict[str, Any]
    policy: ExitPolicy

    @property
    def model_path(self) -> Path:
        return self.path / self.manifest["model_file"]


def verify_bundle(path: Path) -> BundleContents:
    """Check the whole bundle, the model's tensors aside, and build its policy.

    Sizes and digests first, so that nothing altered is ever parsed. Raises one UserError with every
    difference: missing, added, altered or linked files, a policy for other weights or splits.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a bundle folder. Export one with 50_export_bundle.py.")
    if (path / MANIFEST).is_symlink():
        raise UserError(f"{path}: {MANIFEST} is a link; a bundle holds plain files only. Export it again.")
    manifest = artifacts.read_json(path / MANIFEST, "bundle")
    raise_problems(
        f"{path}: not the bundle that was exported:", _file_problems(path, manifest), "Copy or export it again."
    )
    _demand_fields(
        manifest, "files preprocessing class_names positive_class provenance eval schema_version", path / MANIFEST
    )
    policy_file = path / manifest["policy_file"]
    policy = artifacts.read_json(policy_file, policy_file.stem)
    splits_path = path / manifest["splits_file"]
    splits = parse_splits(artifacts.read_bytes(splits_path), splits_path)
    demand_consistent(policy, policy_file)
    weights = manifest["files"][manifest["model_file"]]["sha256"]
    problems = []
    if policy["model_digest"] != weights:
        problems.append(f"{policy_file.name} was calibrated for other weights than {manifest['model_file']}")
    if policy["splits_digest"] != splits.digest:
        problems.append(f"{policy_file.name} was calibrated on other splits than {manifest['splits_file']}")
    if manifest["positive_class"] != splits.positive_class:
        problems.append(f"{MANIFEST} and {splits_path.name} name different positive classes")
    if manifest["eval"] != _eval_summary(artifacts.read_json(path / "eval.json", "eval")):
        problems.append(f"{MANIFEST} and eval.json give different figures")
    if manifest["class_names"] != splits.class_names:
        problems.append(f"{MANIFEST} and {splits_path.name} name different classes")
    raise_problems(f"{path}: the parts do not belong together:", problems, "Export the bundle again from its run.")
    return BundleContents(path, manifest, policy_from_artifact(manifest["active_exit_policy"], policy))


def export_bundle(run: Run, target: Path) -> BundleContents:
    """Build the bundle of a calibrated and evaluated run beside `target`, verify it, and rename it.

    Raises UserError where the run is not complete or its parts do not belong together.
    """
    if target.exists():
        raise UserError(
            f"{target} exists, and bundles are never overwritten. Check it with --verify, or name another --out."
        )
    policy = run.read_policy()
    demand_consistent(policy, run.policy_path)
    calib = run.scores("val_calib")
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(calib)
    demand_reproduced(policy, decisions, calib, run.policy_path)
    evaluation = read_evaluation(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for file in (
            run.model_path,
            run.policy_path,
            run.splits_path,
            run.config_path,
            run.metrics_path,
            run.eval_path,
        ):
            _copy(file, building / file.name)
        license = artifacts.read_json(run.environment_path, "environment")["backbone_license"]
        artifacts.write_bytes(building / "README.md", _readme(run, policy, evaluation, license).encode())
        manifest = _manifest(run, evaluation, building)
        artifacts.write_json(building / MANIFEST, manifest, "bundle")
        verify_bundle(building)
        os.chmod(building, 0o777 & ~0o022)
        os.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return verify_bundle(target)


def _file_problems(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Everything in which the folder differs from its manifest."""
    listed = manifest.get("files", {})
    found = {entry.name: entry for entry in os.scandir(path) if entry.name != MANIFEST}
    problems = [f"{name} is missing" for name in sorted(set(listed) - set(found))]
    problems += [f"{name} is not part of the bundle" for name in sorted(set(found) - set(listed))]
    for name in sorted(set(listed) & set(found)):
        if not stat.S_ISREG(found[name].stat(follow_symlinks=False).st_mode):
            problems.append(f"{name} is not a plain file")
        elif (
            found[name].stat().st_size != listed[name]["bytes"]
            or artifacts.digest_file(path / name) != listed[name]["sha256"]
        ):
            problems.append(f"{name} has been altered")
    problems += [
        f"{role} names {manifest[role]}, which is not listed in files" for role in ROLES if manifest[role] not in listed
    ]
    expected = POLICY_TABLE[manifest["active_exit_policy"]].file
    problems += [f"{name} has no place in a bundle" for name in sorted(set(listed) - {*COMPANIONS, expected})]
    problems += [f"{name} is not listed in files" for name in sorted({*COMPANIONS, expected} - set(listed))]
    if manifest["policy_file"] != expected:
        problems.append(
            f"policy_file is {manifest['policy_file']}; exit policy '{manifest['active_exit_policy']}' needs {expected}"
        )
    extra = [row.file for row in POLICY_TABLE.values() if row.file in listed and row.file != expected]
    problems += [f"Multiple policy files found! Only {expected} should exist, not {name}" for name in extra]
    return problems


def _demand_fields(data: dict[str, Any], names: str, where: Path) -> None:
    missing = [f"$.{name} is missing" for name in names.split() if name not in data]
    raise_problems(f"{where}: incomplete:", missing, "Export the bundle again from its run.")


def _manifest(run: Run, evaluation: dict[str, Any], folder: Path) -> dict[str, Any]:
    environment = artifacts.read_json(run.environment_path, "environment")
    preprocessing = environment.pop("preprocessing")
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "version": __version__,
        "created_at": utc_now(),
        "active_exit_policy": run.policy_row.name,
        "policy_file": run.policy_path.name,
        "model_file": run.model_path.name,
        "splits_file": run.splits_path.name,
        "config_file": run.config_path.name,
        "metrics_file": run.metrics_path.name,
        "files": {
            file.name: {"sha256": artifacts.digest_file(file), "bytes": file.stat().st_size}
            for file in sorted(folder.iterdir())
        },
        "preprocessing": preprocessing,
        "class_names": run.splits.class_names,
        "positive_class": run.splits.positive_class,
        "provenance": {**environment, "run_id": run.name},
        "eval": _eval_summary(evaluation),
    }


def _eval_summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The few test figures that the manifest shows."""
    exits = evaluation["exits"]
    return {
        "coverage": exits["coverage"]["value"],
        "fnr_on_exits": exits["fnr_on_exits"]["value"],
        "fnr_upper_bound": exits["fnr_on_exits"]["upper_bound"],
        "fpr_on_exits": exits["fpr_on_exits"]["value"],
        "accuracy_on_exits": exits["accuracy_on_exits"]["value"],
        "augrc": evaluation["selective"]["augrc"]["value"],
        "promise_held": evaluation["promise"]["held"],
    }


def _copy(source: Path, target: Path) -> None:
    artifacts.write_bytes(target, artifacts.read_bytes(source, "Finish the run first."))


def _readme(run: Run, policy: dict[str, Any], evaluation: dict[str, Any], license: str) -> str:
    names = run.splits.class_names
    return f"""# Stage 1 bundle: {run.name}

Answers {" / ".join(names)} where it is sure and defers the rest to stage 2. "{names[-1]}" is the class
that must not be missed.

## What it promises
{policy["guarantee"]["words"]}
Method: {policy["guarantee"]["method"]} ({policy["guarantee"]["source"]}).
On the calibration split {evidence_words(policy)}.
This calibration split has been used {policy["calib_use_count"]} time(s); each further use weakens the promise.

{evaluation["promise"]["words"]}

## What it does not promise
- Nothing about images of another kind than the calibration images: another camera, another season, another
  share of positives among look-alikes. Calibrate anew when the source changes.
- Nothing about a single case, about subgroups, or about the cases that are deferred.
- Nothing about false alarms: they are reported in eval.json, not bounded.

## Contract for the host
1. Load with `Stage1Predictor.load(folder)`. It checks the size and digest of every file first; the set of
   files is closed. Or, without Python: check the digests of bundle.json before anything is parsed.
2. Preprocess as bundle.json says, compute logits in float32, decide in float64.
3. The only threshold is in {run.policy_path.name}. config.json is provenance; no value of it decides anything.
4. A case that exits has its answer; every other case goes to stage 2, unreadable images among them.

## Licence of the weights
{derivative_notice(license)}
Intended use as stated for this run: {run.config.intended_use}.
"""
