"""The closing lines of a set of decisions: who exits, what the bundle's test split says of them, what it all costs.

And those of a new bundle: the command that decides images with it.
"""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.sections import Source
from stage1_pro.core.console import say
from stage1_pro.core.data.image_files import holds_images, is_url
from stage1_pro.core.data.label_tables import read_table
from stage1_pro.core.data.masks.layouts import read_layout
from stage1_pro.core.data.parquet_tables import is_parquet
from stage1_pro.core.errors import UserError, first_few
from stage1_pro.core.inference.tables import Tally
from stage1_pro.core.metrics.arrays import percent

MEASURES = (
    ("coverage", "coverage"),
    ("right exits", "right_exits"),
    ("FNR on exits", "fnr_on_exits"),
    ("FPR on exits", "fpr_on_exits"),
)
CASES = 1000
"""Cases that the cost is stated for."""


def closing_lines(tally: Tally, bundle: Path) -> list[str]:
    """Return the lines on decisions that this bundle made; prices are those it was calibrated with."""
    evaluation = artifacts.read_json(bundle / "eval.json", "eval")
    config = artifacts.read_json(bundle / "config.json", "config")
    exits = evaluation["exits"]
    return [*_counted(tally), *_measured(exits), *_cost(exits, config, f"{tally.unit}s"), *_report(bundle)]


def say_first_use(contents: BundleContents) -> None:
    """Say how to decide images with a bundle: those that it was trained or certified with, where they are at hand."""
    script = f"python stage1_pro/scripts/60_predict.py {shlex.quote(str(contents.path))}"
    folder = None
    with suppress(UserError):  # a config or a table of another time is no matter of this bundle's being whole
        folder = _images_at_hand(contents)
    if folder is None:
        say(f"decide images with: {script} FOLDER, a folder of your images, or several, or files")
    else:
        out = contents.path.parent / "decisions.csv"
        if out.exists():  # those of another bundle of the run, which 60 would not replace
            out = out.with_name(f"decisions-{contents.path.name}.csv")
        say(f"next   {script} {shlex.quote(str(folder))} --out {shlex.quote(str(out))}")


def _images_at_hand(contents: BundleContents) -> Path | None:
    """A folder on this machine that holds images of the bundle's sources."""
    path = contents.path / contents.manifest["config_file"]
    params = merge_configs([(str(path), artifacts.read_json(path, "config"))], trains=False).dataset_params
    for source in filter(_is_local, params.sources):
        if contents.task.has_masks:
            if (folder := _images_beside_masks(source)) is not None:
                return folder
        elif source.labels is None and source.root and Path(source.root).is_dir() and holds_images(source.root):
            return Path(source.root)
        elif source.labels and Path(source.labels).is_file() and not is_parquet(Path(source.labels)):
            table = Path(source.labels)
            first = Path(source.root or table.parent) / read_table(table, source).frame["path"].iloc[0]
            if first.is_file():
                return first.parent
    return None


def _images_beside_masks(source: Source) -> Path | None:
    """The folder of a source's images, where each case is one file and no mask that 60 would decide lies in there."""
    frame = read_layout(source).frame
    first = Path(frame["path"].iloc[0]) if len(frame) else Path()
    alone = first.is_file() and not any(Path(mask).is_relative_to(first.parent) for mask in frame["mask"])
    return first.parent if alone else None


def _is_local(source: Source) -> bool:
    """Nothing is fetched for a line of advice."""
    return not any(map(is_url, (source.root, source.labels)))


def _counted(tally: Tally) -> list[str]:
    exits = tally.exits.total()
    deferred = tally.images - exits
    answers = ", ".join(f"{count} '{name}'" for name, count in tally.exits.most_common())
    share = f" ({deferred / tally.images:.1%} go to stage 2)" if deferred else ""
    found = [f"{tally.total}: {exits} exit, {deferred} deferred{share}", *_uncovered(tally)]
    return [*found, f"exits     {answers}"] if answers else found


def _uncovered(tally: Tally) -> list[str]:
    """Whose cases defer since no certificate covers them, those with the most cases first."""
    if not tally.uncovered:
        return []
    named = [f"{count} {repr(name) if name else 'without one'}" for name, count in tally.uncovered.most_common()]
    return [f"uncovered {tally.uncovered.total()} of certificate groups without a certificate: {first_few(named)}"]


def _measured(exits: dict[str, Any]) -> list[str]:
    """The test split's figures. Bundles made by older versions lack some."""
    found = [(words, exits[name]["value"]) for words, name in MEASURES if name in exits]
    return ["test set  " + ", ".join(f"{words} {percent(value)}" for words, value in found)]


def _cost(exits: dict[str, Any], config: dict[str, Any], unit: str) -> list[str]:
    """The price of deferrals and wrong exits, in deferrals, as on the test split."""
    if exits.get("utility", {}).get("value") is None:  # an older bundle, or a test split without negatives
        return []
    total = CASES * (1 - exits["utility"]["value"])
    deferred = CASES * (1 - exits["coverage"]["value"])
    wrong = [f"a false alarm priced {config['false_alarm_price']:g}"]
    wrong += [f"a miss {config['miss_price']:g}"] if config["miss_price"] else []
    return [
        f"cost      of {CASES:,} such {unit}, in deferrals: {deferred:,.0f} to stage 2 + {total - deferred:,.0f} for "
        f"wrong exits ({', '.join(wrong)}) = {total:,.0f}; without stage 1 {CASES:,}"
    ]


def _report(bundle: Path) -> list[str]:
    """Where the report lies, as long as the bundle lies in its run."""
    report = bundle.parent / "report.html"
    return [f"report    {report}"] if report.exists() else []
