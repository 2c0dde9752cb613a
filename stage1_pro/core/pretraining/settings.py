"""The settings of ExPLoRA: what it trains, how long, and how it is watched."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from stage1_pro.core import schemas
from stage1_pro.core.errors import raise_problems


@dataclass(frozen=True)
class Pretraining:
    """How a backbone is adapted to unlabelled images."""

    objective: Literal["dino", "mae"] = "dino"
    """What is learnt: dino (self-distillation, for weights of the DINO family) or mae (masked reconstruction)."""
    steps: int = 2000
    """Optimizer steps, a multiple of probe_every."""
    probe_every: int = 200
    """Steps between two probes, 1 or more; a checkpoint is written at each."""
    lr: float = 2e-4
    """Peak learning rate, above 0; a tenth of the steps warms up to it, a cosine follows."""
    lora_rank: int = 64
    """Rank of the updates of query and value, 1 up to the backbone's width."""
    full_blocks: int = 1
    """Last blocks that are trained whole, 1 or more."""
    colour: float = 1.0
    """Strength of the colour changes in dino's views, 0 to 1; 0 where colour tells the classes apart."""
    local_crops: int = 6
    """Small crops of each image for dino, beside the two large ones, 0 to 16."""
    ema_momentum: float = 0.992
    """Momentum of dino's teacher at the first step, 0 to below 1; it rises to 1."""
    prototypes: int = 4096
    """Outputs of dino's projection head, 2 or more."""
    probe_cases: int = 4000
    """Labelled train cases that the probe looks at, 40 or more; fewer where there are fewer."""

    def values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(Pretraining)}

    def demand_valid(self) -> None:
        """Raise one UserError with every problem of the settings."""
        schema = schemas.schema("pretraining")["properties"]["settings"]["properties"]
        values = self.values()
        problems = [
            problem.replace("$.settings.", "--")
            for problem in schemas.schema_problems({"settings": values}, "pretraining")
            if problem.startswith("$.settings.") and problem.split()[0].removeprefix("$.settings.") in schema
        ]
        if not problems and self.steps % self.probe_every:
            over = self.steps % self.probe_every
            problems = [
                f"--steps is {self.steps}; allowed a multiple of --probe_every ({self.probe_every}), such as "
                f"{self.steps - over + self.probe_every}"
            ]
        raise_problems("settings of ExPLoRA", problems)

    @property
    def probes(self) -> int:
        """Probes after the one at step 0."""
        return self.steps // self.probe_every
