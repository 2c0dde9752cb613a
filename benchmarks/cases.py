"""What an image costs 00 beside decoding it, and 20 once its features are cached; neither may grow with their number.

00: reading the table, hashing, drawing and writing splits. 20: all of it, from opening the run to suspects.csv. Tiny
generated images: 200,000 against 10,000, in CPU an image; cost and memory of the larger against limits.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import process_time

import numpy as np
from result import Result

SMALL, MIDDLE, LARGE = 10_000, 100_000, 200_000
MOST_MS, MOST_MIB = 0.3, 1024
EPOCHS = 3
HEADER = b"BM" + bytes([246, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 1, 0, 24, 0])
"""Of a BMP of 8 × 8 pixels, up to the fields that may be zero."""


def measure() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), (SMALL, MIDDLE, LARGE))
        drawn = {count: in_a_process(split, Path(folder), count) for count in (SMALL, LARGE)}
        trained = {count: in_a_process(train, Path(folder), count)[0] for count in (SMALL, MIDDLE, LARGE)}
    small, large = (1000 * drawn[count][0] / count for count in (SMALL, LARGE))
    mebibytes = drawn[LARGE][1]
    each = {count: 1000 * seconds / count for count, seconds in trained.items()}
    cost = ", ".join(f"{milliseconds:.2f} ms at {count:,}" for count, milliseconds in each.items())
    # what a further image costs: a start of some seconds would hide a growth
    early, late = ((trained[b] - trained[a]) / (b - a) for a, b in ((SMALL, MIDDLE), (MIDDLE, LARGE)))
    return [
        Result("cases: CPU an image, 200,000 / 10,000", large / small, 1.3, "at most", f"{large:.3f} ms an image"),
        Result("cases: CPU an image / 0.3 ms", large / MOST_MS, 1, "at most"),
        Result("cases: memory of 200,000 / 1 GiB", mebibytes / MOST_MIB, 1, "at most", f"{mebibytes:.0f} MiB"),
        Result("cases: 20 a cached image, 200,000 / 10,000", each[LARGE] / each[SMALL], 1.3, "at most", cost),
        Result("cases: 20 a further image, second / first 100,000", late / early, 1.3, "at most"),
    ]


def draw(folder: Path, sizes: tuple[int, ...]) -> None:
    """Write images of noise, a twentieth of them positive, and a table of the first so many for each size."""
    count = max(sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 192), dtype=np.uint8)
    names = [f"{index // 1000:03}/{index:06}.bmp" for index in range(count)]
    for name, content in zip(names, pixels, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(HEADER + bytes(54 - len(HEADER)) + content.tobytes())
    for size in sizes:
        rows = (f"{name},{'positive' if index % 20 == 0 else 'rest'}\n" for index, name in enumerate(names[:size]))
        (folder / f"{size}.csv").write_text("path,label\n" + "".join(rows))


def in_a_process(work: Callable[[str], None], folder: Path, count: int) -> tuple[float, float]:
    """(seconds of CPU, MiB at the peak) of a process of its own."""
    words = [sys.executable, __file__, work.__name__, str(folder / f"{count}.csv")]
    seconds, mebibytes = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return float(seconds), float(mebibytes)


def split(table: str) -> None:
    from stage1_pro.core import artifacts
    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.data.cases import load_cases
    from stage1_pro.core.data.splitting import make_splits

    config = merge_configs([("benchmark", {"dataset_params": {"sources": [{"name": "noise", "labels": table}]}})])
    begun = process_time()
    splits = make_splits(load_cases(config.dataset_params, decode=False), config)
    artifacts.write_json(Path(table).with_suffix(".json"), splits.data, "splits")
    print(process_time() - begun, peak_mib())


def train(table: str) -> None:
    """20 on a run whose features are cached already: noise in the file that the cache looks for."""
    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.training.feature_cache import cache_key
    from stage1_pro.core.training.fit import build_model
    from stage1_pro.core.training.start import new_run

    few = {f"val_{name}_ratio": 0.02 for name in ("select", "calib", "test")}  # scoring reads images
    size = {"image_size": 32, "num_workers": 0}
    data = {"sources": [{"name": "noise", "labels": table}], "positive_class": "positive", **size, **few}
    settings = {"model_path": "random:test_efficientnet", "epochs": EPOCHS, "dataset_params": data}
    layers = [("benchmark", settings)]
    config, path = merge_configs(layers), str(Path(table).parent / "runs" / Path(table).stem)
    run, cases = new_run(path, config)
    model = build_model(config, cases.class_names)
    (run.path.parent / ".feature_cache").mkdir(exist_ok=True)
    for part in ("train", "val_select"):
        contents = list(cases.frame["content"].iloc[run.splits.indices(part)])
        key = cache_key(model.backbone, model.spec, contents, config.batch_size)
        noise = np.random.default_rng(1).normal(size=(len(contents), model.features)).astype(np.float32)
        np.save(run.path.parent / ".feature_cache" / f"{key}.npy", noise)
    script = import_module("stage1_pro.scripts.20_train")
    begun = process_time()
    script.main(script.Args(run=path), layers)
    print(process_time() - begun, peak_mib())


def peak_mib() -> float:
    """Largest memory of this process; the one of getrusage may be that of the process which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    {"split": split, "train": train}[sys.argv[1]](sys.argv[2])
