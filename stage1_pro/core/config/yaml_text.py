"""YAML as it is written: text that YAML takes for a number, a date or a truth value has to be quoted.

`[no, yes]`, `010` and `2026-11-29` are false and true, 8, and a date. A class of that name would be another one.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

STRING, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key given twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key '{key}' occurs twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes, schema: Mapping[str, Any], place: str = "$") -> tuple[Any, list[str]]:
    """Return (value, problems) of a YAML text; a problem names what has to be quoted.

    schema: of the value; place: of the value in it, for messages. Raises yaml.YAMLError, ValueError or RecursionError
    for a text that is no YAML.

    >>> parse_yaml("[010]", {"type": "array", "items": {"type": "string"}})
    (['010'], ['$[0] is written 010, which YAML reads as 8: quote it ("010")'])
    """
    loader = UniqueKeys(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        problems = list(_unquoted(loader, node, schema, place))
        return loader.construct_document(node), problems
    finally:
        loader.dispose()


def takes_text(schema: Mapping[str, Any]) -> bool:
    """Return whether a setting takes text, and neither numbers nor truth values."""
    kinds = schema.get("type", [])
    return "string" in kinds and not {"integer", "number", "boolean"} & set(
        [kinds] if isinstance(kinds, str) else kinds
    )


def _unquoted(loader: UniqueKeys, node: yaml.Node, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    """Problems below a node; each scalar that has one is taken as text, so that nothing else complains of it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = schema.get("properties", {}).get(key.value, {}) if isinstance(key.value, str) else {}
            yield from _unquoted(loader, value, inside, f"{place}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _unquoted(loader, value, schema.get("items", {}), f"{place}[{index}]")
    elif node.tag != STRING and takes_text(schema) and node.value not in schema.get("enum", []):
        if node.tag == NULL and "null" in schema["type"]:
            return
        read = loader.construct_object(node)
        del loader.constructed_objects[node]  # what is constructed once is not constructed again, as text
        if type(read) is int and str(read) == node.value:  # taken for text further on
            return
        shown = json.dumps(read) if read is None or isinstance(read, bool) else read
        node.tag = STRING
        yield f'{place} is written {node.value or "nothing"}, which YAML reads as {shown}: quote it ("{node.value}")'
