"""One figure of the study of defaults: what stage 1 decides, and at how many false alarms, before and now."""

from pathlib import Path

import pandas as pd
from defaults_outcomes import PRICES
from defaults_table import BEFORE, CHOSEN, KEYS, pick

TARGET, LEAST_POSITIVES = 0.05, 250
"""The cells shown: of one target, with evidence enough that both ways certify."""
IMAGES = 1000
MOST_ALARMS = 260
BLUE, GREY, RED = "#1f6fb4", "#8a8a8a", "#c0392b"


def write_figure(rows: pd.DataFrame, path: Path) -> None:
    """Draw decided images against false alarms, per 1,000 images, an arrow a cell."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    before, now = (_points(rows, fields) for fields in (BEFORE, CHOSEN))
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    edge = [0, MOST_ALARMS]
    axes.fill_between(edge, [0, 0], [PRICES.false_alarm * alarms for alarms in edge], color=RED, alpha=0.08, lw=0)
    axes.text(
        0.97 * MOST_ALARMS,
        40,
        f"worth less than deferring everything, at {PRICES.false_alarm:g} deferrals a false alarm",
        color=RED,
        ha="right",
    )
    outside = [cell for cell in before.index if before.alarms[cell] > MOST_ALARMS]
    for cell in now.index.intersection(before.index):
        end, start = now.loc[cell], before.loc[cell]
        axes.annotate(
            "",
            (end["alarms"], end["decided"]),
            (min(start["alarms"], MOST_ALARMS), start["decided"]),
            arrowprops={"arrowstyle": "->", "color": GREY, "alpha": 0.45},
        )
    inside = before[~before.index.isin(outside)]
    axes.scatter(inside["alarms"], inside["decided"], color=GREY, label="before", zorder=3)
    axes.scatter(
        [MOST_ALARMS] * len(outside),
        before.loc[outside, "decided"],
        color=GREY,
        marker=">",
        clip_on=False,
        label=f"before, more than {MOST_ALARMS} false alarms",
    )
    axes.scatter(now["alarms"], now["decided"], color=BLUE, label="now", zorder=4)
    axes.set(
        xlim=edge,
        ylim=(0, 1.04 * IMAGES),
        xlabel=f"false alarms per {IMAGES:,} images",
        ylabel=f"images that stage 1 decides, per {IMAGES:,}",
        title=f"At most {TARGET:.0%} of the decided positives are missed: certified, before and now",
    )
    axes.legend(loc="center right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _points(rows: pd.DataFrame, fields: dict) -> pd.DataFrame:
    """decided and alarms per 1,000 images, by cell; utility is coverage less the price of false alarms."""
    chosen = pick(rows, fields)
    chosen = chosen[(chosen["target"] == TARGET) & (chosen["calib"] >= LEAST_POSITIVES)]
    means = chosen.groupby(KEYS[0])[["coverage", "utility"]].mean()
    alarms = (means["coverage"] - means["utility"]) / PRICES.false_alarm
    return pd.DataFrame({"decided": IMAGES * means["coverage"], "alarms": IMAGES * alarms})
