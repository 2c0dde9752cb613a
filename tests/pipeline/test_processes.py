"""60 --num_workers auto: as many processes as the images and the machine call for."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import SCRIPTS
from PIL import Image

from stage1_pro import Stage1Predictor
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.preparing import Announced, OnCpu, Staying
from stage1_pro.core.inference.processes import MOST_WORKERS, Pace, fastest, workers_for

CROPS, PHOTOS = Pace(decoding=0.0006, model=0.003), Pace(decoding=0.012, model=0.003)


@pytest.mark.parametrize(
    ("pace", "images", "cores", "threads", "expected"),
    [
        (CROPS, 5000, 2, 2, {0, 2}),  # a single process would stop the model for as long as it decodes
        (PHOTOS, 5000, 2, 2, {2}),
        (PHOTOS, 5000, 16, 16, set(range(12, 17))),
        (PHOTOS, 5000, 16, 8, {4, 5}),  # 12 ms / 4 is what the model takes too, on cores of its own
        (PHOTOS, 5000, 4, 0, {4}),  # a model on a GPU leaves the cores alone
        (Pace(0.012, 0.00001), 10**6, 64, 0, {MOST_WORKERS}),
        (CROPS, 130, 2, 2, {0}),  # over before a process has started
        (Pace(0.0, 0.01), 10**6, 8, 8, {0, 1}),
    ],
)
def test_processes_suit_the_pace(pace, images, cores, threads, expected):
    assert fastest(images, pace, cores, threads) in expected


def test_auto_looks_at_the_images(bundle: Path, images: Path, tmp_path: Path) -> None:
    predictor = Stage1Predictor.load(bundle, "cpu")
    large, broken = tmp_path / "large.png", tmp_path / "broken.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large)
    broken.write_bytes(b"nothing")
    if len(os.sched_getaffinity(0)) > 1:
        assert workers_for("auto", predictor, [str(large)] * 300) >= 1
    assert workers_for("auto", predictor, [str(large)] * 20) == 0
    assert workers_for("auto", predictor, [str(broken)] * 300) == 0
    assert workers_for("3", predictor, [str(broken)]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_ends_with_one_line(bundle, images, tmp_path, number, status):
    """As a terminal and a scheduler send it: the processes that decode get it too."""
    paths = [str(path) for path in sorted(images.glob("*.png"))] * 20
    words = [sys.executable, SCRIPTS / "60_predict.py", bundle, *paths, "--out", tmp_path / "d.csv", "--num_workers", 2]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("d.csv.parts/part-*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, "60_predict.py: Interrupted; the files on disk are whole.\n")


def test_processes_that_stay_read_the_lists_as_others_do(bundle: Path, images: Path) -> None:
    predictor = Stage1Predictor.load(bundle, "cpu")
    paths = sorted(map(str, images.glob("*.png")))[:5]
    lists = [[paths[0], BadImage("missing"), *paths[1:3]], [Path(paths[3]).read_bytes()], [], paths]
    alone = [repr(predictor.predict(sources)) for sources in lists]  # NaN is not equal to itself
    predictor.images = Staying(OnCpu(predictor.model.spec.preprocessing, predictor.device), workers=2)
    begun = []
    for sources, expected in zip(lists, alone, strict=True):
        assert repr(predictor.predict(sources)) == expected
        begun.append(set(active_children()))
    assert len(begun[0]) == 2
    assert begun == begun[:1] * 4
    next(predictor.outputs(paths, batch_size=1))  # left in the middle
    assert repr(predictor.predict(paths)) == alone[-1]


def test_processes_that_read_several_lists_end_with_the_last_one(bundle: Path, images: Path) -> None:
    paths = sorted(map(str, images.glob("*.png")))[:6]
    lists = [paths[:4], paths[4:]]
    on_cpu = OnCpu(Stage1Predictor.load(bundle, "cpu").model.spec.preprocessing, torch.device("cpu"))
    before = set(active_children())
    announced = Announced(on_cpu, lists, batch_size=2, workers=1)
    sizes = [len(inputs) for part in lists for inputs, *_ in announced.batches(part, 2, workers=1)]
    assert sizes == [2, 2, 2]
    assert set(active_children()) == before
