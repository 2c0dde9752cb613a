"""What a bundle holds, and the checks that it passes before anything in it is parsed.

Needs neither torch nor a run: an inference host reads its exit policy with this alone.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.phases import MODEL_FILES, POLICY_TABLE
from stage1_pro.core.config.tasks import TASKS, Task
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.metrics.views import views_of
from stage1_pro.core.policies.base import ExitPolicy
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.verification import demand_consistent
from stage1_pro.core.records.seen import SEEN
from stage1_pro.core.records.splits import Splits, parse_splits

MANIFEST = "bundle.json"
AGAIN = artifacts.MENDS["bundle"]


COMPANIONS = ("splits.json", "config.json", "metrics.csv", "eval.json", "README.md")
"""Every file that a bundle must hold beside the manifest, the one policy file and the model."""

GOLDEN = "golden.npz"
GOLDEN_TOLERANCE = {"float32": 1e-4, "bf16": 0.1}
"""Largest difference of a logit that another device may make, by scoring_precision."""

CALIB_SCORES = "calib_scores.json"
OPTIONAL = (GOLDEN, SEEN, CALIB_SCORES)
"""What it may hold besides: bundles from before these files are whole without them."""


ROLES = ("policy_file", "model_file", "splits_file", "config_file", "metrics_file")


@dataclass(frozen=True, slots=True)
class BundleContents:
    """A bundle of which every file has been verified.

    path: its folder; manifest: bundle.json, with class_names, positive_class, preprocessing, provenance and, under
    eval, the test figures; policy: its exit policy, ready to decide; model_path: the file of its weights.
    """

    path: Path
    manifest: dict[str, Any]
    policy: ExitPolicy

    @property
    def task(self) -> Task:
        """The row of the task table."""
        return TASKS[self.manifest.get("task", "classification")]

    @property
    def model_path(self) -> Path:
        return self.path / self.manifest["model_file"]


def verify_bundle(path: str | Path) -> BundleContents:
    """Check the whole bundle, the model's tensors aside, and build its policy.

    path: the bundle's folder. Sizes and digests come first, so that nothing altered is ever parsed. Raises one
    UserError with every difference: missing, added, altered or linked files, a policy for other weights or splits.

    >>> from stage1_pro import verify_bundle
    >>> contents = verify_bundle("runs/smoke/p2/bundle")
    >>> contents.manifest["class_names"], contents.manifest["positive_class"]
    (['blue', 'red'], 'red')
    >>> contents.manifest["active_exit_policy"], contents.model_path.name
    ('softmax', 'model_best.pth')
    """
    path = Path(path)
    if (path / "scores").is_dir():
        raise UserError(f"{path} is a run. Name its bundle, {path / 'bundle'}, which 50_export_bundle.py writes.")
    if not path.is_dir() or not os.path.lexists(path / MANIFEST):  # never "remove it": who knows what it is
        raise UserError(f"{path} is not a bundle folder. Export one with 50_export_bundle.py.")
    if (path / MANIFEST).is_symlink():
        raise UserError(f"{path}: {MANIFEST} is a link; a bundle holds plain files only. Export it again.")
    manifest = artifacts.read_json(path / MANIFEST, "bundle")
    raise_problems(
        f"{path}: not the bundle that was exported:",
        _file_problems(path, manifest),
        "Remove it, then copy or export it again.",
    )
    task = TASKS[manifest.get("task", "classification")]
    demanded = f"files {task.inputs} class_names positive_class provenance eval schema_version"
    _demand_fields(manifest, demanded, path / MANIFEST)
    policy_file = path / manifest["policy_file"]
    policy = artifacts.read_json(policy_file, policy_file.stem, AGAIN)
    splits_path = path / manifest["splits_file"]
    splits = parse_splits(artifacts.read_bytes(splits_path), splits_path, AGAIN)
    artifacts.read_json(path / manifest["config_file"], "config", AGAIN)
    demand_consistent(policy, policy_file)
    evaluation = artifacts.read_json(path / "eval.json", "eval", AGAIN)
    problems = _differences(manifest, policy, splits, evaluation)
    raise_problems(f"{path}: the parts do not belong together:", problems, AGAIN)
    return BundleContents(path, manifest, policy_from_artifact(manifest["active_exit_policy"], policy))


def demand_same_model(contents: BundleContents) -> None:
    """Raise UserError where the model file is not the one that was verified; called when it has been loaded.

    Where a folder is replaced, or a link set to another bundle, between the two, the policy would decide on the scores
    of other weights.
    """
    listed = contents.manifest["files"][contents.model_path.name]
    if artifacts.digest_file(contents.model_path) != listed["sha256"]:
        raise UserError(f"{contents.path} became another bundle while it was loaded. Run the same command again.")


def demand_images(contents: BundleContents) -> None:
    """Raise UserError for a bundle whose answers are masks, where only decisions on images are understood."""
    if contents.task.has_masks:
        raise UserError(
            f"{contents.path}: its answers are masks, which only 60_predict.py takes. Decide its images there."
        )


def demand_outside(bundle: Path, place: str | Path | None, option: str) -> None:
    """Raise UserError for a place within the bundle that something is to be written to: with one file more it would be
    no bundle. None: nothing is written."""
    if place is not None and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(bundle)):
        raise UserError(
            f"{option} {place} lies in the bundle {bundle}, whose set of files is closed. Name a place outside of it."
        )


def _file_problems(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Everything in which the folder differs from its manifest, and the manifest from a bundle."""
    return [*_altered(path, manifest.get("files", {})), *_out_of_place(manifest)]


def _altered(path: Path, listed: dict[str, Any]) -> Iterator[str]:
    """Files of the folder that are not those listed, byte by byte."""
    found = {entry.name: entry for entry in os.scandir(path) if entry.name != MANIFEST}
    yield from (f"{name} is missing" for name in sorted(set(listed) - set(found)))
    yield from (f"{name} is not part of the bundle" for name in sorted(set(found) - set(listed)))
    for name in sorted(set(listed) & set(found)):
        status = found[name].stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            yield f"{name} is not a plain file"
        elif (status.st_size, artifacts.digest_file(path / name)) != (listed[name]["bytes"], listed[name]["sha256"]):
            yield f"{name} has been altered"


def _out_of_place(manifest: dict[str, Any]) -> Iterator[str]:
    """Files that the manifest lists or names, and that are none of the closed set."""
    listed, policy = manifest.get("files", {}), manifest["active_exit_policy"]
    backend = manifest.get("scoring_backend", "torch")
    model_file, policy_file = MODEL_FILES[backend], POLICY_TABLE[policy].file
    for role in ROLES:
        if manifest[role] not in listed:
            yield f"{role} names {manifest[role]}, which is not listed in files"
    demanded = {*COMPANIONS, model_file, policy_file}
    yield from (f"{name} has no place in a bundle" for name in sorted(set(listed) - {*demanded, *OPTIONAL}))
    yield from (f"{name} is not listed in files" for name in sorted(demanded - set(listed)))
    if manifest["model_file"] != model_file:
        yield f"model_file is {manifest['model_file']}; scoring_backend '{backend}' needs {model_file}"
    if manifest["policy_file"] != policy_file:
        yield f"policy_file is {manifest['policy_file']}; exit policy '{policy}' needs {policy_file}"
    for row in POLICY_TABLE.values():
        if row.file in listed and row.file != policy_file:
            yield f"Multiple policy files found! Only {policy_file} should exist, not {row.file}"


def _differences(
    manifest: dict[str, Any], policy: dict[str, Any], splits: Splits, evaluation: dict[str, Any]
) -> list[str]:
    """Everything in which files that are whole each by itself are not of one run."""
    weights = manifest["files"][manifest["model_file"]]["sha256"]
    policy_file, splits_file = manifest["policy_file"], manifest["splits_file"]
    agreed = (
        (
            policy["model_digest"] in (weights, manifest.get("converted", {}).get("model_digest")),
            f"{policy_file} was calibrated for other weights than {manifest['model_file']}",
        ),
        (policy["splits_digest"] == splits.digest, f"{policy_file} was calibrated on other splits than {splits_file}"),
        (
            manifest["positive_class"] == splits.positive_class,
            f"{MANIFEST} and {splits_file} name different positive classes",
        ),
        (manifest["eval"] == eval_summary(evaluation), f"{MANIFEST} and eval.json give different figures"),
        (views_of(manifest) == views_of(policy), f"{MANIFEST} and {policy_file} decide by other groups or views"),
        (
            manifest.get("certificate_groups") == policy.get("certificate_groups"),
            f"{MANIFEST} and {policy_file} name different certificate_groups",
        ),
        (manifest["class_names"] == splits.class_names, f"{MANIFEST} and {splits_file} name different classes"),
    )
    return [words for same, words in agreed if not same]


def _demand_fields(data: dict[str, Any], names: str, where: Path) -> None:
    missing = [f"$.{name} is missing" for name in names.split() if name not in data]
    raise_problems(f"{where}: incomplete:", missing, AGAIN)


def eval_summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The few test figures that the manifest shows; older evaluations have neither right exits nor utility."""
    exits = evaluation["exits"]
    return {
        **{name: exits[name]["value"] for name in ("right_exits", "utility") if name in exits},
        "coverage": exits["coverage"]["value"],
        "fnr_on_exits": exits["fnr_on_exits"]["value"],
        "fnr_upper_bound": exits["fnr_on_exits"]["upper_bound"],
        "fpr_on_exits": exits["fpr_on_exits"]["value"],
        "accuracy_on_exits": exits["accuracy_on_exits"]["value"],
        "augrc": evaluation["selective"]["augrc"]["value"],
        "promise_held": evaluation["promise"]["held"],
        **({"verdict": evaluation["promise"]["verdict"]} if "verdict" in evaluation["promise"] else {}),
    }


def load_exit_policy(bundle_dir: str | Path) -> ExitPolicy:
    """The one policy of a bundle, after every file of it has been verified.

    bundle_dir: the bundle's folder. Returns a policy whose `decide(outputs)` takes anything with `logits`, (N, C)
    float32, one column a class of the manifest's class_names, and `gate_logit`, (N,) float32 or None for a model
    without a gate; it gives ExitDecisions: `exits` (N,) bool, `predictions` (N,) int, `scores` and `probabilities` (N,)
    float64. The same outputs give the same decisions, bit for bit, and a case whose logits are NaN is deferred.
    Raises UserError where the bundle is not whole, not closed, or not consistent.

    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> from stage1_pro import load_exit_policy
    >>> policy = load_exit_policy("runs/smoke/p2/bundle")
    >>> logits = np.array([[-20, 20], [np.nan, np.nan]], dtype=np.float32)
    >>> decisions = policy.decide(SimpleNamespace(logits=logits, gate_logit=None))
    >>> decisions.exits.tolist(), decisions.predictions[0].item()
    ([True, False], 1)
    """
    return verify_bundle(bundle_dir).policy
