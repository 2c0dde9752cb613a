"""Whether a policy file is what a calibration wrote: complete, in itself consistent, and reproduced by val_calib."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, share
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.certification import split_metrics
from stage1_pro.core.policies.evidence import EVERY, in_expectation, kind_of, read_evidence
from stage1_pro.core.policies.policy_record import MEND
from stage1_pro.core.policies.scrc_transductive import Selection, cut
from stage1_pro.core.policies.usefulness import mask_figures
from stage1_pro.core.records.scores import Scores

RESTORE = "Restore both from a copy."


def demand_consistent(policy: dict[str, Any], where: Path) -> None:
    """Raise UserError unless the file is complete and its counts really carry what it promises.

    policy: content of a policy file, valid by its schema; where: its path, for the message.
    """
    file = read_evidence(policy, where)
    problems = [problem for check in (*file.kind.checks, *EVERY) for problem in check(file)]
    raise_problems(f"{where}: the file has been altered:", problems, MEND)


def promised(policy: dict[str, Any], where: Path) -> dict[str, str]:
    """Return the guarantee that the numbers of a policy file carry, which is whole but for it.

    where: its path, for messages.
    """
    file = read_evidence({"guarantee": {}, **policy}, where)
    return file.kind.promised(file)


def demand_reproduced(policy: dict[str, Any], decisions: ExitDecisions, calib: Scores, where: Path) -> None:
    """Raise UserError unless the policy, applied to val_calib again, gives the counts that it records.

    decisions: those of the policy on calib, which holds the cases of val_calib.
    """
    kept, answers = kind_of(policy).counted(calib), calib.counted(decisions.predictions)
    counts = count_decisions(decisions.exits[kept], answers[kept], calib.labels[kept])
    found = int(counts.misses[0]), int(counts.exited_positives[0])
    if found != (policy["misses"], policy["exited_positives"]):
        raise UserError(
            f"{where}: on val_calib it gives {found[0]} misses of {found[1]} exited positives, not the "
            f"{policy['misses']} of {policy['exited_positives']} that it records: file or scores have been altered. "
            f"{RESTORE}"
        )
    every = count_decisions(decisions.exits, answers, calib.labels)
    groups, recorded = len(np.unique(calib.group.astype(str))), policy["val_calib_metrics"]
    metrics = {**split_metrics(every, groups, counts.positives, 0), **mask_figures(decisions.exits, calib)}
    facts = {"coverage": metrics["coverage"], "exit_accuracy": metrics["accuracy_on_exits"]}
    facts["fnr_on_exits"] = share(counts.fnr[0])
    wrong = [f"$.{name}" for name, value in facts.items() if policy[name] != value]
    wrong += [f"$.val_calib_metrics.{name}" for name in metrics.keys() & recorded if metrics[name] != recorded[name]]
    wrong += list(_other_groups(policy, decisions, calib, kept)) if "groups" in policy else []
    wrong += ["$.answer_shift"] if policy.get("answer_shift", 0.0) != calib.answer_shift else []
    if wrong:
        raise UserError(
            f"{where}: val_calib gives other values of {', '.join(wrong)}: file or scores were altered. {RESTORE}"
        )
    if in_expectation(policy):
        _demand_cut(policy, decisions.scores, calib, kept, where)


def _demand_cut(policy: dict[str, Any], gate: FloatArray, calib: Scores, kept: BoolArray, where: Path) -> None:
    """lambda1 must be where val_calib is cut, and the selected positives those above it."""
    facts = policy["transductive"]
    selection = Selection(facts["selected_of_select"], facts["cases_of_select"], 0.5, 0.0)
    selected = int(np.count_nonzero(kept & (gate >= policy["lambda1"]) & (calib.labels == 1)))
    if cut(gate[kept], selection) != policy["lambda1"] or selected != facts["positives_selected"]:
        raise UserError(
            f"{where}: val_calib is cut elsewhere than at $.lambda1: file or scores were altered. {RESTORE}"
        )


def _other_groups(policy: dict[str, Any], decisions: ExitDecisions, calib: Scores, kept: BoolArray) -> Iterator[str]:
    """Groups whose counts val_calib does not give again."""
    assert calib.certificate_group is not None
    names = calib.certificate_group.astype(str)
    for name, group in policy["groups"].items():
        own = kept & (names == name)
        counts = count_decisions(decisions.exits[own], decisions.predictions[own], calib.labels[own])
        if (int(counts.misses[0]), int(counts.exited_positives[0])) != (group["misses"], group["exited_positives"]):
            yield f"$.groups.{name}"
