"""The server against the same model in one process, and under four times the load that it can take.

    python benchmarks/serve.py runs/latest/bundle data/demo/images
    python benchmarks/serve.py runs/smoke/p2/bundle data/smoke/images --soak 100000
Prints ratios of one run: server and client share this machine. Status 1 where one of them misses its goal.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stage1_pro import Stage1Predictor

SERVER = Path(__file__).parents[1] / "stage1_pro" / "scripts" / "70_serve.py"
IMAGES = 256


@dataclass
class Load:
    """What clients saw: seconds to each answer, by status."""

    seconds: float = 0.0
    answers: dict[int, list[float]] = field(default_factory=dict)

    def rate(self, status: int = 200) -> float:
        return len(self.answers.get(status, [])) / self.seconds

    def quantile(self, status: int, share: float) -> float:
        return float(np.quantile(self.answers.get(status) or [np.nan], share))


async def clients(port: int, contents: list[bytes], count: int, stop_at: float, limit: int, rate: float | None) -> Load:
    """So many clients, each with one connection, ask until `stop_at` or `limit` answers.

    rate: requests a second of all of them together; None: each asks again when it has its answer.
    """
    load, left, begun = Load(), limit, time.perf_counter()

    async def client(number: int) -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due = begun + (number / rate if rate else 0)
        while time.perf_counter() < stop_at and left > 0:
            left -= 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()) if rate else 0)
            content = contents[left % len(contents)]
            asked = time.perf_counter()
            writer.write(b"POST /v1/decide HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length
            await reader.readexactly(int(length[1]))
            load.answers.setdefault(int(head[9:12]), []).append(time.perf_counter() - asked)
            due = max(due + (count / rate if rate else 0), asked)
        writer.close()

    await asyncio.gather(*map(client, range(count)))
    load.seconds = time.perf_counter() - begun
    return load


def ask(port: int, contents: list[bytes], count: int, seconds: float, limit: int = 10**9, rate: float | None = None):
    return asyncio.run(clients(port, contents, count, time.perf_counter() + seconds, limit, rate))


def in_process(predictor: Stage1Predictor, contents: list[bytes], seconds: float) -> float:
    """Images a second that one process decides, forward_batch at a time."""
    size, done, begun = predictor.forward_batch or 8, 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = done % (len(contents) - size + 1)
        predictor.predict(contents[start : start + size])
        done += size
    return done / (time.perf_counter() - begun)


def resident(port: int) -> float:
    """MiB of memory that the server holds."""
    from urllib.request import urlopen

    text = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return float(re.findall(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)[0]) / 2**20


def throughput(predictor: Stage1Predictor, port: int, contents: list[bytes], seconds: float) -> list[bool]:
    size = predictor.forward_batch or 8
    ask(port, contents, 8 * size, 2)
    # in turn, twice: a machine that others use slows both
    pairs = [
        (in_process(predictor, contents, seconds), ask(port, contents, 4 * size, seconds).rate()) for _ in range(2)
    ]
    alone, served = np.mean(pairs, axis=0)
    print(f"in one process {alone:.0f} images/s, served {served:.0f}: ratio {served / alone:.2f}, goal .80")
    full = ask(port, contents, 4 * size, seconds)
    over = ask(port, contents, 32 * size, seconds, rate=4 * full.rate())
    capacity, kept = full.rate(), over.rate() / full.rate()
    refused, answered = over.quantile(503, 0.99), over.quantile(200, 0.5)
    offered = (over.rate() + over.rate(503)) / capacity
    print(f"offered {offered:.1f} × capacity ({capacity:.0f}/s): goodput {kept:.2f} of it, goal .90")
    print(f"p99 of 503s {refused * 1e3:.0f} ms, p50 of 200s {answered * 1e3:.0f} ms: goal the former below the latter")
    print(f"statuses { ({status: len(found) for status, found in over.answers.items()}) }")
    return [served >= 0.8 * alone, kept >= 0.9, refused < answered]


def soak(port: int, contents: list[bytes], requests: int) -> list[bool]:
    ask(port, contents, 16, 1e9, requests // 10)
    before = resident(port)
    load = ask(port, contents, 16, 1e9, requests)
    after = resident(port)
    print(f"{requests} requests in {load.seconds:.0f} s, statuses {sorted(load.answers)}: ", end="")
    print(f"{before:.0f} MiB before, {after:.0f} after: growth {after / before - 1:.1%}, goal 5 %")
    return [after <= 1.05 * before, set(load.answers) == {200}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement")
    parser.add_argument("--soak", type=int, default=0, help="only ask so many times, and watch the server's memory")
    args = parser.parse_args()
    contents = [path.read_bytes() for path in sorted(args.images.iterdir())[:IMAGES]]
    process = subprocess.Popen(
        [sys.executable, str(SERVER), args.bundle, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        assert process.stdout.readline() == "ready\n"
        if args.soak:
            reached = soak(port, contents, args.soak)
        else:
            reached = throughput(Stage1Predictor.load(args.bundle), port, contents, args.seconds)
    finally:
        process.terminate()
        process.wait()
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
