"""Score files: one row a case, the only thing that calibration and evaluation read about a model."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class MaskScores:
    """What the masks of one split are worth. missed: (N,) int8, of a positive case whether its mask fails the miss
    rule, −1 for a negative one; dice: (N,) float64 of the case; uncertainty: (N,) float64; positive_dice, marked_dice:
    (N,) float64 Dice of the positive class, of the mask and of one that marks every voxel."""

    missed: np.ndarray
    dice: np.ndarray
    uncertainty: np.ndarray
    positive_dice: np.ndarray
    marked_dice: np.ndarray

    def take(self, rows: np.ndarray) -> "MaskScores":
        """The cases at these positions, or where a mask (N,) holds."""
        return MaskScores(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Raw model outputs of one split, sorted by case id.

    case_id, group: (N,) str; labels: (N,) int8; logits: (N, C) float32, C-contiguous; gate_logit: (N,)
    float32, or None for a model without a gate; content: (N,) uint64, hashes of the image files, or None in older
    files; masks: of cases with masks. The digests name the weights and the splits they belong to.
    """

    split: str
    case_id: np.ndarray
    group: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    gate_logit: np.ndarray | None
    model_digest: str
    splits_digest: str
    answer_shift: float = 0.0
    """b, which training added to the log-odds to place the answers; the logits hold it."""
    content: np.ndarray | None = None
    order: np.ndarray | None = None
    """(N,) float64, the place of each image in its group, where the config names a column of it."""
    lengths: np.ndarray | None = None
    """(N,) int64, images of each group, where a row is a group (see `group_scores.in_groups`), else None."""
    masks: "MaskScores | None" = None
    certificate_group: np.ndarray | None = None
    """(N,) str, the camera or site whose certificate covers each case, "" for none, where the config names a column of
    them."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def positives(self) -> int:
        return int(np.count_nonzero(self.labels == 1))

    def take(self, rows: np.ndarray) -> "Scores":
        """The cases at these positions, or where a mask (N,) holds."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: column[rows] for name, column in columns.items() if isinstance(column, np.ndarray)}
        return replace(self, **arrays, masks=None if self.masks is None else self.masks.take(rows))

    def counted(self, answers: np.ndarray) -> np.ndarray:
        """(N,) the answers as they count: of a positive case with a mask, whether the mask is right.

        answers: (N,) int of 0 and 1. Only counting takes these: exits, and the answers of decisions, are the model's.
        """
        return answers if self.masks is None else np.where(self.labels == 1, 1 - self.masks.missed, answers)

    def supported(self, answers: np.ndarray) -> np.ndarray:
        """(N,) labels that the confidence in answers is judged by: an answer whose mask is a miss is a wrong one."""
        if self.masks is None:
            return self.labels
        return np.where(self.counted(answers) == self.labels, answers, 1 - answers)

    def write(self, path: Path) -> None:
        """Write as parquet, atomically. Raises ValueError where a case occurs twice."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        order = np.argsort(self.case_id.astype(str), kind="stable")
        case_id = self.case_id[order].astype(str)
        if np.any(case_id[1:] == case_id[:-1]):
            raise ValueError("a case is scored twice")
        columns = {
            "case_id": pa.array(case_id, pa.string()),
            "group": pa.array(self.group[order].astype(str), pa.string()),
            "label": pa.array(self.labels[order], pa.int8()),
        }
        for index in range(self.logits.shape[1]):
            columns[f"logit_{index}"] = pa.array(self.logits[order, index], pa.float32())
        if self.gate_logit is not None:
            columns["gate_logit"] = pa.array(self.gate_logit[order], pa.float32())
        if self.order is not None:
            columns["order"] = pa.array(self.order[order], pa.float64())
        if self.certificate_group is not None:
            columns["certificate_group"] = pa.array(self.certificate_group[order].astype(str), pa.string())
        if self.content is not None:
            columns["content"] = pa.array(self.content[order], pa.uint64())
        if self.masks is not None:
            masks = self.masks.take(order)
            columns |= {field.name: pa.array(getattr(masks, field.name)) for field in fields(masks)}
        labels = {"split": self.split, "model_digest": self.model_digest, "splits_digest": self.splits_digest}
        labels["answer_shift"] = repr(self.answer_shift)
        table = pa.table(columns).replace_schema_metadata(labels)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_bytes(path, buffer.getvalue())


def hashes(names: Iterable[str]) -> np.ndarray:
    """Return (N,) uint64, 8-byte hashes of digests or ids."""
    return np.frombuffer(b"".join(blake2b(str(name).encode(), digest_size=8).digest() for name in names), "<u8")


def read_scores(path: Path, mend: str) -> Scores:
    """Read one score file. Raises UserError where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = artifacts.read_bytes(path, mend)
    try:
        table = pq.read_table(io.BytesIO(content))
        return _from_table(table)
    except KeyError as column:
        raise UserError(f"{path}: it has no {column}, as where an older version wrote it. {mend}") from None
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not a whole score file ({' '.join(str(error).split())[:120]}). {mend}") from None


def _from_table(table) -> Scores:
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    logit_names = [name for name in table.column_names if name.startswith("logit_")]
    column = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    if not logit_names:
        raise ValueError("no logit columns")
    return Scores(
        split=metadata["split"],
        case_id=column["case_id"],
        group=column["group"],
        labels=column["label"].astype(np.int8),
        # contiguous: numpy's exp may round differently on strided memory
        logits=np.ascontiguousarray(np.stack([column[name] for name in logit_names], axis=1), dtype=np.float32),
        gate_logit=column["gate_logit"].astype(np.float32) if "gate_logit" in column else None,
        model_digest=metadata["model_digest"],
        splits_digest=metadata["splits_digest"],
        answer_shift=float(metadata.get("answer_shift", 0.0)),
        content=column["content"].astype(np.uint64) if "content" in column else None,
        order=column["order"].astype(np.float64) if "order" in column else None,
        certificate_group=column.get("certificate_group"),
        masks=MaskScores(**{field.name: column[field.name] for field in fields(MaskScores)})
        if "missed" in column
        else None,
    )
