"""Lightning comes without what torchmetrics looks for; whoever wants torchmetrics gets the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("matplotlib", "scipy.signal", "transformers", "torchmetrics.functional")
SCRIPT = """
import json, sys
from stage1_pro.core.training import imports

part, imports._part = imports._part, lambda name: getattr(sys, name)
imports.import_lightly()  # of a version without these parts
left = [name for name in sys.modules if name.startswith("torchmetrics")]
imports._part = part
imports.import_lightly()
import lightning.pytorch
found = [name for name in %r if name in sys.modules]
from torchmetrics import Metric, functional
from torchmetrics.classification import BinaryAccuracy
whole = [functional.accuracy.__name__, issubclass(BinaryAccuracy, Metric)]
print(json.dumps([left, found, whole]))
"""


def test_lightning_brings_no_more_of_torchmetrics_than_it_takes() -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT % (HEAVY,)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    left, found, whole = json.loads(ended.stdout.splitlines()[-1])
    assert left == found == []
    assert whole == ["accuracy", True]
