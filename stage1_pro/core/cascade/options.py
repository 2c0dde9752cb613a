"""What the command line of 45 says, checked as a whole: every mistake is told at once."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import yaml

from stage1_pro.core import artifacts
from stage1_pro.core.cascade.bench import Bench
from stage1_pro.core.cascade.economy import Demand
from stage1_pro.core.cascade.prices import PRICES_MEANT, EarlyEnd, Prices, price_problems, prices_from
from stage1_pro.core.cascade.stage_two import Assumed, Predictions, rates_of, read_predictions
from stage1_pro.core.errors import UserError, raise_problems


class Priced(Protocol):
    """The arguments of 25, 33 and 36 that end a certification, which 45 takes as well."""

    @property
    def prices(self) -> str | None: ...
    @property
    def sensitivity(self) -> list[str] | None: ...
    @property
    def specificity(self) -> list[str] | None: ...
    @property
    def prevalence(self) -> float | None: ...


class Options(Priced, Protocol):
    """The arguments of 45 that are checked here."""

    @property
    def stage2(self) -> str | None: ...
    @property
    def volume(self) -> int | None: ...
    @property
    def capacity(self) -> int | None: ...


def options_of(args: Options, bench: Bench) -> tuple[Prices, Demand, Assumed | Predictions]:
    """Prices, demand and stage 2. Raises UserError with all problems."""
    data, problems = _read_prices(args.prices)
    second, more = _second(args, bench)
    problems += more + _demand_problems(args)
    title = "this cascade cannot be priced:"
    raise_problems(title, problems, PRICES_MEANT if any("prices" in problem for problem in problems) else "")
    assert second is not None
    return prices_from(data, str(args.prices)), Demand(args.prevalence, args.volume, args.capacity), second


def early_end_of(args: Priced) -> tuple[EarlyEnd | None, list[str]]:
    """Where `--prices` and what goes with it end a certification, None where nothing does, and all problems."""
    rates = {"--sensitivity": args.sensitivity, "--specificity": args.specificity}
    if args.prices is None:
        given = [name for name, value in {**rates, "--prevalence": args.prevalence}.items() if value is not None]
        return None, [f"{name} goes with --prices" for name in given]
    data, problems = _read_prices(args.prices)
    (sensitivity, first), (specificity, other) = (rates_of(option, words) for option, words in rates.items())
    problems += [*first, *other, *_prevalence_problems(args)]
    if problems:
        return None, problems
    return EarlyEnd(prices_from(data, args.prices), Assumed(sensitivity, specificity).middle, args.prevalence), []


def _read_prices(name: str | None) -> tuple[Any, list[str]]:
    if name is None:
        return None, ["--prices is missing: name a YAML file of prices with the lines c1, c2, cm and cf"]
    try:
        data = yaml.safe_load(artifacts.read_bytes(Path(name), "Name an existing YAML file with --prices."))
    except UserError as error:
        return None, [str(error)]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"{name}: no YAML of prices ({' '.join(str(error).split())[:100]})"]
    return data, price_problems(data, name)


def _second(args: Options, bench: Bench) -> tuple[Assumed | Predictions | None, list[str]]:
    rates = {"--sensitivity": args.sensitivity, "--specificity": args.specificity}
    if args.stage2 is None:
        if not any(rates.values()):
            return None, ["how good is stage 2? Give --stage2 FILE, or --sensitivity and --specificity"]
        (sensitivity, first), (specificity, other) = (rates_of(option, words) for option, words in rates.items())
        return Assumed(sensitivity, specificity), first + other
    twice = [f"{option} is measured by --stage2: leave one of the two out" for option, words in rates.items() if words]
    names = bench.run.splits.class_names
    found, problems = read_predictions(
        Path(args.stage2), bench.test.case_id, bench.labels, ~bench.decisions.exits, names
    )
    return found, twice + problems


def _prevalence_problems(args: Priced) -> list[str]:
    if args.prevalence is None or (isfinite(args.prevalence) and 0 < args.prevalence < 1):
        return []
    return [f"--prevalence is {args.prevalence:g}; allowed above 0, below 1"]


def _demand_problems(args: Options) -> list[str]:
    problems = _prevalence_problems(args)
    if args.volume is not None and args.volume < 1:
        problems.append(f"--volume is {args.volume}; allowed 1 or more")
    if args.capacity is not None and args.capacity < 0:
        problems.append(f"--capacity is {args.capacity}; allowed 0 or more")
    if args.capacity is not None and args.volume is None:
        problems.append("--capacity goes with --volume, the number of cases a day")
    return problems
