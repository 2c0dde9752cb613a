"""Extras of the package: what they install, and which settings need them."""

import importlib.util

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError

EXTRAS = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
    "sign": ("model_signing", "OpenSSL"),
    "seg": ("monai", "nibabel"),  # the third one of it only where a backbone becomes an encoder
    "ray": ("ray",),
    "serve": ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart"),
}
"""Extra → modules that must be there."""


def demand_extra(name: str) -> None:
    """Raise UserError where a module of the extra is not installed."""
    missing = [module for module in EXTRAS[name] if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'stage1-pro[{name}]'")


def demand_extras_of(config: Stage1ProConfig) -> None:
    """Raise UserError where a setting needs an extra that is not installed: at once, and not after the last epoch."""
    for name in (config.scoring_backend, config.logger, "seg" if config.task.has_masks else ""):
        if name in EXTRAS:
            demand_extra(name)
