"""Data that has moved since a run began: `--root NAME=PATH` names the new folder of a source.

The run's config stays as it is, and so do the names of the cases; whether the images are the same is told by content.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stage1_pro.core.config.sections import Source
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.schemas import did_you_mean


@dataclass(frozen=True)
class MovedSource(Source):
    """A source where it lies now; never written into a config."""

    was: str = ""
    """The folder that it lay in: absolute paths in its table begin with it."""


def moved_config(config: Stage1ProConfig, words: Sequence[str] | None, run: str | None = None) -> Stage1ProConfig:
    """The config with its sources where they lie now, to read their cases by.

    words: of --root, NAME=PATH each; run: whose config it is, which nobody can edit any more. Raises one UserError with
    every word that names no source or no folder; for a run also with the sources that are not where they were.
    """
    sources = config.dataset_params.sources
    moved = roots_of(words, sources)
    now = tuple(_moved(source, moved[source.name]) if source.name in moved else source for source in sources)
    gone = [old for old, new in zip(sources, now, strict=True) if not _is_there(new)]
    if run and gone:
        places = ", ".join(f"{source.labels or old_root(source)} (source {source.name})" for source in gone)
        raise UserError(
            f"{run}: its data is not where it was: {places}. Name the folder that holds it now: "
            f"--root {gone[0].name}=FOLDER. The images must be the same."
        )
    return replace(config, dataset_params=replace(config.dataset_params, sources=now))


def roots_of(words: Sequence[str] | None, sources: Sequence[Source]) -> dict[str, str]:
    """Read the words of --root: name of a source → its new folder. Raises one UserError with every wrong word.

    >>> roots_of(["data=."], [Source(labels="/old/labels.csv")])
    {'data': '.'}
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    names = [source.name for source in sources]
    for word in words or ():
        name, equals, path = word.partition("=")
        if not equals or not path:
            problems.append(f"--root {word}: write NAME=PATH, the source and its new folder")
        elif name not in names:
            problems.append(f"--root {word}: no source '{name}'{did_you_mean(name, names)}; {in_words(sources)}")
        elif name in found:
            problems.append(f"--root {word}: '{name}' is named twice")
        elif not Path(path).is_dir():
            problems.append(f"--root {word}: {path} is not a folder")
        found[name] = path
    raise_problems("--root does not fit the sources:", problems)
    return found


def way_back(sources: Iterable[Source]) -> str:
    """The advice where images of a run are missing."""
    return f"If they have moved, name the new folder with --root NAME=PATH; {in_words(sources)}."


def in_words(sources: Iterable[Source]) -> str:
    return "sources: " + ", ".join(f"{source.name} in {old_root(source)}" for source in sources)


def old_root(source: Source) -> Path:
    """The folder that the config names, from which the paths of a source start."""
    return Path(source.root) if source.root else Path(source.labels or ".").parent


def _moved(source: Source, folder: str) -> MovedSource:
    """The source in its new folder; its table below it as it lay below the old one, or where it was."""
    labels, old = source.labels, old_root(source)
    if labels and not _remote(labels):
        inside = Path(labels).relative_to(old) if Path(labels).is_relative_to(old) else Path(Path(labels).name)
        labels = str(Path(folder) / inside) if (Path(folder) / inside).exists() else labels
    return MovedSource(source.name, folder, labels, source.columns, str(old))


def _is_there(source: Source) -> bool:
    """Whether folder and table of a source exist; what is no local one tells by itself when it is read."""
    folder, table = old_root(source), source.labels or ""
    return (_remote(str(source.root or table)) or folder.is_dir()) and (_remote(table) or Path(table).exists())


def _remote(name: str) -> bool:
    return "://" in name or name.startswith("hf:")
