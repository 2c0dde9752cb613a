"""Place the answers of a model on val_select, before the first score is written."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.policies.dirichlet import class_margin
from stage1_pro.core.policies.independence import independence
from stage1_pro.core.policies.placement import Part, Prices, place_answers
from stage1_pro.core.records.group_scores import in_groups
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.splits import Splits

CHUNK = 4096
"""Cases whose features go through the heads at once."""


@torch.no_grad()
def place(model: Stage1Model, config: Stage1ProConfig, splits: Splits, frame: pd.DataFrame, features: Tensor) -> None:
    """Choose on val_select from which log-odds on a case is answered positive, for the config's target and prices.

    model: on the CPU; where its answers were placed before, they are placed anew. frame, features (N, D): val_select's.
    Of val_calib only the number of its independent positives is used, which the certificate will count.
    """
    model.shift_answers(0.0)
    logits = torch.cat([model.head(part).logits for part in features.split(CHUNK)]).numpy()
    model.shift_answers(placed_shift(logits, config, splits, frame, model.class_names))


def placed_shift(
    logits: np.ndarray, config: Stage1ProConfig, splits: Splits, frame: pd.DataFrame, class_names: Sequence[str]
) -> float:
    """Return the shift of the answers that `place` chooses, and say it. logits: (N, 2) of val_select, unshifted."""
    ids, groups = frame["case_id"].to_numpy(), frame["group"].to_numpy()
    labels = frame["label"].to_numpy("int8")
    order = frame["order"].to_numpy() if "order" in frame else None
    select = Scores("val_select", ids, groups, labels, logits, None, "", splits.digest, order=order)
    if config.group_views is not None:
        select = in_groups(select, config.group_views, config.dataset_params.group_label)
    placement = place_answers(
        class_margin(select.logits),
        select.labels,
        independence(select)[0],
        splits.metadata["evidence"]["val_calib_positive_groups"],
        Risk(config.certified_level(), config.fnr_confidence),
        Prices(config.false_alarm_price, config.miss_price),
        config.seed,
        _parts(splits, frame),
    )
    for warning in placement.warnings():
        say(f"warning: {warning}")
    found = placement.predicted()
    say(
        f"answers placed: {placement.shift:+.2f} on the log-odds of '{class_names[1]}'; val_select predicts "
        f"coverage {found['coverage']:.1%}, right exits {found['right_exits']:.1%}, certified in "
        f"{found['certified']:.0%} of redrawn calibration sets"
    )
    return placement.shift


def _parts(splits: Splits, frame: pd.DataFrame) -> list[Part] | None:
    """The certificate groups of val_select's cases, None where one certificate holds for all."""
    positives = splits.metadata["evidence"].get("certificate_groups")
    if positives is None:
        return None
    names = frame["certificate_group"].to_numpy(str)
    return [Part(names == name, count) for name, count in sorted(positives.items())]
