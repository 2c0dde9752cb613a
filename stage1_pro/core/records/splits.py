"""Four splits, four jobs: the assignment, its digest and its rules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError

SPLITS = ("train", "val_select", "val_calib", "val_test")

USAGE = {
    "train": "gradients, nothing else",
    "val_select": "early stopping, checkpoint choice, fitting calibrators, fixing the candidate thresholds and "
    "their order; never the certificate",
    "val_calib": "the certificate of the policy; never a choice of checkpoint, calibrator or policy",
    "val_test": "the final report; never a choice",
}


@dataclass(frozen=True, slots=True)
class Splits:
    """The content of splits.json. Indices point into the case table sorted by case id."""

    data: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the assignment: the cases and the split of each. Targets and notes do not enter it."""
        essence = {name: self.indices(name) for name in SPLITS}
        return artifacts.digest_json({**essence, "cases": self.metadata["case_table_digest"]})

    @property
    def metadata(self) -> dict[str, Any]:
        return self.data["metadata"]

    @property
    def class_names(self) -> list[str]:
        return self.metadata["class_names"]

    @property
    def positive_class(self) -> str:
        return self.metadata["positive_class"]

    def indices(self, split: str) -> list[int]:
        return self.data[f"{split}_indices"]

    def counts(self, split: str) -> dict[str, int]:
        """Cases per class name."""
        return self.metadata["counts"][split]


def read_splits(path: Path) -> Splits:
    """Load and check splits.json: disjoint, in range, and written by our own script."""
    return parse_splits(artifacts.read_bytes(path, artifacts.MENDS["splits"]), path)


def parse_splits(content: bytes, path: Path, mend: str | None = None) -> Splits:
    """Return the splits that the bytes of splits.json hold.

    path, mend: where they come from and how they come back, for messages. Raises UserError for a case in two splits,
    an index beyond the cases, and counts that are not those of the lists.
    """
    data = artifacts.parse_json(content, "splits", path, mend)
    missing = [f"{name}_indices" for name in SPLITS if f"{name}_indices" not in data]
    missing += [
        key
        for key in ("cases", "class_names", "positive_class", "counts", "val_calib_digest")
        if key not in data["metadata"]
    ]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing. {artifacts.MENDS['splits']}")
    indices = [index for name in SPLITS for index in data[f"{name}_indices"]]
    if len(set(indices)) < len(indices):
        raise UserError(f"{path}: a case is in two splits. {artifacts.MENDS['splits']}")
    if indices and max(indices) >= data["metadata"]["cases"]:
        raise UserError(
            f"{path}: an index is beyond the {data['metadata']['cases']} cases. {artifacts.MENDS['splits']}"
        )
    for name in SPLITS:
        counted, listed = sum(data["metadata"]["counts"][name].values()), len(data[f"{name}_indices"])
        if counted != listed:
            raise UserError(f"{path}: {name} lists {listed} cases and counts {counted}. {artifacts.MENDS['splits']}")
    return Splits(data)
