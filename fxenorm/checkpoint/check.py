"""Checks a balanced checkpoint layer by layer: the modules around a component give the same outputs on random inputs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..analysis.analysis import Analysis
from ..errors import CheckpointError
from ..trace import Inputs, resolve_inputs
from ..verify.down_casts import coarsest, tolerance_of
from .files.tensor_files import TensorFiles
from .part import Part

__all__ = ["Checked", "changed_modules", "modules_around"]

_FAR_APART = "tensors that belong together lie far apart in the model: only a run of the whole model could check them"


@dataclass(frozen=True)
class Checked:
    """Modules that were run with the old and the new weights.

    Attributes:
        modules: their names.
        changed: those whose outputs differ by more than rounding explains, with the largest relative difference.
        unchecked: why others were not run, in sentences.
    """

    modules: tuple[str, ...]
    changed: Mapping[str, float]
    unchecked: tuple[str, ...]

    def refuse(self, folder: Path) -> None:
        """Raises where a module changed.

        Raises:
            CheckpointError: it names these modules, and the folder in which the new files are left.
        """
        if self.changed:
            worst = ", ".join(f"{name} by {value:.2g}" for name, value in list(self.changed.items())[:5])
            raise CheckpointError(
                f"outputs changed on random inputs: {worst}, relative to the largest. Nothing was put in place; the new "
                f"files are in {folder}. Pass check='none' to keep them all the same, and please report it"
            )


def modules_around(model: nn.Module, analysis: Analysis, parts: Sequence[Part], every: bool) -> tuple[str, ...]:
    """Returns the smallest modules that hold all of a component, no activation of which it rescales at their boundary.

    Args:
        model: the analysed module.
        analysis: its plan.
        parts: the components.
        every: all of them; else the first of those with the same shapes at the same places in their module.

    Returns:
        Their names, each once; "" is the whole model.
    """
    crossing = {site.module for site in analysis.symmetry.sites if (site.variables >= 0).any()}
    kinds: set[Any] = set()
    found: dict[str, None] = {}
    for part in parts:
        names = list(part.analysis.symmetry.exponents)
        path = _common(names)
        while path and path in crossing:
            path = path.rpartition(".")[0]
        kind = tuple((name[len(path) :], part.analysis.symmetry.shapes[name]) for name in names)
        if every or kind not in kinds:
            found[path] = None
        kinds.add(kind)
    return tuple(found)


def changed_modules(
    model: nn.Module,
    example: Inputs | None,
    places: Sequence[str],
    source: TensorFiles,
    folder: Path,
) -> Checked:
    """Runs modules on random inputs with the old weights and with the new ones.

    Args:
        model: the module; it is left as it was.
        example: inputs on which the model runs; None: guessed.
        places: what `modules_around` gave.
        source: the old files.
        folder: where the new ones lie.

    Returns:
        Which modules changed. Buffers that no file holds get random values.
    """
    unchecked = [_FAR_APART] if "" in places else []
    paths = [path for path in places if path]
    meta = copy.deepcopy(model).to("meta").eval()
    for name, tensor in (*meta.named_parameters(), *meta.named_buffers()):
        if source.holds(name):
            tensor.data = tensor.data.to(source.dtype_of(name))
    try:
        calls = _calls(meta, _as_stored(meta, example), paths)
    except Exception as error:  # whatever the model says of tensors without values
        return Checked((), {}, (*unchecked, f"the model does not run without values ({type(error).__name__}: {error})"))
    changed: dict[str, float] = {}
    new = TensorFiles(folder, source.names, source.tensors, (), source.single)
    for path in calls:
        difference, tolerance = _difference(meta.get_submodule(path), path, calls[path], source, new)
        if not difference <= tolerance:
            changed[path] = difference
    unchecked += [f"{path} was not called" for path in paths if path not in calls]
    return Checked(tuple(calls), changed, tuple(unchecked))


def _common(names: Sequence[str]) -> str:
    """Returns the innermost module that holds all of some tensors."""
    paths = [name.split(".")[:-1] for name in names]
    length = 0
    while all(len(path) > length for path in paths) and len({path[length] for path in paths}) == 1:
        length += 1
    return ".".join(paths[0][:length])


def _as_stored(model: nn.Module, example: Inputs | None) -> Inputs:
    """Returns inputs for a model whose weights have the types of the files: what was guessed takes the type of the first."""
    if example is None:
        return resolve_inputs(model)
    floating = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    if not example.guessed or floating is None:
        return example
    return example.map(lambda tensor: tensor.to(floating) if tensor.is_floating_point() else tensor)


class _AllCalled(BaseException):
    """Ends a run; models catch exceptions of other kinds."""


def _calls(model: nn.Module, inputs: Inputs, paths: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Returns the arguments of the first call of some modules, of a run with fake values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    calls: dict[str, tuple[Any, Any]] = {}

    def noting(path: str) -> Any:
        """Returns the hook of one module."""

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            """Notes the first call, and ends the run where it was the last one that is asked for."""
            calls.setdefault(path, (args, kwargs))
            if len(calls) == len(paths):
                raise _AllCalled

        return note

    # Some models ask meta tensors for values, and know that they must not ask fake ones.
    fake = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), contextlib.suppress(_AllCalled):
        fake.to_empty(device="cpu")
        for path in paths:
            fake.get_submodule(path).register_forward_pre_hook(noting(path), with_kwargs=True)
        call = inputs.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
        fake(*call.args, **call.kwargs)
    return calls


def _difference(
    module: nn.Module, path: str, call: tuple[Any, Any], source: TensorFiles, new: TensorFiles
) -> tuple[float, float]:
    """Returns the largest relative difference of a module's outputs, and what rounding explains."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    filled = copy.deepcopy(module).to_empty(device="cpu")
    args, kwargs = tree_map(lambda leaf: _random(leaf, generator), call)
    tensors = {**dict(filled.named_parameters()), **dict(filled.named_buffers())}
    for name, tensor in tensors.items():
        if not source.holds(f"{path}.{name}"):
            tensor.data = _random(tensor, generator).abs() + 0.5 if tensor.is_floating_point() else torch.zeros_like(tensor)
    outputs = []
    for files in (source, new):
        for name, tensor in tensors.items():
            if files.holds(f"{path}.{name}"):
                tensor.data = files.read(f"{path}.{name}")
        with torch.no_grad():
            outputs.append([leaf for leaf in tree_leaves(filled(*args, **kwargs)) if isinstance(leaf, Tensor)])
    largest = 0.0
    for one, other in zip(*outputs, strict=True):
        if one.is_floating_point() and one.numel():
            scale = one.double().abs().max().clamp(min=torch.finfo(torch.float64).tiny)
            largest = max(largest, float((one.double() - other.double()).abs().max() / scale))
    return largest, tolerance_of(coarsest(tensor.dtype for tensor in tensors.values()))


def _random(leaf: Any, generator: torch.Generator) -> Any:
    """Returns a tensor of the same kind with values: normal numbers, True, or 0."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_floating_point():
        return torch.randn(leaf.shape, dtype=torch.float32, device="cpu", generator=generator).to(leaf.dtype)
    return torch.full(leaf.shape, leaf.dtype == torch.bool, dtype=leaf.dtype, device="cpu")
