"""A bundle in ONNX of a run that was certified with torch.

Either its certificate stays that of torch's scores, and both must answer alike; or the file that ships is certified by
its own scores, which is another look at val_calib.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.bundle.export import Converted, demand_new, export_bundle
from stage1_pro.core.config.extras import demand_extra
from stage1_pro.core.config.load import save_config
from stage1_pro.core.config.phases import MODEL_FILES
from stage1_pro.core.console import bar, say
from stage1_pro.core.data.run_cases import own_cases
from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.evaluation import evaluate_run, trusted_policy
from stage1_pro.core.finish_calibration import CERTIFY, map_options, wishes_of_policy
from stage1_pro.core.inference.golden import golden_file, golden_images
from stage1_pro.core.inference.onnx_files import write_onnx
from stage1_pro.core.inference.predictor import RawOutputs, Stage1Predictor
from stage1_pro.core.inference.scoring import write_scores
from stage1_pro.core.models.onnx_export import TOLERANCE
from stage1_pro.core.models.onnx_model import load_onnx
from stage1_pro.core.records.paths import shortest
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.seen import SEEN

MARKER = "recertifying.lock"
"""In the folder of a recertification under way, or killed."""


def converted_bundle(run: Run, target: Path, roots: Sequence[str] | None = None, **wishes: Any) -> BundleContents:
    """Export the run with model.onnx, under the certificate of its torch scores.

    roots: NAME=PATH of each source whose images have moved; wishes: for export_bundle. Raises UserError where a
    decision on val_select differs, or a logit by more than TOLERANCE, golden inputs included.
    """
    demand_extra("onnx")
    _demand_plain(run)
    demand_new(target)
    torch = Stage1Predictor.from_run(run, "cpu")
    with TemporaryDirectory(dir=run.path, prefix=".onnx.") as folder:
        file = Path(folder) / MODEL_FILES["onnx"]
        write_onnx(run, file, "none")
        onnx = Stage1Predictor(load_onnx(file), torch.policy, "cpu", torch.forward_batch)
        cases = own_cases(run, roots).frame.iloc[run.splits.indices("val_select")]
        workers = run.config.dataset_params.num_workers
        pairs = {
            "the golden inputs": _paired(torch, onnx, list(golden_images()), "golden inputs", 0),
            "val_select": _paired(torch, onnx, list(cases["path"]), "val_select", workers),
        }
        covered = {"val_select": cases["certificate_group"].to_numpy() if "certificate_group" in cases else None}
        worst = max(_alike(torch, pair, where, covered.get(where)) for where, pair in pairs.items())
        say(f"both decide {counted(len(cases), 'case')} of val_select alike; logits within {worst:.1g}")
        converted = Converted(file, run.model_digest, len(cases), worst)
        return export_bundle(run, target, lambda: golden_file(torch), converted=converted, **wishes)


def _demand_plain(run: Run) -> None:
    """Raise UserError for a run whose images or scores are made as ONNX Runtime on the CPU cannot make them."""
    config = run.config
    if config.dataset_params.decode != "cpu" or config.scoring_precision != "float32":
        raise UserError(
            f"--format onnx: {run.path} has decode: {config.dataset_params.decode} and scoring_precision: "
            f"{config.scoring_precision}, and ONNX Runtime takes images decoded on the CPU and computes in float32. "
            "Train a run with decode: cpu and scoring_precision: float32."
        )


Pair = tuple[RawOutputs, RawOutputs]
"""What torch and ONNX Runtime give for the same images."""


def _paired(torch: Stage1Predictor, onnx: Stage1Predictor, images: list[Any], title: str, workers: int) -> Pair:
    return _outputs(torch, images, f"{title} by torch", workers), _outputs(onnx, images, f"{title} by onnx", workers)


def _outputs(predictor: Stage1Predictor, images: list[Any], title: str, workers: int) -> RawOutputs:
    parts: list[RawOutputs] = []
    with bar(title) as progress:
        for part in predictor.outputs(images, workers=workers):
            parts.append(part)
            progress(sum(map(len, parts)), len(images))
    for position, reason in (item for part in parts for item in part.unreadable.items()):
        raise UserError(f"{title}: image {position} cannot be read ({reason}). Restore the file and run again.")
    gates = [part.gate_logit for part in parts if part.gate_logit is not None]
    return RawOutputs(np.concatenate([part.logits for part in parts]), np.concatenate(gates) if gates else None, {})


def _alike(predictor: Stage1Predictor, pair: Pair, where: str, covered: np.ndarray | None) -> float:
    """The largest difference of a logit. Raises UserError above TOLERANCE, and for a decision that differs.

    covered: (N,) the certificate group of each case, None where it has none.
    """
    torch, onnx = pair
    worst = float(np.abs(torch.logits - onnx.logits).max())
    named = "" if covered is None else covered  # an image without a group defers; its logits are compared all the same
    groups = None if predictor.certificate_groups is None else named
    decided, again = predictor.decide(torch, groups), predictor.decide(onnx, groups)
    flips = np.count_nonzero(
        (decided.exits != again.exits) | (decided.exits & (decided.predictions != again.predictions))
    )
    if worst > TOLERANCE or flips:
        raise UserError(
            f"{where}: ONNX Runtime decides {counted(int(flips), 'case')} otherwise than torch, and logits differ by "
            f"up to {worst:.2g} (allowed: none, {TOLERANCE:g}); the certificate does not cover it. Add --recertify, "
            "which certifies its own scores and is another look at val_calib."
        )
    return worst


def recertified_bundle(
    run: Run,
    target: Path,
    quantize: str,
    roots: Sequence[str] | None = None,
    *,
    even_if_useless: bool = False,
    **wishes: Any,
) -> BundleContents:
    """Export the run with model.onnx, certified by the scores of that very file; the run keeps its own policy.

    The look is one more at the run's val_calib, and on record. roots, wishes: as in
    converted_bundle. Raises NothingCertified and NotWorthIt.
    """
    demand_extra("onnx")
    _demand_plain(run)
    demand_new(target)
    policy, cases = trusted_policy(run), own_cases(run, roots)
    with _staged(run) as staged:
        config = replace(run.config, scoring_backend="onnx", quantize=quantize)
        save_config(config, staged.config_path)
        write_onnx(run, staged.onnx_path, quantize, cases)
        refitted = run.scores("val_select").gate_logit if config.gate_refit else None
        held_out = {} if refitted is None else {"val_select": refitted}
        write_scores(staged, cases, ("val_select", "val_calib", "val_test"), held_out, device="cpu")
        kind, risk = run.policy_row.name, run.risk(policy["target_fnr_exit"], policy["fnr_confidence"])
        asked = {"even_if_useless": even_if_useless, "wishes": wishes_of_policy(run, policy)}
        CERTIFY[kind](staged, risk, **asked, **map_options(kind, policy))
        say(evaluate_run(staged, trusted_policy(staged))["promise"]["words"])
        return export_bundle(staged, target, lambda: golden_file(Stage1Predictor.from_run(staged, "cpu")), **wishes)


@contextmanager
def _staged(run: Run) -> Iterator[Run]:
    """A run beside this one, for the block, that differs in its scores: what is certified and recorded is a run's.

    Its name is always the same, so that the same test made again is known as such.
    """
    from filelock import FileLock, Timeout

    folder = run.path.resolve().with_name(f"{run.name}-onnx")
    if folder.exists() and not (folder / MARKER).exists():
        raise UserError(f"{folder} is in the way of --recertify, which works in a folder of that name. Rename it.")
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / MARKER, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another --recertify is under way. Wait until it has ended.") from None
    try:
        _copy_into(run, folder)
        yield Run(shortest(folder))
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _copy_into(run: Run, folder: Path) -> None:
    """What the run at `folder` shares with this one; leftovers of a killed process go."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()
    for path in (run.splits_path, run.environment_path, run.metrics_path, run.model_path, run.path / SEEN):
        if path.exists():
            shutil.copyfile(path, folder / path.name)
    if (run.path / "looks").is_dir():
        shutil.copytree(run.path / "looks", folder / "looks", ignore=shutil.ignore_patterns("lock"))
