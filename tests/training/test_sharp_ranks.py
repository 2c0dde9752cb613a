"""Two gloo processes make the steps of one process with twice the batch: ε comes from all ranks' gradients."""

import pytest
import torch
from sharp_cases import assert_close, assert_equal, plain_module, train_plainly, weights
from two_ranks import WORLD, on_two_ranks

CASES_A_STEP = 24


def trained(world: int, radius: float = 0.5) -> dict[str, torch.Tensor]:
    """Two batches a step, on this many ranks; the weights, and the optimizer's average."""
    settings = {"fsam_rho": radius, "batch_size": CASES_A_STEP // 2 // world, "grad_accum_steps": 2, "epochs": 2}
    module = plain_module("fsam", **settings)
    spread = {"strategy": "ddp", "devices": world} if world > 1 else {}
    trainer = train_plainly(module, **spread)
    assert trainer.global_step == 2 * 3
    return {**weights(module), "average": trainer.optimizers[0].average}


def one_rank(rank: int) -> dict[str, torch.Tensor]:
    return trained(WORLD)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_two_processes_make_the_steps_of_one() -> None:
    first, second = on_two_ranks(one_rank)
    assert_equal(first, second)
    assert_close(first, trained(1), 1e-5)
    with pytest.raises(AssertionError):
        assert_close(first, trained(1, radius=0.0), 1e-3)
