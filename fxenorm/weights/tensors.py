"""Looks up the model's tensors by name at each call, and says how they differ from those that were analysed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..distributed.dtensors import local_part, memory_of, refuse_flat_parameters
from ..errors import BindError, RescaleError
from ..symmetry.symmetry import Symmetry
from ..trace.names import overlapping
from ..trace.unwrap import unwrap

__all__ = ["check_fits", "differences", "model_tensors", "named_tensors", "tie_again", "twins"]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer by each of its names."""
    found: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    found.update(model.named_parameters(remove_duplicate=False))
    return found


def differences(model: nn.Module, symmetry: Symmetry, limit: int = 10) -> list[str]:
    """Says how a model's names and shapes differ from the analysed one's: at most `limit` sentences and a count."""
    tensors = named_tensors(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = []
    for name, shape in symmetry.shapes.items():
        if name not in tensors:
            found.append(f"{name} {tuple(shape)} is missing")
        elif tuple(tensors[name].shape) != tuple(shape):
            found.append(f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(shape)}")
    known = {*symmetry.shapes, *symmetry.aliases}
    found += [f"{name} {tuple(tensor.shape)} is unknown" for name, tensor in tensors.items() if name in parameters - known]
    for alias, name in symmetry.aliases.items():
        if alias in tensors and name in tensors and not _same_memory(tensors[alias], tensors[name]):
            found.append(f"{alias} and {name} are no longer one tensor")
    if len(found) > limit:
        found = [*found[:limit], f"and {len(found) - limit} more"]
    return found


def model_tensors(model: nn.Module, symmetry: Symmetry, extra: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Returns by name the tensors that carry variables (and those in `extra`), ready to be read and written.

    Raises:
        BindError: a tensor is missing, has another shape than at the analysis, or is no longer tied to its other names.
        RescaleError: a tensor is on the meta device, or FSDP1 has flattened it.
    """
    tensors = named_tensors(model)
    found: dict[str, Tensor] = {}
    for name in (*symmetry.exponents, *sorted(extra - set(symmetry.exponents))):
        tensor = tensors.get(name)
        if tensor is None or (name in symmetry.shapes and tuple(tensor.shape) != tuple(symmetry.shapes[name])):
            refuse_flat_parameters(model)
            listed = "; ".join(differences(model, symmetry))
            raise BindError(f"not the model that was analysed: {listed}. Nothing was rescaled; call fxenorm.analyze again")
        if tensor.is_meta:
            raise RescaleError(f"{name!r} is on the meta device and has no values yet: call to_empty and load the weights first")
        found[name] = tensor
    _check_ties(tensors, found, symmetry.aliases)
    _refuse_new_ties(tensors, found, symmetry.aliases)
    return found


def twins(model: nn.Module, symmetry: Symmetry) -> list[dict[str, Tensor]]:
    """Returns by name other parameters over the memory of a moved one: an optimizer may keep state for each."""
    if not symmetry.aliases:
        return []
    tensors, found = named_tensors(model), []
    for alias, name in symmetry.aliases.items():
        if name in symmetry.exponents and alias in tensors and tensors[alias] is not tensors[name]:
            found.append({name: tensors[alias]})
    return found


def _check_ties(tensors: Mapping[str, Tensor], found: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Raises where two names of one analysed tensor have come to stand for two."""
    for alias, name in aliases.items():
        if name in found and alias in tensors and not _same_memory(tensors[alias], found[name]):
            raise BindError(
                f"{alias!r} and {name!r} were one tensor when the model was analysed and are two now: nothing was rescaled. "
                "Tie them again, or call fxenorm.analyze again"
            )


def _refuse_new_ties(tensors: Mapping[str, Tensor], found: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Raises where a tensor that carries variables has come to share memory: overlaps at the analysis carry none."""
    own = [(name, local_part(tensor)) for name, tensor in tensors.items() if name not in aliases]
    for block in overlapping(own):
        moved = [name for name in block if name in found]
        if moved:
            other = next(name for name in block if name != moved[0])
            raise BindError(
                f"{moved[0]!r} and {other!r} share memory now, and were two tensors when the model was analysed: nothing was "
                "rescaled. Call fxenorm.analyze again, which sees them as one"
            )


def tie_again(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Ties tensors again that were one at the analysis, in a copy in which they have become two."""
    tensors = named_tensors(model)
    for alias, name in aliases.items():
        if alias in tensors and name in tensors and tensors[alias] is not tensors[name]:
            owner, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(owner), leaf, tensors[name])


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or start at the same place in memory."""
    return one is other or memory_of(one) == memory_of(other)


def check_fits(model: nn.Module, symmetry: Symmetry) -> None:
    """Raises unless a module has the parameter names, shapes and ties of the analysed one.

    Raises:
        BindError: it has not, or it is no module; at most ten differences are listed.
        RescaleError: FSDP1 has flattened the module's parameters.
    """
    if not isinstance(model, nn.Module):
        raise BindError(f"expected a torch.nn.Module, got {type(model).__name__}")
    refuse_flat_parameters(model)
    found = differences(unwrap(model), symmetry)
    if found:
        raise BindError(
            "the plan was made for a model with other parameters; call fxenorm.analyze on this one:\n  " + "\n  ".join(found)
        )
