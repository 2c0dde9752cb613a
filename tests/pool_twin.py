"""The pool scored by a plain loop: what Lightning's validation loop must find too."""

from typing import Any

import torch

from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.devices import gather_on_first
from stage1_pro.core.incremental.acquisition import CaseMetrics
from stage1_pro.core.training.modules.base import Stage1Module


@torch.no_grad()
def score_plainly(_: Any, module: Stage1Module, data: Stage1DataModule) -> CaseMetrics | None:
    """Takes the place of `score_pool` within a fit."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    parts = [module.score(batch) for batch in data.pool_dataloader()]
    for part, mode in modes.items():
        part.training = mode
    found = gather_on_first(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
    if found is None:
        return None
    frame = data.frames["train"]
    columns = (frame[name].to_numpy() for name in ("case_id", "content"))
    return CaseMetrics(*columns, *(values.numpy() for values in found[1:]))
