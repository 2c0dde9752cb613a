"""Data sets of the Hugging Face Hub: `hf:OWNER/NAME[:CONFIG][@REVISION]`; offline out of its local cache."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stage1_pro.core.config.sections import Source
from stage1_pro.core.data.given_splits import WORDS
from stage1_pro.core.data.label_tables import LabelTable
from stage1_pro.core.data.parquet_tables import read_parquet
from stage1_pro.core.errors import UserError, first_few

PREFIX = "hf:"
NAME = re.compile(r"hf:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True, slots=True)
class HubName:
    """What `hf:owner/name:config@revision` names."""

    repo: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, root: str) -> "HubName":
        found = NAME.fullmatch(root)
        if not found:
            raise UserError(f"{root}: write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:OWNER/NAME@REVISION.")
        return cls(**found.groupdict())


def is_hub(place: str | None) -> bool:
    return place is not None and place.startswith(PREFIX)


def hub_folder(root: str) -> Path:
    """Return the local copy of a data set, downloaded unless HF_HUB_OFFLINE is set. Raises UserError."""
    name = HubName.parse(root)
    card = _card(_snapshot(name, ["README.md"]))
    files = _files_of(card, name)
    return _snapshot(name, ["README.md", *[pattern for pattern, _ in files]] if files else None)


def hub_tables(folder: Path, root: str, source: Source, store: Path) -> LabelTable | None:
    """Return the rows of the Parquet files of a data set under their splits; None where it has no such file.

    Raises UserError where several configs are there and none is named, or a part is missing.
    """
    name = HubName.parse(root)
    card = _card(folder)
    every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    if not every:
        return None
    files = _files_of(card, name) or _by_folder(every, name, root)
    taken = {path: split for path in every for pattern, split in files if fnmatch(path, pattern)}
    if not taken:
        raise UserError(f"{root}: no Parquet file of the config {name.config} is there; there are {first_few(every)}.")
    _demand_all_shards(list(taken), root)
    names = _class_names(card)
    tables = {path: read_parquet(folder / path, source, store, names) for path in taken}
    for path, table in tables.items():
        _put_in_split(table.frame, taken[path], source)
    whole = LabelTable(pd.concat([table.frame for table in tables.values()], ignore_index=True))
    for said in ("notes", "warnings", "questions", "problems"):
        words = [
            word.replace(str(folder / path), root) for path, table in tables.items() for word in getattr(table, said)
        ]
        getattr(whole, said).extend(dict.fromkeys(words))  # each part has the same columns
    return whole


def _put_in_split(frame: pd.DataFrame, split: str, source: Source) -> None:
    """Give rows the split of their file, where neither they have one nor the config wants none."""
    if split:
        frame["case_id"] = f"{split}/" + frame["case_id"].where(frame["case_id"] != "", frame["path"])
    if (source.columns or {}).get("split", split) is not None:
        frame["split"] = frame["split"].where(frame["split"] != "", split)


def _snapshot(name: HubName, patterns: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name.repo, repo_type="dataset", revision=name.revision, allow_patterns=patterns)
    except LocalEntryNotFoundError:
        raise UserError(
            f"hf:{name.repo}: is not in the local cache, and the Hub cannot be reached. Run once with HF_HUB_OFFLINE=0 "
            "and a network, or copy the cache folder (HF_HOME) of a machine that has it."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"hf:{name.repo}: {str(error).strip().splitlines()[0]}. Check its name; for a private or gated one log in "
            "with `hf auth login`."
        ) from None
    return Path(found)


def _card(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a data set's README; empty where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
    except (OSError, yaml.YAMLError, IndexError):
        return {}
    return head if isinstance(head, dict) else {}


def _files_of(card: dict[str, Any], name: HubName) -> list[tuple[str, str]]:
    """(pattern, split) of the files of the config that is meant, as the README lists them; none where it does not."""
    configs = {str(entry.get("config_name", "default")): entry for entry in card.get("configs") or []}
    if not configs:
        return []
    chosen = name.config or ("default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else None)
    if chosen not in configs:
        what = f"has no config {name.config}" if name.config else "has several configs"
        raise UserError(f"hf:{name.repo}: {what}. Write hf:{name.repo}:CONFIG with one of {first_few(configs)}.")
    files = configs[chosen].get("data_files") or []
    if isinstance(files, str):
        return [(files, "")]
    rows = [entry if isinstance(entry, dict) else {"path": entry} for entry in files]
    return [
        (pattern, str(row.get("split", "")))
        for row in rows
        for pattern in ([row["path"]] if isinstance(row["path"], str) else row["path"])
    ]


def _by_folder(every: list[str], name: HubName, root: str) -> list[tuple[str, str]]:
    """(path, split) where no README tells them: CONFIG/SPLIT/0000.parquet, or data/SPLIT-00000-of-00001.parquet."""
    tops = {path.split("/")[0] for path in every if "/" in path} - {"data"} - set(WORDS)
    if len(tops) > 1 and name.config not in tops:
        raise UserError(
            f"{root}: has several configs. Write hf:{name.repo}:CONFIG with one of {first_few(sorted(tops))}."
        )
    inside = [path for path in every if name.config is None or path.startswith(f"{name.config}/")]
    return [(path, _split_in(path)) for path in inside]


def _split_in(path: str) -> str:
    """The word for a split that a path holds, or ""."""
    words = [part.split("-")[0] for part in reversed(Path(path).with_suffix("").parts)]
    return next((word for word in words if word.lower() in WORDS), "")


def _demand_all_shards(paths: list[str], root: str) -> None:
    """Raise UserError for a part that is not in the cache, of which nobody else would notice that it is missing."""
    for found in filter(None, (SHARD.fullmatch(Path(path).with_suffix("").as_posix()) for path in paths)):
        stem, count = found["stem"], int(found["count"])
        parts = [f"{stem}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
        missing = [part for part in parts if part not in paths]
        if missing:
            raise UserError(f"{root}: {first_few(missing)} missing in the local cache. Run once with HF_HUB_OFFLINE=0.")


def _class_names(card: dict[str, Any]) -> dict[str, list[str]]:
    """Column → names of its classes, as a README lists them below dataset_info."""
    infos = card.get("dataset_info") or []
    found = {}
    for info in infos if isinstance(infos, list) else [infos]:
        for feature in info.get("features") or []:
            kind = feature.get("dtype")
            if isinstance(kind, dict) and isinstance(names := (kind.get("class_label") or {}).get("names"), dict):
                found[feature["name"]] = [str(names[key]) for key in sorted(names, key=int)]
    return found
