"""Analyses a zoo of models and checks every plan: number of scales, what barriers stop, and soundness in both modes.

    python tools/coverage.py                        all 121 models of torchvision: up to 12 GB for the largest
    python tools/coverage.py --zoo timm             one small model of each module of timm (pip install fxenorm[timm])
    python tools/coverage.py --zoo transformers     tiny models built from configs (pip install fxenorm[transformers])
    python tools/coverage.py --zoo graph            graph networks of width 8 (pip install fxenorm[graph])
    python tools/coverage.py --models 'resnet*' --jobs 2 --markdown table.md --csv table.csv

A model passes when all its variables, rescaled at random at once, change no float64 output by more than 1e-10 of its
largest entry, in eval mode and, where the model runs in it, in train mode (dropout and stochastic depth off), and when a
classifier of torchvision has at least the scales of tests/data/scale_counts_floor.csv in eval mode, and a graph network as many
as its outputs show there are (none are shown where a jump hides them). Where outputs change by more and one rounding of each
weight changes them as much, the check is repeated by powers of two, which round nothing: the errors are then those, and
"rounding" is the larger change. The exit code is 1 when a model does not pass, 2 after a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


ZOOS = ("torchvision", "timm", "transformers", "graph")
EXTRAS = {"torchvision": "vision", "timm": "timm", "transformers": "transformers", "graph": "graph"}


@dataclass
class Row:
    """What was found for one model.

    Attributes:
        model: its name.
        tracer: "export" or "make_fx".
        trace_seconds: both modes.
        analysis_seconds: from the end of the trace until the scales and exponents of both modes are there.
        scales_eval, floor, scales_both: number of variables in eval mode, its least, and in both modes.
        error_eval, error_train: largest relative change of an output.
        rounding: where the model amplifies rounding beyond the tolerance, the change by random scales; NaN elsewhere.
        stopped: variables that barriers forced to zero, by operator, most first.
        unknown: operators without a rule.
        failure: why the model does not pass; "" where it does.
    """

    model: str
    tracer: str = ""
    trace_seconds: float = math.nan
    analysis_seconds: float = math.nan
    scales_eval: int = 0
    floor: int = 0
    scales_both: int = 0
    error_eval: float = math.nan
    error_train: float = math.nan
    rounding: float = math.nan
    stopped: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    failure: str = ""

    def cells(self) -> list[str]:
        """The row as text, one cell a field."""
        stopped = ", ".join(f"{operator} {count}" for operator, count in self.stopped.items())
        numbers = [f"{self.trace_seconds:.1f}", f"{self.analysis_seconds:.1f}", str(self.scales_eval), str(self.floor)]
        errors = ["" if math.isnan(error) else f"{error:.1e}" for error in (self.error_eval, self.error_train, self.rounding)]
        return [self.model, self.tracer, *numbers, str(self.scales_both), *errors, stopped, " ".join(self.unknown), self.failure]


def _worst(row: Row) -> float:
    """The larger of the errors that were measured."""
    return max(error for error in (row.error_eval, 0.0 if math.isnan(row.error_train) else row.error_train))


HEADINGS = [
    "model", "tracer", "trace s", "analysis s", "scales (eval)", "at least", "scales (both)",
    "error (eval)", "error (train)", "rounding", "stopped by", "no rule", "failure",
]  # fmt: skip


def examine(zoo: str, name: str) -> Row:
    """Analyses one model and checks its plan; a failure is told in the row."""
    from tests.helpers import floors

    row = Row(name, floor=floors().get(name, 0) if zoo == "torchvision" else 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fill(zoo, row)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row.failure = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})".replace("\n", " ")
    return row


def _fill(zoo: str, row: Row) -> None:
    """Fills a row in; raises where the analysis does."""
    from fxenorm.analysis.options import Options
    from fxenorm.plan.plan import Plan
    from fxenorm.symmetry.find import find_symmetry
    from fxenorm.symmetry.symmetry import Symmetry
    from fxenorm.trace import trace_model
    from tests.helpers import TOLERANCE
    from tests.measured_changes import measured_changes
    from tests.model_zoos import load
    from tests.torchvision_models import run

    loaded = load(zoo, row.model)
    model = loaded.model
    start = time.perf_counter()
    traced = trace_model(model, loaded.example, modes="both" if "train" in loaded.modes else "eval")
    row.trace_seconds = time.perf_counter() - start
    row.tracer = traced[0].tracer

    def symmetry_of(modes: Sequence[str]) -> Symmetry:
        chosen = [graph for graph in traced if graph.mode in modes]
        options = Options()
        return find_symmetry(
            chosen,
            model,
            batchnorm=options.batchnorm,
            biases=options.biases,
            exclude=options.exclude,
            approximate=options.approximate,
            on_unknown=options.on_unknown,
        )

    start = time.perf_counter()
    plan = Plan(symmetry_of(("eval", "train")), Options(), model)
    row.scales_both = plan.num_scales if plan.exponents is not None else 0
    row.analysis_seconds = time.perf_counter() - start
    row.scales_eval = symmetry_of(("eval",)).num_scales
    counts: Counter[str] = Counter()
    for barrier in plan.barriers:
        counts[barrier.operator.split(".")[0]] += barrier.variables
    row.stopped = {operator: count for operator, count in counts.most_common() if count}
    row.unknown = tuple(sorted({barrier.operator for barrier in plan.barriers if not barrier.known}))

    loaded.redraw()
    modes = [mode for mode in plan.modes if mode in loaded.modes]
    errors, row.rounding = measured_changes(model, plan, modes, lambda mode: run(model, loaded.inputs, mode, **loaded.keywords))
    row.error_eval, row.error_train = errors["eval"], errors.get("train", math.nan)
    claimed = row.scales_eval
    if loaded.claimed_and_true is not None:
        claimed, row.floor = loaded.claimed_and_true(plan.symmetry)
    if claimed < row.floor:
        row.failure = f"{claimed} scales, at least {row.floor} are known"
    if not max(errors.values()) <= TOLERANCE:
        row.failure = f"outputs change by up to {max(errors.values()):.1e}"


def _prepare(threads: int) -> None:
    """Runs in every new process."""
    import torch

    torch.set_num_threads(threads)


def examine_all(zoo: str, names: Sequence[str], jobs: int) -> Iterator[Row]:
    """The rows, each as soon as it is there."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _prepare, (threads,)) as pool:
        waiting = {pool.submit(examine, zoo, name): name for name in names}
        for future in as_completed(waiting):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield Row(waiting[future], failure="the process was killed: out of memory? try --jobs 1")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", choices=ZOOS, default="torchvision", help="where the models come from (default torchvision)")
    parser.add_argument("--models", default="*", metavar="GLOB", help="names, as 'regnet_?_*' (default: all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as comma-separated values")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    for path in filter(None, (arguments.csv, arguments.markdown)):
        if not path.absolute().parent.is_dir():
            parser.error(f"no such folder: {path.absolute().parent}")
    from tests.model_zoos import names

    try:
        chosen = names(arguments.zoo, arguments.models)
    except ImportError as error:
        parser.error(f"{error}: pip install fxenorm[{EXTRAS[arguments.zoo]}]")
    if not chosen:
        parser.error(f"no model of {arguments.zoo} fits {arguments.models!r}")
    rows = sorted(_with_progress(arguments.zoo, chosen, arguments.jobs), key=lambda row: row.model)
    _show(rows)
    if arguments.csv:
        _write_csv(rows, arguments.csv)
    if arguments.markdown:
        _write_markdown(rows, arguments.markdown)
    return 1 if any(row.failure for row in rows) else 0


def _with_progress(zoo: str, chosen: Sequence[str], jobs: int) -> list[Row]:
    """Collects the rows; a bar on a terminal, one line a model elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console, rows = Console(stderr=True), []
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("models", total=len(chosen))
        for row in examine_all(zoo, chosen, jobs):
            rows.append(row)
            progress.update(task, advance=1, description=row.model)
            if not console.is_terminal:
                verdict = row.failure or f"{row.scales_both} scales, error {_worst(row):.0e}"
                print(f"[{len(rows)}/{len(chosen)}] {row.model}: {verdict}", file=sys.stderr, flush=True)
            elif row.failure:
                progress.console.print(f"{row.model}: {row.failure}", markup=False)
    return rows


def _show(rows: Sequence[Row]) -> None:
    """Prints the table and the totals; columns without any entry are left out."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    cells = [row.cells() for row in rows]
    shown = [index for index in range(len(HEADINGS)) if any(line[index] for line in cells)]
    table = Table(pad_edge=False)
    for index in shown:
        table.add_column(HEADINGS[index], justify="right" if 2 <= index <= 9 else "left", overflow="fold")
    for row, line in zip(rows, cells, strict=True):
        table.add_row(*(line[index] for index in shown), style="red" if row.failure else None)
    console.print(table)
    failed = [row.model for row in rows if row.failure]
    good = [row for row in rows if not math.isnan(row.trace_seconds) and not math.isnan(row.analysis_seconds)]
    traced, analysed = sum(row.trace_seconds for row in good), sum(row.analysis_seconds for row in good)
    worst = max((_worst(row) for row in rows if not row.failure), default=math.nan)
    print(f"{len(rows) - len(failed)} of {len(rows)} models pass; largest relative change of an output: {worst:.1e}")
    print(f"traces {traced:.0f} s, analyses {analysed:.0f} s; {sum(row.scales_both for row in rows):,} scales in both modes")
    if failed:
        print(f"failed: {', '.join(failed)}")


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line a model, the fields' own names as heading."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(item.name for item in fields(Row))
        writer.writerows(row.cells() for row in rows)


def _write_markdown(rows: Sequence[Row], path: Path) -> None:
    """A table for a README."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * 2 + "---:|" * 8 + "---|" * 3]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row.cells()) + " |" for row in rows]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
