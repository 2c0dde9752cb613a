"""From files and flags to one checked configuration.

Defaults < `--config` files in turn < flags. The dataclass gives defaults and help, the schema gives types and ranges,
the rules say which combinations exist; every problem is reported at once.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any

import yaml

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.config.packaged import config_file, config_names
from stage1_pro.core.config.rules import rule_problems
from stage1_pro.core.config.sections import DatasetParams, IncrementalParams, MissRule, SegmentationParams, Source
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.config.tasks import TASKS
from stage1_pro.core.config.yaml_text import parse_yaml
from stage1_pro.core.errors import UserError, counted, raise_problems

RETIRED = {
    "exit_threshold": "is not a setting of training: the threshold is certified after it, by the calibration "
    "script. For monitoring during training set legacy_exit_threshold_for_logging",
    "target_coverage": "does not exist: coverage is maximised under target_fnr_exit, never targeted",
}


def merge_configs(layers: Sequence[tuple[str, Mapping[str, Any] | Path]], *, trains: bool = True) -> Stage1ProConfig:
    """Merge (where, settings) layers over the defaults, later ones winning, and check the result.

    Settings are a mapping, or the file that holds one; `where` is named in messages. trains: False where the model is
    there already, so that the ratios of the splits may share all cases. Raises one UserError with
    all problems: files that cannot be read, unknown keys, types and ranges, and the rules between fields.

    >>> merge_configs([("a.yaml", {"epochs": 3, "seed": 7}), ("command line", {"epochs": 4})]).epochs
    4
    """
    schema = schemas.schema("config")
    problems: list[str] = []
    read = [(where, _settings_of(layer, problems)) for where, layer in layers]
    merged, asked_by = _defaults_for(read), ""
    for where, settings in read:
        artifacts.refuse_newer(settings, where)  # a saved config is input too; a newer one may mean other things
        if isinstance(settings, Mapping):
            merged = _merge(merged, _known_only(settings, schema, f"{where}: ", problems))
            if "answer_placement" in settings:
                asked_by = "" if "schema_version" in settings else where  # a saved config holds every default
        else:
            problems.append(f"{where}: holds {type(settings).__name__}, not a mapping of settings")
    merged = _coerce(merged, schema)
    broken = list(schemas.schema_problems(merged, "config"))
    config = Stage1ProConfig() if broken else _build(merged)
    problems += broken or [*rule_problems(config, trains), *_placement_problems(config, asked_by)]
    if len(problems) == 1:
        raise UserError(f"config: {problems[0]}")
    raise_problems(f"config: {counted(len(problems), 'problem')}", problems)
    return config


def _placement_problems(config: Stage1ProConfig, asked_by: str) -> list[str]:
    """By default auto means none for more than two classes; who asks for it is told that it cannot be."""
    classes = len(config.dataset_params.class_names or ())
    if not asked_by or config.answer_placement != "auto" or classes in (0, 2) or config.dataset_params.merged:
        return []
    return [
        f"{asked_by}: answer_placement is auto, and dataset_params.class_names holds {classes} classes; answers are "
        "placed between two: set answer_placement: none, or dataset_params.rest: true"
    ]


def _defaults_for(read: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The defaults of the task that the last of these layers names."""
    named = [_task_of(settings) for _, settings in read]
    task = next((name for name in reversed(named) if name in TASKS), "classification")
    return _merge(to_dict(Stage1ProConfig()), TASKS[task].defaults)


def _task_of(settings: Any) -> Any:
    data = settings.get("dataset_params") if isinstance(settings, Mapping) else None
    return data.get("task") if isinstance(data, Mapping) else None


def _settings_of(layer: Any, problems: list[str]) -> Any:
    if not isinstance(layer, Path):
        return layer
    try:
        return read_config_file(layer)
    except UserError as error:
        problems.append(str(error))
        return {}


def save_config(config: Stage1ProConfig, path: Path) -> None:
    """Write config.json, which is accepted as input again."""
    artifacts.write_json(path, to_dict(config), "config")


def to_dict(config: Stage1ProConfig) -> dict[str, Any]:
    """The config as plain JSON values; accepted as input again, unchanged."""
    plain = dataclasses.asdict(config, dict_factory=_plain)
    return {**plain, "schema_version": artifacts.SCHEMA_VERSION}


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def _build(raw: dict[str, Any]) -> Stage1ProConfig:
    data = dict(raw["dataset_params"])
    data["sources"] = tuple(Source(**_at_home(source)) for source in data["sources"])
    for name in ("class_names", "positive_class", "target_spacing", "patch_size"):
        data[name] = tuple(data[name]) if isinstance(data[name], list) else data[name]
    masks = dict(raw["segmentation_params"])
    sections: dict[str, Any] = {
        "segmentation_params": SegmentationParams(**{**masks, "miss_rule": MissRule(**masks["miss_rule"])}),
        "dataset_params": DatasetParams(**data),
        "incremental_params": IncrementalParams(**raw["incremental_params"]),
    }
    sections["schedule_restarts"] = tuple(raw["schedule_restarts"])
    return Stage1ProConfig(**{key: value for key, value in {**raw, **sections}.items() if key != "schema_version"})


def _at_home(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source whose ~/folder is named in full: within a file no shell does that."""
    return {key: expanduser(value) if str(value).startswith("~/") else value for key, value in source.items()}


def read_config_file(path: Path) -> dict[str, Any]:
    """Parse a YAML (or JSON) file, or a packaged config by its name, into a mapping; an empty file is no settings."""
    hint = schemas.did_you_mean(path.with_suffix("").as_posix(), config_names())
    content = artifacts.read_bytes(config_file(path), f"Name an existing YAML file with --config{hint}.")
    try:
        settings, unquoted = parse_yaml(content, schemas.schema("config"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if len(unquoted) == 1:
        raise UserError(f"{path}: {unquoted[0]}")
    raise_problems(f"{path}: {counted(len(unquoted), 'problem')}", unquoted)
    return {} if settings is None else settings


def _known_only(value: Any, node: dict[str, Any], path: str, problems: list[str]) -> Any:
    """A copy of `value` without unknown keys; each of those becomes a problem with the name probably meant."""
    if isinstance(value, list):
        return [_known_only(item, node.get("items", {}), path, problems) for item in value]
    if not isinstance(value, Mapping) or "properties" not in node:
        return value
    known, kept = node["properties"], {}
    for key, item in value.items():
        if key in RETIRED:
            problems.append(f"{path}{key} {RETIRED[key]}")
        elif key not in known:
            problems.append(f"{path}{key} is not a known setting{_meant(str(key), known)}")
        else:
            kept[key] = _known_only(item, known[key], f"{path}{key}.", problems)
    return kept


def _meant(key: str, known: Mapping[str, Any]) -> str:
    """A hint: the settings of nearly this name, and those of exactly this name in a section."""
    sections = [f"{name}.{key}" for name, node in known.items() if key in node.get("properties", {})]
    if not sections:
        # a misspelt name may be one of a section, too
        inside = {inner: f"{name}.{inner}" for name, node in known.items() for inner in node.get("properties", {})}
        names = {**inside, **{name: name for name in known}}
        close = difflib.get_close_matches(key, list(names), n=1)
        return f" (did you mean '{names[close[0]]}'?)" if close else ""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.8)
    return f" (did you mean {' or '.join(repr(name) for name in (*sections, *close))}?)"


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _coerce(value: Any, node: dict[str, Any]) -> Any:
    """Undo YAML's guesses where the schema knows better: `1e-4` is a number, class `0` a name, `off` a word."""
    if isinstance(value, Mapping):
        properties = node.get("properties", {})
        return {key: _coerce(item, properties.get(key, {})) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_coerce(item, node.get("items", {})) for item in value]
    return _coerce_scalar(value, node)


def _coerce_scalar(value: Any, node: dict[str, Any]) -> Any:
    kinds = node.get("type", [])  # one word, or a list of them
    if value is False and "off" in node.get("enum", []):  # YAML 1.1 reads `off` as a boolean
        return "off"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    if "number" in kinds:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return value
        return number if math.isfinite(number) else str(value)  # a range check lets NaN pass
    if isinstance(value, int) and "string" in kinds and "integer" not in kinds:
        return str(value)
    return value
