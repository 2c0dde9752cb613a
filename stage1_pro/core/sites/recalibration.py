"""A bundle for a new site without a new training: its model, answers placed and certified anew on the site's cases.

What comes out is a run directory like any other, without a training split, so that the scripts of a run go on from it.
"""

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import MANIFEST, BundleContents
from stage1_pro.core.bundle.export import export_bundle
from stage1_pro.core.commands import runnable
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.overview import describe
from stage1_pro.core.data.run_cases import paths_by_case
from stage1_pro.core.data.splitting import make_splits
from stage1_pro.core.errors import Interrupted, NothingCertified, NotWorthIt, counted
from stage1_pro.core.evaluation import evaluate_run, measured, trusted_policy
from stage1_pro.core.finish_calibration import CERTIFY, map_options
from stage1_pro.core.inference.golden import golden_of_run
from stage1_pro.core.inference.placing import place, placed_shift
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.scoring import write_scores
from stage1_pro.core.metrics.binomial import minimum_positives, positives_for_power
from stage1_pro.core.models.onnx_export import shift_onnx, unshifted
from stage1_pro.core.models.onnx_model import load_onnx
from stage1_pro.core.models.stage1 import load_model, save_model
from stage1_pro.core.records.paths import point_latest, shortest
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.seen import SEEN, seen_record
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.report.run.page import write_report
from stage1_pro.core.sites.cases import Site


def assigned(site: Site) -> Splits:
    """Assign the site's unseen cases to val_select, val_calib and val_test, and describe them; nothing is written."""
    splits = make_splits(site.cases, site.config, trains=False, kept=site.unseen)
    describe(site.cases, splits, site.config)
    return splits


def scored_run(target: Path, site: Site, splits: Splits, device: str, origin: dict[str, Any] | None = None) -> Run:
    """Place the answers anew, score the three splits and write them as a run, whole or not at all.

    origin: what the provenance says of where the cases come from, beside the bundle.
    """
    contents, config = site.contents, site.config
    with artifacts.new_folder(target) as folder:
        run = Run(folder)
        artifacts.write_json(run.splits_path, splits.data, "splits")
        run.begin_training(config, _facts(contents, origin or {}))
        shutil.copyfile(contents.path / contents.manifest["metrics_file"], run.metrics_path)
        if site.seen is not None:
            artifacts.write_json(folder / SEEN, seen_record(site.cases.frame, splits, site.seen), "seen")
        _place_and_score(run, site, device)
        write_scores(run, site.cases, ("val_calib", "val_test"), device=device)
    point_latest(target)
    run = Run(shortest(target))
    old, new = _model_digest(contents)[:12], run.model_digest[:12]
    say(f"model {old}: unchanged" if old == new else f"model {new}: the weights of {old}, with answers placed anew")
    return run


@contextmanager
def going_on(run: Run) -> Iterator[None]:
    """Within the block an interruption ends with the command that goes on, since the scored run stays."""
    try:
        yield
    except Interrupted:
        steps = [
            *([] if run.policy_files() else [run.policy_row.script]),
            *([] if run.eval_path.exists() else ["40_eval_selective.py"]),
            "50_export_bundle.py",
        ]
        line = f"go on with: python stage1_pro/scripts/{steps[0]} --run {shlex.quote(str(run.path))}"
        then = f", then {' and '.join(steps[1:])}" if steps[1:] else ""
        print(runnable(line + then), file=sys.stderr, flush=True)
        raise


def _place_and_score(run: Run, site: Site, device: str) -> None:
    """Write the model with its answers placed on the new val_select, and that split's scores, in one pass."""
    config = site.config
    frame = site.cases.frame.iloc[run.splits.indices("val_select")]
    if config.scoring_backend == "onnx":
        return _place_onnx(run, site, frame, device)
    model = load_model(site.contents.model_path)
    predictor = Stage1Predictor(model, device=device, **config.scoring_options)
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
    predictor = Stage1Predictor(load_model(run.model_path), device=device, **config.scoring_options)
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


def _facts(contents: BundleContents, origin: dict[str, Any]) -> dict[str, Any]:
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
            **origin,
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


def evaluated_bundle(run: Run, site: Site, pictures: bool = True) -> BundleContents:
    """Measure the certified run on its val_test, write its report and export NEW/bundle.

    pictures: show some test cases in the report.
    """
    policy = trusted_policy(run)
    evaluation = evaluate_run(run, policy)
    write_report(run, policy, evaluation, paths_by_case(site.cases.frame) if pictures else None)
    say(f"with the old bundle: {_old_promise(run, site)}")
    say(f"with the new bundle: {evaluation['promise']['words']}")
    say(f"report {run.report_path}")
    return export_bundle(run, run.bundle_path, lambda: golden_of_run(run))


def _old_promise(run: Run, site: Site) -> str:
    """Say how the bundle's own policy does on the new test split, which spends nothing of val_calib."""
    scores, old = run.scores("val_test"), site.policy.get("answer_shift", 0.0)
    moved = np.array([-0.5, 0.5]) * (old - scores.answer_shift)  # all that differs between the two models
    logits = (scores.logits.astype(np.float64) + moved).astype(np.float32)
    scores = replace(scores, logits=logits, answer_shift=old)
    if "groups" in site.policy and scores.certificate_group is None:
        return f"not measured: it certifies each '{site.policy['certificate_groups']}', and the site names none."
    found = measured(scores, site.contents.policy.decide(scores), site.policy, site.config)
    return found["promise"]["words"]
