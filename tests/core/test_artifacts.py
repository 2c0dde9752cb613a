"""JSON artifacts: what is written is what is read, and anything else is refused in words."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.errors import UserError

POLICY = {
    "schema_version": 1,
    "exit_threshold": 0.9,
    "fnr_on_exits": 0.01,
    "coverage": 0.5,
    "exit_accuracy": 0.99,
    "sweep_results": [],
    "val_calib_metrics": {},
}
AGAIN = "Remove this file. Run 25_threshold_sweep.py again for this run."
SCHEMAS = sorted(schemas.SCHEMAS.glob("*.schema.json"))


def refusal(text: str | bytes, schema: str = "thresholds", path: str = "runs/a/thresholds.json") -> str:
    content = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(UserError) as refused:
        artifacts.parse_json(content, schema, Path(path))
    return str(refused.value)


def changed(**fields: object) -> str:
    return json.dumps({**POLICY, **fields})


def test_floats_keep_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    one = struct.unpack("<q", struct.pack("<d", 1.0))[0]
    values = [0.1 + 0.2, 5e-324, 2.2250738585072014e-308, -0.0, 0.0, 1.0, math.nextafter(1, 0), 1 / 3, 0]
    values += np.frombuffer(rng.integers(0, one, 2000).tobytes(), dtype=np.float64).tolist()  # all scales of 0 to 1
    sweep = [{"threshold": value, "coverage": 0.5, "fnr_on_exits": None} for value in values]
    path = tmp_path / "thresholds.json"
    artifacts.write_json(path, {**POLICY, "sweep_results": sweep}, "thresholds")
    read = [row["threshold"] for row in artifacts.read_json(path, "thresholds")["sweep_results"]]
    assert [struct.pack("<d", value) for value in read] == [struct.pack("<d", value) for value in values]


def test_equal_content_gives_equal_bytes_with_sorted_keys(tmp_path: Path) -> None:
    for name, data in (("a", POLICY), ("b", dict(reversed(POLICY.items())))):
        artifacts.write_json(tmp_path / name, data, "thresholds")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert list(json.loads((tmp_path / "a").read_text())) == sorted(POLICY)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"exit_threshold": NaN}', "NaN"),
        ('{"exit_threshold": Infinity}', "Infinity"),
        ('{"exit_threshold": -Infinity}', "-Infinity"),
        ('{"exit_threshold": 1e400}', "1e400"),
        ('{"exit_threshold": 0.5, "exit_threshold": 0.9}', "duplicate key 'exit_threshold'"),
        ('{"val_calib_metrics": {"misses": 1, "misses": 0}}', "duplicate key 'misses'"),
        ("", "not a whole JSON file"),
        (changed()[:-20], "not a whole JSON file"),
        (changed() + "}", "not a whole JSON file"),
        ("[" * 100_000, "not a whole JSON file"),
        ("1" * 10_000, "not a whole JSON file"),
        (b'{"run_id": "\xff"}', "not a whole JSON file"),
    ],
)
def test_what_is_no_exact_json_is_refused(text: str | bytes, named: str) -> None:
    message = refusal(text)
    assert message.startswith("runs/a/thresholds.json: not a whole JSON file")
    assert named in message
    assert message.endswith(AGAIN)


def test_every_truncation_of_a_file_is_refused() -> None:
    whole = changed(sweep_results=[{"threshold": 0.5, "coverage": 0.5, "fnr_on_exits": 0.0}])
    for length in range(len(whole)):
        refusal(whole[:length])


def test_a_bad_value_is_told_in_the_words_of_the_design() -> None:
    expected = f"runs/a/thresholds.json: $.exit_threshold is 1.3; allowed 0 to 1. {AGAIN}"
    assert refusal(changed(exit_threshold=1.3)) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"exit_treshold": 1}, "$.exit_treshold is not a known field (did you mean 'exit_threshold'?)"),
        ({"exit_threshold": "0.5"}, '$.exit_threshold is "0.5"; allowed 0 to 1'),
        ({"exit_threshold": True}, "$.exit_threshold is true; allowed 0 to 1"),
        ({"misses": 1.0}, "$.misses is 1.0; allowed integer"),
        ({"misses": -1}, "$.misses is -1; allowed integer, 0 or more"),
        ({"model_digest": "xyz"}, '$.model_digest is "xyz"; allowed string matching'),
        ({"val_calib_metrics": {"miss": 0}}, "$.val_calib_metrics.miss is not a known field (did you mean 'misses'?)"),
        (
            {"sweep_results": [{"threshold": 2, "coverage": 2, "fnr_on_exits": None}]},
            "$.sweep_results[0].coverage is 2",
        ),
        ({"schema_version": 0}, "$.schema_version is 0; allowed 1"),
    ],
)
def test_a_mutation_is_named_with_its_path_and_what_is_allowed(fields: dict, words: str) -> None:
    assert words in refusal(changed(**fields))


def test_all_problems_come_at_once_and_each_of_them_once() -> None:
    message = refusal('{"exit_threshold": 7, "coverage": 0.5, "fnr": 0}')
    for words in ("exit_threshold is 7", "fnr is not a known", "fnr_on_exits is missing", "exit_accuracy is missing"):
        assert message.count(words) == 1
    assert "thresholds.json: 6 problems" in message
    assert "$ is []; allowed object" in refusal("[]")


def test_a_file_of_a_newer_version_says_so() -> None:
    words = "was written by a newer version of stage1_pro (schema 2; this one reads up to 1). Upgrade stage1_pro."
    assert refusal(changed(schema_version=2, new_field=0)) == f"runs/a/thresholds.json {words}"


def test_nothing_invalid_is_written(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    with pytest.raises(UserError, match="refused to write"):
        artifacts.write_json(path, {**POLICY, "coverage": 2}, "thresholds")
    with pytest.raises(ValueError, match="JSON compliant"):
        artifacts.write_json(path, {**POLICY, "coverage": math.nan}, "thresholds")
    assert not list(tmp_path.iterdir())


def test_missing_and_unreadable_files_name_the_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"thresholds.json does not exist. Run 25_threshold_sweep.py again"):
        artifacts.read_json(tmp_path / "thresholds.json", "thresholds")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        artifacts.read_json(tmp_path, "thresholds")


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    loop = (
        "import sys; from pathlib import Path; from stage1_pro.core.artifacts import write_bytes\n"
        "while True:\n  for letter in b'ab': write_bytes(Path(sys.argv[1]), bytes([letter]) * 3_000_000)"
    )
    for pause in (0, 0.003, 0.01, 0.02):
        target.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", loop, str(target)])
        while not target.exists():
            time.sleep(0.001)
            assert writer.poll() is None
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = target.read_bytes()
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
        for other in set(tmp_path.iterdir()) - {target}:
            assert other.name.startswith(".file.")  # what the kill left is hidden and never read
            other.unlink()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write_bytes(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        artifacts.write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("file", SCHEMAS, ids=lambda path: path.name)
def test_schemas_are_closed_and_local(file: Path) -> None:
    schema = json.loads(file.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    nodes: list[object] = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += [value for key, value in node.items() if key != "if"]
            branches = "then" in node and "else" in node  # each of them closed, as the walk will see
            assert not isinstance(node.get("properties"), dict) or branches or node.get("additionalProperties") is False
            assert str(node.get("$ref", "#")).startswith("#")
        elif isinstance(node, list):
            nodes += node


@pytest.mark.parametrize(
    ("schema", "required"),
    [
        ("thresholds", "exit_threshold fnr_on_exits coverage exit_accuracy sweep_results val_calib_metrics"),
        ("gateparams", "gate_threshold calibrator_type calibrator_params fnr_on_exits coverage val_calib_metrics"),
        (
            "scrcparams",
            "lambda1 lambda2 scrc_variant fnr_bound coverage val_calib_metrics model_version splits_version",
        ),
        ("splits", "val_select_indices val_calib_indices seed class_balance metadata"),
        (
            "bundle",
            "active_exit_policy policy_file model_file splits_file config_file metrics_file version created_at",
        ),
    ],
)
def test_exactly_the_fields_of_the_specification_are_required(schema: str, required: str) -> None:
    assert sorted(schemas.schema(schema)["required"]) == sorted(required.split())
