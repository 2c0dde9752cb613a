"""What an A/B test trains: every arm, a YAML overlay on one base config, with every seed on one draw of the splits."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.load import merge_configs, read_config_file, to_dict
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError, counted, raise_problems

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
COMMON = {
    "seed": "the splits are drawn with it, and --seeds counts training seeds up from it",
    "epochs": "the budget is the same for all arms",
    "target_fnr_exit": "right exits compare under one promise only",
    "fnr_confidence": "right exits compare under one promise only",
    "bootstrap_samples": "all arms are measured alike",
    "bootstrap_confidence": "all arms are measured alike",
    **{
        f"dataset_params.{name}": "the splits are the same for all arms"
        for name in ("sources", "class_names", "positive_class", "rest", "on_bad_image")
    },
    **{
        f"dataset_params.val_{name}_ratio": "the splits are the same for all arms"
        for name in ("select", "calib", "test")
    },
}
"""Settings that no arm may change, and why."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One config under test. changes: what its file sets; config: the whole of it, with the seed of the splits."""

    name: str
    changes: Mapping[str, Any]
    config: Stage1ProConfig

    def with_seed(self, seed: int) -> Stage1ProConfig:
        return dataclasses.replace(self.config, seed=seed)


@dataclass(frozen=True, slots=True)
class Trial:
    """One arm trained with one seed, in a run directory of its own."""

    arm: Arm
    seed: int
    path: Path

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be trained. The first arm is what the others are measured against."""

    folder: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]

    @property
    def splits_path(self) -> Path:
        return self.folder / "splits.json"

    def config_path(self, arm: Arm) -> Path:
        """The arm's whole config, which its runs are trained with."""
        return self.folder / "arms" / f"{arm.name}.json"

    def log_path(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.name}.log"

    def trials(self) -> Iterator[Trial]:
        """Seed by seed: what is interrupted holds whole pairs."""
        for seed in self.seeds:
            for arm in self.arms:
                yield Trial(arm, seed, self.folder / "runs" / f"{arm.name}-seed{seed}")


def make_plan(layers: Sequence[tuple[str, Any]], files: Sequence[str], seeds: int, folder: Path) -> Plan:
    """Read the arms over the base config and check what must be the same for all.

    layers: the base, as `merge_configs` takes it; files: one YAML overlay an arm, two or more, named by its file.
    Raises one UserError with the problems of all arms.
    """
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; allowed 1 or more.")
    if len(files) < 2:
        raise UserError(
            f"--arms takes two or more YAML files, the reference first; given: {', '.join(files) or 'none'}."
        )
    names = [_name(file) for file in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"--arms: two files are named {', '.join(twice)}. An arm is named by its file: rename one.")
    arms, problems = [], []
    for name, file in zip(names, files, strict=True):
        try:
            arms.append(_arm(name, Path(file), layers))
        except UserError as problem:
            problems.append(f"{file}: {problem}")
    if not problems:
        pairs = zip(arms[1:], files[1:], strict=True)
        problems = [f"{file}: {words}" for arm, file in pairs for words in _differences(arm, arms[0])]
    if len(problems) == 1:
        raise UserError(problems[0])
    raise_problems(f"--arms: {counted(len(problems), 'problem')}", problems)
    first = arms[0].config.seed
    return Plan(folder, tuple(arms), tuple(range(first, first + seeds)))


def write_arms(plan: Plan) -> None:
    """The whole config of each arm, for its runs to be trained with and for people to read."""
    for arm in plan.arms:
        path = plan.config_path(arm)
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(path, to_dict(arm.config), "config")


FILLED_IN = ("backbone_license", "forward_batch")
"""Settings that training writes into the run's config where the config leaves them open."""
UNSAID = {None, "auto"}
"""Values of such a setting that leave it open."""


def changed_settings(one: Stage1ProConfig, other: Stage1ProConfig) -> list[str]:
    """Dotted names of the settings in which two configs differ. What training fills in counts where both say it."""
    first, second = _flat(to_dict(one)), _flat(to_dict(other))
    said = {name: (first[name], second[name]) for name in FILLED_IN}
    open_ones = {name for name, (a, b) in said.items() if {a, b} & UNSAID or str(a).lower() == str(b).lower()}
    return sorted(name for name in first if first[name] != second.get(name) and name not in open_ones)


def _name(file: str) -> str:
    name = Path(file).stem
    if not NAME.fullmatch(name):
        raise UserError(f"--arms {file}: an arm is named by its file; allowed letters, digits, '_', '.' and '-'.")
    return name


def _arm(name: str, file: Path, layers: Sequence[tuple[str, Any]]) -> Arm:
    changes = read_config_file(file)
    config = merge_configs([*layers, (file.name, changes)])
    if config.incremental_params.dry_run:
        raise UserError(f"{file}: $.incremental_params.dry_run is true, and arms are trained: leave it out.")
    return Arm(name, changes, config)


def _differences(arm: Arm, first: Arm) -> list[str]:
    values = [_flat(to_dict(one.config)) for one in (arm, first)]
    return [
        f"$.{name} is {values[0][name]!r}, and {values[1][name]!r} in {first.name}: {why}. Set it in the base"
        for name, why in COMMON.items()
        if values[0][name] != values[1][name]
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
