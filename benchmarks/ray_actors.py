"""Ray actors against one process: images per second of 61 with one and two actors, and of 60 in one process.

    python benchmarks/ray_actors.py runs/latest/bundle data/demo/images --images 6000
Needs the extra `ray`, and two cores that nothing else uses. Every process computes on one thread. Rates are those
between the first part and the last, so that the start of processes, whose seconds are told as well, does not count.
Each way takes its turn in every round; medians of rounds. Status 1 where two actors are less than 1.6 of one process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import pandas as pd

SCRIPTS = Path(__file__).parents[1] / "stage1_pro" / "scripts"
GOAL = 1.6
MARK = "STAGE1_RAY_ACTORS"
ROWS = 128
ROWS_OF_60 = 1024


@dataclass(frozen=True)
class Measured:
    """rate: images per second between the first part and the last; cpu: seconds of CPU time an image meanwhile, of all
    processes of the command; wall: seconds of the whole command."""

    rate: float
    cpu: float
    wall: float


def measured(command: list[str], parts: Path, rows: int, images: int) -> Measured:
    """Run a command and watch the folder of its parts. rows: of a part, images: in all."""
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: f"{os.getpid()}-{time.monotonic_ns()}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen: dict[int, tuple[float, float]] = {}
    while process.poll() is None:
        count = len(list(parts.glob("part-*.parquet"))) if parts.is_dir() else 0
        if count not in seen:
            seen[count] = time.monotonic(), cpu_seconds(environment[MARK])
        time.sleep(0.05)
    if process.returncode not in (0, 4):
        raise SystemExit(process.stderr.read() if process.stderr else "")
    wall = time.monotonic() - start
    whole = images // rows  # the last part is shorter
    first = min(count for count in seen if count)
    last = max(count for count in seen if count <= whole)
    seconds, cpu = (after - before for before, after in zip(seen[first], seen[last], strict=True))
    return Measured((last - first) * rows / seconds, cpu / ((last - first) * rows), wall)


def cpu_seconds(mark: str) -> float:
    """CPU time so far of the processes that carry this mark in their environment."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def linked(files: Iterable[str], folder: Path) -> list[str]:
    """Links to files, a folder full: no command line takes so many names."""
    folder.mkdir()
    links = []
    for number, file in enumerate(files):
        links.append(folder / f"{number:07}{Path(file).suffix}")
        links[-1].symlink_to(Path(file).absolute())
    return list(map(str, links))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=6000, help="the folder's images are repeated up to this number")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.images < 2 * ROWS_OF_60:
        parser.error(
            f"--images {args.images}: must be {2 * ROWS_OF_60} or more, two parts of 60, between which it counts"
        )
    files = sorted(str(path) for path in args.folder.rglob("*") if path.is_file())
    found: dict[str, list[Measured]] = {"60, one process": [], "61, one actor": [], "61, two actors": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = linked(islice(cycle(files), args.images), folder / "in")
        pd.DataFrame({"path": paths}).to_parquet(folder / "in.parquet")
        for number in range(args.rounds):
            out = folder / f"{number}.parquet"
            words = [
                str(SCRIPTS / "60_predict.py"),
                args.bundle,
                str(folder / "in"),
                "--out",
                str(out),
                "--num_workers",
                "0",
            ]
            by_60 = measured([sys.executable, *words], Path(f"{out}.parts"), ROWS_OF_60, args.images)
            found["60, one process"].append(by_60)
            for actors, label in ((1, "61, one actor"), (2, "61, two actors")):
                out = folder / f"{number}-{actors}"
                words = [str(SCRIPTS / "61_predict_ray.py"), args.bundle, str(folder / "in.parquet"), str(out)]
                words += ["--rows_per_part", str(ROWS), "--actors", str(actors)]
                found[label].append(measured([sys.executable, *words], out, ROWS, args.images))
    base = found["60, one process"]
    ratios = {label: median(one.rate / its.rate for one, its in zip(rows, base, strict=True))
              for label, rows in found.items()}  # fmt: skip
    print(f"{args.images} images, {args.rounds} rounds, one thread a process")
    for label, rows in found.items():
        rate, wall = median(one.rate for one in rows), median(one.wall for one in rows)
        cpu = 1000 * median(one.cpu for one in rows)
        speed = f"{rate:7.1f} images/s, {ratios[label]:.2f} of 60"
        print(f"  {label:16}  {speed}; {cpu:.1f} ms of CPU an image; whole command {wall:.0f} s")
    best = ratios["61, two actors"]
    print(f"two actors: {best:.2f} of one process, at least {GOAL:g}: {'reached' if best >= GOAL else 'MISSED'}")
    return int(best < GOAL)


if __name__ == "__main__":
    sys.exit(main())
