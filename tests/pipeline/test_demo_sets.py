"""Image sets to try the pipeline on: what is said at the end, and what follows when it is typed."""

import shlex

from chain import call


def test_a_set_names_the_command_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = call("prepare_demo", "smoke", "data/smoke")
    assert made.status == 0
    _, _, script, *words = shlex.split(made.out.splitlines()[-1])
    assert script.endswith("00_make_splits.py")
    plan = call("00_make_splits", *words)
    assert plan.status == 0
    assert "what follows" in plan.out


def test_a_set_in_another_place_is_named_in_a_config(tmp_path):
    made = call("prepare_demo", "discs", tmp_path / "here")
    assert f"name {tmp_path}/here/labels.csv in a config" in made.out


def test_a_set_that_does_not_exist_is_answered_with_the_one_meant(tmp_path):
    made = call("prepare_demo", "smok", tmp_path / "here")
    assert (made.status, "did you mean 'smoke'?" in made.err, (tmp_path / "here").exists()) == (2, True, False)
