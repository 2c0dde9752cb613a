"""README.md of a bundle: a model card, the promise in words, what it does not say, and what a host has to do.

The text is in README.md.jinja beside this file; here are the sentences that depend on the run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stage1_pro.core.bundle.contents import GOLDEN_TOLERANCE
from stage1_pro.core.metrics.binomial import bound_text
from stage1_pro.core.models.licenses import LICENSES, derivative_notice
from stage1_pro.core.policies.evidence import evidence_words
from stage1_pro.core.policies.words import PREVALENCE, exit_rule_words, margin_words, price_words, weight_words
from stage1_pro.core.records.run import Run

if TYPE_CHECKING:
    from stage1_pro.core.bundle.export import Converted

TEMPLATE = "README.md.jinja"
ARITHMETIC = {"float32": "float32", "bf16": "bfloat16 as far as the features, then in float32"}
"""By `scoring_precision`: what a host computes logits in."""
FIGURES = ("coverage", "right_exits", "fnr_on_exits", "fpr_on_exits", "accuracy_on_exits")
"""Of the test split, in the front matter of the model card."""


def bundle_readme(
    run: Run,
    policy: dict[str, Any],
    evaluation: dict[str, Any],
    license: str,
    converted: "Converted | None" = None,
    expires: dict[str, Any] | None = None,
    forward_batch: int | None = None,
) -> str:
    """Return the text of README.md.

    policy, evaluation: content of the run's policy file and eval.json; license: of the backbone's weights; converted,
    expires, forward_batch: as `export_bundle` takes them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    names = run.splits.class_names
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["bound"] = bound_text
    return environment.get_template(TEMPLATE).render(
        run=run,
        policy=policy,
        evaluation=evaluation,
        converted=converted,
        card=_card(run, evaluation, license),
        names=names,
        exit_rule=exit_rule_words(policy, names),
        evidence=evidence_words(policy),
        margin=margin_words(policy),
        weights=weight_words(policy),
        looks=_looks(policy),
        end=_end(expires),
        worth=_worth(policy, evaluation),
        prevalence=PREVALENCE,
        masks=run.config.task.has_masks,
        views=run.config.group_views,
        arithmetic=ARITHMETIC[run.config.scoring_precision],
        backend="onnx" if converted else run.config.scoring_backend,
        scored_by=run.config.forward_shape,
        forward_batch=forward_batch,
        tolerance=GOLDEN_TOLERANCE[run.config.scoring_precision],
        licence=derivative_notice(license),
    )


def _card(run: Run, evaluation: dict[str, Any], license: str) -> str:
    """Front matter of a model card, as model hubs read it."""
    exits = evaluation["exits"]
    found = [(name, exits[name]["value"]) for name in FIGURES if name in exits]
    task = {"type": run.config.task.known_as, "name": "Stage 1 of a cascade"}
    named = (
        {"license": license.lower()} if license.lower() in LICENSES else {"license": "other", "license_name": license}
    )
    card = {
        **named,
        "library_name": "stage1-pro",
        "pipeline_tag": run.config.task.known_as,
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


def _end(expires: dict[str, Any] | None) -> str:
    """Say when the certificate ends."""
    if expires is None:
        return "The certificate names no end; it speaks of the calibration data, so certify anew from time to time."
    ends = [f"on {expires['date']}"] if expires["date"] else []
    after = expires["audited_positives"]
    ends += [f"after {after} audited exited positives, which a monitor counts"] if after else []
    return f"The certificate expires {' or '.join(ends)}. Decisions go on then, and each says so."


def _worth(policy: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Say what stage 1 is worth at the stated prices; nothing where the test split cannot tell."""
    utility = evaluation["exits"].get("utility", {}).get("value")
    if utility is None:
        return ""
    return (
        f"{price_words(policy)} At these prices stage 1 is worth {utility:+.3f} deferrals a case on the test split "
        "(utility: coverage less the price of wrong exits)."
    )
