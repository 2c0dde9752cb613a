"""A bundle measured as it is on another labelled set: does its promise hold there too?

Nothing is placed, fitted or certified, and nothing is written into the bundle.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import MANIFEST, BundleContents
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.cases import rows_digest
from stage1_pro.core.data.run_cases import paths_by_case
from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.evaluation import measured
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.words import promised_fnr
from stage1_pro.core.records.group_scores import in_groups
from stage1_pro.core.records.looks import record_measurement
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.report.run.measurement import PAGE, Measurement, write_measurement
from stage1_pro.core.sites.cases import Layers, Site

SCORES, DECISIONS, FIGURES, SITE = "scores.parquet", "decisions.csv", "eval.json", "site.yaml"
COLUMNS = ("case_id", "group", "label", "answer", "probability", "decision")
CONFIGS = (".yaml", ".yml", ".json")


def layers_of(name: str) -> Layers:
    """The settings of a labelled set: a config file, or a table or a folder of class folders as the only source.

    Raises UserError where there is no such thing.
    """
    path = Path(name)
    if not path.exists():
        raise UserError(
            f"--on {name}: no such file or folder. Name a YAML file with dataset_params.sources, a table of "
            "path,label, or a folder that holds one folder per class."
        )
    return [(name, path)] if _is_config(path) else [(name, _settings_of(path, name))]


def _is_config(path: Path) -> bool:
    return path.suffix.lower() in CONFIGS and path.is_file()


def _settings_of(path: Path, name: str) -> dict[str, Any]:
    return {"dataset_params": {"sources": [{"root" if path.is_dir() else "labels": name}]}}


def measure(site: Site, target: Path, on: str, device: str, pictures: bool = True) -> dict[str, Any]:
    """Score the unseen cases with the bundle, decide and measure them, and write all of it to a new folder.

    target: the folder, whole or not at all; on: the labelled set, as the user named it; pictures: show some cases in
    the report. Returns what eval.json says.
    """
    _demand_certificate_groups(site)
    _say_what_is_measured(site)
    with artifacts.new_folder(target) as folder:
        scores = _scored(site, device)
        scores.write(folder / SCORES)
        promised = Risk(site.policy["target_fnr_exit"], site.policy["fnr_confidence"])
        policy_digest = artifacts.digest_file(site.contents.path / site.contents.manifest["policy_file"])
        test = artifacts.digest_json([scores.splits_digest, policy_digest])
        # before the figures are made: they may decide which target is tried on these cases
        record_measurement(target, scores, site.config.exit_policy, promised, test)
        views = site.config.group_views
        decided = scores if views is None else in_groups(scores, views, site.config.dataset_params.group_label)
        decisions = site.contents.policy.decide(decided)
        artifacts.write_csv(folder / DECISIONS, _rows(decided, decisions, site.contents), COLUMNS)
        evaluation = {
            "run_id": site.contents.manifest["provenance"].get("run_id", site.contents.path.name),
            "split": "measured",
            "splits_digest": site.policy["splits_digest"],
            "policy_digest": policy_digest,
            "scores_digest": artifacts.digest_file(folder / SCORES),
            "measured": {
                "bundle": str(site.contents.path),
                "manifest_digest": artifacts.digest_file(site.contents.path / MANIFEST),
                "on": on,
                "cases_digest": scores.splits_digest,
                "left_out": int(np.count_nonzero(~site.unseen)),
                "seen_checked": site.seen is not None,
            },
            **measured(decided, decisions, site.policy, site.config, "labelled set"),
        }
        artifacts.write_json(folder / FIGURES, evaluation, "eval")
        paths = paths_by_case(site.cases.frame) if pictures else None
        shown = Measurement(decided, decisions, site.policy, evaluation, site.contents.manifest, site.config)
        if not _is_config(Path(on)):  # what 38 takes
            settings = _settings_of(Path(on), os.path.abspath(on))
            artifacts.write_bytes(folder / SITE, yaml.safe_dump(settings, allow_unicode=True).encode())
        write_measurement(folder, shown, paths, config_of(on, target))
    return evaluation


def config_of(on: str, target: Path) -> str:
    """The config file of a set that was measured into `target`: its own, or the one that was written for it."""
    return on if _is_config(Path(on)) else str(target / SITE)


def _demand_certificate_groups(site: Site) -> None:
    """Raise UserError where the bundle certifies each camera by itself, and the set does not name them."""
    column = site.policy.get("certificate_groups")
    if column is not None and site.config.certificate_groups is None:
        raise UserError(
            f"{site.contents.path} certifies each '{column}' by itself: name the column of the set that holds them in "
            "its config, as certificate_groups."
        )


def _say_what_is_measured(site: Site) -> None:
    promises = {"target_fnr_exit": promised_fnr(site.policy), "fnr_confidence": site.policy["fnr_confidence"]}
    for name, promised in promises.items():
        named = getattr(site.config, name)
        if named != promised:
            say(f"{name} {named:g} is for a new certificate; measured is the bundle's promise, {promised:g}")
    labels = site.cases.frame["label"].to_numpy()[site.unseen]
    negative, positive = site.cases.class_names
    counts = np.bincount(labels, minlength=2)
    if not counts[1]:
        raise UserError(
            f"none of the {counted(labels.size, 'case')} that the bundle has not seen is {positive}, and FNR on "
            "exits is of positives. Name a set that holds some."
        )
    say(f"measured: {counted(labels.size, 'case')}, {counts[1]} {positive} (positive) and {counts[0]} {negative}")


def _scored(site: Site, device: str) -> Scores:
    """Scores of the unseen cases; the digest of these cases stands where a run's scores name its splits."""
    frame = site.cases.frame[site.unseen]
    predictor = Stage1Predictor.of_verified(site.contents, device)
    with bar("scoring") as progress:
        return predictor.score(
            frame,
            "measured",
            model_digest=site.policy["model_digest"],
            splits_digest=rows_digest(frame),
            batch_size=site.config.batch_size,
            workers=site.config.dataset_params.num_workers,
            progress=progress,
        )


def _rows(scores: Scores, decisions: ExitDecisions, contents: BundleContents) -> Iterator[dict[str, Any]]:
    names = np.array(contents.manifest["class_names"], dtype=object)
    columns = (
        scores.case_id,
        scores.group,
        names[scores.labels],
        names[decisions.predictions],
        decisions.probabilities.tolist(),
        np.where(decisions.exits, "exit", "defer"),
    )
    return (dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True))


def say_outcome(evaluation: dict[str, Any], target: Path) -> None:
    """Say what was found, where it is, and what it means for a certificate on the same cases."""
    promise, facts = evaluation["promise"], evaluation["measured"]
    say(promise["words"])
    ways = "38_recalibrate.py shows the old and the new bundle on a test split of the site, which spends nothing."
    if not evaluation["negatives"]:
        ways = "38_recalibrate.py certifies the bundle anew; it takes negatives of the site too."
    say(f"on record: these positives have been looked at, and a certificate on them counts that. {ways}")
    say(f"report {target / PAGE}, decisions {target / DECISIONS}")
    if promise["verdict"] != "agrees" and evaluation["negatives"]:
        words = [facts["bundle"], "--config", config_of(facts["on"], target)]
        say(f"next   python stage1_pro/scripts/38_recalibrate.py {shlex.join(words)}")
