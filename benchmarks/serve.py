"""The server against 60 and against the same model in one process, under four times its load, and at its end.

    python benchmarks/serve.py runs/latest/bundle data/demo/images
    python benchmarks/serve.py runs/smoke/p2/bundle data/smoke/images --soak 100000
Prints ratios of one run. Ratios of speed hold only where nobody else uses the machine. Exits with status 1 where a
target is missed.

In one process the same images are decoded and decided, forward_batch at a time, with as many threads on the same cores.
The server has less than these cores: the clients, one process that parses no body, share them.
That is not made up for; how much they take stands beside.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from stage1_pro.core.cli import share_cores

share_cores()  # as the server does, before torch is imported

from result import Result
from run import print_table
from serve_load import Load, Server, ask, ended, serving

from stage1_pro import Stage1Predictor

PREDICT = Path(__file__).parents[1] / "stage1_pro" / "scripts" / "60_predict.py"
PARTS = ["id", "answer", "probability", "decision", "score", "reason"]
IMAGES = 256
ROUNDS = 3


def same_bytes(server: Server, bundle: str, files: list[Path]) -> list[Result]:
    """Decisions at three concurrencies beside the table that 60 writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "60.csv"
        command = [sys.executable, str(PREDICT), bundle, *map(str, files), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        expected = out.read_bytes()
    contents, rows = [file.read_bytes() for file in files], []
    for count in (1, 8, 32):
        kept = ask(server, contents, count, limit=len(files), keep=True).bodies
        table = pd.DataFrame([kept[at][1] for at in range(len(files))]).assign(id=list(map(str, files)))
        if "prediction_set" in table:
            table["prediction_set"] = table["prediction_set"].map("|".join)
        columns = [*PARTS, *(name for name in ("prediction_set",) if name in table)]
        same = table[columns].to_csv(index=False).encode() == expected
        rows.append(
            Result(f"rows equal to those of 60, concurrency {count}", same, 1, "at least", f"{len(files)} images")
        )
    return rows


def bad_alone(server: Server, contents: list[bytes]) -> list[Result]:
    asked = (contents * 32)[:32]
    bad = {3: b"not an image", 10: asked[10][:60], 11: b"%!PS-Adobe", 31: b"GIF89a"}
    asked = [bad.get(at, content) for at, content in enumerate(asked)]
    kept = ask(server, asked, 32, limit=32, keep=True).bodies
    right = sum(kept[at][0] == (422 if at in bad else 200) for at in range(32)) / 32
    return [Result("four bad images of 32: statuses as they should be", right, 1, "at least", "4 × 422, 28 × 200")]


def in_process(predictor: Stage1Predictor, contents: list[bytes], seconds: float) -> tuple[float, float]:
    """Images a second, and CPU seconds an image, of one process that decides forward_batch at a time."""
    size, done, begun, cpu = predictor.forward_batch or 8, 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        start = done % (len(contents) - size + 1)
        predictor.predict(contents[start : start + size])
        done += size
    return done / (time.perf_counter() - begun), (time.process_time() - cpu) / done


def served(server: Server, contents: list[bytes], count: int, seconds: float) -> tuple[Load, float, float]:
    """What so many clients saw, the server's CPU seconds an image, and the clients' CPU seconds a second."""
    before, own = server.metric("process_cpu_seconds_total"), time.process_time()
    load = ask(server, contents, count, seconds=seconds)
    own = (time.process_time() - own) / load.seconds
    return load, (server.metric("process_cpu_seconds_total") - before) / len(load.answers[200]), own


def throughput(server: Server, predictor: Stage1Predictor, contents: list[bytes], seconds: float) -> list[Result]:
    """Speeds in turn, several times over: a machine that others use slows all of them."""
    size, found = predictor.forward_batch or 8, []
    gc.freeze()  # clients that look through all of torch ask nothing meanwhile
    ask(server, contents, 4 * size, seconds=2)
    over, asking = Load(), 0.0
    for _ in range(ROUNDS):
        alone, alone_cpu = in_process(predictor, contents, seconds)
        full, full_cpu, clients = served(server, contents, 4 * size, seconds)
        found.append((alone, full.rate(), alone_cpu, full_cpu, clients))
        asking -= time.process_time()
        part = ask(server, contents, 32 * size, seconds=seconds, rate=4 * full.rate())
        asking += time.process_time()
        over.seconds += part.seconds
        for status, times in part.answers.items():
            over.answers.setdefault(status, []).extend(times)
    alone, full, alone_cpu, full_cpu, clients = np.mean(found, axis=0)
    refused, answered = over.quantile(503, 0.99), over.quantile(200, 0.5)
    offered = (over.rate() + over.rate(503)) / full
    shared = f"offered {offered:.1f} ×; clients take {asking / over.seconds:.2f} of a core"
    return [
        Result("images/s, served / in one process", full / alone, 0.8, "at least",
               f"{full:.0f} / {alone:.0f}; clients take {clients:.2f} of a core"),
        Result("images per CPU second, the same", alone_cpu / full_cpu, 0.8, "at least",
               f"{1e3 * full_cpu:.2f} / {1e3 * alone_cpu:.2f} ms an image"),
        Result("goodput above capacity / capacity", over.rate() / full, 0.9, "at least", shared),
        Result("p99 of 503s / p50 of 200s", refused / answered, 1, "at most",
               f"{1e3 * refused:.0f} / {1e3 * answered:.0f} ms; statuses {sorted(over.answers)}"),
    ]  # fmt: skip


def end(server: Server, contents: list[bytes]) -> list[Result]:
    statuses, status = ended(server, contents[0], 40)
    note = f"{statuses.count(200)} × 200, the server ends with {status}"
    return [Result("answers of 40 in flight at SIGTERM", (statuses.count(200) - abs(status)) / 40, 1, "at least", note)]


def soak(server: Server, contents: list[bytes], requests: int) -> list[Result]:
    resident = "process_resident_memory_bytes"
    ask(server, contents, 16, limit=requests // 10)
    before = server.metric(resident)
    load = ask(server, contents, 16, limit=requests)
    after = server.metric(resident)
    note = f"{before / 2**20:.0f} to {after / 2**20:.0f} MiB in {load.seconds:.0f} s"
    right = len(load.answers.get(200, []))
    return [
        Result(f"memory after {requests} requests / before", after / before, 1.05, "at most", note),
        Result("answers with status 200", right / requests, 1, "at least", f"{right}; statuses {sorted(load.answers)}"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement of speed")
    parser.add_argument("--soak", type=int, default=0, help="only ask so many times, and watch the server's memory")
    args = parser.parse_args()
    files = sorted(args.images.iterdir())
    contents = [path.read_bytes() for path in files[:IMAGES]]
    with serving(args.bundle) as server:
        if args.soak:
            rows = soak(server, contents, args.soak)
        else:
            rows = same_bytes(server, args.bundle, files) + bad_alone(server, contents)
            rows += throughput(server, Stage1Predictor.load(args.bundle), contents, args.seconds)
            rows += end(server, contents)
    print_table(rows)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
