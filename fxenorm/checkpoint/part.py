"""One component: read from the files, balanced, written; nothing else is in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ..analysis.analysis import Analysis
from ..errors import FxenormWarning
from ..plan.plan import Plan
from .journal import ComponentReport

__all__ = ["Files", "Part", "balance_part", "module_of"]


class Files(Protocol):
    """The place that a component is read from and written to."""

    def read(self, name: str) -> Tensor:
        """Returns one tensor, in memory of its own."""

    def write(self, name: str, tensor: Tensor, folder: Path) -> None:
        """Writes a tensor to its place in the file of the same name in another folder; nobody changes it afterwards."""

    def flush(self, names: Iterable[str], folder: Path) -> None:
        """Waits until the disk has what was written of these tensors: only then a journal may say so."""


@dataclass(frozen=True)
class Part:
    """One component of a plan, with the places of its tensors.

    Attributes:
        index: its place among the components.
        analysis: the plan of its tensors alone.
        stored: by name of a tensor, the names under which the files hold it: several where tied tensors are stored twice.
        source: what is read.
        folder: where those that are written lie.
        tol: as in `fxenorm.Plan.balance`.
    """

    index: int
    analysis: Analysis
    stored: Mapping[str, tuple[str, ...]]
    source: Files
    folder: Path
    tol: float


def balance_part(part: Part) -> ComponentReport:
    """Balances one component on disk.

    The same component gives the same bytes whenever it is done: the compiled kernels are waited for.

    Returns:
        What came of it.
    """
    symmetry = part.analysis.symmetry
    part.analysis.executor.current(wait=True)
    tensors = {name: part.source.read(names[0]) for name, names in part.stored.items()}
    module = module_of(tensors, symmetry.buffers)
    plan = Plan(symmetry, part.analysis.options, module, analysis=part.analysis)
    with warnings.catch_warnings():
        # A component may well be held whole; the result counts what is held.
        warnings.filterwarnings("ignore", r"balance\(\) moved nothing", FxenormWarning)
        result = plan.balance(tol=part.tol)
    for name in symmetry.exponents:
        for stored in part.stored[name]:
            part.source.write(stored, tensors[name], part.folder)
    part.source.flush([stored for name in symmetry.exponents for stored in part.stored[name]], part.folder)
    # What refers to the module in a circle would keep the weights until the collector comes.
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.new_empty(0)
    return ComponentReport(
        index=part.index,
        log_scales=tuple(result.log_scales.tolist()),
        converged=result.converged,
        norm_before=result.norm_before,
        norm_after=result.norm_after,
        imbalance_before=result.imbalance_before,
        imbalance_after=result.imbalance_after,
        held=sum(item.count for item in result.held),
        rounded=result.rounded,
    )


def module_of(tensors: Mapping[str, Tensor], buffers: frozenset[str]) -> nn.Module:
    """Returns a module that holds tensors under their names, and has no forward.

    Args:
        tensors: by dotted name; none of them requires a gradient, so that all may move.
        buffers: the names of those that are buffers.
    """
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        owner = root
        for step in path:
            if step not in owner._modules:
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        if name in buffers or not tensor.is_floating_point():
            owner.register_buffer(leaf, tensor)
        else:
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root
