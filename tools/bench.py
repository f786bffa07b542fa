"""What fxenorm costs: ratios of times that were taken in turn in one process, so that a busy machine disturbs both alike.

    python tools/bench.py                                               # the whole table, about ten minutes on two cores
    python tools/bench.py --models conv resnet18 --rows fused cycles    # part of it
    python tools/bench.py --models resnet18 --rows ways                 # every way of training, and which code runs it
    python tools/bench.py --models llama --rows ways                    # those of a small Llama, which needs transformers
    python tools/bench.py --models --rows ways_growth                   # how each grows with layers, width and groups
    python tools/bench.py --models --rows ways_growth --ways "p = 3"    # of one of them
    python tools/bench.py --quick                                       # whether everything runs; its times say little
    python tools/bench.py --json bench.json --markdown bench.md

A ratio below 1 means that what is named first is faster. A step is one cycle and takes SGD's momentum along.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.solve.iterate import solve
from fxenorm.trace import trace_model

RELEASED = ("fc", "conv")
VISION = ("resnet18", "resnet50", "vgg16", "mobilenet_v3_large", "vit_b_16")
TRAINED = {"fc": (3072,), "conv": (3, 32, 32), "resnet18": (3, 64, 64), "mobilenet_v3_large": (3, 64, 64)}
"""Models whose training step is cheap enough, with the shape of one image."""

DEPTHS = (4, 16, 64, 256, 1024)
WIDTHS = (64, 256, 1024)
SAME_SIZE = ((4, 1024), (16, 512), (64, 256), (256, 128), (1024, 64))
"""Depth and width of chains with about as many weights each: what more layers, and groups, cost."""

TARGETS: dict[tuple[str, str], float] = {
    **{("fused", name): 1.0 for name in ("resnet18", "resnet50", "vit_b_16")},
    # The first linear layer holds 411 MB: its columns need their sums before anything is scaled, so it is read twice. This is as
    # many bytes as SGD moves, but a pass that only reads leaves the writing side of memory idle: 1.08 to 1.16 is all it could be.
    ("fused", "vgg16"): 1.2,
    **{("fused", name): 1.3 for name in RELEASED},
    ("multiply", "vgg16"): 2.0,
    ("loop", "conv"): 0.25,
    ("training", "resnet18"): 0.03,
    **{("cycles", name): 2.0 for name in ("conv", "resnet18")},
}
"""By row and model, the largest ratio wanted."""

LINEAR = 1.25
"""Growth with depth is linear if the time grows at most by this more than the weights do."""

SWEEPS = 500
"""Sweeps after which coordinate descent is given up."""


@dataclass(frozen=True)
class Way:
    """One way of training, and the largest ratio of a step to the optimizer's own that is wanted.

    Attributes:
        target: that ratio.
        options: of `fxenorm.analyze`.
        dtype: of the weights.
        adam: whether AdamW trains in place of SGD with momentum.
        grads: whether gradients follow.
        cycles: of each step.
        tracked: whether an averaged copy follows.
        build: makes a model of its own with an example input; None: any model will do.
    """

    target: float
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    adam: bool = False
    grads: bool = False
    cycles: int = 1
    tracked: bool = False
    build: Callable[[], tuple[nn.Module, Tensor]] | None = None

    def follower(self, plan: fxenorm.Plan, model: nn.Module) -> None:
        """Tracks an averaged copy, where that belongs to it."""
        if self.tracked:
            plan.track({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    def step(self, plan: fxenorm.Plan, optimizer: torch.optim.Optimizer) -> None:
        """One step."""
        plan.step(optimizer, grads=self.grads, cycles=self.cycles)


class SelfMeeting(nn.Module):
    """x + W x: entries of W carry two variables of one group, those of its diagonal one variable twice."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.first(x).relu()
        return self.last((x + self.second(x)).relu())


class ComplexWeights(nn.Module):
    """Complex layers, the sizes of whose outputs go on."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.first = nn.Linear(64, width, dtype=torch.complex64)
        self.second = nn.Linear(width, width, dtype=torch.complex64)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.last(self.second(self.first(x.to(torch.complex64)).abs().to(torch.complex64)).abs())


class ShiftedNorm(nn.Module):
    """A norm with 1 + gamma between layers, as Gemma's."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.first, self.second, self.gamma = nn.Linear(64, width), nn.Linear(width, 10), nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.second(nn.functional.rms_norm(self.first(x), self.gamma.shape) * (1.0 + self.gamma))


WAYS: dict[str, Way] = {
    "float32": Way(1.0),
    "AdamW": Way(1.0, adam=True),
    "bfloat16": Way(1.0, dtype=torch.bfloat16),
    "bfloat16, AdamW": Way(1.0, dtype=torch.bfloat16, adam=True),
    "pow2": Way(1.0, {"scales": "pow2"}),
    "pow2, AdamW": Way(1.0, {"scales": "pow2"}, adam=True),
    "dead band 0.01": Way(0.5, {"deadband": 0.01}),
    "p = 1": Way(1.2, {"p": 1.0}),
    "p = 1.5": Way(3.0, {"p": 1.5}),
    "p = 3": Way(1.5, {"p": 3.0}),
    "p = 16": Way(3.0, {"p": 16.0}),
    "p = inf, folded": Way(1.2, {"p": math.inf, "batchnorm": "folded"}),
    "folded": Way(1.2, {"batchnorm": "folded"}),
    "biases counted": Way(1.2, {"biases": "count"}),
    "gradients follow": Way(1.5, grads=True),
    "Gauss-Seidel": Way(4.0, {"solver": "gauss-seidel"}),
    "c by size": Way(1.2, {"c": "adaptive"}),
    "largest step": Way(1.2, {"max_log_scale": 0.1}),
    "float16": Way(1.2, dtype=torch.float16),
    "averaged copy": Way(1.5, tracked=True),
    "float64": Way(1.2, dtype=torch.float64),
    "3 cycles": Way(3.0, cycles=3),
    "p = 3, 3 cycles": Way(3.0, {"p": 3.0}, cycles=3),
    "p = 1.5, 3 cycles": Way(30.0, {"p": 1.5}, cycles=3),
    "Gauss-Seidel, p = 1.5": Way(30.0, {"solver": "gauss-seidel", "p": 1.5}),
    "folded, biases counted": Way(5.0, {"batchnorm": "folded", "biases": "count"}),
    "complex weights": Way(2.0, build=lambda: (ComplexWeights(), torch.randn(2, 64))),
    "complex weights, p = 1": Way(30.0, {"p": 1.0}, build=lambda: (ComplexWeights(), torch.randn(2, 64))),
    "x + W x": Way(30.0, build=lambda: (SelfMeeting(), torch.randn(2, 64))),
    "1 + gamma": Way(30.0, build=lambda: (ShiftedNorm(), torch.randn(2, 64))),
}
"""By name. Where nothing moves, which powers of two and a dead band bring about, a step should read and not write."""

OF_LLAMA = ("float32", "bfloat16", "bfloat16, AdamW", "pow2", "pow2, AdamW")
"""Ways in which the small Llama is trained; the others say nothing new of it."""

GROWN = tuple(name for name, way in WAYS.items() if way.build is None)
"""Ways whose growth is measured."""

GROWTH: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "four times the layers": ((8, 256), (32, 256)),
    "four times the width": ((8, 128), (8, 512)),
    "four times the groups at one size": ((8, 512), (32, 256)),
}
"""By what grows, depth and width of the chain before and after."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison; times are medians in milliseconds, the ratio's median and quartiles are of pairs of runs."""

    row: str
    model: str
    what: str
    milliseconds: float
    against: str
    against_milliseconds: float
    ratio: float
    low: float
    high: float
    pairs: int
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "NOT met"


@dataclass(frozen=True)
class Effort:
    """How often things are run.

    Attributes:
        pairs: at most, for each row.
        seconds: for each row, after which no further pair begins.
        depth: of the deepest chain.
        ways: the ways of training that are looked at.
    """

    pairs: int
    seconds: float
    depth: int
    ways: Sequence[str] = tuple(WAYS)

    def compare(self, row: str, model: str, what: str, work: Work, against: str, other: Work, target: float | None = None) -> Row:
        """Runs two things in turn; the first pair warms up."""
        times: list[tuple[float, float]] = []
        begun = time.perf_counter()
        while len(times) < 2 or (len(times) <= self.pairs and time.perf_counter() - begun < self.seconds):
            start = time.perf_counter()
            other()
            between = time.perf_counter()
            work()
            times.append((time.perf_counter() - between, between - start))
        times = times[1:]
        ratios = sorted(one / two for one, two in times)
        one, two = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        quarter = len(ratios) // 4
        spread = (statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])
        return Row(row, model, what, one, against, two, *spread, len(times), TARGETS.get((row, model), target))


def released_fc(depth: int = 15, width: int = 500, inputs: int = 3072) -> tuple[nn.Module, Tensor]:
    """The fully connected net of ENorm's experiments: 15 layers."""
    layers: list[nn.Module] = [nn.Linear(inputs, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(2, inputs)


def released_conv() -> tuple[nn.Module, Tensor]:
    """Nine convolutions of 128, 256 and 320 channels, as in ENorm's experiments on CIFAR-10."""
    layers: list[nn.Module] = []
    before = 3
    for index, channels in enumerate((128, 128, 128, 256, 256, 256, 320, 320, 320)):
        layers += [nn.Conv2d(before, channels, 3, stride=2 if index in (2, 5) else 1, padding=1), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)), torch.randn(2, 3, 32, 32)


def small_llama() -> tuple[nn.Module, Tensor]:
    """A Llama of 30 million parameters, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 7}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8, use_cache=False)
    return LlamaForCausalLM(config), torch.randint(0, 8000, (2, 8))


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model by name with an example input."""
    if name == "llama":
        return small_llama()
    if name == "fc":
        return released_fc()
    if name == "conv":
        return released_conv()
    import torchvision

    return torchvision.models.get_model(name), torch.randn(2, 3, 224, 224)


def optimizer_of(model: nn.Module, adam: bool = False, **options: bool) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, that has made its first step."""
    kind: Any = torch.optim.AdamW if adam else functools.partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(model.parameters(), lr=1e-6, **options)
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer.step()
    return optimizer


class Case:
    """A model with what its rows have in common.

    Args:
        name: its name.
        made: the model and an example input; None: by name.
    """

    def __init__(self, name: str, made: tuple[nn.Module, Tensor] | None = None) -> None:
        self.name = name
        self.model, self.example = build(name) if made is None else made

    @cached_property
    def plan(self) -> fxenorm.Plan:
        """Its plan."""
        return fxenorm.analyze(self.model, self.example)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """SGD whose momentum follows."""
        return optimizer_of(self.model, fused=True)

    def step(self) -> None:
        """One step."""
        self.plan.step(self.optimizer)


def fused(case: Case, effort: Effort) -> Iterable[Row]:
    """A step against SGD's, fused."""
    yield effort.compare("fused", case.name, "step", case.step, "SGD(momentum, fused)", case.optimizer.step)


def foreach(case: Case, effort: Effort) -> Iterable[Row]:
    """A step against SGD's, foreach."""
    other = optimizer_of(case.model, foreach=True)
    yield effort.compare("foreach", case.name, "step", case.step, "SGD(momentum, foreach)", other.step)


def multiply(case: Case, effort: Effort) -> Iterable[Row]:
    """The least that a step must do: the weights that follow and their momentum are read, multiplied and written once."""
    named = dict(case.model.named_parameters())
    parameters = [named[name] for name in case.plan.exponents if name in named]
    tensors = [parameter.detach() for parameter in parameters]
    tensors += [case.optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]

    def work() -> None:
        for tensor in tensors:
            tensor.mul_(1.0)

    yield effort.compare("multiply", case.name, "step", case.step, "multiply in place", work)


def loop(case: Case, effort: Effort) -> Iterable[Row]:
    """ENorm's cycle on a chain from the paper's formulas: for each pair of layers, both norms of each channel, then scaling."""
    if case.name not in RELEASED:
        return
    layers = [module for module in case.model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    state = case.optimizer.state

    @torch.no_grad()
    def work() -> None:
        for left, right in itertools.pairwise(layers):
            outgoing = left.weight.flatten(1).pow(2).sum(1).sqrt()
            incoming = right.weight.transpose(0, 1).flatten(1).pow(2).sum(1).sqrt()
            scale = (incoming / outgoing).sqrt()
            rows = scale.view(-1, *[1] * (left.weight.ndim - 1))
            columns = scale.view(1, -1, *[1] * (right.weight.ndim - 2))
            left.weight.mul_(rows)
            right.weight.div_(columns)
            state[left.weight]["momentum_buffer"].div_(rows)
            state[right.weight]["momentum_buffer"].mul_(columns)
            if left.bias is not None:
                left.bias.mul_(scale)
                state[left.bias]["momentum_buffer"].div_(scale)

    yield effort.compare("loop", case.name, "step", case.step, "eager loop over layers", work)


def eager(case: Case, effort: Effort) -> Iterable[Row]:
    """The compiled kernels against plain PyTorch."""
    other = fxenorm.analyze(case.model, case.example, backend="eager")
    yield effort.compare("eager", case.name, "step", case.step, "backend='eager'", lambda: other.step(case.optimizer))


def cycles(case: Case, effort: Effort) -> Iterable[Row]:
    """Ten cycles against one."""
    ten = lambda: case.plan.step(case.optimizer, cycles=10)  # noqa: E731
    yield effort.compare("cycles", case.name, "10 cycles", ten, "1 cycle", case.step)


def training(case: Case, effort: Effort) -> Iterable[Row]:
    """A step against forward, backward and SGD on 32 small images."""
    if case.name not in TRAINED:
        return
    case.model.train()
    images = torch.randn(32, *TRAINED[case.name])

    def work() -> None:
        case.optimizer.zero_grad()
        case.model(images).square().mean().backward()
        case.optimizer.step()

    yield effort.compare("training", case.name, "step", case.step, "training step, batch 32", work)
    case.model.eval()


def balance(case: Case, effort: Effort) -> Iterable[Row]:
    """`balance` from badly scaled weights against Jacobi sweeps from the same; here each runs once."""
    random = torch.Generator().manual_seed(0)
    scales = torch.randn(case.plan.num_scales, dtype=torch.float64, generator=random)
    for item in case.plan.held:
        scales[list(item.variables)] = 0.0
    case.plan.rescale(scales)
    start = time.perf_counter()
    problem = case.plan.rescaler.open().objective()
    sweeps = solve(problem, tol=1e-6, max_iterations=SWEEPS, solver="jacobi")
    middle = time.perf_counter()
    del problem
    result = case.plan.balance(tol=1e-6)
    one, two = time.perf_counter() - middle, middle - start
    ended = f"{sweeps.iterations} sweeps, imbalance {sweeps.imbalance:.0e}"
    good = result.converged and result.iterations <= 30 and result.passes <= 3
    note = f"{result.iterations} iterations, {result.passes} passes, {'as wanted' if good else 'NOT as wanted (30, 3)'}"
    yield Row("balance", case.name, "balance", one * 1e3, ended, two * 1e3, one / two, one / two, one / two, 1, None, note)


def analyze(case: Case, effort: Effort) -> Iterable[Row]:
    """The analysis against the trace that it contains."""
    few = Effort(min(3, effort.pairs), effort.seconds, effort.depth)
    whole, part = lambda: fxenorm.analyze(case.model, case.example), lambda: trace_model(case.model, case.example)
    yield few.compare("analyze", case.name, "analyze", whole, "its trace alone", part)


def at_work(way: Way, made: tuple[nn.Module, Tensor], backend: str) -> tuple[nn.Module, torch.optim.Optimizer, fxenorm.Plan]:
    """A model that is trained in some way, its optimizer after a step, and its plan."""
    model, example = made[0].to(way.dtype) if way.dtype != torch.float32 else made[0], made[1]
    example = example.to(way.dtype) if example.is_floating_point() else example
    options: Any = {"backend": backend, **way.options}
    plan = fxenorm.analyze(model, example, **options)
    optimizer = optimizer_of(model, adam=way.adam, fused=way.build is None)
    way.follower(plan, model)
    return model, optimizer, plan


def path_of(way: Way, plan: fxenorm.Plan) -> Any:
    """Which code carries out such a step and why, once one has been made; see `fxenorm.rescale.prepared.path.Path`."""
    prepared = plan.rescaler.last_step.prepared
    assert prepared is not None, "every way is prepared for the next step"
    return prepared.path(way.cycles)


def ways(case: Case, effort: Effort) -> Iterable[Row]:
    """A step in each way of training against the optimizer's own, after a balance: the steady state of training."""
    source, target = torch.ones(1 << 25), torch.empty(1 << 25)
    copying = min(_seconds(lambda: target.copy_(source)) for _ in range(5)) / (8 << 25)
    for name, way in WAYS.items():
        if name not in effort.ways or (case.name == "llama" and name not in OF_LLAMA):
            continue
        model, optimizer, plan = at_work(
            way, (copy.deepcopy(case.model), case.example) if way.build is None else way.build(), "compiled"
        )
        plan.balance(optimizer)
        named = dict(model.named_parameters())
        moved = [named[each] for each in plan.exponents if each in named]
        once = sum(parameter.nbytes for parameter in moved)
        states = sum(t.nbytes for each in moved for t in optimizer.state[each].values() if t.shape == each.shape)
        limits = (once * copying * 1e3, (3 * once + 2 * states) * copying * 1e3)
        step = functools.partial(way.step, plan, optimizer)
        against = f"{'AdamW' if way.adam else 'SGD(momentum)'}, {way.dtype}".replace("torch.", "")
        row = effort.compare("ways", case.name, f"step, {name}", step, against, optimizer.step, way.target)
        limit = f"at the speed of copying {limits[0]:.2f} ms to read, {limits[1]:.2f} ms to read and write all"
        yield Row(**{**asdict(row), "note": f"{path_of(way, plan)}; {limit}"})


def _seconds(work: Work) -> float:
    """Returns how long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def growth(effort: Effort) -> Iterable[Row]:
    """Chains of growing depth and width, and of growing depth at one size; each against the one before."""
    series = {
        "depth": [(depth, 64) for depth in DEPTHS],
        "width": [(16, width) for width in WIDTHS],
        "groups": list(SAME_SIZE),
    }
    for kind, shapes in series.items():
        before: tuple[str, Case, int] | None = None
        for depth, width in shapes:
            if depth > effort.depth:
                continue
            name = f"chain {depth} x {width}"
            case = Case(name, released_fc(depth, width, inputs=width))
            entries = sum(parameter.numel() for parameter in case.model.parameters())
            if before is not None:
                more = entries / before[2]
                target = LINEAR * more if kind == "depth" else None
                row = effort.compare("growth", name, "step", case.step, before[0], before[1].step, target)
                yield Row(**{**asdict(row), "note": f"{kind}: {more:.2f} times the weights"})
            before = (name, case, entries)


def ways_growth(effort: Effort) -> Iterable[Row]:
    """Chains of more layers, more width and more groups, in each way of training."""
    few = replace(effort, seconds=min(1.0, effort.seconds))
    for name in filter(effort.ways.__contains__, GROWN):
        made = {shape: _chain_at_work(WAYS[name], *shape) for shape in {shape for both in GROWTH.values() for shape in both}}
        for kind, (before, after) in GROWTH.items():
            more = made[after][1] / made[before][1]
            words = [f"step, {name}, chain {depth} x {width}" for depth, width in (after, before)]
            row = few.compare("ways_growth", name, words[0], made[after][0], words[1], made[before][0], LINEAR * max(1.0, more))
            yield Row(**{**asdict(row), "note": f"{kind}: {more:.2f} times the weights"})


def _chain_at_work(way: Way, depth: int, width: int) -> tuple[Work, int]:
    """Returns a step of a balanced chain in some way of training, and how many weights it has."""
    model, optimizer, plan = at_work(way, released_fc(depth, width, inputs=width), "compiled")
    plan.balance(optimizer)
    return functools.partial(way.step, plan, optimizer), sum(parameter.numel() for parameter in model.parameters())


ROWS: dict[str, Callable[[Case, Effort], Iterable[Row]]] = {
    work.__name__: work for work in (fused, foreach, multiply, loop, eager, cycles, training, balance, analyze, ways)
}
"""By name, what is compared on each model."""


GROWING: dict[str, Callable[[Effort], Iterable[Row]]] = {work.__name__: work for work in (growth, ways_growth)}
"""By name, what is compared on chains."""


def markdown(rows: Sequence[Row], title: str) -> str:
    """The table."""
    lines = [
        title,
        "",
        "| row | model | what | ms | against | ms | ratio | quartiles | target | | |",
        "|---|---|---|---:|---|---:|---:|---|---:|---|---|",
    ]
    for row in rows:
        target = "" if row.target is None else f"{row.target:.3g}"
        lines.append(
            f"| {row.row} | {row.model} | {row.what} | {row.milliseconds:.2f} | {row.against} | {row.against_milliseconds:.2f} "
            f"| {row.ratio:.3g} | {row.low:.3g} to {row.high:.3g} | {target} | {row.verdict} | {row.note} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=[*RELEASED, *VISION], help="of: %(default)s, llama, or any name of torchvision"
    )
    parser.add_argument("--rows", nargs="*", default=[*ROWS, *GROWING], choices=[*ROWS, *GROWING], help="all without")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=40, help="pairs of runs for each row at most")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row, after which no further pair begins")
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=[*WAYS], metavar="WAY", help="of training: %(choices)s")
    parser.add_argument("--quick", action="store_true", help="two pairs for each row, short chains")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    effort = Effort(given.pairs, given.seconds, max(DEPTHS), given.ways)
    effort = replace(effort, pairs=2, seconds=1.0, depth=64) if given.quick else effort
    rows: list[Row] = []
    begun = time.perf_counter()

    def add(found: Iterable[Row]) -> None:
        """Keeps rows, and says that they are there."""
        for row in found:
            rows.append(row)
            print(f"{row.row} {row.model}: {row.ratio:.3g} {row.verdict}", file=sys.stderr, flush=True)

    for name in given.models:
        case = Case(name)
        for row in given.rows:
            if row in ROWS:
                add(ROWS[row](case, effort))
        del case
    for row in given.rows:
        if row in GROWING:
            add(GROWING[row](effort))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    title = (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32. Ratio: median of pairs run in turn. "
        f"{time.perf_counter() - begun:.0f} seconds, at most {peak:.1f} GiB of memory."
    )
    print(markdown(rows, title))
    if given.json:
        found = [{**asdict(row), "met": None if row.target is None else row.ratio <= row.target} for row in rows]
        given.json.write_text(json.dumps({"threads": given.threads, "gibibytes": peak, "rows": found}, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(rows, title) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
