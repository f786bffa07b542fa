"""Does the runs that cells need, in this process or in several, and shows how far it is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .configuration import Configuration, StudyError
from .data.load import load_task
from .networks.build import STACKABLE
from .protocol import Cell, missing
from .records import Records, Result
from .training import train

Tick = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Machine:
    """Where runs are done.

    Attributes:
        folder: of image files.
        device: "cpu", "cuda", ...
        jobs: processes side by side.
        threads: of PyTorch in each.
        print_every: steps between two lines about the loss; 0: none.
    """

    folder: Path
    device: str = "cpu"
    jobs: int = 1
    threads: int = 1
    print_every: int = 0


def do_stack(of: Sequence[Configuration], machine: Machine, tick: Tick | None = None) -> list[Result]:
    """Trains some runs, together.

    Raises:
        StudyError: the data are not those of the configuration.
    """
    torch.set_num_threads(machine.threads)
    task = load_task(of[0].dataset, of[0].experiment, machine.folder)
    if task.fingerprint != of[0].data:
        raise StudyError(f"the data in {machine.folder} have changed since the runs were listed")
    device = torch.device(machine.device)
    return train(of, task, device, tick or (lambda step, losses: None))


def split(stacks: Sequence[Sequence[Configuration]]) -> list[list[Configuration]]:
    """Stacks as they are, and other runs one by one, so that each is kept as soon as it is finished."""
    found: list[list[Configuration]] = []
    for stack in stacks:
        together = stack[0].experiment in STACKABLE and stack[0].purpose != "released"
        found += [list(stack)] if together else [[one] for one in stack]
    return found


def _bar(console: Console) -> Progress:
    """One bar for the cells and one for the runs at hand."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _printer(console: Console, every: int) -> Tick:
    """Prints the loss every few steps."""

    def tick(step: int, losses: Tensor) -> None:
        if every and step % every == 0:
            console.print(f"  step {step}: loss {float(losses.mean()):.4f}", highlight=False)

    return tick


def _done(
    work: Sequence[list[Configuration]], machine: Machine, tick: Tick
) -> Iterator[tuple[list[Configuration], list[Result]]]:
    """Yields each piece of work with its results, in the order in which they are finished."""
    if machine.jobs == 1 or len(work) == 1:
        for of in work:
            yield of, do_stack(of, machine, tick)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of PyTorch
    with ProcessPoolExecutor(machine.jobs, mp_context=context) as pool:
        waiting = {pool.submit(do_stack, of, machine): of for of in work}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def finish(cells: Sequence[Cell], records: Records, machine: Machine, console: Console) -> int:
    """Does all runs that some cells need and do not have.

    Args:
        cells: in the order in which they are to be done.
        records: what is finished; results are added.
        machine: where.
        console: for the progress bars.

    Returns:
        The number of runs that were done.

    Raises:
        StudyError: the data are missing or have changed.
    """
    count = 0
    with _bar(console) as progress:
        overall = progress.add_task("cells", total=len(cells))
        at_hand = progress.add_task("runs")
        for cell in cells:
            while stacks := missing(cell, records):
                # A stack is done again as a whole where a part is missing: a smaller one would round otherwise.
                work = [of for of in split(stacks) if not records.has(of)]
                progress.reset(at_hand, total=sum(map(len, work)), description=cell.title)
                for of, results in _done(work, machine, _printer(console, machine.print_every)):
                    records.add(of, results)
                    count += len(of)
                    progress.advance(at_hand, len(of))
            progress.advance(overall)
    return count
