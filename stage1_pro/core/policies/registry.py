"""From a policy file to a policy. A new policy is one module and one row here."""

from typing import Any

from stage1_pro.core.errors import UserError
from stage1_pro.core.policies.base import ExitPolicy
from stage1_pro.core.policies.gate import GateExitPolicy
from stage1_pro.core.policies.grouped import GroupedExitPolicy
from stage1_pro.core.policies.scrc import SCRCExitPolicy
from stage1_pro.core.policies.softmax import SoftmaxExitPolicy

POLICIES = {"softmax": SoftmaxExitPolicy, "gate": GateExitPolicy, "scrc": SCRCExitPolicy}


def policy_from_artifact(name: str, data: dict[str, Any]) -> ExitPolicy:
    """The policy that a validated policy file describes."""
    if name not in POLICIES:
        raise UserError(f"exit policy '{name}' is not available; available: {', '.join(POLICIES)}.")
    policy = POLICIES[name].from_artifact(data)
    return GroupedExitPolicy.of(policy, data) if "groups" in data else policy
