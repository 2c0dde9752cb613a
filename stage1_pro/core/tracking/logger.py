"""Lightning's loggers, as a config asks for them."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from stage1_pro.core.artifacts import digest_json
from stage1_pro.core.config.load import to_dict
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.records.run import Run
from stage1_pro.core.tracking.careful import Careful, quietly
from stage1_pro.core.tracking.mlflow_runs import EXPERIMENT, mlflow_logger


class CarefulLogger(Logger):
    """Another logger behind a server that may be away; it is made when it is first needed, on the first rank."""

    def __init__(self, run: Run, server: str, make: Callable[[], Logger]):
        super().__init__()
        self._run, self._make, self._made = run, make, None
        self._careful = Careful(server)

    @property
    def name(self) -> str:
        return EXPERIMENT

    @property
    def version(self) -> str:
        return self._run.name

    @property
    def save_dir(self) -> str:
        return str(self._run.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._tell(lambda logger: logger.log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self._tell(lambda logger: logger.log_hyperparams(params))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._made is not None:
            made = self._made
            quietly(lambda: made.finalize(status))

    def _tell(self, words: Callable[[Logger], object]) -> None:
        def job() -> None:
            self._made = self._made or self._make()
            words(self._made)

        self._careful.call(job)


def tensorboard(run: Run, _: Stage1ProConfig) -> Logger:
    return TensorBoardLogger(str(run.path), name="tensorboard", version="")


def mlflow(run: Run, config: Stage1ProConfig) -> Logger:
    uri = str(config.tracking_uri)
    return CarefulLogger(run, f"MLflow at {uri}", lambda: mlflow_logger(run, uri))


def wandb(run: Run, config: Stage1ProConfig) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    id = digest_json([run.name, run.splits.digest, config.seed])[:16]  # a resumed training goes on under it
    options: dict[str, Any] = {"project": EXPERIMENT, "name": run.name, "save_dir": str(run.path), "id": id}
    return CarefulLogger(run, "Weights & Biases", lambda: WandbLogger(**options, resume="allow"))


LOGGERS: Mapping[str, Callable[[Run, Stage1ProConfig], Logger]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}


def logger_of(run: Run, config: Stage1ProConfig) -> Logger:
    """The logger of a training, told its settings."""
    logger = LOGGERS[config.logger](run, config)
    if config.logger != "tensorboard":
        logger.log_hyperparams(to_dict(config))
    return logger
