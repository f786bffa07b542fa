"""What ``plan.step`` costs: ratios of times that were taken in turn in one process, so that a busy machine disturbs both alike.

    python tools/bench.py --models conv resnet18 --threads 2 --json bench.json --markdown bench.md

Each row compares one step (one cycle, SGD with momentum) with something else; a ratio below 1 means that the step is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fxenorm

RELEASED = ("fc", "conv")
VISION = ("resnet18", "resnet50", "vgg16", "mobilenet_v3_large", "vit_b_16")
DEPTHS = (4, 16, 64, 256, 1024)
WIDTHS = (64, 256, 1024)
CYCLES = (2, 10)

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison; times are medians in milliseconds, the ratio's median and quartiles are of pairs of runs."""

    model: str
    what: str
    milliseconds: float
    against: str
    against_milliseconds: float
    ratio: float
    low: float
    high: float


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


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model by name with an example input."""
    if name == "fc":
        return released_fc()
    if name == "conv":
        return released_conv()
    import torchvision

    return torchvision.models.get_model(name), torch.randn(2, 3, 224, 224)


def compare(model: str, what: str, work: Work, against: str, other: Work, runs: int) -> Row:
    """Runs two things in turn; the first pair warms up."""
    times: list[tuple[float, float]] = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        other()
        between = time.perf_counter()
        work()
        times.append((time.perf_counter() - between, between - start))
    times = times[1:]
    ratios = sorted(one / two for one, two in times)
    one, two = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    quarter = len(ratios) // 4
    return Row(model, what, one, against, two, statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])


def optimizer_of(model: nn.Module, **options: bool) -> torch.optim.SGD:
    """SGD with momentum that has made its first step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, **options)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer.step()
    return optimizer


def multiply_in_place(model: nn.Module, optimizer: torch.optim.SGD) -> Work:
    """The least that a step must do: weights and momentum are read, multiplied and written once."""
    tensors = [parameter.detach() for parameter in model.parameters()]
    tensors += [state["momentum_buffer"] for state in optimizer.state.values()]

    def work() -> None:
        for tensor in tensors:
            tensor.mul_(1.0)

    return work


def layer_by_layer(model: nn.Module, optimizer: torch.optim.SGD) -> Work:
    """ENorm's cycle on a chain from the paper's formulas: for each pair of layers, both norms of each channel, then scaling."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]

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
            optimizer.state[left.weight]["momentum_buffer"].div_(rows)
            optimizer.state[right.weight]["momentum_buffer"].mul_(columns)
            if left.bias is not None:
                left.bias.mul_(scale)
                optimizer.state[left.bias]["momentum_buffer"].div_(scale)

    return work


def training_step(model: nn.Module, size: int = 64, batch: int = 32) -> Work:
    """Forward, backward and SGD on small images."""
    model.train()
    images, optimizer = torch.randn(batch, 3, size, size), torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def work() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return work


def rows_of_model(name: str, runs: int) -> list[Row]:
    """All comparisons on one model."""
    model, example = build(name)
    plan = fxenorm.analyze(model, example)
    optimizer = optimizer_of(model, fused=True)

    def step() -> None:
        plan.step(optimizer)

    rows = [compare(name, "step", step, "SGD(fused)", optimizer.step, runs)]
    foreach = optimizer_of(model, foreach=True)
    rows.append(compare(name, "step", step, "SGD(foreach)", foreach.step, runs))
    rows.append(compare(name, "step", step, "in-place multiply", multiply_in_place(model, optimizer), runs))
    if name in RELEASED:
        rows.append(compare(name, "step", step, "eager loop over layers", layer_by_layer(model, optimizer), runs))
    eager = fxenorm.analyze(model, example, backend="eager")
    rows.append(compare(name, "step", step, "backend='eager'", lambda: eager.step(optimizer), max(2, runs // 4)))
    for count in CYCLES:
        rows.append(
            compare(name, f"{count} cycles", lambda count=count: plan.step(optimizer, cycles=count), "1 cycle", step, runs)
        )
    if name == "resnet18":
        rows.append(compare(name, "step", step, "training step", training_step(model), max(2, runs // 8)))
    from fxenorm.trace import trace_model

    rows.append(
        compare(name, "analyze", lambda: fxenorm.analyze(model, example), "trace alone", lambda: trace_model(model, example), 2)
    )
    return rows


def rows_of_growth(runs: int) -> list[Row]:
    """Chains of growing depth and width; the ratio is to the one before, whose size is given."""
    rows = []
    for kind, sizes in (("depth", DEPTHS), ("width", WIDTHS)):
        previous: tuple[int, Work, int] | None = None
        for size in sizes:
            depth, width = (size, 64) if kind == "depth" else (16, size)
            model, example = released_fc(depth, width, inputs=width)
            plan, optimizer = fxenorm.analyze(model, example), optimizer_of(model, fused=True)

            def step(plan: fxenorm.Plan = plan, optimizer: torch.optim.SGD = optimizer) -> None:
                plan.step(optimizer)

            entries = sum(parameter.numel() for parameter in model.parameters())
            if previous is not None:
                growth = entries / previous[2]
                row = compare(
                    f"chain, {kind} {size}", "step", step, f"{kind} {previous[0]}, {growth:.1f} times smaller", previous[1], runs
                )
                rows.append(row)
            previous = (size, step, entries)
    return rows


EXTRA: list[Callable[[Sequence[str], int], list[Row]]] = []
"""Further tables, each called with the models' names and the number of runs: `balance` adds its own here."""


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32. Ratio: median (quartiles) of pairs run in turn.",
        "",
        "| model | what | ms | against | ms | ratio |",
        "|---|---|---:|---|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.model} | {row.what} | {row.milliseconds:.2f} | {row.against} | {row.against_milliseconds:.2f} "
            f"| {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[*RELEASED, *VISION], help="of: %(default)s, or any name of torchvision")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40, help="pairs of runs for each row")
    parser.add_argument("--no-growth", action="store_true", help="leaves out the growth with depth and width")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    rows = [row for name in given.models for row in rows_of_model(name, given.runs)]
    if not given.no_growth:
        rows += rows_of_growth(given.runs)
    for table in EXTRA:
        rows += table(given.models, given.runs)
    print(markdown(rows))
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
