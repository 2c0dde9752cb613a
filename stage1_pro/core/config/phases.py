"""What differs by phase and by policy, as data. Code looks it up here and never branches on a number."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """One row of the phase table."""

    number: int
    name: str
    heads: tuple[str, ...]
    loss: str
    policies: tuple[str, ...]
    monitor: str
    """Column of metrics.csv that chooses the checkpoint."""

    @property
    def gated(self) -> bool:
        """Return whether the model has a gate: then there are two classes, and gate_logit in the scores."""
        return "gate" in self.heads


@dataclass(frozen=True, slots=True)
class OptimizerRow:
    """One row of the table of optimizers. sharp: it looks for flat weights, by two passes a step."""

    name: str
    first_phase: int
    sharp: bool
    settings: tuple[str, ...]
    """Those that mean something to it and not to every optimizer."""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One row of the policy table: the file that holds the policy and the script that certifies it."""

    name: str
    label: str
    file: str
    script: str
    allowed: str
    """Words for the phases that support it, as messages say them."""

    @property
    def schema(self) -> str:
        return self.file.removesuffix(".json")


ANSWERS_MONITOR = "val_loss"
"""The monitor of a gated phase whose trained gate is replaced after training: the answers' own loss."""


MONITOR_OF_2026 = "val_augrc"
"""Of a run from before `checkpoint_by` was a setting, from phase 2 on: it chose the checkpoint."""


PHASES = {
    row.number: row
    for row in (
        Phase(1, "baseline", ("cls",), "cross_entropy", ("softmax",), "val_accuracy"),
        Phase(2, "selective", ("cls",), "cross_entropy", ("softmax",), "val_loss"),
        Phase(3, "gate", ("cls", "gate", "aux"), "selective", ("softmax", "gate"), "val_gate_augrc"),
        Phase(4, "adapt", ("cls", "gate", "aux"), "selective", ("softmax", "gate"), "val_gate_augrc"),
        Phase(5, "sharpness", ("cls", "gate", "aux"), "selective", ("softmax", "gate"), "val_gate_augrc"),
        Phase(6, "conformal", ("cls", "gate", "aux"), "conformal", ("softmax", "gate", "scrc"), "val_gate_augrc"),
    )
}


OPTIMIZERS = {
    row.name: row
    for row in (
        OptimizerRow("adamw", 1, False, ()),
        OptimizerRow("sam", 5, True, ("fsam_rho", "fsam_target")),
        OptimizerRow("fsam", 5, True, ("fsam_rho", "fsam_sigma", "fsam_lambda", "fsam_target")),
    )
}


POLICY_TABLE = {
    row.name: row
    for row in (
        PolicyRow("softmax", "Softmax", "thresholds.json", "25_threshold_sweep.py", "any phase"),
        PolicyRow("gate", "Gate", "gateparams.json", "33_calibrate_gate.py", "Phase 3+"),
        PolicyRow("scrc", "SCRC", "scrcparams.json", "36_calibrate_scrc.py", "Phase 6"),
    )
}


MODEL_FILES = {"torch": "model_best.pth", "onnx": "model.onnx"}
"""The file that a scoring_backend computes scores with, in a run and in its bundle."""


SETTINGS_FROM = {
    **dict.fromkeys(("gate_loss_weight", "aux_weight", "coverage_reward", "gate_refit", "head_ensemble"), 3),
    **dict.fromkeys(
        ("peft_type", "peft_r", "peft_alpha", "peft_blocks", "peft_targets", "peft_norms", "peft_lr", "layer_decay"), 4
    ),
    **dict.fromkeys(("fsam_rho", "fsam_sigma", "fsam_lambda", "fsam_target"), 5),
    **dict.fromkeys(("conformal_after", "positive_bank"), 6),
}
"""Settings that mean nothing before a phase, and that phase."""
