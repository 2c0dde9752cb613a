"""Data that has moved since a run began: `--root NAME=PATH` names the new folder of a source.

The run's config stays as it is, and so do the names of the cases; whether the images are the same is told by content.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stage1_pro.core.config.settings import Source
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.schemas import did_you_mean

Roots = Mapping[str, str]
"""New folder of a source, by the name of the source."""


def roots_of(words: Sequence[str] | None, sources: Sequence[Source]) -> dict[str, str]:
    """Read the words of --root. Raises one UserError with every word that names no source or no folder.

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
            problems.append(
                f"--root {word}: no source '{name}'{did_you_mean(name, names)}; {sources_in_words(sources)}"
            )
        elif name in found:
            problems.append(f"--root {word}: '{name}' is named twice")
        elif not Path(path).is_dir():
            problems.append(f"--root {word}: {path} is not a folder")
        found[name] = path
    raise_problems("--root does not fit the sources:", problems)
    return found


def old_root(source: Source) -> Path:
    """The folder that the config names, from which the paths of a source start."""
    return Path(source.root) if source.root else Path(source.labels or ".").parent


def labels_at(source: Source, moved: str | None) -> Path:
    """The table of a source, which may have moved with its images: below the new folder as it lay below the old one."""
    labels = Path(source.labels or "")
    if moved is None:
        return labels
    inside = labels.relative_to(old_root(source)) if labels.is_relative_to(old_root(source)) else Path(labels.name)
    beside = Path(moved) / inside
    return beside if beside.exists() else labels


def demand_there(sources: Iterable[Source], moved: Roots, where: Path) -> None:
    """Raise UserError with the way back where tables or folders of a run are not where its config says.

    where: the run, for the message.
    """
    gone = [
        source
        for source in sources
        if not _remote(source)
        and not (Path(moved.get(source.name) or old_root(source)).is_dir() and _table_there(source, moved))
    ]
    if gone:
        places = ", ".join(f"{source.labels or old_root(source)} (source {source.name})" for source in gone)
        example = f"--root {gone[0].name}=FOLDER"
        raise UserError(
            f"{where}: its data is not where it was: {places}. Name the folder that holds it now: {example}. The "
            "images must be the same."
        )


def _table_there(source: Source, moved: Roots) -> bool:
    return not source.labels or labels_at(source, moved.get(source.name)).exists()


def _remote(source: Source) -> bool:
    """Whether a source is no local folder, and tells by itself where it is not found."""
    return any("://" in name or name.startswith("hf:") for name in (source.root or "", source.labels or ""))


def way_back(sources: Iterable[Source]) -> str:
    """The advice where images of a run are missing."""
    return f"If they have moved, name the new folder with --root NAME=PATH; {sources_in_words(sources)}."


def sources_in_words(sources: Iterable[Source]) -> str:
    return "sources: " + ", ".join(f"{source.name} in {old_root(source)}" for source in sources)
