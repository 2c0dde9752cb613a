"""What 00 costs an image beside decoding it: reading the table, hashing, drawing and writing splits.

Tiny generated images: 200,000 against 10,000, in CPU an image; cost and memory of the larger against limits.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
from result import Result

SMALL, LARGE = 10_000, 200_000
MOST_MS, MOST_MIB = 0.3, 1024
HEADER = b"BM" + bytes([246, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 1, 0, 24, 0])
"""Of a BMP of 8 × 8 pixels, up to the fields that may be zero."""


def measure() -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), LARGE)
        (small, _), (large, mebibytes) = (in_a_process(Path(folder), count) for count in (SMALL, LARGE))
    return [
        Result("cases: CPU an image, 200,000 / 10,000", large / small, 1.3, "at most", f"{large:.3f} ms an image"),
        Result("cases: CPU an image / 0.3 ms", large / MOST_MS, 1, "at most"),
        Result("cases: memory of 200,000 / 1 GiB", mebibytes / MOST_MIB, 1, "at most", f"{mebibytes:.0f} MiB"),
    ]


def draw(folder: Path, count: int) -> None:
    """Write images of noise, a twentieth of them positive, and their tables."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 192), dtype=np.uint8)
    names = [f"{index // 1000:03}/{index:06}.bmp" for index in range(count)]
    for name, content in zip(names, pixels, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(HEADER + bytes(54 - len(HEADER)) + content.tobytes())
    for size in (SMALL, LARGE):
        rows = (f"{name},{'positive' if index % 20 == 0 else 'rest'}\n" for index, name in enumerate(names[:size]))
        (folder / f"{size}.csv").write_text("path,label\n" + "".join(rows))


def in_a_process(folder: Path, count: int) -> tuple[float, float]:
    """(milliseconds of CPU an image, MiB at the peak) of a process of its own."""
    words = [sys.executable, __file__, str(folder / f"{count}.csv")]
    seconds, mebibytes = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return 1000 * float(seconds) / count, float(mebibytes)


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


def peak_mib() -> float:
    """Largest memory of this process; the one of getrusage may be that of the process which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    split(sys.argv[1])
