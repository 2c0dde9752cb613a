"""Two gloo processes make the steps of one process with twice the batch: ε comes from all ranks' gradients."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from sharp_cases import assert_close, assert_equal, plain_module, train_plainly, weights

WORLD, CASES_A_STEP = 2, 24


def trained(world: int, radius: float = 0.5) -> dict[str, torch.Tensor]:
    """Two batches a step, on this many ranks; the weights, and the optimizer's average."""
    settings = {"fsam_rho": radius, "batch_size": CASES_A_STEP // 2 // world, "grad_accum_steps": 2, "epochs": 2}
    module = plain_module("fsam", **settings)
    spread = {"strategy": "ddp", "devices": world} if world > 1 else {}
    trainer = train_plainly(module, **spread)
    assert trainer.global_step == 2 * 3
    return {**weights(module), "average": trainer.optimizers[0].average}


def one_rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    torch.save(trained(WORLD), Path(folder, f"{rank}.pt"))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(one_rank, (port, str(tmp_path)), nprocs=WORLD)  # pyright: ignore[reportPrivateImportUsage]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD))
    assert_equal(first, second)
    assert_close(first, trained(1), 1e-5)
    with pytest.raises(AssertionError):
        assert_close(first, trained(1, radius=0.0), 1e-3)
