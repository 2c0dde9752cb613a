"""What every trial imports, imported once: each process of a trial is a copy of one that has done so already."""

from stage1_pro.core import evaluation, scoring, trainer, training
from stage1_pro.core.report import figures, page

__all__ = ["evaluation", "figures", "page", "scoring", "trainer", "training"]
