"""Measures a net with rounded weights and activations on the test images; finished runs are kept in a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxenorm import Bits
from fxenorm.objectives.quantisers import quantisers_of
from fxenorm.quantisation.rounded_outputs import relative_error

from .digits import CALIBRATION, Digits, digits
from .methods import STARTS, Case, Method, methods_of
from .quantisers import QUANTISERS, quantiser
from .training import trained

VERSION = 1
"""To be raised where the same run would give another result than before."""

SETTINGS: dict[str, Bits] = {
    "W8 tensor": Bits(8, None),
    "W8 channel": Bits(8, None, per="channel"),
    "W4 tensor": Bits(4, None),
    "W4 channel": Bits(4, None, per="channel"),
    "W8A8 tensor": Bits(8, 8, symmetric=True),
    "W8A8 channel": Bits(8, 8, per="channel", symmetric=True),
    "W8A8 tensor, from 0": Bits(8, 8),
}
"""Weights alone; with activations in signed numbers; and with those that are not negative in numbers from 0 to 255."""

PREDICTED = {"W8A8 tensor, predicted": "W8A8 tensor"}
"""Errors that are predicted and not measured, and the setting of each."""


@dataclass(frozen=True)
class Run:
    """One net, start, seed, method, setting and quantiser."""

    net: str
    start: str
    seed: int
    method: str
    setting: str
    quantiser: str = "own"

    @property
    def key(self) -> str:
        """A text by which the result is found again."""
        others = [] if self.quantiser == "own" else [self.quantiser]
        return json.dumps([VERSION, self.net, self.start, self.seed, self.method, self.setting, *others])


class Kept:
    """Finished runs in a file of JSON lines, an incomplete last line is passed over."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[str, dict[str, float]] = {}
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        for line in text.split("\n")[:-1]:
            record = json.loads(line)
            self.results[record["key"]] = record["result"]
        if path is not None and text and not text.endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")

    def __contains__(self, run: Run) -> bool:
        return run.key in self.results

    def __getitem__(self, run: Run) -> dict[str, float]:
        return self.results[run.key]

    def add(self, run: Run, result: dict[str, float]) -> None:
        """Keeps one result."""
        self.results[run.key] = result
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": run.key, "result": result}) + "\n")


def runs_of(
    net: str,
    seeds: Sequence[int],
    settings: Sequence[str] = (*SETTINGS, *PREDICTED),
    quantiser: str = "own",
    methods: Sequence[str] | None = None,
) -> list[Run]:
    """All runs of a net with a quantiser, in settings that it expresses; None: with all methods."""
    expressed = [
        setting
        for setting in settings
        if (quantiser == "own" if setting in PREDICTED else QUANTISERS[quantiser].expresses(net, SETTINGS[setting]))
    ]
    return [
        Run(net, start, seed, method, setting, quantiser)
        for seed in seeds
        for start in STARTS[net]
        for method in methods_of(net)
        if methods is None or method in methods
        for setting in expressed
    ]


class Measured:
    """A rescaled net in float32, to be rounded by one quantiser or another.

    Args:
        case: the net in float64.
        log_scales: those by which it was rescaled from its start.
        data: the images.
        expected: the logits of the test images.
    """

    def __init__(self, case: Case, log_scales: Tensor, data: Digits, expected: Tensor) -> None:
        self.model, self.data, self.expected = copy.deepcopy(case.model).float(), data, expected
        self._case, self._log_scales = case, log_scales
        self._roundings: dict[str, Any] = {}

    def result(self, run: Run) -> dict[str, float]:
        """What is kept of one run."""
        if run.setting in PREDICTED:
            return {"error": self.predicted(SETTINGS[PREDICTED[run.setting]])}
        return self.at(SETTINGS[run.setting], run.quantiser)

    def predicted(self, bits: Bits) -> float:
        """The relative error of the logits that is predicted, in per cent."""
        seen = self._case.observations(derivatives=True).rescaled(self._log_scales)
        return 100 * float(sum(float(one.noise().sum()) for one in quantisers_of(seen, bits)) / seen.output_square) ** 0.5

    def at(self, bits: Bits, name: str = "own") -> dict[str, float]:
        """The relative error of the logits and the accuracy, in per cent."""
        if name not in self._roundings:
            self._roundings[name] = quantiser(name)(self.model, self.data.train[:CALIBRATION])
        logits = self._roundings[name].logits(bits, self.data.test)
        right = logits.argmax(1) == self.data.test_classes
        return {"error": 100 * relative_error([logits], [self.expected]), "accuracy": 100 * float(right.double().mean())}


def finish(runs: Sequence[Run], kept: Kept, folder: Path, epochs: int | None = None) -> Iterator[Run]:
    """Does the runs that are not finished, and yields each when it is.

    Args:
        runs: wanted.
        kept: the finished ones.
        folder: of the trained nets.
        epochs: of training; None: those of the net.
    """
    plans: dict[str, dict[Any, Any]] = {}
    for net, start, seed in dict.fromkeys((run.net, run.start, run.seed) for run in runs):
        missing = [run for run in runs if (run.net, run.start, run.seed) == (net, start, seed) and run not in kept]
        if not missing:
            continue
        data = digits(net)
        first = Case(trained(net, seed, folder, epochs), data.calibration, plans.setdefault(net, {}))
        with torch.no_grad():
            expected = first.model(data.test.double())
        STARTS[net][start](first, seed)
        for name, method in methods_of(net).items():
            wanted = [run for run in missing if run.method == name]
            for run, case in _rescaled(first, method, wanted, data, expected):
                kept.add(run, case.result(run))
                yield run


def _rescaled(first: Case, method: Method, runs: Sequence[Run], data: Digits, expected: Tensor) -> Iterator[tuple[Run, Measured]]:
    """Yields each run with its net: rescaled once, or for each setting where the method depends on bits."""
    for number, run in enumerate(runs):
        if number == 0 or method.by_bits:
            case = first.copy()
            if any(one.setting in PREDICTED for one in runs):
                case.observations(derivatives=True)  # at the start: predictions follow from there
            log_scales = method.run(case, SETTINGS[PREDICTED.get(run.setting, run.setting)])
            measured = Measured(case, log_scales, data, expected)
        yield run, measured
