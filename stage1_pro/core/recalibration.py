"""A bundle for a new site without a new training: its model, answers placed and certified anew on the site's cases.

What comes out is a run directory like any other, without a training split, so that the scripts of a run go on from it.
"""

import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import MANIFEST, BundleContents
from stage1_pro.core.bundle.export import export_bundle
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.cases import CaseTable, load_cases
from stage1_pro.core.data.run_cases import describe
from stage1_pro.core.data.splitting import make_splits
from stage1_pro.core.errors import NothingCertified, NotWorthIt, UserError, counted, raise_problems
from stage1_pro.core.evaluation import evaluate_run, trusted_policy
from stage1_pro.core.finish_calibration import CERTIFY, map_options
from stage1_pro.core.inference.golden import golden_file
from stage1_pro.core.inference.placing import place, placed_shift
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.scoring import write_scores
from stage1_pro.core.metrics.binomial import minimum_positives, positives_for_power
from stage1_pro.core.models.onnx_export import shift_onnx, unshifted
from stage1_pro.core.models.onnx_model import load_onnx
from stage1_pro.core.models.stage1 import load_model, save_model
from stage1_pro.core.records.paths import point_latest, shortest, unused_name
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.seen import SEEN, read_seen, seen_among, seen_record
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.report.run.page import write_report

OF_THE_SITE = (
    "target_fnr_exit",
    "fnr_confidence",
    "false_alarm_price",
    "miss_price",
    "seed",
    "batch_size",
    "bootstrap_samples",
    "bootstrap_confidence",
)
"""Settings that a site may choose; all others belong to the model, which stays as it was trained."""

DATA_OF_THE_SITE = (
    "sources",
    "class_names",
    "positive_class",
    "val_select_ratio",
    "val_calib_ratio",
    "val_test_ratio",
    "num_workers",
    "on_bad_image",
)
"""The same of dataset_params; the classes may be named again, as they are."""


@dataclass(frozen=True, slots=True)
class Site:
    """The labelled cases of a new site, checked and assigned to splits, and the bundle whose model answers them.

    policy: the content of the bundle's policy file; seen: what the bundle says it has seen, None where it does not.
    """

    contents: BundleContents
    policy: dict[str, Any]
    config: Stage1ProConfig
    cases: CaseTable
    splits: Splits
    seen: dict[str, Any] | None


def read_site(contents: BundleContents, files: list[str], target: float | None, confidence: float | None) -> Site:
    """Check a site's config and cases against the bundle, and assign the cases; nothing is written.

    target, confidence: in place of the config's, which are the bundle's where a site names none.
    """
    manifest = contents.manifest
    policy_file = contents.path / manifest["policy_file"]
    policy = artifacts.read_json(policy_file, policy_file.stem)
    flags = {"target_fnr_exit": target, "fnr_confidence": confidence}
    given = {name: value for name, value in flags.items() if value is not None}
    config = _site_config(contents, policy, [(file, Path(file)) for file in files], given)
    cases = load_cases(config.dataset_params, decode=True)
    seen = read_seen(contents.path)
    splits = make_splits(cases, config, trains=False, kept=_unseen(cases, seen))
    for warning in cases.warnings:
        say(f"warning: {warning}")
    describe(splits, config)
    return Site(contents, policy, config, cases, splits, seen)


def _site_config(
    contents: BundleContents, policy: dict[str, Any], files: list[tuple[str, Path]], flags: dict[str, Any]
) -> Stage1ProConfig:
    """The bundle's config with the site's settings over it. Raises UserError for one that a site cannot choose."""
    manifest, path = contents.manifest, contents.path / contents.manifest["config_file"]
    settings = artifacts.read_json(path, "config")
    forward = {name: manifest[name] for name in ("forward_batch", "scoring_backend") if name in manifest}
    classes = {"class_names": manifest["class_names"], "positive_class": manifest["positive_class"]}
    promised = {name: policy[name] for name in ("target_fnr_exit", "fnr_confidence")}
    rule = {"exit_rule": policy.get("exit_rule", "symmetric")}
    of_bundle = {**settings, **forward, **promised, **rule}
    of_bundle["dataset_params"] = {**settings["dataset_params"], **classes}
    base = merge_configs([(str(path), of_bundle)])
    config = merge_configs([(str(path), of_bundle), *files, *([("command line", flags)] if flags else [])])
    problems = [
        *_differing(base, config, OF_THE_SITE, ""),
        *_differing(base.dataset_params, config.dataset_params, DATA_OF_THE_SITE, "dataset_params."),
        *_class_problems(config, manifest["class_names"]),
    ]
    if config.dataset_params.sources == base.dataset_params.sources:
        problems.append("dataset_params.sources names no images but the bundle's own: name those of the new site")
    where = ", ".join(name for name, _ in files)
    raise_problems(f"{where}: does not fit the bundle {contents.path}", problems, "Fix this and run again.")
    return config


def _differing(base: Any, config: Any, free: tuple[str, ...], prefix: str) -> list[str]:
    return [
        f"{prefix}{field.name} is {getattr(config, field.name)}, and {getattr(base, field.name)} in the bundle: "
        "nothing is trained here, so leave it out"
        for field in fields(base)
        if field.name not in (*free, "dataset_params") and getattr(base, field.name) != getattr(config, field.name)
    ]


def _class_problems(config: Stage1ProConfig, expected: list[str]) -> list[str]:
    names, positive = list(config.dataset_params.class_names or expected), config.dataset_params.positive_class
    named = [name for name in names if name != positive] + [name for name in names if name == positive]
    if named == expected:
        return []
    return [
        f"the classes are {', '.join(names)}, positive {positive}, and the bundle answers {', '.join(expected)}, "
        f"positive {expected[-1]}: name them as the bundle does, in the labels too, or train a model of these classes"
    ]


def _unseen(cases: CaseTable, seen: dict[str, Any] | None) -> np.ndarray:
    """(N,) bool: cases that the bundle has not seen, and no group of which it has seen an image."""
    if seen is None:
        say(
            "warning: the bundle has no seen.json, so nothing tells which of these images it was trained, chosen or "
            "certified with. Such images void the new certificate: make sure that there are none."
        )
        return np.ones(len(cases), dtype=bool)
    frame, known = cases.frame, seen_among(cases.frame, seen)
    kept = ~frame["group"].isin(frame["group"][known]).to_numpy()
    left_out = int(np.count_nonzero(~kept))
    if not kept.any():
        raise UserError(
            f"the bundle has seen all {counted(len(cases), 'case')} already, or other images of their groups. Name "
            "labelled images that it was not trained, chosen or certified with."
        )
    if left_out:
        beside = left_out - int(np.count_nonzero(known))
        groups = f", and {beside} of the same groups" if beside else ""
        say(f"left out: {counted(left_out - beside, 'case')} that the bundle has seen before{groups}")
    return kept


def new_place(path: str | None) -> Path:
    """The folder of the new run, which must not exist. Raises UserError before any image is read."""
    target = Path(path) if path else unused_name("site")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists, and runs are never overwritten. Choose another --out.")
    return target


def scored_run(target: Path, site: Site, device: str) -> Run:
    """Place the answers anew, score the three splits and write them as a run, whole or not at all."""
    contents, config = site.contents, site.config
    with artifacts.new_folder(target) as folder:
        run = Run(folder)
        artifacts.write_json(run.splits_path, site.splits.data, "splits")
        run.begin_training(config, _facts(contents))
        shutil.copyfile(contents.path / contents.manifest["metrics_file"], run.metrics_path)
        if site.seen is not None:
            artifacts.write_json(folder / SEEN, seen_record(site.cases.frame, site.splits, site.seen), "seen")
        _place_and_score(run, site, device)
        write_scores(run, site.cases, ("val_calib", "val_test"), device=device)
    point_latest(target)
    run = Run(shortest(target))
    old, new = _model_digest(contents)[:12], run.model_digest[:12]
    say(f"model {old}: unchanged" if old == new else f"model {new}: the weights of {old}, with answers placed anew")
    return run


def _place_and_score(run: Run, site: Site, device: str) -> None:
    """Write the model with its answers placed on the new val_select, and that split's scores, in one pass."""
    config = site.config
    frame = site.cases.frame.iloc[run.splits.indices("val_select")]
    if config.scoring_backend == "onnx":
        return _place_onnx(run, site, frame, device)
    model = load_model(site.contents.model_path)
    predictor = Stage1Predictor(model, device=device, forward_batch=config.forward_shape)
    with bar("scoring val_select") as progress:
        features = predictor.features(
            list(frame["path"]),
            batch_size=config.batch_size,
            workers=config.dataset_params.num_workers,
            progress=progress,
        )
    if config.places_answers:
        place(model.cpu(), config, run.splits, frame, features)
    save_model(model, run.model_path)
    predictor = Stage1Predictor(load_model(run.model_path), device=device, forward_batch=config.forward_shape)
    digests = {"model_digest": run.model_digest, "splits_digest": run.splits.digest}
    predictor.score_features(features, frame, "val_select", **digests).write(run.scores_path("val_select"))
    return None


def _place_onnx(run: Run, site: Site, frame: pd.DataFrame, device: str) -> None:
    """The same with model.onnx, whose logits place the answers."""
    source, config = site.contents.model_path, site.config
    predictor = Stage1Predictor(load_onnx(source), device=device, forward_batch=config.forward_shape)
    if config.places_answers:
        with bar("placing answers on val_select") as progress:
            scores = predictor.score(
                frame,
                "val_select",
                model_digest="",
                splits_digest=run.splits.digest,
                batch_size=config.batch_size,
                workers=config.dataset_params.num_workers,
                progress=progress,
            )
        logits = unshifted(scores.logits, scores.answer_shift)
        shift = placed_shift(logits, config, run.splits, frame, predictor.class_names)
        shift_onnx(source, run.scored_path, shift)
    else:
        shutil.copyfile(source, run.scored_path)
    write_scores(run, site.cases, ("val_select",), device=device)


def _facts(contents: BundleContents) -> dict[str, Any]:
    """What environment.json says of the model, and where it comes from."""
    manifest = contents.manifest
    made = manifest["provenance"]
    kept = ("backbone", "backbone_license", "backbone_digest", "parameters", "init_from")
    return {
        **{name: made[name] for name in kept if name in made},
        "preprocessing": manifest["preprocessing"],
        "recalibrated_from": {
            "bundle": str(contents.path),
            "run_id": made.get("run_id", contents.path.name),
            "manifest_digest": artifacts.digest_file(contents.path / MANIFEST),
            "model_digest": _model_digest(contents),
        },
    }


def _model_digest(contents: BundleContents) -> str:
    return contents.manifest["files"][contents.manifest["model_file"]]["sha256"]


def certify(run: Run, site: Site, even_if_useless: bool) -> None:
    """Certify the kind of policy that the bundle has, its maps fitted on the new val_select.

    Raises NothingCertified or NotWorthIt with what is missing, and how to try again on the run that stays.
    """
    kind, risk = run.policy_row.name, run.risk()
    try:
        CERTIFY[kind](run, risk, even_if_useless=even_if_useless, **map_options(kind, site.policy))
    except (NothingCertified, NotWorthIt) as refused:
        raise type(refused)(f"{refused}\n  {_missing(run)}") from None


def _missing(run: Run) -> str:
    """Say how many positives there are and would be needed, and that the run can be tried again."""
    risk = run.risk()
    at_hand = run.splits.metadata["evidence"]["val_calib_positive_groups"]
    needed = minimum_positives(risk.target_fnr, risk.delta)
    return (
        f"New site: val_calib holds {counted(at_hand, 'independent positive')}; target_fnr_exit {risk.target_fnr:g} at "
        f"confidence {risk.confidence:g} needs {needed} exits without a miss, and about "
        f"{positives_for_power(risk.target_fnr / 4, risk.target_fnr, risk.delta)} if a quarter of that rate is missed. "
        f"{run.path} stays a whole run: {run.policy_row.script} --run {run.path} with another --target_fnr_exit, or "
        "with --even_if_useless where that is the reason, tries again without scoring, then 40_eval_selective.py and "
        "50_export_bundle.py go on. With more labelled positives, run 38_recalibrate.py into a new folder."
    )


def evaluated_bundle(run: Run) -> BundleContents:
    """Measure the certified run on its val_test, write its report and export NEW/bundle."""
    policy = trusted_policy(run)
    evaluation = evaluate_run(run, policy)
    write_report(run, policy, evaluation)
    say(evaluation["promise"]["words"])
    say(f"report {run.report_path}")
    return export_bundle(run, run.bundle_path, lambda: golden_file(Stage1Predictor.from_run(run, "cpu")))
