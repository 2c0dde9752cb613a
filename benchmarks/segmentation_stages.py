"""Train one run with masks, and judge the best weights of each of its stages on cases that nothing was chosen by.

    python benchmarks/segmentation_stages.py RUN [--config FILE ...] [flags of 20_train.py]
reads   RUN/splits.json; goes on with RUN where its training was broken off
writes  what 20_train.py writes, and RUN/stage_dice.csv: the Dice of each case of val_calib and val_test by each stage's
        weights, stage 0 being those that the run ends with
Training keeps the weights of two stages; here all are kept until they are judged, and removed then.
"""

import csv
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

import pandas as pd

TRAIN = REPOSITORY / "stage1_pro" / "scripts" / "20_train.py"
TABLE = "stage_dice.csv"
SPLITS = ("val_calib", "val_test")


def main() -> int:
    run, words = Path(sys.argv[1]), sys.argv[2:]
    status = trained(run, words)
    if status == 0:
        judge(run)
    return status


def trained(run: Path, words: list[str]) -> int:
    """Run 20_train.py in this process; return its exit status."""
    from stage1_pro.core.training.callbacks import checkpoints

    checkpoints.KEPT_STAGES = 10**6
    goes_on = (run / "config.json").exists()
    sys.argv = [str(TRAIN), *(["--resume", str(run)] if goes_on else [*words, "--run", str(run)])]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def judge(run: Path) -> None:
    rows = list(judged(run))
    with open(run / TABLE, "w", newline="") as stream:
        csv.writer(stream).writerows([("stage", "case_id", "dice"), *rows])
    for path in stage_files(run):
        path.unlink()


def stage_files(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("stage-*.ckpt"))


def judged(run: Path) -> Iterator[tuple[int, str, float]]:
    """(stage, case id, Dice) of each case that neither trained the network nor chose its epoch."""
    from stage1_pro.core.data.run_cases import own_cases
    from stage1_pro.core.inference.masks import MaskPredictor
    from stage1_pro.core.models.segmenter import load_mask_model
    from stage1_pro.core.records.run import Run
    from stage1_pro.core.training.callbacks.checkpoints import judged_weights

    opened = Run.open(str(run))
    frame = own_cases(opened).frame
    held_out = pd.concat([frame.iloc[opened.splits.indices(split)] for split in SPLITS])
    model = load_mask_model(opened.model_path)
    predictor = MaskPredictor(model)
    for number, path in [(0, None), *((int(path.stem.partition("-")[2]), path) for path in stage_files(run))]:
        if path is not None:
            weights = judged_weights(path)
            model.load_state_dict(
                {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
            )
        scores = predictor.score(
            held_out,
            "val_test",
            model_digest="",
            splits_digest="",
            batch_size=32,
            workers=0,
            progress=lambda done, total: None,
        )
        assert scores.masks is not None
        yield from ((number, case, float(dice)) for case, dice in zip(scores.case_id, scores.masks.dice, strict=True))


if __name__ == "__main__":
    sys.exit(main())
