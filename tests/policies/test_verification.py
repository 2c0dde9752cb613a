"""Policy files that were forged with care: every number fits its neighbours, and the evidence does not recompute."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_cases import header, population
from scipy.stats import binom

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.promise import promise
from stage1_pro.core.policies.softmax import calibrate_softmax, softmax_fields
from stage1_pro.core.policies.usefulness import valued
from stage1_pro.core.policies.verification import demand_consistent

RISKS = {"one_sided": Risk(0.05, 0.9), "boundary": Risk(0.1, 0.9), "walk": Risk(0.1, 0.9)}
WHERE = Path("thresholds.json")
Policy = dict[str, Any]


def made(method: str) -> Policy:
    """A policy that was certified by one of the methods, as its script writes it."""
    rule = "one_sided" if method == "one_sided" else "symmetric"
    cases, separation = (600, 1.2) if method == "boundary" else (2000, 1.2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = calibrate_softmax(*(population(rng, cases, separation) for _ in range(2)), RISKS[method], rule)
        if found.found.method == method and found.certified and found.walk.answer < len(found.parameters) - 5:
            return valued({**header(RISKS[method]), **softmax_fields(found)}, Stage1ProConfig())
    raise AssertionError(f"no seed is certified by {method}")


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    return {method: made(method) for method in RISKS}


def chosen(policy: Policy) -> int:
    return max(index for index, row in enumerate(policy["sweep_results"]) if row["certified"])


def use_row(policy: Policy, index: int) -> Policy:
    """Make a row the chosen one, wherever it is told."""
    row = policy["sweep_results"][index]
    same = {name: row[name] for name in ("exited_positives", "misses", "fnr_upper_bound", "coverage", "fnr_on_exits")}
    return {**policy, **same, "exit_threshold": row["threshold"]}


def looser(policy: Policy) -> Policy:
    """One threshold more is called certified."""
    index = chosen(policy) + 1
    policy["sweep_results"][index]["certified"] = True
    return use_row(policy, index)


def gap_filled_from_below(policy: Policy) -> Policy:
    """The strictest threshold is no longer certified."""
    policy["sweep_results"][0]["certified"] = not policy["sweep_results"][0]["certified"]
    return policy


def hits_moved(policy: Policy) -> Policy:
    """A row in which one positive more is answered 1 than in the others."""
    policy["sweep_results"][1]["exited_positives"] += 1
    return policy


def stopped_early(policy: Policy) -> Policy:
    """The last threshold that passes is not the one in use."""
    index = chosen(policy)
    policy["sweep_results"][index]["certified"] = False
    return use_row(policy, index - 1)


def higher_boundary(policy: Policy) -> Policy:
    """A boundary that allows the misses of a threshold that fails."""
    policy = looser(policy)
    rises = policy["diagnostics"]["boundary"]["rises"]
    exited = policy["exited_positives"]
    more = policy["misses"] + 1 - sum(rise <= exited for rise in rises)
    policy["diagnostics"]["boundary"]["rises"] = sorted({*rises, *range(exited - more + 1, exited + 1)})
    return policy


def ten_misses_at_once(policy: Policy) -> Policy:
    policy["diagnostics"]["boundary"]["rises"] = [1, 1, *policy["diagnostics"]["boundary"]["rises"]]
    return policy


def as_a_walk(policy: Policy) -> Policy:
    """The boundary left out, as if all had been one walk."""
    del policy["diagnostics"]["boundary"]
    risk = Risk(policy["target_fnr_exit"], policy["fnr_confidence"])
    policy["sweep_results"][0]["certified"] = policy["sweep_results"][chosen(policy) + 2]["certified"] = True
    return {**use_row(policy, chosen(policy)), "guarantee": promise(risk, "walk", grouped=False)}


def as_one_sided(policy: Policy) -> Policy:
    """One test at the full confidence claimed for exits of either answer."""
    risk = Risk(policy["target_fnr_exit"], policy["fnr_confidence"])
    return {**policy, "exit_rule": "one_sided", "guarantee": promise(risk, "one_sided", grouped=False)}


def dearer(policy: Policy) -> Policy:
    return {**policy, "prices": {"false_alarm": 50.0, "miss": 0.0}}


def praised(policy: Policy) -> Policy:
    policy["val_calib_metrics"]["utility"] = 0.99
    return policy


FORGED: dict[str, list[tuple[Callable[[Policy], Policy], str]]] = {
    "one_sided": [
        (looser, "do not certify target_fnr_exit"),
        (looser, "does not certify all up to the last threshold that passes"),
        (stopped_early, "does not certify all up to the last threshold that passes"),
        (gap_filled_from_below, "does not certify all up to the last threshold that passes"),
        (hits_moved, "is of no one-sided exits"),
        (dearer, "is not what its counts are worth"),
        (praised, "is not what its counts are worth"),
    ],
    "boundary": [
        (looser, "not within $.diagnostics.boundary"),
        (higher_boundary, "is crossed with a probability above 0.1"),
        (ten_misses_at_once, "$.diagnostics.boundary.rises does not rise"),
        (stopped_early, "within $.diagnostics.boundary, against"),
        (as_a_walk, "is of no walk"),
        (as_one_sided, "is of no one-sided exits"),
    ],
    "walk": [(looser, "is of no walk"), (as_one_sided, "is of no one-sided exits"), (praised, "worth at $.prices")],
}


@pytest.mark.parametrize("method", RISKS)
def test_what_calibration_wrote_is_accepted_and_its_kind_is_named(policies: dict[str, Policy], method: str) -> None:
    policy = policies[method]
    demand_consistent(policy, WHERE)
    assert ("boundary" in policy["diagnostics"]) == (method == "boundary")
    row = policy["sweep_results"][chosen(policy)]
    assert binom.cdf(row["misses"], row["exited_positives"], policy["target_fnr_exit"]) <= 0.1


@pytest.mark.parametrize(
    ("method", "forge", "words"),
    [
        pytest.param(method, forge, words, id=f"{method}-{forge.__name__}-{words[:12]}")
        for method, rows in FORGED.items()
        for forge, words in rows
    ],
)
def test_what_was_forged_is_refused(
    policies: dict[str, Policy], method: str, forge: Callable[[Policy], Policy], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        demand_consistent(forge(copy.deepcopy(policies[method])), WHERE)
    assert words in str(refused.value)
    assert "the file has been altered" in str(refused.value)
    assert refused.value.exit_status == 2


def test_all_problems_come_at_once(policies: dict[str, Policy]) -> None:
    forged = copy.deepcopy(policies["one_sided"])
    with pytest.raises(UserError) as refused:
        demand_consistent({**hits_moved(praised(forged)), "fnr_upper_bound": 0.001}, WHERE)
    for words in ("no one-sided exits", "worth at $.prices", "tighter than its counts allow"):
        assert words in str(refused.value)


@pytest.mark.parametrize("method", ["walk"])
def test_a_file_of_before_is_accepted_without_what_came_later(policies: dict[str, Policy], method: str) -> None:
    old = copy.deepcopy(policies[method])
    for name in ("exit_rule", "prices", "useless"):
        old.pop(name, None)
    for name in ("right_exits", "utility"):
        del old["val_calib_metrics"][name]
    demand_consistent(old, WHERE)
