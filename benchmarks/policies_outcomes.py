"""What the policies of a phase do on the test split, each as shipped: answers placed, then certified and applied."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.exits import ExitCounts, count_decisions
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.dirichlet import class_margin
from stage1_pro.core.policies.gate import calibrate_gate
from stage1_pro.core.policies.independence import counted_positives, independence
from stage1_pro.core.policies.placement import Prices, place_answers
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.policies.softmax import answers, calibrate_softmax, softmax_fields
from stage1_pro.core.records.scores import Scores

CONFIDENCE, SEED = 0.95, 42
PRICES = Prices()
Calibrate = Callable[[Scores, Scores, Risk, str], dict[str, Any]]
"""val_select, val_calib, the risk and the exit rule → the fields of a certified policy."""


def _softmax(select: Scores, calib: Scores, risk: Risk, rule: str) -> dict[str, Any]:
    return softmax_fields(calibrate_softmax(select, calib, risk, rule))


def _gate(kind: str) -> Calibrate:
    return lambda select, calib, risk, rule: calibrate_gate(select, calib, risk, kind, rule).fields()


def _scrc(variant: str) -> Calibrate:
    return lambda select, calib, risk, rule: calibrate_scrc(
        select, calib, risk, variant=variant, exit_rule=rule
    ).fields()


ONE_SIDED, SYMMETRIC = "one_sided", "symmetric"
POLICIES: dict[int, dict[str, tuple[str, Calibrate, str]]] = {
    2: {
        "softmax": ("softmax", _softmax, ONE_SIDED),
        "softmax, symmetric": ("softmax", _softmax, SYMMETRIC),
    },
    3: {
        "gate": ("gate", _gate("quantile"), ONE_SIDED),
        "heads alone": ("softmax", _softmax, ONE_SIDED),
        "gate, Platt": ("gate", _gate("platt"), ONE_SIDED),
        "gate, isotonic": ("gate", _gate("isotonic"), ONE_SIDED),
        "gate, symmetric": ("gate", _gate("quantile"), SYMMETRIC),
    },
    6: {
        "scrc": ("scrc", _scrc("SCRC-I"), ONE_SIDED),
        "scrc, SCRC-T": ("scrc", _scrc("SCRC-T"), SYMMETRIC),
        "scrc, symmetric": ("scrc", _scrc("SCRC-I"), SYMMETRIC),
        "gate of phase 6": ("gate", _gate("quantile"), ONE_SIDED),
        "heads of phase 6": ("softmax", _softmax, ONE_SIDED),
    },
}
"""Phase → column → policy, how it is calibrated, and its exit rule."""


def outcomes(scores: dict[str, Scores], phase: int, target: float) -> Iterator[dict[str, Any]]:
    """Yield one line a policy: its figures on val_test, all 0 where nothing is certified and every case defers."""
    risk = Risk(target, CONFIDENCE)
    of_rule = {ONE_SIDED: placed(scores, risk), SYMMETRIC: scores}
    for column, (name, calibrate, rule) in POLICIES[phase].items():
        select, calib, test = (of_rule[rule][split] for split in ("val_select", "val_calib", "val_test"))
        line = {"column": column, "target": target, "coverage": 0.0, "right_exits": 0.0, "utility": 0.0}
        try:
            policy = policy_from_artifact(name, calibrate(select, calib, risk, rule))
        except (NothingCertified, UserError) as error:
            yield {**line, "refused": str(error).split("\n")[0][:120]}
            continue
        decided = policy.decide(test)
        yield {**line, **_figures(count_decisions(decided.exits, decided.predictions, test.labels))}


def placed(scores: dict[str, Scores], risk: Risk) -> dict[str, Scores]:
    """Return the splits with answers placed on val_select for this risk, as the end of training places them."""
    select = scores["val_select"]
    positives = counted_positives(scores["val_calib"])
    z, independent = class_margin(select.logits), independence(select)[0]
    shift = place_answers(z, select.labels, independent, positives, risk, PRICES, SEED).shift
    return {name: _shifted(split, shift) for name, split in scores.items()}


def _shifted(split: Scores, shift: float) -> Scores:
    """The gate is the log-odds that the answer is right: where the answer turns, so does its sign."""
    logits = (split.logits + np.array([-shift / 2, shift / 2])).astype(np.float32)
    gate = split.gate_logit
    if gate is not None:
        gate = np.where(answers(logits) == answers(split.logits), gate, -gate)
    return replace(split, logits=logits, gate_logit=gate, answer_shift=shift)


def _figures(counts: ExitCounts) -> dict[str, float]:
    """JSON has no NaN: a share of nothing is left out."""
    cost = PRICES.false_alarm * counts.false_alarms + PRICES.miss * counts.misses
    figures = {
        "coverage": counts.coverage,
        "right_exits": counts.right_exits,
        "utility": counts.coverage - cost / counts.cases,
        "fnr": counts.fnr,
        "fpr": counts.fpr,
        "accuracy": counts.accuracy,
    }
    return {name: float(value[0]) for name, value in figures.items() if not np.isnan(value[0])}
