"""One pass over the whole training split: what the present weights say of every case."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from stage1_pro.core.data.batches import Batch
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.devices import gather_on_first
from stage1_pro.core.incremental.acquisition import CaseMetrics
from stage1_pro.core.training.modules.base import Stage1Module


def score_pool(module: Stage1Module, data: Stage1DataModule, to_device: Callable[[Batch], Batch]) -> CaseMetrics | None:
    """Score with the module's present weights every case of the training split, in float32, in fixed blocks.

    Every rank scores its blocks; the first one has them all, the others have None.
    """
    # one pass over all of the split, not over the candidates alone: distances are measured from the cases in training,
    # and those among them that still fail are the suspects
    with _evaluating(module):
        parts = [module.score(to_device(batch)) for batch in data.pool_dataloader()]
    found = gather_on_first(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
    if found is None:
        return None
    _, dice, entropy, embedding = found
    frame = data.frames["train"]
    return CaseMetrics(
        case_id=frame["case_id"].to_numpy(),
        content=frame["content"].to_numpy(),
        dice=dice.numpy(),
        entropy=entropy.numpy(),
        embedding=embedding.numpy(),
    )


@contextmanager
def _evaluating(module: Stage1Module) -> Iterator[None]:
    """Eval mode, and full float32 on a GPU."""
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    # TF32 keeps 10 bits: near ties would be decided by the device
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    module.eval()
    try:
        yield
    finally:
        module.train()
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
