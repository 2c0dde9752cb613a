"""The JSON schemas of everything that is written, and their problems in words."""

import difflib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).parents[1] / "schemas"
SHOWN_VALUE = 60


def schema_problems(data: Any, schema: str) -> Iterator[str]:
    """Every way in which `data` breaks the schema: `$.path is FOUND; allowed …`."""
    # sorted: the validator's own order is that of a dict
    errors = sorted(validator(schema).iter_errors(data), key=lambda error: (error.json_path, error.message))
    yield from dict.fromkeys(text for error in errors for text in _explain(error))  # `required` comes once a field


@cache
def schema(name: str) -> dict[str, Any]:
    """Return a schema by its name, such as "config"."""
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))


@cache
def validator(name: str):
    """Return the validator of a schema; an integer is never a float."""
    from jsonschema import Draft202012Validator, validators  # deferred: `--help` does not pay for it

    # the draft takes 1.0 for an integer; an index or a count that is a float breaks its user much later
    whole = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return validators.extend(Draft202012Validator, type_checker=whole)(schema(name))


def did_you_mean(name: str, known: list[str], cutoff: float = 0.6) -> str:
    """` (did you mean 'x'?)` for the closest known name, or nothing. cutoff: least likeness, 0 to 1."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _explain(error) -> Iterator[str]:
    where, node, found = error.json_path, error.schema, _shown(error.instance)
    if error.validator == "additionalProperties":
        known = sorted(node.get("properties", {}))
        for key in sorted(set(error.instance) - set(known)):
            yield f"{where}.{key} is not a known field{did_you_mean(key, known)}"
    elif error.validator == "required":
        for key in sorted(set(node["required"]) - set(error.instance)):
            yield f"{where}.{key} is missing"
    else:
        yield f"{where} is {found}; allowed {_allowed(node)}"


def _allowed(node: dict[str, Any]) -> str:
    """Words for what a schema node takes: `0 to 1`, `one of a, b`, `an integer, 1 or more`."""
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(json.dumps(value) for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_allowed(option) for option in node["anyOf"])
    types = node.get("type", "any value")
    words = " or ".join(types) if isinstance(types, list) else types
    if "pattern" in node:
        words += f" matching {node['pattern']}"
    if "minItems" in node:
        words += f" of {node['minItems']}" + (" or more" if node.get("maxItems") != node["minItems"] else "")
    if node.get("uniqueItems"):
        words += " without repeats"
    if "minLength" in node:
        words = "a non-empty string"
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}" if words == "number" else f"{words}, {low} to {high}"
    bounds = {
        "minimum": "{} or more",
        "exclusiveMinimum": "above {}",
        "maximum": "up to {}",
        "exclusiveMaximum": "below {}",
    }
    limits = [text.format(node[key]) for key, text in bounds.items() if key in node]
    return ", ".join([words, *limits])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE] + "…"
