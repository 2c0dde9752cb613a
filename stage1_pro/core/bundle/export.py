"""The bundle: the closed set of files that an inference host loads, verified before it is parsed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stage1_pro import __version__
from stage1_pro.core import artifacts
from stage1_pro.core.bundle.calib_scores import calib_scores
from stage1_pro.core.bundle.contents import (
    CALIB_SCORES,
    GOLDEN,
    GOLDEN_TOLERANCE,
    MANIFEST,
    BundleContents,
    _eval_summary,
    verify_bundle,
)
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.evaluation import read_evaluation
from stage1_pro.core.metrics.binomial import bound_text
from stage1_pro.core.models.licenses import LICENSES, derivative_notice
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.verification import demand_consistent, demand_reproduced, evidence_words
from stage1_pro.core.policies.words import PREVALENCE, exit_rule_words, margin_words, price_words, weight_words
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
        words = _readme(run, policy, evaluation, license, converted, expires, forward_batch)
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
        "eval": _eval_summary(evaluation),
    }


def _looks(policy: dict[str, Any]) -> str:
    """Say how often the positives of val_calib were looked at, and what that leaves."""
    count, nominal = policy["calib_use_count"], policy["fnr_confidence"]
    if count == 1:
        return (
            "The positives of this calibration split had been looked at once. Every further look weakens the promise."
        )
    left = policy.get("remaining_confidence")
    remains = (
        "" if left is None else f": {left:g} of {nominal:g} confidence remains" if left else ": no confidence remains"
    )
    return f"The positives of this calibration split had been looked at {count} times{remains}."


def _copy(source: Path, target: Path) -> None:
    artifacts.write_bytes(target, artifacts.read_bytes(source, "Finish the run first."))


def _warning(policy: dict[str, Any]) -> str:
    """A paragraph where the policy is of no use, else nothing."""
    if "useless" not in policy:
        return ""
    return f"""
**Certified, but of no use:** {policy["useless"]}.
It was exported because --even_if_useless was given.
"""


def _worth(policy: dict[str, Any], evaluation: dict[str, Any]) -> str:
    utility = evaluation["exits"].get("utility", {}).get("value")
    if utility is None:
        return ""
    return (
        f"{price_words(policy)} At these prices stage 1 is worth {utility:+.3f} deferrals a case on the test split "
        "(utility: coverage less the price of wrong exits)."
    )


def _group_contract(run: Run) -> str:
    """The line about groups, where they get one decision each."""
    views = run.config.group_views
    if views is None:
        return ""
    return f"""
6. A case is a group of images, and gets one decision: take {views.words} in their order, the mean of
   logit_1 - logit_0 over them (float64) as z, and decide the logits (-z/2, z/2) in float32. A group of which such an
   image cannot be read defers. Nothing is promised of a single image, or of another number of them."""


def _covered_contract(policy: dict[str, Any]) -> str:
    """The line about certificate groups, where each has a certificate of its own."""
    if "groups" not in policy:
        return ""
    column = policy["certificate_groups"]
    return f"""
6. Every case comes with its `{column}`. Its threshold is the one under `groups` of the policy file; a case whose
   `{column}` is not listed there, or not known, defers, also with an answer that would exit elsewhere. The threshold
   beside `groups` is the strictest of them, and decides nothing."""


def _other(policy: dict[str, Any]) -> str:
    return "other " if "groups" in policy else ""


def _certificates(policy: dict[str, Any]) -> str:
    """A table of the certificate groups, where each has a certificate of its own."""
    if "groups" not in policy:
        return ""
    rows = [
        f"| {name} | {group['misses']} of {group['exited_positives']} | {bound_text(group['fnr_upper_bound'])} | "
        f"{group['coverage']:.1%} |"
        for name, group in policy["groups"].items()
    ]
    rows += [f"| {name} | defers: {one['why']} | | |" for name, one in policy["groups_deferred"].items()]
    head = f"| {policy['certificate_groups']} | exited positives missed | bound | coverage |\n|---|---|---|---|\n"
    return "\n" + head + "\n".join(rows) + "\n\n"


def _on_conversion(converted: Converted | None) -> str:
    """A paragraph on whose scores were certified, where the model that ships computes others."""
    if converted is None:
        return ""
    return f"""
The certificate speaks of the scores that torch computes of the same weights. {converted.file.name} was made from them
afterwards: both decide all {converted.cases} cases of val_select alike, with logits within
{converted.largest_difference:.1g}.
"""


def _on_model(backend: str) -> str:
    """A step of the host's contract on the file of the model."""
    if backend == "torch":
        return ""
    return """
   model.onnx: input `images` (N, 3, S, S), preprocessed; outputs `logits` (N, C), with a gate `gate_logit` (N,)."""


def _on_shape(run: Run, forward_batch: int | None) -> str:
    """A sentence where the host takes other batches than the run's scores were made with."""
    scored_by = run.config.forward_shape
    if forward_batch in (None, scored_by):
        return ""
    return f"""
   The run was certified on scores of {scored_by or "other"} images at a time, and this bundle takes {forward_batch}: a
   logit may differ from the run's by 1e-4."""


def _weighed(policy: dict[str, Any]) -> str:
    """A line on the cases that known weights kept."""
    return f"{words}\n" if (words := weight_words(policy)) else ""


def _end(expires: dict[str, Any] | None) -> str:
    """A sentence on when the certificate ends."""
    if expires is None:
        return "The certificate names no end; it speaks of the calibration data, so certify anew from time to time."
    ends = [f"on {expires['date']}"] if expires["date"] else []
    after = expires["audited_positives"]
    ends += [f"after {after} audited exited positives, which a monitor counts"] if after else []
    return f"The certificate expires {' or '.join(ends)}. Decisions go on then, and each says so."


FIGURES = ("coverage", "right_exits", "fnr_on_exits", "fpr_on_exits", "accuracy_on_exits")
"""Of the test split, in the front matter of the model card."""


def _card(run: Run, evaluation: dict[str, Any], license: str) -> str:
    """Front matter of a model card, as model hubs read it."""
    exits = evaluation["exits"]
    found = [(name, exits[name]["value"]) for name in FIGURES if name in exits]
    task = {"type": "image-classification", "name": "Stage 1 of a cascade"}
    named = (
        {"license": license.lower()} if license.lower() in LICENSES else {"license": "other", "license_name": license}
    )
    card = {
        **named,
        "library_name": "stage1-pro",
        "pipeline_tag": "image-classification",
        "tags": ["selective-classification", "cascade", f"exit-policy-{run.policy_row.name}"],
        "model-index": [
            {
                "name": run.name,
                "results": [
                    {
                        "task": task,
                        "dataset": {"type": "val_test", "name": "test split of the run"},
                        "metrics": [{"type": name, "value": value} for name, value in found if value is not None],
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---"


AUDITED = " Whether it still holds in production, audits tell: 65_monitor.py."


def _contract(run: Run, on_host: str) -> str:
    """What a host has to do, by the kind of answers."""
    return (_contract_of_masks if run.config.task.has_masks else _contract_of_images)(run, on_host)


def _contract_of_images(run: Run, on_host: str) -> str:
    off = GOLDEN_TOLERANCE[run.config.scoring_precision]
    return f"""\
1. Load with `Stage1Predictor.load(folder)`. It checks the size and digest of every file first; the set of
   files is closed. Or, without Python: check the digests of bundle.json before anything is parsed.
2. Preprocess as bundle.json says, compute logits in {_arithmetic(run)}, decide in float64. Run the model on
   `forward_batch` images at a time, filled up with zeros: then a score depends on nothing else in the batch.{on_host}
3. The only threshold is in {run.policy_path.name}. config.json is provenance; no value of it decides anything.
4. Decide the images in golden.npz first (`50_export_bundle.py --verify FOLDER --golden` does): where a logit is off by
   more than {off:g}, the host decodes, resizes or computes otherwise, and nothing is promised.
5. A case that exits has its answer; every other case goes to stage 2, unreadable images among them."""


def _arithmetic(run: Run) -> str:
    if run.config.scoring_precision == "float32":
        return "float32"
    return "bfloat16 as far as the features, then in float32"


def _contract_of_masks(run: Run, _: str) -> str:
    return f"""\
1. Decide with `60_predict.py FOLDER IMAGES…`: it checks the size and digest of every file first, and writes
   decisions and masks. The set of files is closed.
2. Inputs are as mask_preprocessing of bundle.json says; scores are computed in float32, decided in float64.
3. The only threshold is in {run.policy_path.name}. config.json is provenance; no value of it decides anything.
4. A case that exits has its answer and its mask; every other case goes to stage 2, unreadable ones among them. The
   masks of deferred cases are promised nothing."""


def _readme(
    run: Run,
    policy: dict[str, Any],
    evaluation: dict[str, Any],
    license: str,
    converted: Converted | None,
    expires: dict[str, Any] | None,
    forward_batch: int | None,
) -> str:
    names, backend = run.splits.class_names, "onnx" if converted else run.config.scoring_backend
    on_host = _on_model(backend) + _on_shape(run, forward_batch)
    return f"""{_card(run, evaluation, license)}
# Stage 1 bundle: {run.name}

Answers {" / ".join(names)} where it is sure and defers the rest to stage 2. "{names[-1]}" is the class
that must not be missed. {exit_rule_words(policy, names)}
{_warning(policy)}
## What it promises
{policy["guarantee"]["words"]}
Method: {policy["guarantee"]["method"]} ({policy["guarantee"]["source"]}).
On the calibration split {evidence_words(policy)}.
{margin_words(policy)}
{_certificates(policy)}{_weighed(policy)}{_looks(policy)}
{_end(expires)}{"" if run.config.task.has_masks else AUDITED}
{_on_conversion(converted)}
{evaluation["promise"]["words"]}
{_worth(policy, evaluation)}

## What it does not promise
- Nothing about images of another kind than the calibration images: another camera, another season, other
  look-alikes. Calibrate anew when the source changes. {PREVALENCE}
- Nothing about a single case, about {_other(policy)}subgroups, or about the cases that are deferred.
- Nothing about false alarms: they are reported in eval.json, not bounded.

## Contract for the host
{_contract(run, on_host)}{_group_contract(run)}{_covered_contract(policy)}

## Licence of the weights
{derivative_notice(license)}
Intended use as stated for this run: {run.config.intended_use}.
"""
