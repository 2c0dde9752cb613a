"""Settings as plain values: read from YAML, without unknown keys, merged, of the types that the schema asks for."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError

RETIRED = {
    "exit_threshold": "is not a setting of training: the threshold is certified after it, by the calibration "
    "script. For monitoring during training set legacy_exit_threshold_for_logging",
    "target_coverage": "does not exist: coverage is maximised under target_fnr_exit, never targeted",
}


def read_config_file(path: Path) -> dict[str, Any]:
    """Parse a YAML (or JSON) file into a mapping; an empty file is no settings."""
    import yaml

    content = artifacts.read_bytes(path, "Name an existing YAML file with --config.")
    try:
        settings = yaml.load(content, _unique_keys_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    return {} if settings is None else settings


def _unique_keys_loader() -> type:
    """A safe YAML loader that refuses a key given twice, where PyYAML silently keeps the last."""
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"key '{key}' occurs twice{node.start_mark}")
            return super().construct_mapping(node, deep)

    return UniqueKeys


def known_only(value: Any, node: dict[str, Any], path: str, problems: list[str]) -> Any:
    """A copy of `value` without unknown keys; each of those becomes a problem with the name probably meant."""
    if isinstance(value, list):
        return [known_only(item, node.get("items", {}), path, problems) for item in value]
    if not isinstance(value, Mapping) or "properties" not in node:
        return value
    known, kept = node["properties"], {}
    for key, item in value.items():
        if key in RETIRED:
            problems.append(f"{path}{key} {RETIRED[key]}")
        elif key not in known:
            problems.append(f"{path}{key} is not a known setting{artifacts.did_you_mean(str(key), list(known))}")
        else:
            kept[key] = known_only(item, known[key], f"{path}{key}.", problems)
    return kept


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def coerce(value: Any, node: dict[str, Any]) -> Any:
    """Undo YAML's guesses where the schema knows better: `1e-4` is a number, class `0` a name, `off` a word."""
    kinds = node.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, Mapping):
        properties = node.get("properties", {})
        return {key: coerce(item, properties.get(key, {})) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [coerce(item, node.get("items", {})) for item in value]
    if value is False and "off" in node.get("enum", []):
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
