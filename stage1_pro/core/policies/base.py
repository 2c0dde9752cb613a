"""What every exit policy takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray


class Outputs(Protocol):
    """Raw model outputs: logits (N, C) float32, and gate_logit (N,) float32 or None."""

    @property
    def logits(self) -> np.ndarray: ...
    @property
    def gate_logit(self) -> np.ndarray | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class ExitDecisions:
    """exits: (N,) bool; predictions: (N,) int answers; scores: (N,) float64, what the threshold is
    compared with; probabilities: (N,) float64 of the answers, calibrated where the policy does so;
    prediction_sets: (N, C) bool for policies that have them; covered: (N,) bool, cases of groups that have a
    certificate, None for a policy with one certificate for all cases."""

    exits: BoolArray
    predictions: IntArray
    scores: FloatArray
    probabilities: FloatArray
    prediction_sets: BoolArray | None = None
    covered: BoolArray | None = None


class ExitPolicy(Protocol):
    """A certified rule: raw outputs in, decisions out. The same outputs always give the same decisions."""

    def decide(self, outputs: Outputs, groups: Sequence[str] | np.ndarray | None = None) -> ExitDecisions:
        """groups: (N,) str, the certificate group of each case; of a policy with a certificate for each group."""
        ...
