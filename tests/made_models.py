"""Small models with random weights, the same for the same seed."""

import torch
from torch import nn

from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.stage1 import Stage1Model


def gated_model(members: int | None = 3, seed: int = 0) -> Stage1Model:
    """A model with heads side by side, whose gates are not at zero; one class head for members None."""
    torch.manual_seed(seed)
    model = Stage1Model.new(*load_backbone("random:test_efficientnet", 32), ("no", "yes"), 0.3, members)
    if model.heads is not None:
        nn.init.normal_(model.heads.gate.weight, std=0.1)
    return model.eval()
