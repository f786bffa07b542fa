"""Small random models, each from a seed, and what must hold of every one of them.

A model is drawn as source text, so that a failure can be read and run by itself. `python -m tests.random_models --count 500
--seed 0` checks as many as one wants; `--show` prints the source of one seed.
"""

from __future__ import annotations

import argparse
import linecache
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import fxenorm

from .account_check import assert_adds_up
from .completeness_harness import DRAWS as PARAMETER_DRAWS
from .completeness_harness import Found, claimed_dimension, measure
from .helpers import TOLERANCE, generator, magnitudes, outputs, soundness_error
from .random_draft import Draft
from .random_operators import DRAWS

__all__ = ["EXPECTED_FAILURES", "Report", "Sketch", "check", "sketch"]

EXPECTED_FAILURES: dict[int, str] = {}
"""Seeds with a known fault, and the reason."""
INPUTS = ((4,), (4, 4), (3, 4), (4, 3), (4, 4, 4), (2, 4, 4), (3, 6, 4))
"""Shapes of the first input behind the batch."""
CHEAP = 90
"""Parameter entries up to which the dimension is measured."""
NOT_SMOOTH = frozenset({"cut", "rounded", "signed", "embedding"})
"""Draws whose derivative does not show on what the value depends."""

DROPS = frozenset({"split", "select", "narrow", "every_other", "last_but_one", "index_select"})
"""Draws that leave entries unused, whose scales (a bias that is added to them, say) a rule still counts."""


@dataclass(frozen=True)
class Sketch:
    """A random model as text, with what is needed to build and run it.

    Attributes:
        seed: that it is drawn from.
        source: of a class RandomModel.
        draws: what was drawn.
        state: values of its parameters and buffers (float64).
        example: inputs on which it was put together (float64); the last, "tokens", holds integers.
    """

    seed: int
    source: str
    draws: tuple[str, ...]
    state: dict[str, torch.Tensor]
    example: tuple[torch.Tensor, ...]

    def build(self, dtype: torch.dtype) -> nn.Module:
        """The model under this default dtype; its source can be read as if it lay in a file."""
        name = f"<random model {self.seed}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        scope: dict[str, Any] = {"__name__": "tests.random_models"}
        with default_dtype(dtype):
            exec(compile(self.source, name, "exec"), scope)
            model = scope["RandomModel"]()
        model.load_state_dict(self.state)
        return model

    def inputs(self, dtype: torch.dtype, seed: int | None = None) -> tuple[torch.Tensor, ...]:
        """Those it was put together on, or others from a seed."""
        *floats, tokens = self.example
        if seed is not None:
            random = generator(seed)
            floats = [torch.randn(value.shape, generator=random, dtype=torch.float64) for value in floats]
            tokens = torch.randint(0, 12, tokens.shape, generator=random)
        return (*(value.to(dtype) for value in floats), tokens.clone())

    @property
    def complete(self) -> bool:
        """Whether every draw finds every law, and nothing but whole tensors stays unused: rules look at all entries."""
        return all(DRAWS[name].complete for name in self.draws) and not DROPS & set(self.draws)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _useful(value: Any) -> bool:
    """A real float tensor of moderate size and values."""
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float64 or not 1 < value.numel() <= 300 or value.ndim > 5:
        return False
    size = value.detach().abs()
    return bool(torch.isfinite(size).all()) and 1e-2 < float(size.max()) < 1e2


def _scope(draft: Draft) -> dict[str, Any]:
    return {"torch": torch, "nn": nn, "F": nn.functional, "self": draft.module, "tokens": draft.tokens, **draft.values}


def _try_line(draft: Draft, name: str) -> bool:
    """Adds one line of this draw to the draft; False where it does not run or is of no use."""
    draft.new, target, kept = [], f"h{len(draft.lines)}", draft.values
    copies = {key: value.detach().clone() for key, value in kept.items()}
    try:
        code = DRAWS[name].write(draft)
        lines = code.replace("{y}", target) if "{y}" in code else f"{target} = {code}"
        scope = _scope(draft)
        for new in draft.new:
            exec(new, scope)
            _spread(eval(new.split(" = ")[0], scope))
        exec(lines, scope)
        in_eval = {**scope, "self": draft.module.eval()}
        exec(lines, in_eval)
    except (RuntimeError, ValueError, IndexError, LookupError, TypeError, NotImplementedError, AttributeError):
        return False
    finally:
        draft.module.train()
    if not (_useful(scope[target]) and _useful(in_eval[target])):
        return False
    if any(not torch.equal(value, kept[key]) for key, value in copies.items()):
        return False
    draft.values = {**kept, target: scope[target].detach()}
    draft.layers += draft.new
    draft.lines.append(lines)
    draft.draws.append(name)
    return True


@torch.no_grad()
def _spread(layer: Any) -> None:
    """Draws what a layer begins with at 0 or 1, which would hide a wrong scale."""
    for parameter in layer.parameters() if isinstance(layer, nn.Module) else [layer]:
        if parameter.numel() == 1 or parameter.min() == parameter.max():
            parameter.copy_(magnitudes(parameter.shape, generator(parameter.numel())))


def sketch(seed: int, steps: int | None = None, complete: bool | None = None) -> Sketch:
    """The model of a seed.

    Args:
        seed: of all choices.
        steps: the number of lines; None: from 4 to 12.
        complete: True: draws with complete rules only; None: that for every third seed.
    """
    choose = random.Random(seed)
    batch = choose.choice([2, 3, 4])
    shapes = [(batch, *choose.choice(INPUTS))]
    if choose.random() < 0.4:
        shapes.append(shapes[0])
    only = complete if complete is not None else seed % 3 == 0
    names = [name for name in DRAWS if DRAWS[name].complete or not only]
    weights = [DRAWS[name].weight for name in names]
    layers = ["linear", "linear", "pointwise"] if only else ["linear", "linear", "conv1d", "conv2d"]
    returned: list[str] = []
    steps = steps or choose.randint(4, 12)
    with torch.random.fork_rng(devices=[]), default_dtype(torch.float64), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        inputs = {f"x{i}": torch.randn(shape, dtype=torch.float64) for i, shape in enumerate(shapes)}
        draft = Draft(choose, dict(inputs), torch.randint(0, 12, (batch, 4)))
        while not draft.lines and choose.random() < 0.98:
            _try_line(draft, choose.choice(layers))
        for _ in range(60 * steps):
            if len(draft.lines) == steps:
                break
            _try_line(draft, choose.choices(names, weights)[0])
        # What nothing reads most often gets a layer, so that what comes before can be free; it is returned bare, or left over.
        unread = _unread(draft)
        for name in unread[-3:]:
            kind = choose.random()
            if kind < 0.7 or only:
                draft.only = name
                end = any(_try_line(draft, choose.choice(layers)) for _ in range(20))
                draft.only = None
                returned.append(f"h{len(draft.lines) - 1}" if end else name)
            elif kind < 0.85 or name == unread[-1]:
                returned.append(name)
        returned += unread[:-3] if only else []
    result = returned[0] if len(returned) == 1 else "{" + ", ".join(f'"{name}": {name}' for name in returned) + "}"
    source = _source([*inputs, "tokens"], draft, result)
    used = {line.split(" = ")[0][5:] for line in draft.layers}
    state = {name: value for name, value in draft.module.state_dict().items() if name.split(".")[0] in used}
    return Sketch(seed, source, tuple(draft.draws), state, (*inputs.values(), draft.tokens))


def _unread(draft: Draft) -> list[str]:
    """The values that no line after their own reads."""
    later = [set(re.findall(r"\w+", line)) for line in draft.lines]
    return [name for k in range(len(draft.lines)) if (name := f"h{k}") not in set().union(*later[k + 1 :])]


def _source(inputs: Sequence[str], draft: Draft, result: str) -> str:
    """The text of the class."""
    body = [f"        {line}" for lines in draft.lines for line in lines.splitlines()]
    return "\n".join(
        [
            "import torch",
            "from torch import nn",
            "from torch.nn import functional as F",
            "",
            "",
            "class RandomModel(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *[f"        {line}" for line in draft.layers],
            "",
            f"    def forward(self, {', '.join(inputs)}):",
            *body,
            f"        return {result}",
            "",
        ]
    )


@dataclass(frozen=True)
class Report:
    """What was seen of one model.

    Attributes:
        num_scales: found.
        measured: the dimension that the outputs show; None where it was not measured.
        claimed: the part of `num_scales` that is comparable with it.
    """

    num_scales: int
    measured: int | None
    claimed: int | None


def _moved(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _check_cycles(plan: fxenorm.Plan, sketched: Sketch, dtype: torch.dtype) -> None:
    """Cycles of both executors never raise the norm, and move every weight alike."""
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    weights = []
    for backend in ("eager", "compiled"):
        model = sketched.build(dtype)
        bound = fxenorm.Plan(plan.symmetry, replace(plan.options, backend=backend), model)
        norm = bound.norm().item()
        for cycles in (1, 2, 3):
            bound.step(cycles=cycles)
            after = bound.norm().item()
            assert after <= norm * (1 + rounding), f"{backend}: {cycles} cycles raise the norm from {norm} to {after} ({dtype})"
            norm = after
        weights.append(_moved(model))
    for name, eager in weights[0].items():
        assert torch.isfinite(eager).all(), f"{name} is not finite after cycles ({dtype})"
        torch.testing.assert_close(
            weights[1][name],
            eager,
            rtol=100 * rounding,
            atol=100 * rounding * float(eager.abs().amax()),
            msg=lambda message, name=name: f"executors differ on {name}: {message}",
        )


def check(sketched: Sketch, oracle: bool = True) -> Report:
    """Analyses a model under both default dtypes and checks what must hold of it.

    Args:
        sketched: the model.
        oracle: whether to measure the dimension of the true group where it is cheap.

    Raises:
        AssertionError: something does not hold.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plans = {}
        for dtype in (torch.float32, torch.float64):
            with default_dtype(dtype):
                model = sketched.build(dtype)
                plans[dtype] = plan = fxenorm.analyze(model, sketched.inputs(dtype), backend="eager")
                if plan.num_scales:
                    _check_cycles(plan, sketched, dtype)
        single, plan = plans[torch.float32], plans[torch.float64]
        assert single.num_scales == plan.num_scales, f"{single.num_scales} scales in float32, {plan.num_scales} in float64"
        assert plan.exact, plan.inexact_reasons
        assert_adds_up(plan.symmetry)
        with default_dtype(torch.float64):
            inputs = sketched.inputs(torch.float64)
            for mode in ("eval", "train"):
                error = soundness_error(model, plan, inputs, mode)
                assert error <= TOLERANCE, f"a rescaling changes the outputs by {error:.1e} in {mode} mode"
            return _measured(sketched, model, plan) if oracle else Report(plan.num_scales, None, None)


def _measured(sketched: Sketch, model: nn.Module, plan: fxenorm.Plan) -> Report:
    """Compares with the dimension that the outputs show, where it is cheap and their derivative shows all."""
    total = sum(parameter.numel() for parameter in model.parameters())
    shown = sum(value.numel() for value in outputs(model, sketched.inputs(torch.float64))) * PARAMETER_DRAWS
    if total > min(CHEAP, shown // 2) or total == 0 or NOT_SMOOTH & set(sketched.draws):
        return Report(plan.num_scales, None, None)
    try:
        measurement = measure(
            lambda: sketched.build(torch.float64), lambda seed: sketched.inputs(torch.float64, seed), offsets=plan.offsets
        )
    except AssertionError as error:
        if "no gap" not in str(error):
            raise
        return Report(plan.num_scales, None, None)
    claimed = claimed_dimension(Found(model, plan.symmetry), measurement.live)
    assert claimed <= measurement.dimension, f"{claimed} scales are claimed, the outputs show {measurement.dimension}"
    if sketched.complete:
        assert claimed == measurement.dimension, (
            f"{claimed} scales of {measurement.dimension} are found, though all rules are complete"
        )
    return Report(plan.num_scales, measurement.dimension, claimed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks many models; prints each seed that fails, with its source, and the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_models", description=main.__doc__)
    parser.add_argument("--count", type=int, default=100, help="number of models")
    parser.add_argument("--seed", type=int, default=0, help="of the first model; the others follow")
    parser.add_argument("--no-oracle", action="store_true", help="do not measure the dimension of the true group")
    parser.add_argument("--show", action="store_true", help="print the source of each model")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    failed: list[int] = []
    begin = time.perf_counter()
    print(f"seeds {options.seed} to {options.seed + options.count - 1}")
    for seed in range(options.seed, options.seed + options.count):
        sketched = sketch(seed)
        if options.show:
            print(f"--- seed {seed}\n{sketched.source}")
        try:
            report = check(sketched, oracle=not options.no_oracle)
        except Exception as error:  # every kind of failure is reported, and the next seed is tried
            failed.append(seed)
            print(f"seed {seed} fails: {type(error).__name__}: {error}\n{sketched.source}", flush=True)
            if not isinstance(error, AssertionError | fxenorm.FxenormError):
                traceback.print_exc(file=sys.stdout)
            continue
        counts["with scales"] += report.num_scales > 0
        counts["scales"] += report.num_scales
        if report.measured is not None and report.claimed is not None:
            counts["measured"] += 1
            counts["measured as found"] += report.measured == report.claimed
            if report.measured > report.claimed:
                print(f"seed {seed}: {report.claimed} of {report.measured} scales are found", flush=True)
    seconds = time.perf_counter() - begin
    print(
        f"{options.count} models in {seconds:.0f} s, {len(failed)} failed: {failed}; "
        + ", ".join(f"{n} {c}" for n, c in counts.items())
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
