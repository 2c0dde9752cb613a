"""Known weights of a run's held-out cases: with them val_calib is a sample of another world than it was drawn from.

A case is kept with probability weight / bound, drawn once by a hash of its group's name. What is kept is distributed as
the cases of the other world, exactly, and is counted as ever: no bound of weighted rates is needed. Only weights that
are known do that; with estimated ones .16 of the certificates were false at .1, and a threshold chosen by a weighted
rate breaks its target in .4 to .5 of all draws.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, counted, first_few
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray
from stage1_pro.core.metrics.hashing import drawn, hash64
from stage1_pro.core.records.scores import Scores

WEIGHED = ("val_calib", "val_test")
"""The splits that promise and measure; val_select may be of any world, since it only chooses."""
PURPOSE = "known weights:"
MEND = "Restore the run's scores folder from a copy."


@dataclass(frozen=True)
class Weights:
    """Weights of cases, or of groups where these get one decision each. case_id: (N,) str, sorted; weight: (N,) float64
    from 0 to bound; bound: the largest that any case of the world has, fixed without a look at these."""

    case_id: np.ndarray
    weight: FloatArray
    bound: float

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids, weights and bound."""
        names = "\n".join(self.case_id.tolist()).encode()
        return sha256(names + self.weight.tobytes() + np.float64(self.bound).tobytes()).hexdigest()

    def of(self, scores: Scores) -> FloatArray:
        """(N,) the weights of a split's cases, NaN where there is none."""
        names = scores.case_id.astype(str)
        place = np.minimum(np.searchsorted(self.case_id, names), len(self.case_id) - 1)
        return np.where(self.case_id[place] == names, self.weight[place], np.nan)

    def kept(self, scores: Scores) -> BoolArray:
        """(N,) the cases that stay, groups whole: the same ones for whoever draws again, in whatever order."""
        purpose = f"{PURPOSE}{scores.splits_digest}:".encode()
        return drawn(hash64(scores.group, purpose), self.of(scores) / self.bound)

    def thinned(self, scores: Scores) -> Scores:
        """The cases that stay. Raises UserError where a case has no weight."""
        unknown = scores.case_id[np.isnan(self.of(scores))]
        if unknown.size:
            raise UserError(
                f"{scores.split}: {counted(unknown.size, 'case')} without a weight: {first_few(unknown)}. The policy "
                "was certified with weights of other cases only; begin a new run and give every case one."
            )
        return scores.take(self.kept(scores))

    def record(self, calib: Scores) -> dict[str, Any]:
        """What the policy file says of them. calib: val_calib before any case is left out."""
        kept = self.kept(calib)
        return {
            "bound": self.bound,
            "cases": len(calib),
            "kept": int(kept.sum()),
            "positives": calib.positives,
            "kept_positives": int((calib.labels[kept] == 1).sum()),
            "digest": self.digest,
        }

    def write(self, path: Path) -> None:
        """Write as parquet, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"case_id": pa.array(self.case_id, pa.string()), "weight": pa.array(self.weight)})
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"bound": repr(self.bound)}), buffer)
        artifacts.write_bytes(path, buffer.getvalue())


def read_weights(path: Path, digest: str) -> Weights:
    """Read the weights that a policy names. Raises UserError where the file is missing, damaged or another one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = artifacts.read_bytes(path, MEND)
    try:
        table = pq.read_table(io.BytesIO(content))
        columns = (table[name].to_numpy(zero_copy_only=False) for name in ("case_id", "weight"))
        found = Weights(next(columns).astype(str), next(columns), float(table.schema.metadata[b"bound"]))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no weights ({' '.join(str(error).split())[:100]}). {MEND}") from None
    if found.digest != digest:
        raise UserError(f"{path}: not the weights that the policy was certified with. {MEND}")
    return found
