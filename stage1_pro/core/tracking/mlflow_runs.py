"""A run's own MLflow run: one for its training, its test figures and its bundle. Needs the extra `mlflow`."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stage1_pro import __version__
from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.config.rules import NO_STORE, no_store
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run
from stage1_pro.core.tracking.careful import Careful, be_brief, reason

EXPERIMENT = "stage1-pro"
SQLITE = "sqlite:///"
CODE = Path(__file__).with_name("pyfunc_model.py")


def mlflow_logger(run: Run, uri: str) -> Any:
    """Lightning's logger, on the MLflow run that this run has already, or on a new one that it has from now on."""
    with _quiet():
        return _logger(run, uri, run.name)


def _logger(run: Run | None, uri: str, name: str) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    uri = _absolute(uri)
    known = None if run is None or _elsewhere(run, uri) else _known(run)
    logger = MLFlowLogger(
        experiment_name=EXPERIMENT,
        run_name=name,
        tracking_uri=uri,
        run_id=known,
        artifact_location=_artifact_location(uri),
        tags={"stage1_pro.version": __version__, "stage1_pro.run": name},
    )
    found = str(logger.run_id)
    if run is not None and known is None:
        _remember(run, uri, found)
    return logger


def track_evaluation(run: Run, evaluation: dict[str, Any]) -> None:
    """Add test figures, report and figures to the run's MLflow run, where it has one. A server away is a warning."""
    known = _known(run)
    if known is None:
        return
    uri = _record(run)["uri"]
    figures = {name: exits["value"] for name, exits in evaluation["exits"].items() if _is_figure(exits)}

    def send() -> None:
        demand_extra("mlflow")
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        client = MlflowClient(tracking_uri=uri)
        for name, value in figures.items():
            client.log_metric(known, f"test_{name}", value)
        for path in (run.report_path, run.eval_path, run.policy_path):
            client.log_artifact(known, str(path))
        client.log_artifacts(known, str(run.figures_path), "figures")

    with _quiet():
        Careful(f"MLflow at {uri}").call(send)


def store_of(run: Run | None, name: str, uri: str | None) -> str:
    """Where `name` is registered: uri, else the store that the run was tracked with.

    Raises UserError where neither names one, for a name that MLflow does not take, and without the extra.
    """
    demand_extra("mlflow")
    if not name.strip() or set(name) & set("/:"):
        raise UserError(f"--register {name}: the name of a model holds neither '/' nor ':', and is not blank.")
    uri = uri or (None if run is None or _known(run) is None else _record(run)["uri"])
    if uri is None:
        raise UserError(f"--register {name}: {NO_STORE}, with --tracking_uri.")
    if no_store(uri):
        raise UserError(f"--register {name} --tracking_uri {uri}: {NO_STORE}.")
    return uri


def demand_single_images(where: Path, masks: bool, groups: bool) -> None:
    """Raise UserError for what decides no single images: a registered model gets a table of them, and nothing else."""
    if masks or groups:
        what = "answers with masks" if masks else "decides groups of images"
        raise UserError(
            f"--register: {where} {what}, and a registered model decides single images. Leave --register out, and "
            f"decide with 60_predict.py{'' if masks else ' --groups'}."
        )


def register(contents: BundleContents, run: Run | None, name: str, uri: str) -> str:
    """Log a bundle as a pyfunc model, register it under `name`, and return its version.

    run: whose MLflow run gets it, where that is in this store; else, and for None, a new one; uri: as of `store_of`.
    The model is code and files, no pickle. Raises UserError where the server does not take it.
    """
    be_brief()
    try:
        with _quiet():
            return _registered(contents, run, name, uri)
    except Exception as error:  # of the client, its database or its network
        raise UserError(
            f"{uri} did not register {contents.path} ({reason(error)}). The bundle is whole; with the server at hand "
            f"run 50_export_bundle.py --verify {contents.path} --register {name} --tracking_uri {uri}"
        ) from None


def _registered(contents: BundleContents, run: Run | None, name: str, uri: str) -> str:
    import mlflow  # pyright: ignore[reportMissingImports]
    from mlflow.models import ModelSignature  # pyright: ignore[reportMissingImports]
    from mlflow.types import ColSpec, Schema  # pyright: ignore[reportMissingImports]

    there = None if run is None or _elsewhere(run, uri) else run  # its own MLflow run stays the one that is known
    logger = _logger(there, uri, contents.manifest["provenance"].get("run_id", contents.path.name))
    columns: list[Any] = [ColSpec("string", "path", required=False), ColSpec("binary", "content", required=False)]
    if contents.manifest.get("certificate_groups"):  # MLflow drops columns that the signature does not name
        columns.append(ColSpec("string", "certificate_group"))
    extra = "[onnx]" if contents.manifest.get("scoring_backend") == "onnx" else ""
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=logger.run_id):
        model = mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(CODE),
            artifacts={"bundle": str(contents.path.resolve())},
            registered_model_name=name,
            pip_requirements=[f"stage1-pro{extra}=={__version__}"],
            signature=ModelSignature(Schema(columns)),
        )
    return str(model.registered_model_version)


def _is_figure(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("value"), int | float)


def _absolute(uri: str) -> str:
    """The same store from any folder: later commands need not run where the training ran.

    >>> _absolute("http://host:5000"), _absolute("sqlite:////srv/mlflow.db")
    ('http://host:5000', 'sqlite:////srv/mlflow.db')
    """
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


def _artifact_location(uri: str) -> str | None:
    """Files of an SQLite store lie beside it; a server has its own place."""
    return (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None


def _known(run: Run) -> str | None:
    return _record(run)["run_id"] if run.tracking_path.exists() else None


def _elsewhere(run: Run, uri: str) -> bool:
    """Whether the run has an MLflow run in another store."""
    return _known(run) is not None and _absolute(_record(run)["uri"]) != _absolute(uri)


def _record(run: Run) -> dict[str, Any]:
    return artifacts.read_json(run.tracking_path, "tracking")


def _remember(run: Run, uri: str, run_id: str) -> None:
    record = {"schema_version": artifacts.SCHEMA_VERSION, "logger": "mlflow", "uri": uri, "run_id": run_id}
    artifacts.write_json(run.tracking_path, record, "tracking")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's remarks on databases, type hints and examples."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
