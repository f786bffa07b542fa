"""The command behind tools/reproduce.py."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fxenorm import FxenormError

from .cells import core, default, star
from .configuration import Configuration, StudyError
from .data.load import download, load_task
from .methods import METHODS, Method, released
from .networks.build import NETWORKS
from .options import parse
from .presets import PRESETS
from .protocol import Cell
from .records import Records
from .report.conclusions import conclusions
from .report.plots import plot_all
from .report.summary import Row, sections
from .report.table import LEGEND, markdown, rich_table
from .running import Machine, finish
from .starts import STARTS

DEEP = 30
"""Linear layers from which c = 1.2 without BatchNorm is known not to train."""


def at_one_rate(options: argparse.Namespace, data: str) -> list[Cell]:
    """The cell of a command with --lr: the released experiment."""
    norm = "none" if options.no_batchnorm else "batchnorm"
    if options.methods:
        methods: tuple[Method, ...] = tuple(METHODS[name] for name in options.methods)
    elif options.enorm:
        methods = (dataclasses.replace(released(options.enorm, options.experiment), norm=norm),)
    else:
        methods = (Method("ENorm off", norm=norm),)
    small = options.dataset == "digits"
    width = options.width or ({"mlp": 64, "transformer": 32}.get(options.experiment, 1 / 8) if small else 500)
    if not small and options.experiment != "mlp" and options.width is None:
        width = 32 if options.experiment == "transformer" else 1
    base = Configuration(
        options.experiment,
        options.dataset,
        data,
        methods[0],
        options.lr,
        0,
        batch=(options.batch_size or [256])[0],
        epochs=options.epochs,
        depth=(options.n_layers or [15])[0],
        width=width,
        bias=False,
        start=(options.start or ["he"])[0],
        variant=options.variant,
        dtype=options.dtype,
    )
    return [Cell(base, methods, reporting=tuple(range(options.n_iter or 5)), rate=options.lr)]


def with_chosen_rates(options: argparse.Namespace, data: str) -> list[Cell]:
    """The cells of a command without --lr: those of the study that were asked for, or one."""
    if options.study:
        cells = core(options.dataset, data) if options.study in ("core", "all") else []
        cells += star(options.dataset, data) if options.study in ("star", "all") else []
        return [cell for cell in cells if wanted(cell, options)]
    cell = default(options.experiment, options.dataset, data)
    if options.methods:
        cell = dataclasses.replace(cell, methods=tuple(METHODS[name] for name in options.methods))
    if options.variant:
        cell = dataclasses.replace(cell, base=cell.base.but(variant=options.variant))
    return [
        dataclasses.replace(cell, base=cell.base.but(depth=depth, batch=batch, start=start))
        for depth in options.n_layers or [cell.base.depth]
        for batch in options.batch_size or [cell.base.batch]
        for start in options.start or [cell.base.start]
    ]


def wanted(cell: Cell, options: argparse.Namespace) -> bool:
    """Whether a cell of the study is among those that --n-layers, --batch-size and --start name."""
    base = cell.base
    asked = ((options.n_layers, base.depth), (options.batch_size, base.batch), (options.start, base.start))
    return all(values is None or value in values for values, value in asked)


def cells_of(options: argparse.Namespace, data: str) -> list[Cell]:
    """The cells that a command asks for."""
    if options.lr is not None:
        cells = at_one_rate(options, data)
    else:
        cells = with_chosen_rates(options, data)
        tuning = tuple(range(1000, 1000 + options.tuning_seeds))
        cells = [dataclasses.replace(cell, tuning=tuning) for cell in cells]
        if options.n_iter is not None:
            cells = [dataclasses.replace(cell, reporting=tuple(range(options.n_iter))) for cell in cells]
    return [dataclasses.replace(cell, base=_trained(cell.base, options)) for cell in cells]


def _trained(base: Configuration, options: argparse.Namespace) -> Configuration:
    """A configuration with those options of training that differ from their default, so that the star keeps its own."""
    changed = {}
    for name, usual in (("momentum", 0.9), ("weight_decay", 1e-3), ("decay_on", "all"), ("decoupled", False)):
        if getattr(options, name) != usual:
            changed[name] = getattr(options, name)
    if options.steps is not None and options.lr is None:
        changed["steps"] = options.steps
    if options.width is not None and base.experiment == options.experiment:
        changed["width"] = options.width
    return base.but(schedule=options.schedule, dtype=options.dtype, **changed)


def warn_of_growing_norms(cells: Sequence[Cell], console: Console) -> None:
    """Says before training that deep networks without BatchNorm cannot be trained with c well above 1."""
    for cell in cells:
        for method in cell.methods:
            c = getattr(method, "c", 1.0)
            deep = cell.base.experiment == "mlp" and cell.base.depth >= DEEP
            if deep and method.norm != "batchnorm" and isinstance(c, float) and c >= 1.2:
                times = c ** (cell.base.depth - 1)
                console.print(
                    f"[yellow]{method.name}: at depth {cell.base.depth} the last layer's norm is to be {times:.0f} times the "
                    "first's. No learning rate that we tried trains such a network without BatchNorm.[/]"
                )


def print_list(console: Console) -> None:
    """Prints all names that options take."""
    for title, names in (("experiments", NETWORKS), ("methods", METHODS), ("starts", STARTS)):
        console.print(f"{title}: {', '.join(repr(name) for name in names)}", highlight=False, markup=False)
    for name, line in PRESETS.items():
        console.print(f"--preset {name}: {line}", highlight=False, markup=False)


def report(found: Sequence[Sequence[Row]], options: argparse.Namespace, console: Console) -> None:
    """Prints the tables and conclusions, and writes the files that were asked for."""
    for rows in found:
        console.print(rich_table(rows))
    lines = conclusions(found)
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print(LEGEND, highlight=False, markup=False)
    if options.markdown is not None:
        listed = "\n".join(f"- {line}" for line in lines)
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(f"{markdown(found)}\n{LEGEND}\n\n{listed}\n", encoding="utf-8")
    if options.plots is not None:
        for path in plot_all(found, options.plots):
            console.print(f"wrote {path}", highlight=False)


def run(arguments: Sequence[str], console: Console) -> None:
    """Does what a command line says.

    Raises:
        StudyError: data are missing or damaged, or a network, start and method do not go together.
        FxenormError: a model cannot be analysed or balanced.
    """
    options = parse(arguments)
    if options.list:
        print_list(console)
        return
    folder = Path(options.data_path)
    if options.download and options.dataset != "digits":
        download(options.dataset, folder)
    data = load_task(options.dataset, options.experiment, folder).fingerprint
    cells = cells_of(options, data)
    warn_of_growing_norms(cells, console)
    machine = Machine(folder, options.device, options.jobs, options.workers, options.print_freq)
    records = Records(options.results)
    count = finish(cells, records, machine, console)
    report(sections(cells, records), options, console)
    console.print(f"{count} runs trained now; all are in {options.results}", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    console = Console()
    if not console.is_terminal:
        console.width = 190
    # A run that diverges holds all of its channels, and plans say so once a run; the table counts it.
    warnings.filterwarnings("ignore", category=UserWarning, module="study")
    try:
        run(sys.argv[1:] if arguments is None else arguments, console)
    except (StudyError, FxenormError) as error:
        print(f"tools/reproduce.py: {error}", file=sys.stderr)
        return 1
    return 0
