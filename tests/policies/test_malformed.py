"""Policy files that were damaged, altered, or made for something else: each is refused with its reason.

All go through the export of a run, which reads, checks and applies the policy file as every script does.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import calibrate, make_run, scrc_fields, softmax_fields

from stage1_pro.core.bundle.export import export_bundle
from stage1_pro.core.errors import UserError
from stage1_pro.core.evaluation import evaluate_run
from stage1_pro.core.records.policy_file import policy_header, write_policy
from stage1_pro.core.records.run import Run

Damage = Callable[[dict[str, Any]], str]
"""From the content of a policy file to the text that takes its place."""
STEPS = {"softmax": 0.25, "one-sided": 0.25, "gate": 0.25, "SCRC-I": 0.25, "SCRC-T": 0.0}
"""Short sweeps, which are read fast; but SCRC-T allows no ties."""
POLICIES = {"softmax": "softmax", "one-sided": "softmax", "gate": "gate", "SCRC-I": "scrc", "SCRC-T": "scrc"}


def changed(**fields: object) -> Damage:
    """Fields set; a name with __ goes into an object."""

    def damage(policy: dict[str, Any]) -> str:
        for name, value in fields.items():
            place, *path = policy, *name.split("__")
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value(place[path[-1]]) if callable(value) else value
        return json.dumps(policy)

    return damage


def without(*names: str) -> Damage:
    return lambda policy: json.dumps({name: value for name, value in policy.items() if name not in names})


def text(change: Callable[[str], str]) -> Damage:
    return lambda policy: change(json.dumps(policy))


def moved(*names: str) -> Damage:
    """The chosen parameter altered wherever it stands, so that only val_calib can tell."""

    def damage(policy: dict[str, Any]) -> str:
        chosen = [row for row in policy["sweep_results"] if row["certified"]][-1]
        for name in {*names, "threshold"} & chosen.keys():
            chosen[name] = 0.6
        return json.dumps({**policy, **dict.fromkeys(names, 0.6)})

    return damage


def without_misses(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "misses"}


def plus_one(value: int) -> int:
    return value + 1


EVERY = {
    "cut off": (text(lambda t: t[: len(t) // 2]), "not a whole JSON file"),
    "duplicate key": (text(lambda t: t.replace("{", '{"coverage": 0.5,', 1)), "duplicate key 'coverage'"),
    "NaN": (changed(coverage=float("nan")), "NaN is not a number"),
    "infinite": (text(lambda t: t.replace('"coverage": 0', '"coverage": 1e999, "x": 0', 1)), "1e999 is out of range"),
    "a list": (text(lambda t: f"[{t}]"), "$ is"),
    "newer": (changed(schema_version=99), "newer version of stage1_pro"),
    "other weights": (changed(model_digest="f" * 64), "$.model_digest is of another model"),
    "other splits": (changed(splits_digest="f" * 64), "$.splits_digest is of another model or other splits"),
    "no digest": (changed(model_digest="abc"), '$.model_digest is "abc"; allowed string matching'),
    "unknown field": (changed(guarantees={}), "did you mean 'guarantee'?"),
    "no guarantee": (without("guarantee"), "$.guarantee is missing"),
    "no diagnostics": (without("diagnostics"), "$.diagnostics is missing"),
    "no sweep": (without("sweep_results"), "$.sweep_results is missing"),
    "empty sweep": (changed(sweep_results=[]), "not the last one that its sweep certified"),
    "no coverage": (without("coverage"), "$.coverage is missing"),
    "coverage above 1": (changed(coverage=1.2), "$.coverage is 1.2; allowed 0 to 1"),
    "other coverage": (changed(coverage=0.5), "not the last one that its sweep certified"),
    "lax target": (changed(target_fnr_exit=0.2), "$.target_fnr_exit is 0.2; allowed"),
    "no confidence": (changed(fnr_confidence=1.0), "$.fnr_confidence is 1.0; allowed"),
    "misses as a float": (changed(misses=3.0), "$.misses is 3.0; allowed integer"),
    "better FNR": (changed(fnr_on_exits=0.0), "val_calib gives other values of $.fnr_on_exits"),
    "better accuracy": (changed(exit_accuracy=1.0), "val_calib gives other values of $.exit_accuracy"),
    "better FPR": (changed(val_calib_metrics__fpr_on_exits=0.0), "other values of $.val_calib_metrics.fpr_on_exits"),
    "larger promise": (changed(guarantee__words="Nothing is missed."), "$.guarantee does not say what its numbers do"),
    "misses below 0": (changed(misses=-1), "$.misses is -1; allowed integer, 0 or more"),
    "other answers": (changed(answer_shift=0.5), "val_calib gives other values of $.answer_shift"),
    "half a sweep": (changed(sweep_results=lambda rows: [rows[0], without_misses(rows[1])]), "[1].misses is missing"),
    "no figures": (changed(val_calib_metrics={}), "$.val_calib_metrics.cases is missing"),
    "dearer": (changed(prices={"false_alarm": 5.0, "miss": 0.0}), "is not what its counts are worth at $.prices"),
}
CERTIFIED = {
    "one exit more": (changed(exited_positives=plus_one), "not the last one that its sweep certified"),
    "stricter target": (changed(target_fnr_exit=0.001), "do not certify target_fnr_exit 0.001 at confidence 0.95"),
    "many misses": (changed(misses=400), "400 misses of"),
    "tighter bound": (changed(fnr_upper_bound=0.001), "$.fnr_upper_bound is tighter than its counts allow"),
}
SOFTMAX = {
    "no threshold": (without("exit_threshold"), "$.exit_threshold is missing"),
    "threshold above 1": (changed(exit_threshold=1.5), "$.exit_threshold is 1.5; allowed 0 to 1"),
    "threshold as text": (changed(exit_threshold="0.9"), '$.exit_threshold is "0.9"'),
    "other threshold": (changed(exit_threshold=0.6), "not the last one that its sweep certified"),
    "other threshold throughout": (moved("exit_threshold"), "on val_calib it gives"),
    "a gate's file": (changed(gate_threshold=0.9), "$.gate_threshold is not a known field"),
}
ONE_SIDED = {
    "either answer exits": (changed(exit_rule="symmetric"), "$.guarantee does not say what its numbers do"),
    "no rule": (without("exit_rule"), "$.guarantee does not say what its numbers do"),
    "another rule": (changed(exit_rule="two_sided"), '$.exit_rule is "two_sided"; allowed one of'),
}
FLAT = {"a": 1.0, "b": 0.0}
CALIBRATOR = {
    "unknown type": (changed(calibrator_type="sigmoid"), '$.calibrator_type is "sigmoid"; allowed one of'),
    "two types": (changed(calibrator_type="platt"), "$.calibrator_params.type 'quantile': the file has been altered"),
    "no parameters": (changed(calibrator_params={}), "$.calibrator_params.type is missing"),
    "one answer": (changed(calibrator_params={"type": "platt"}), "$.calibrator_params.answer_0 is missing"),
    "falling slope": (
        changed(calibrator_params={"type": "platt", "answer_0": {"a": -1.0, "b": 0.0}, "answer_1": FLAT}),
        "$.calibrator_params.answer_0.a is -1.0; allowed number, above 0",
    ),
    "knots turned": (changed(calibrator_params__answer_0__x=lambda x: x[::-1]), "answer_0 is no rising map"),
    "falling values": (changed(calibrator_params__answer_1__y=lambda y: y[::-1]), "answer_1 is no rising map"),
    "a knot less": (changed(calibrator_params__answer_1__x=lambda x: x[:-1]), "answer_1 is no rising map"),
    "value above 1": (changed(calibrator_params__answer_0__y=[1.1]), "$.calibrator_params.answer_0.y[0] is 1.1"),
    "other map": (changed(calibrator_params__answer_1__y=lambda y: [0.5 for _ in y]), "on val_calib it gives"),
}
GATE = {
    "no threshold": (without("gate_threshold"), "$.gate_threshold is missing"),
    "misspelt": (changed(gate_treshold=0.5), "did you mean 'gate_threshold'?"),
    "null": (changed(gate_threshold=None), "$.gate_threshold is null"),
    "threshold above 1": (changed(gate_threshold=1.5), "$.gate_threshold is 1.5; allowed 0 to 1"),
    "other threshold": (changed(gate_threshold=0.6), "not the last one that its sweep certified"),
    "other threshold throughout": (moved("gate_threshold"), "on val_calib it gives"),
    **CALIBRATOR,
}
PAIRS = {
    "lambda2 below a half": (changed(lambda2=0.4), "$.lambda2 is 0.4; allowed 0.5 to 1"),
    "lambda2 above 1": (changed(lambda2=1.01), "$.lambda2 is 1.01; allowed 0.5 to 1"),
    "lambda2 NaN": (changed(lambda2=float("nan")), "NaN is not a number"),
    "lambda1 below 0": (changed(lambda1=-0.1), "$.lambda1 is -0.1; allowed 0 to 1"),
    "no lambda1": (without("lambda1"), "$.lambda1 is missing"),
    "other lambda1": (changed(lambda1=0.6), "not the last one that its sweep certified"),
    "other lambda1 throughout": (moved("lambda1"), "on val_calib it gives"),
    "unknown variant": (changed(scrc_variant="SCRC-X"), '$.scrc_variant is "SCRC-X"; allowed one of'),
    "other model version": (changed(model_version="f" * 64), "$.model_version and $.model_digest differ"),
    "other splits version": (changed(splits_version="f" * 64), "$.splits_version and $.splits_digest differ"),
    "two bounds": (changed(fnr_bound=0.001), "$.fnr_bound is not $.target_fnr_exit"),
    "no Dirichlet map": (without("dirichlet_params"), "$.dirichlet_params is missing"),
    "no calibrator": (without("calibrator_params"), "$.calibrator_params is missing"),
    "W of one row": (changed(dirichlet_params__W=[[1.0, 0.0]]), "$.dirichlet_params.W is"),
    "W not diagonal": (changed(dirichlet_params__W=[[1.0, 0.5], [0.0, 1.0]]), "W is no diagonal"),
    "W falls": (changed(dirichlet_params__W=[[1.0, 0.0], [0.0, -1.0]]), "W is no diagonal with entries above 0"),
    "other bias": (changed(dirichlet_params__b=[0.0, 3.0]), "val_calib"),
}
INDUCTIVE = {"called transductive": (changed(scrc_variant="SCRC-T"), "$.transductive is missing")}
TRANSDUCTIVE = {
    "called inductive": (changed(scrc_variant="SCRC-I", target_fnr_exit=0.001), "do not certify"),
    "no selection": (without("transductive"), "$.transductive is missing"),
    "half a selection": (changed(transductive={"alpha_prime": 0.1}), "$.transductive.lambda2_max is missing"),
    "lax level": (changed(transductive__alpha_prime=0.09), "alpha_prime 0.09 is not target times singleton share"),
    "tight level": (changed(transductive__alpha_prime=1e-4), "is not target times singleton share"),
    "one exit more": (changed(exited_positives=plus_one), "selected positives do not nest"),
    "many losses": (changed(misses=50, exited_positives=60), "losses among"),
    "many selected": (changed(transductive__positives_selected=100_000), "cut elsewhere than at $.lambda1"),
    "another level": (changed(transductive__selected_of_select=1), "cut elsewhere than at $.lambda1"),
    "few selected": (changed(transductive__positives_selected=1), "selected positives do not nest"),
    "lambda2 above its maximum": (
        changed(transductive__lambda2_max=0.5, lambda2=0.9),
        "$.lambda2 is above its maximum",
    ),
    "a tighter bound": (changed(fnr_upper_bound=0.01, fnr_bound=0.01), "the bound is not the target"),
}
TABLES = {
    "softmax": {**EVERY, **CERTIFIED, **SOFTMAX},
    "one-sided": {**EVERY, **CERTIFIED, **SOFTMAX, **ONE_SIDED},
    "gate": {**EVERY, **CERTIFIED, **GATE},
    "SCRC-I": {**EVERY, **CERTIFIED, **CALIBRATOR, **PAIRS, **INDUCTIVE},
    "SCRC-T": {**EVERY, **CALIBRATOR, **PAIRS, **TRANSDUCTIVE},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A calibrated and evaluated run of each policy."""
    made = {}
    for name, policy in POLICIES.items():
        run = make_run(tmp_path_factory.mktemp("runs") / name, policy, step=STEPS[name])
        header = policy_header(run, run.risk())
        if name == "one-sided":
            content = {**header, **softmax_fields(run, "one_sided")}
        else:
            content = {**header, **scrc_fields(run, name)} if policy == "scrc" else calibrate(run)
        write_policy(run, content)
        evaluate_run(run, content)
        made[name] = run
    return made


@pytest.fixture
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Iterator[Run]:
    """The run of a policy, whole again afterwards."""
    chosen = runs[request.param]
    whole = chosen.policy_path.read_bytes()
    yield chosen
    chosen.policy_path.write_bytes(whole)


def refusal(run: Run, tmp_path: Path) -> str:
    with pytest.raises(UserError) as refused:
        export_bundle(run, tmp_path / "bundle")
    assert refused.value.exit_status == 2
    assert not list(tmp_path.iterdir())
    return str(refused.value)


@pytest.mark.parametrize("run", POLICIES, indirect=True)
def test_what_calibration_wrote_is_accepted(run: Run, tmp_path: Path) -> None:
    assert export_bundle(run, tmp_path / "bundle").policy is not None


@pytest.mark.parametrize(
    ("run", "damage", "words"),
    [
        pytest.param(name, damage, words, id=f"{name}-{row}")
        for name, table in TABLES.items()
        for row, (damage, words) in table.items()
    ],
    indirect=["run"],
)
def test_what_it_did_not_write_is_refused(run: Run, tmp_path: Path, damage: Damage, words: str) -> None:
    run.policy_path.write_text(damage(json.loads(run.policy_path.read_text())))
    message = refusal(run, tmp_path)
    assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize("run", POLICIES, indirect=True)
def test_a_second_policy_file_or_another_ones_is_refused(run: Run, runs: dict[str, Run], tmp_path: Path) -> None:
    other = runs["gate" if run.config.exit_policy != "gate" else "softmax"].policy_path
    beside = run.path / other.name
    beside.write_bytes(other.read_bytes())
    try:
        assert "Multiple policy files found!" in refusal(run, tmp_path)
        own = run.policy_path.read_bytes()
        run.policy_path.unlink()
        assert "is not the policy of this run" in refusal(run, tmp_path)
    finally:
        beside.unlink()
    run.policy_path.write_bytes(other.read_bytes())
    assert "is missing" in refusal(run, tmp_path)
    run.policy_path.write_bytes(own)


def test_each_table_is_long_enough() -> None:
    assert min(map(len, TABLES.values())) >= 20
