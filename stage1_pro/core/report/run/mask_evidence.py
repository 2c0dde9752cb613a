"""What the report of a run with masks shows, case by case; and cases/val_test.csv, which holds it for machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stage1_pro.core import artifacts
from stage1_pro.core.console import say
from stage1_pro.core.data.run_cases import own_cases
from stage1_pro.core.errors import counted
from stage1_pro.core.inference.masks import MaskPredictor, mask_scorer
from stage1_pro.core.metrics.arrays import FloatArray, ratio
from stage1_pro.core.metrics.masks import MaskSums, components, hd95
from stage1_pro.core.models.mask_rows import answered, case_row
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.report.run.mask_pictures import chosen_cases, picture
from stage1_pro.core.report.run.pictures import Picture, Sheet
from stage1_pro.core.seeds import rng_of

FOLDER = "cases"
OVERLAYS = ("best", "median", "worst", "missed", "deferred")
"""The cases that are drawn: by Dice, the worst of the exits that are missed, and the worst that defers."""


LEAST_CLASS_DICE = 0.1
"""Mean Dice of a class below which it is as good as never drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """One case as it is drawn: image (H, W) or (H, W, 3) in 0 to 1, truth and mask (H, W) class codes."""

    title: str
    image: FloatArray
    truth: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class MaskEvidence:
    """N test cases. class_names: of the foreground; dice: (N, F), NaN where undefined; case_dice, confidence (SDC):
    (N,); true, predicted: (N,) volumes of the positive class; unit: of volumes; overlays: what is drawn; sheets: of
    pictures; notices: what must not be overlooked."""

    class_names: tuple[str, ...]
    dice: FloatArray
    case_dice: FloatArray
    confidence: FloatArray
    true: FloatArray
    predicted: FloatArray
    unit: str
    overlays: list[Overlay]
    sheets: list[Sheet]
    notices: list[str]


def mask_evidence(
    run: Run, scores: Scores, decisions: ExitDecisions, roots: Sequence[str] | None = None
) -> MaskEvidence:
    """Draw the masks of the test split once more, measure each, and write cases/val_test.csv.

    scores: of val_test; decisions: of the policy on them, in the same order; roots: NAME=PATH of each source whose
    images have moved.
    """
    assert scores.masks is not None
    predictor = mask_scorer(run, "auto")
    frame = own_cases(run, roots).frame.iloc[run.splits.indices("val_test")]
    frame = frame.set_index("case_id").loc[scores.case_id.tolist()].reset_index()
    names, rows, found = predictor.model.facts.class_names[1:], [], []
    chosen = _chosen(scores, decisions)
    overlays: dict[str, Overlay] = {}
    sheets = chosen_cases(scores, decisions, rng_of(run.config.seed, "pictures"))
    wanted = {at for sheet in sheets for at in sheet.positions}
    pictures: dict[int, Picture] = {}
    with torch.inference_mode():
        position = 0
        for batch in predictor.prepared(frame, run.config.batch_size, run.config.dataset_params.num_workers):
            for case, logits in zip(batch, predictor.maps(batch), strict=True):
                assert case.labels is not None
                truth, mask = case.labels.numpy(), answered(logits).cpu().numpy()
                found.append(case_row(logits, case.labels.to(logits.device), predictor.positives).numpy())
                rows.append(_shape_figures(truth, np.where(truth < 0, 0, mask), case.grid.spacing, predictor))
                titles = [title for title, at in chosen.items() if at == position]
                if titles or position in wanted:
                    view = _view(case.inputs.numpy(), truth, mask)
                    dice = float(scores.masks.dice[position])
                    overlays |= {title: Overlay(f"{title}: {dice:.2f}", *view) for title in titles}
                    if position in wanted:
                        words = _words(dice, float(decisions.scores[position]))
                        pictures[position] = picture(str(scores.case_id[position]), words, *view)
                position += 1
    sums = MaskSums.of_rows(np.stack(found))
    voxel = np.array([np.prod(spacing) for spacing in frame["spacing"]], dtype=np.float64)
    _write(run, scores, decisions, sums, rows, voxel, names)
    notices = hardly_drawn(sums, names, run.splits.positive_class)
    for notice in notices:
        say(f"warning: {notice}")
    return MaskEvidence(
        class_names=names,
        dice=sums.dice(),
        case_dice=sums.case_dice(),
        confidence=sums.soft_dice(),
        true=np.multiply(sums.positive_true, voxel, dtype=np.float64),
        predicted=np.multiply(sums.positive_predicted, voxel, dtype=np.float64),
        unit="pixels" if predictor.model.spec.preprocessing.dims == 2 else "mm³",
        overlays=[overlays[title] for title in OVERLAYS if title in overlays],
        sheets=[sheet.sheet(pictures) for sheet in sheets],
        notices=notices,
    )


def hardly_drawn(sums: MaskSums, names: Sequence[str], positive: str) -> list[str]:
    """What is said of classes that the masks as good as never hold. names: of the F foreground classes; positive: what
    the promise is about, which may be kept without them."""
    held = sums.true > 0
    means = ratio(np.where(held, np.nan_to_num(sums.dice()), 0).sum(axis=0), held.sum(axis=0))
    return [
        f"class '{name}' is hardly drawn: mean Dice {mean:.2f} over {counted(int(number), 'test case')} with it. The "
        f"promise is about '{positive}', and does not notice"
        for name, mean, number in zip(names, means, held.sum(axis=0), strict=True)
        if mean < LEAST_CLASS_DICE and len(names) > 1
    ]


def _chosen(scores: Scores, decisions: ExitDecisions) -> dict[str, int]:
    """Title → position of each case that is drawn; a kind of which there is none is left out."""
    assert scores.masks is not None
    dice = np.nan_to_num(scores.masks.dice, nan=-1.0)
    order = np.argsort(dice, kind="stable")
    chosen = {"best": int(order[-1]), "median": int(order[len(order) // 2]), "worst": int(order[0])}
    exits = decisions.exits[order]
    for title, members in (("missed", exits & (scores.masks.missed[order] == 1)), ("deferred", ~exits)):
        if members.any() and exits.any():  # where nothing exits, the worst case is the worst that defers
            chosen[title] = int(order[np.flatnonzero(members)[0]])
    return chosen


def _shape_figures(
    truth: np.ndarray, mask: np.ndarray, spacing: Sequence[float], predictor: MaskPredictor
) -> dict[str, Any]:
    """Components of the positive class, and HD95 of each class in mm, or pixels in 2D."""
    positives = predictor.positives
    return {
        "true_components": components(np.isin(truth, positives)),
        "predicted_components": components(np.isin(mask, positives)),
        **{
            f"hd95_{name}": hd95(truth == code, mask == code, spacing)
            for code, name in enumerate(predictor.model.facts.class_names[1:], 1)
        },
    }


def _write(
    run: Run,
    scores: Scores,
    decisions: ExitDecisions,
    sums: MaskSums,
    shapes: Sequence[dict[str, Any]],
    voxel: FloatArray,
    names: Sequence[str],
) -> None:
    assert scores.masks is not None
    dice, rows = sums.dice(), []
    for at in range(len(scores)):
        figures = {f"dice_{name}": dice[at, code] for code, name in enumerate(names)}
        volumes = {
            f"{kind}_volume_{name}": counts[at, code] * voxel[at]
            for code, name in enumerate(names)
            for kind, counts in (("true", sums.true), ("predicted", sums.predicted))
        }
        rows.append(
            {
                "case_id": scores.case_id[at],
                "group": scores.group[at],
                "label": int(scores.labels[at]),
                "answer": int(decisions.predictions[at]),
                "missed": "" if scores.masks.missed[at] < 0 else int(scores.masks.missed[at]),
                "exits": int(decisions.exits[at]),
                "dice": scores.masks.dice[at],
                **figures,
                **volumes,
                **shapes[at],
                "confidence": decisions.scores[at],
                "uncertainty": scores.masks.uncertainty[at],
            }
        )
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    artifacts.write_csv(folder / "val_test.csv", plain, list(plain[0]))


def _plain(value: Any) -> Any:
    """Six digits, and a blank for what is undefined."""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return value


def _words(dice: float, sure: float) -> str:
    found = f"Dice {dice:.2f}" if np.isfinite(dice) else "no mask at all"
    return f"{found}, confidence {sure:.2f}" if np.isfinite(sure) else found


def _view(inputs: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image in 0 to 1, true and predicted codes of one case for the eye. Of a volume the slice with most of the truth,
    or of the mask where it has none."""
    if truth.ndim == 3:
        inside = (truth > 0) if (truth > 0).any() else mask > 0
        level = int(inside.sum(axis=(0, 1)).argmax())
        inputs = inputs[..., min(inputs.shape[-1] - 1, round(level * inputs.shape[-1] / truth.shape[-1]))]
        truth, mask = np.rot90(truth[..., level]), np.rot90(mask[..., level])
        inputs = np.rot90(inputs, axes=(1, 2))
    low, high = np.percentile(inputs, (0.5, 99.5))
    shown = np.clip((inputs - low) / max(high - low, 1e-6), 0, 1)
    return (shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0]), truth, mask
