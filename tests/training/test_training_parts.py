"""Rates, groups and the moving average, against plain loops."""

import math
import resource
import signal
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.devices import Moment
from stage1_pro.core.errors import Interrupted
from stage1_pro.core.models.stage1 import read_tensors, write_tensors
from stage1_pro.core.optim.schedule import parameter_groups, warmup_cosine
from stage1_pro.core.training.callbacks.checkpoints import RunCheckpoint
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage
from stage1_pro.core.training.trainer import demand_trainer


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (1, 1), (0, 1)])
def test_rates_rise_in_a_line_and_fall_as_a_cosine(warmup: int, total: int) -> None:
    factor = warmup_cosine(warmup, total)
    for step in range(total):
        falling = (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
        expected = (step + 1) / warmup if step < warmup else falling
        assert factor(step) == pytest.approx(expected, abs=1e-15)
    assert factor(max(0, warmup - 1)) == 1
    assert 0 <= factor(total + 5) <= 1
    if warmup < total:
        assert factor(total) == pytest.approx(0, abs=1e-15)


def test_the_optimizer_sees_these_rates() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(2, 6))
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    falling = [1 + math.cos(math.pi * step / 4) for step in range(4)]
    assert rates == pytest.approx([1.0, 2.0, *falling])


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.cls = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Parts()
    groups = {group["name"]: group for group in parameter_groups(model, 1e-3, 1e-5, 0.1)}
    assert {name: (g["lr"], g["weight_decay"], len(g["params"])) for name, g in groups.items()} == {
        "backbone": (1e-5, 0.1, 1),
        "backbone_no_decay": (1e-5, 0.0, 3),
        "head": (1e-3, 0.1, 2),
        "head_no_decay": (1e-3, 0.0, 3),
    }
    held = [parameter for group in groups.values() for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len({id(p) for p in held})
    model.backbone.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, 1e-3, 1e-5, 0.1)] == ["head", "head_no_decay"]


class Line(pl.LightningModule):
    """Two trainable tensors and a frozen one; keeps the weights after every optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fixed = nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False)
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.named_parameters() if tensor.requires_grad}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), lr=0.5)

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        super().optimizer_step(*args, **kwargs)
        self.steps.append(self.weights())

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.fixed(self.layer(batch)).square().mean()

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.validated.append(self.weights())


Weights = dict[str, torch.Tensor]


def averaged(start: Weights, steps: list[Weights], decay: float) -> Weights:
    average = {name: tensor.double() for name, tensor in start.items()}
    for count, weights in enumerate(steps, start=1):
        keep = min(decay, (1 + count) / (10 + count))
        average = {name: keep * average[name] + (1 - keep) * weights[name].double() for name in average}
    return average


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # a hint of Lightning's
@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning uses what torch has deprecated
@pytest.mark.parametrize("decay", [0.9999, 0.3, 0.0])
def test_the_average_is_that_of_a_plain_loop_and_validation_uses_it(decay: float) -> None:
    module, average = Line(), ExponentialMovingAverage(decay)
    start = module.weights()
    torch.manual_seed(1)
    train, validation = DataLoader(torch.randn(22, 3), batch_size=2), DataLoader(torch.zeros(2, 3), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,  # eleven batches: five steps of two and one of one
        callbacks=[average],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, train, validation)
    assert len(module.steps) == 18
    assert_equal(average.average, averaged(start, module.steps, decay))
    for epoch, seen in enumerate(module.validated, start=1):
        assert_equal(seen, averaged(start, module.steps[: 6 * epoch], decay))
    assert_equal(module.weights(), module.steps[-1])  # the raw weights are back


def test_a_resumed_average_goes_on_where_it_stopped() -> None:
    torch.manual_seed(2)
    walk = [{"layer.weight": torch.randn(2, 3), "layer.bias": torch.randn(2)} for _ in range(8)]

    def follow(average: ExponentialMovingAverage, module: Line, steps: range) -> None:
        average.on_fit_start(SimpleNamespace(global_step=steps.start), module)
        for step in steps:
            module.load_state_dict(walk[step], strict=False)
            average.on_train_batch_end(SimpleNamespace(global_step=step + 1), module, None, None, step)

    whole, first, second = (ExponentialMovingAverage(0.99) for _ in range(3))
    follow(whole, Line(), range(8))
    module = Line()
    follow(first, module, range(5))
    second.load_state_dict(first.state_dict())
    follow(second, module, range(5, 8))
    assert whole.step == second.step == 8
    assert all(torch.equal(whole.average[name], tensor) for name, tensor in second.average.items())


class Judged(Line):
    """Logs these figures, one an epoch."""

    def __init__(self, *figures: float):
        super().__init__()
        self.figures = figures

    def on_validation_epoch_end(self) -> None:
        self.log("figure", self.figures[self.current_epoch])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("at_epoch_end", [True, False])
@pytest.mark.parametrize(
    ("mode", "figures", "best"),
    [
        ("min", [math.nan], None),
        ("min", [math.nan, 0.3, math.inf, 0.2, math.nan], 3),
        ("min", [0.2, 0.0, 0.0, 0.1, 0.0, 0.3], 4),
        ("max", [0.9, 1.0, 1.0, 0.9], 2),
    ],
)
def test_the_latest_of_the_best_finite_epochs_is_kept(
    mode: str, figures: list[float], best: int | None, at_epoch_end: bool, tmp_path: Path
) -> None:
    kept = RunCheckpoint(tmp_path, "best", monitor="figure", mode=mode, save_on_train_epoch_end=at_epoch_end)
    trainer = pl.Trainer(
        max_epochs=len(figures),
        callbacks=[kept],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Judged(*figures), DataLoader(torch.randn(4, 3)), DataLoader(torch.zeros(2, 3)))
    assert [path.name for path in tmp_path.iterdir()] == ([] if best is None else ["best.ckpt"])
    if best is not None:
        assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best


def test_a_wait_is_told_from_a_step():
    device = torch.device("cpu")
    ended = Moment(device)
    time.sleep(0.05)
    assert 0.05 <= Moment(device).seconds_since(ended) < 1


@pytest.mark.gpu
def test_a_process_that_waits_while_the_gpu_computes_has_not_waited_for_data():
    device = torch.device("cuda")
    started = Moment(device)
    torch.cuda._sleep(1_000_000_000)
    ended = Moment(device)
    time.sleep(0.05)
    came = Moment(device)
    assert ended.seconds_since(started) > 0.1
    assert came.seconds_since(ended) < 0.005


def test_a_deterministic_training_asks_torch_for_repeatable_kernels(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # which Lightning sets
    demand_trainer(Stage1ProConfig(deterministic=True))
    try:
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    demand_trainer(Stage1ProConfig())
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_checkpoint_that_does_not_fit_keeps_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    write_tensors(path, {"tensor": torch.zeros(8)})
    small, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="too large") as refused:
            write_tensors(path, {"tensor": torch.ones(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, hard))
    assert refused.value.filename == str(path)
    assert read_tensors(path)["tensor"].tolist() == [0] * 8
    assert list(tmp_path.iterdir()) == [path]


class Ringing:
    """Calls for the end of the process while it is written."""

    def __reduce__(self):
        signal.raise_signal(signal.SIGTERM)
        return OrderedDict, ()


def test_a_signal_while_a_checkpoint_is_written_is_heard_when_it_is_whole(tmp_path):
    def interrupt(number, frame):
        raise Interrupted(143)

    path, before = tmp_path / "last.ckpt", signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(Interrupted):
            write_tensors(path, {"rings": Ringing(), "tensor": torch.ones(8)})
        assert signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_tensors(path)["tensor"].tolist() == [1] * 8
    assert list(tmp_path.iterdir()) == [path]
