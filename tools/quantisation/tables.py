"""The results as tables, by seed where that matters, and the claims that they have to bear out."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .measuring import PREDICTED, SETTINGS, Kept, Run
from .methods import STARTS, methods_of

IMAGES = 797


@dataclass(frozen=True)
class Results:
    """The finished runs of one net.

    Attributes:
        net: its name.
        seeds: that were run.
        kept: the runs.
        quantiser: who rounded.
    """

    net: str
    seeds: Sequence[int]
    kept: Kept
    quantiser: str = "own"

    def by_seed(self, what: str, start: str, method: str, setting: str) -> list[float]:
        """The errors, or accuracies, of all seeds; empty where one is missing."""
        quantiser = "own" if setting in PREDICTED else self.quantiser
        runs = [Run(self.net, start, seed, method, setting, quantiser) for seed in self.seeds]
        return [self.kept[run][what] for run in runs] if all(run in self.kept for run in runs) else []

    def mean(self, what: str, start: str, method: str, setting: str) -> float:
        """Their mean; NaN where one is missing."""
        found = self.by_seed(what, start, method, setting)
        return statistics.fmean(found) if found else float("nan")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    digits = 1 if statistics.fmean(values) >= 9.95 else 2
    return f"{statistics.fmean(values):.{digits}f}±{deviation:.{digits}f}"


def table(results: Results, what: str) -> list[str]:
    """One table in Markdown: a line for each start and method, a column for each setting."""
    settings = [*SETTINGS, *(PREDICTED if what == "error" else ())]
    lines = ["| start | method | " + " | ".join(settings) + " |", "|---|---|" + "---|" * len(settings)]
    for start in STARTS[results.net]:
        for method in methods_of(results.net):
            cells = [spread(results.by_seed(what, start, method, setting)) for setting in settings]
            lines.append(f"| {start} | {method} | " + " | ".join(cells) + " |")
    return lines


def beside_own(results: Results) -> list[str]:
    """By setting, how far the errors of another quantiser are from those of the own rounding, run by run."""
    own, lines = Results(results.net, results.seeds, results.kept), []
    for setting in SETTINGS:
        ratios = [
            found / one
            for start in STARTS[results.net]
            for method in methods_of(results.net)
            for found, one in zip(
                results.by_seed("error", start, method, setting), own.by_seed("error", start, method, setting), strict=False
            )
        ]
        if ratios:
            lines.append(f"{setting:20} {spread(ratios)}, from {min(ratios):.4f} to {max(ratios):.4f} ({len(ratios)} runs)")
    return lines


def differences(results: Results, settings: Sequence[str]) -> list[str]:
    """The accuracy of each method less that of nothing from the trained start, seed by seed, in points."""
    lines = []
    for setting in settings:
        base = results.by_seed("accuracy", "trained", "nothing", setting)
        for method in methods_of(results.net):
            found = results.by_seed("accuracy", "trained", method, setting)
            if method != "nothing" and found and base:
                listed = ", ".join(f"{a - b:+.1f}" for a, b in zip(found, base, strict=True))
                lines.append(f"{setting:12} {method:28} {listed}")
    return lines


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """A bound and the number that it is about."""

    words: str
    value: float
    most: float

    def __str__(self) -> str:
        if self.value != self.value:
            return f"not measured: {self.words}"
        verdict = "met" if self.value <= self.most else "NOT MET"
        return f"{verdict}: {self.words}: {self.value:.3g}, at most {self.most:g}"


def claims(results: Results) -> list[Claim]:
    """All claims on a net."""
    return [*{"depthwise": _of_depthwise, "transformer": _of_transformer}[results.net](results), *_of_predictions(results)]


def _ratio(results: Results, start: str, setting: str, method: str, other: str) -> float:
    """One mean error over another."""
    return results.mean("error", start, method, setting) / results.mean("error", start, other, setting)


def _of_transformer(results: Results) -> list[Claim]:
    """Of outliers, of the trained start, of both together, and of 4-bit weights."""
    smooth, noise, eight = "SmoothQuant 0.5, all sites", "PredictedNoise", "W8A8 tensor"
    return [
        Claim("outliers, W8A8 tensor, PredictedNoise over SmoothQuant", _ratio(results, "outliers", eight, noise, smooth), 0.9),
        Claim("outliers, W8A8 tensor, PredictedNoise over nothing", _ratio(results, "outliers", eight, noise, "nothing"), 0.1),
        Claim("trained, W8A8 tensor, PredictedNoise over SmoothQuant", _ratio(results, "trained", eight, noise, smooth), 1.0),
        Claim("trained, W4 tensor, PredictedNoise over p = inf", _ratio(results, "trained", "W4 tensor", noise, "p = inf"), 0.92),
        *(
            Claim(f"{setting}, {noise}, difference of the means of both starts", _gap(results, noise, setting), 0.03)
            for setting in ("W8A8 tensor", "W4 tensor")
        ),
    ]


def _gap(results: Results, method: str, setting: str) -> float:
    """The relative difference of the mean errors from two starts."""
    one, other = (results.mean("error", start, method, setting) for start in STARTS[results.net])
    return abs(one - other) / max(one, other)


def _of_depthwise(results: Results) -> list[Claim]:
    """Of W8A8, and of what a rescaling of the start costs."""
    found = [
        Claim(
            "trained, W8A8 tensor, PredictedNoise over p = inf",
            _ratio(results, "trained", "W8A8 tensor", "PredictedNoise", "p = inf"),
            0.88,
        )
    ]
    for method in methods_of("depthwise"):
        if method != "nothing":
            counts = [_images(results, method, setting) for setting in ("W8 tensor", "W8 channel", "W4 tensor", "W4 channel")]
            worst = math.nan if any(map(math.isnan, counts)) else max(counts)
            found.append(Claim(f"int8 and int4, {method}, rescaled against trained, test images of one seed", worst, 1))
    return found


def _images(results: Results, method: str, setting: str) -> float:
    """By how many test images of a seed the accuracies of two starts differ at most."""
    both = [results.by_seed("accuracy", start, method, setting) for start in STARTS["depthwise"]]
    if not all(both):
        return float("nan")
    return max(round(abs(a - b) / 100 * IMAGES) for a, b in zip(*both, strict=True))


RANKED = ("nothing", "SmoothQuant 0.5, all sites", "p = 2", "p = inf", "PredictedNoise")


def _of_predictions(results: Results) -> list[Claim]:
    """Whether the predicted noise ranks methods and starts as measured, and by what factor it is off."""
    predicted, measured = "W8A8 tensor, predicted", "W8A8 tensor"
    places = [(start, method) for start in STARTS[results.net] for method in RANKED]
    # From a spoilt start a net that is not rescaled errs by as much as its outputs, where no rounding error is a small one.
    places = [place for place in places if not results.mean("error", *place, measured) > 50]
    pairs = {place: [results.by_seed("error", *place, setting) for setting in (predicted, measured)] for place in places}
    words = "W8A8 tensor, predicted noise"
    if not all(all(both) for both in pairs.values()):
        return [Claim(words, float("nan"), 0.0)]
    means = {place: [statistics.fmean(values) for values in both] for place, both in pairs.items()}
    factors = [guess / found for guess, found in means.values()]
    middle = statistics.median(factors)
    off = max(max(factor / middle, middle / factor) for factor in factors)
    wrong = 0
    for one, other in itertools.combinations(places, 2):
        differences = [a - b for a, b in zip(pairs[one][1], pairs[other][1], strict=True)]
        clear = len(differences) > 1 and abs(statistics.fmean(differences)) > 2 * statistics.stdev(differences)
        wrong += clear and (means[one][0] - means[other][0]) * statistics.fmean(differences) < 0
    return [
        Claim(f"{words}, pairs of methods in the wrong order, of those that differ by two deviations", wrong, 0),
        Claim(f"{words}, the largest factor from its median over measured ({middle:.2f})", off, 1.5),
    ]


def report(results: Results, show: Callable[[str], None]) -> None:
    """Shows the tables of a net and its claims."""
    seeds = ", ".join(map(str, results.seeds))
    by = "" if results.quantiser == "own" else f", rounded by {results.quantiser}"
    show(f"\n## {results.net}, seeds {seeds}{by}: relative error of the logits in %, mean ± standard deviation\n")
    for line in table(results, "error"):
        show(line)
    show(f"\n## {results.net}: test accuracy in %\n")
    for line in table(results, "accuracy"):
        show(line)
    show("\nAccuracy less that of nothing, from the trained start, seed by seed, in points:\n")
    for line in differences(results, ("W4 tensor", "W4 channel", "W8A8 tensor")):
        show(line)
    if results.quantiser != "own":
        show(f"\nError by {results.quantiser} over that of the own rounding, of one run, by setting:\n")
        for line in beside_own(results):
            show(line)
    show("")
    for claim in claims(results):
        show(str(claim))
