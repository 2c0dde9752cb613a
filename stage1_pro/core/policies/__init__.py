"""Exit policies: how each is certified, stored and applied. numpy only, so that any host can decide."""

from stage1_pro.core.policies.load import load_exit_policy

__all__ = ["load_exit_policy"]
