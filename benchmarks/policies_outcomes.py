"""What the policies of a phase do on the test split, each as shipped."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.gate import calibrate_gate
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.records.scores import Scores

CONFIDENCE = 0.95
Calibrate = Callable[[Scores, Scores, Risk], dict[str, Any]]
"""val_select and val_calib → the fields of a certified policy."""


def _softmax(select: Scores, calib: Scores, risk: Risk) -> dict[str, Any]:
    found = calibrate_softmax(select, calib, risk)
    return {"exit_threshold": found.parameters[found.demand_certified()]["threshold"]}


def _gate(kind: str) -> Calibrate:
    return lambda select, calib, risk: calibrate_gate(select, calib, risk, kind).fields()


def _scrc(variant: str) -> Calibrate:
    return lambda select, calib, risk: calibrate_scrc(select, calib, risk, variant=variant).fields()


POLICIES: dict[int, dict[str, tuple[str, Calibrate]]] = {
    2: {"softmax": ("softmax", _softmax)},
    3: {
        "gate": ("gate", _gate("quantile")),
        "heads alone": ("softmax", _softmax),
        "gate, Platt": ("gate", _gate("platt")),
        "gate, isotonic": ("gate", _gate("isotonic")),
    },
    6: {
        "scrc": ("scrc", _scrc("SCRC-I")),
        "scrc, SCRC-T": ("scrc", _scrc("SCRC-T")),
        "gate of phase 6": ("gate", _gate("quantile")),
        "heads of phase 6": ("softmax", _softmax),
    },
}


def outcomes(scores: dict[str, Scores], phase: int, target: float) -> Iterator[dict[str, Any]]:
    """One line a policy: coverage, FNR, FPR and accuracy on exits on val_test; coverage 0 where nothing certified."""
    select, calib, test = (scores[name] for name in ("val_select", "val_calib", "val_test"))
    for column, (name, calibrate) in POLICIES[phase].items():
        line = {"column": column, "target": target, "coverage": 0.0}
        try:
            policy = policy_from_artifact(name, calibrate(select, calib, Risk(target, CONFIDENCE)))
        except (NothingCertified, UserError) as error:
            yield {**line, "refused": str(error).split("\n")[0][:120]}
            continue
        decided = policy.decide(test)
        counts = count_decisions(decided.exits, decided.predictions, test.labels)
        shares = {"fnr": counts.fnr, "fpr": counts.fpr, "accuracy": counts.accuracy}
        known = {key: float(value[0]) for key, value in shares.items() if not np.isnan(value[0])}
        yield {**line, "coverage": float(counts.coverage[0]), **known}
