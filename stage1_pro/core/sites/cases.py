"""The labelled cases of a site, checked against the bundle whose model answers them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import BundleContents, demand_outside
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.sections import DatasetParams
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import CaseTable, load_cases
from stage1_pro.core.data.decided_groups import demand_groups
from stage1_pro.core.data.moved import moved_config
from stage1_pro.core.errors import UserError, counted, raise_problems
from stage1_pro.core.metrics.views import CASE, views_of
from stage1_pro.core.policies.words import promised_fnr
from stage1_pro.core.records.paths import unused_name
from stage1_pro.core.records.seen import read_seen, seen_among

OF_THE_SITE = (
    "target_fnr_exit",
    "fnr_confidence",
    "robust_to",
    "certificate_groups",
    "false_alarm_price",
    "miss_price",
    "seed",
    "batch_size",
    "bootstrap_samples",
    "bootstrap_confidence",
)
"""Settings that a site may choose; all others belong to the model, which stays as it was trained."""

DATA_OF_THE_SITE = (
    "sources",
    "class_names",
    "positive_class",
    "val_select_ratio",
    "val_calib_ratio",
    "val_test_ratio",
    "num_workers",
    "on_bad_image",
    "order",
    "group_label",
    "cache_folder",
)
"""The same of dataset_params; the classes may be named again, as they are."""

OF_THE_SCORES = ("forward_batch", "scoring_backend", "scoring_precision")
"""Settings that a bundle's manifest names as its scores are made."""

Layers = Sequence[tuple[str, Path | Mapping[str, Any]]]
"""(where, settings) of a site, as `merge_configs` takes them."""


@dataclass(frozen=True, slots=True)
class Site:
    """The labelled cases of a site, and the bundle whose model answers them.

    policy: content of the bundle's policy file; unseen: (N,) bool, cases that the bundle has not seen, nor an image of
    their groups; seen: what the bundle says it has seen, None where it does not.
    """

    contents: BundleContents
    policy: dict[str, Any]
    config: Stage1ProConfig
    cases: CaseTable
    unseen: np.ndarray
    seen: dict[str, Any] | None


def new_place(path: str | None, kind: str, bundle: str) -> Path:
    """The folder that is written, which must not exist. Raises UserError before any image is read.

    path: as named, None for runs/<kind>-<UTC time>; bundle: a folder that nothing may be written into.
    """
    target = Path(path) if path else unused_name(kind)
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists, and nothing is overwritten. Choose another --out.")
    demand_outside(Path(bundle), target, "--out")
    return target


def read_site(
    contents: BundleContents, layers: Layers, roots: Sequence[str] | None = None, certifies: bool = True
) -> Site:
    """Check a site's config and cases against the bundle; nothing is written.

    layers: the site's settings over the bundle's, whose target and confidence hold where a site names none; roots:
    NAME=PATH of each source whose images have moved; certifies: a certificate follows, which takes cases of both
    classes. Raises one UserError with every setting that a site cannot choose.
    """
    if contents.task.has_masks:
        raise UserError(
            f"{contents.path}: its answers are masks, and another site is certified or measured for answers that are "
            "classes only. Train a run on the site's own masks with 20_train.py."
        )
    policy_file = contents.path / contents.manifest["policy_file"]
    policy = artifacts.read_json(policy_file, policy_file.stem)
    config = _site_config(contents, policy, layers)
    where = ", ".join(name for name, _ in layers)
    moved = moved_config(config, roots)
    options: dict[str, Any] = {"partial": True, "certificate_groups": config.certificate_groups}
    cases = load_cases(moved.dataset_params, decode=True, **options)
    raise_problems(f"{where}:", cases.questions)
    empty = [name for code, name in enumerate(cases.class_names) if not (cases.frame["label"] == code).any()]
    if empty and certifies:
        raise UserError(f"{where}: no cases of {', '.join(empty)}, and a certificate takes cases of both classes.")
    demand_groups(cases, config)
    if config.dataset_params.merged:
        cases = _renamed(cases, contents)
    seen = read_seen(contents.path)
    unseen = _unseen(cases, seen)
    for remark in (*cases.notes, *(f"warning: {warning}" for warning in cases.warnings)):
        say(remark)
    return Site(contents, policy, config, cases, unseen, seen)


def _site_config(contents: BundleContents, policy: dict[str, Any], layers: Layers) -> Stage1ProConfig:
    """The bundle's config with the site's settings over it. Raises UserError for one that a site cannot choose."""
    path, of_bundle = _of_bundle(contents, policy)
    base = merge_configs([(path, of_bundle)], trains=False)
    config = merge_configs([(path, of_bundle), *layers], trains=False)
    problems = [
        *_differing(base, config, OF_THE_SITE, ""),
        *_differing(base.dataset_params, config.dataset_params, DATA_OF_THE_SITE, "dataset_params."),
        *([] if config.dataset_params.merged else _class_problems(config.dataset_params, contents)),
    ]
    if config.dataset_params.sources == base.dataset_params.sources:
        problems.append("dataset_params.sources names no images but the bundle's own: name those of the new site")
    where = ", ".join(name for name, _ in layers)
    raise_problems(f"{where}: does not fit the bundle {contents.path}", problems, "Fix this and run again.")
    return config


def _of_bundle(contents: BundleContents, policy: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(where, settings) of the bundle: its config, with what its manifest and policy say over it."""
    manifest, path = contents.manifest, contents.path / contents.manifest["config_file"]
    settings = artifacts.read_json(path, "config")
    data = settings["dataset_params"]
    # classes that were joined are joined again, from the labels that people write
    joined = data.get("rest", False) or isinstance(data.get("positive_class"), list)
    classes = {} if joined else {name: manifest[name] for name in ("class_names", "positive_class")}
    return str(path), {
        **settings,
        **{name: manifest[name] for name in OF_THE_SCORES if name in manifest},
        "target_fnr_exit": promised_fnr(policy),
        "fnr_confidence": policy["fnr_confidence"],
        "exit_rule": policy.get("exit_rule", "symmetric"),
        **(views.record() if (views := views_of(policy)) else {"decide_by": CASE}),
        "dataset_params": {**data, **classes},
    }


def _differing(base: Any, config: Any, free: tuple[str, ...], prefix: str) -> list[str]:
    return [
        f"{prefix}{field.name} is {getattr(config, field.name)}, and {getattr(base, field.name)} in the bundle: "
        "nothing is trained here, so leave it out"
        for field in fields(base)
        if field.name not in (*free, "dataset_params") and getattr(base, field.name) != getattr(config, field.name)
    ]


def _class_problems(params: DatasetParams, contents: BundleContents) -> list[str]:
    expected = contents.manifest["class_names"]
    names, positive = list(params.class_names or expected), params.positive_class
    named = [name for name in names if name != positive] + [name for name in names if name == positive]
    return [] if named == expected else [_other_classes(names, str(positive), contents)]


def _renamed(cases: CaseTable, contents: BundleContents) -> CaseTable:
    """The cases under the bundle's names: of joined classes that of the rest depends on which labels occur.

    Raises UserError unless the positive ones are the bundle's.
    """
    expected = contents.manifest["class_names"]
    if cases.positive_class != expected[-1]:
        raise UserError(f"{contents.path}: {_other_classes(list(cases.class_names), cases.positive_class, contents)}.")
    return replace(cases, class_names=tuple(expected))


def _other_classes(names: list[str], positive: str, contents: BundleContents) -> str:
    expected = contents.manifest["class_names"]
    return (
        f"the classes are {', '.join(names)}, positive {positive}, and the bundle answers {', '.join(expected)}, "
        f"positive {expected[-1]}: name them as the bundle does, in the labels too, or train a model of these classes"
    )


def _unseen(cases: CaseTable, seen: dict[str, Any] | None) -> np.ndarray:
    """(N,) bool: cases that the bundle has not seen, and no group of which it has seen an image."""
    if seen is None:
        say(
            "warning: the bundle has no seen.json, so nothing tells which of these images it was trained, chosen or "
            "certified with. Such images void what is found here: make sure that there are none."
        )
        return np.ones(len(cases), dtype=bool)
    frame, known = cases.frame, seen_among(cases.frame, seen)
    kept = ~frame["group"].isin(frame["group"][known]).to_numpy()
    left_out = int(np.count_nonzero(~kept))
    if not kept.any():
        raise UserError(
            f"the bundle has seen all {counted(len(cases), 'case')} already, or other images of their groups. Name "
            "labelled images that it was not trained, chosen or certified with."
        )
    if left_out:
        beside = left_out - int(np.count_nonzero(known))
        groups = f", and {beside} of the same groups" if beside else ""
        say(f"left out: {counted(left_out - beside, 'case')} that the bundle has seen before{groups}")
    return kept
