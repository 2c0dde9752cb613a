"""From a policy file to a policy. A new policy is one module and one row here."""

from pathlib import Path
from typing import Any

from stage1_pro.core.errors import UserError
from stage1_pro.core.policies.base import ExitPolicy
from stage1_pro.core.policies.gate import GateExitPolicy
from stage1_pro.core.policies.scrc import SCRCExitPolicy
from stage1_pro.core.policies.softmax import SoftmaxExitPolicy

POLICIES = {"softmax": SoftmaxExitPolicy, "gate": GateExitPolicy, "scrc": SCRCExitPolicy}


def policy_from_artifact(name: str, data: dict[str, Any]) -> ExitPolicy:
    """The policy that a validated policy file describes."""
    if name not in POLICIES:
        raise UserError(f"exit policy '{name}' is not available; available: {', '.join(POLICIES)}.")
    return POLICIES[name].from_artifact(data)


def load_exit_policy(bundle_dir: str | Path) -> ExitPolicy:
    """The one policy of a bundle, after every file of it has been verified.

    Raises UserError where the bundle is not whole, not closed, or not consistent.
    """
    from stage1_pro.core.bundle import verify_bundle

    return verify_bundle(Path(bundle_dir)).policy
