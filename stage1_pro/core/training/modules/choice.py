"""Which Lightning module trains a config."""

from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.training.modules.base import Stage1Module
from stage1_pro.core.training.modules.conformal import ConformalModule
from stage1_pro.core.training.modules.selective import SelectiveModule

MODULES: dict[str, type[Stage1Module]] = {
    "cross_entropy": Stage1Module,
    "selective": SelectiveModule,
    "conformal": ConformalModule,
}
"""By the phase's loss."""


def module_class(config: Stage1ProConfig) -> type[Stage1Module]:
    return MODULES[PHASES[config.phase].loss]
