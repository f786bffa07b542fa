"""Copies of the weights that every rescaling multiplies too: averaged models, float32 master weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.dtensors import Memory, local_part, memory_of
from ..errors import BindError, OptionError
from ..symmetry.symmetry import Symmetry
from ..trace.unwrap import unwrap
from .tensors import differences, model_tensors, named_tensors

__all__ = ["Tracked"]

_HOLDERS = ("module", "ema", "ema_model", "averaged_model")
"""Attributes under which helpers for averaging keep the averaged module."""


class Tracked:
    """A copy of the weights that follows every rescaling; made by `Plan.track`.

    Its tensors are looked up at each call, as those of the model are.

    Args:
        copy: a module, something that holds one, a mapping of tensors by name, or a sequence of tensors.
        model: the model that it is a copy of.
        symmetry: the plan's.
        master: whether the model's 16-bit weights are rewritten from it.
        forget: takes this copy off the plan's list.

    Raises:
        OptionError: `copy` is none of these.
        BindError: its names or shapes differ from the model's.

    Example:
        >>> import fxenorm, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = fxenorm.analyze(model)
        >>> ema = {name: value.clone() for name, value in model.named_parameters()}
        >>> plan.track(ema)
        <fxenorm.Tracked dict: follows every rescaling>
    """

    def __init__(
        self, copy: Any, model: nn.Module, symmetry: Symmetry, *, master: bool, forget: Callable[[Tracked], None]
    ) -> None:
        self.master = master
        self._copy = _resolved(copy, symmetry)
        self._symmetry = symmetry
        self._forget, self._removed = forget, False
        self.tensors(model)

    @classmethod
    def again(cls, copy: Any, symmetry: Symmetry, *, master: bool, forget: Callable[[Tracked], None]) -> Tracked:
        """Returns the same for a copied plan, whose model may be empty as yet: the copy is checked at the next call."""
        made = cls.__new__(cls)
        made.master, made._copy, made._symmetry = master, copy, symmetry
        made._forget, made._removed = forget, False
        return made

    def __repr__(self) -> str:
        """Returns one line: the kind of copy, and whether it still follows."""
        kind = f"{type(self._copy).__name__}{', a master' if self.master else ''}"
        return f"<fxenorm.Tracked {kind}: {'removed' if self._removed else 'follows every rescaling'}>"

    @property
    def copy(self) -> Any:
        """The module, mapping or sequence that follows.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> average = torch.optim.swa_utils.AveragedModel(model)
            >>> plan.track(average).copy is average.module
            True
        """
        return self._copy

    def remove(self) -> None:
        """Ends the following: the copy stays as it is from now on; a second call does nothing.

        Example:
            >>> import fxenorm, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> plan = fxenorm.analyze(model)
            >>> tracked = plan.track([weight.detach().clone() for weight in model.parameters()])
            >>> tracked.remove()
            >>> tracked
            <fxenorm.Tracked list: removed>
        """
        if not self._removed:
            self._removed = True
            self._forget(self)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns by name the copy's tensors that carry variables, without those that are the model's own.

        Raises:
            BindError: names or shapes differ from the model's; nothing was written.
        """
        own = named_tensors(model)
        found = self._by_name(model)
        return {name: tensor for name, tensor in found.items() if not _same_entries(tensor, own[name])}

    def watched(self) -> tuple[list[dict[Any, Any]], Sequence[Any]] | None:
        """Returns the dicts and the list by which the copy could come to hold other tensors; None: that cannot be told."""
        if isinstance(self._copy, nn.Module):
            holders = [(module._modules, module._parameters, module._buffers) for module in self._copy.modules()]
            return [entries for holder in holders for entries in holder if entries], ()
        if isinstance(self._copy, Mapping):
            return ([self._copy], ()) if isinstance(self._copy, dict) else None
        return [], self._copy

    def _by_name(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns by name the copy's tensors that carry variables; raises a BindError where they do not fit."""
        if isinstance(self._copy, nn.Module):
            return model_tensors(self._copy, self._symmetry)
        if isinstance(self._copy, Mapping):
            unknown = [name for name in self._copy if name not in self._symmetry.shapes and name not in self._symmetry.aliases]
            if unknown:
                raise BindError(f"the tracked copy holds tensors that the model has not: {', '.join(unknown[:10])}")
            named = dict(self._copy)
        else:
            parameters = list(model.named_parameters())
            if len(parameters) != len(self._copy):
                # Masters are commonly kept of what is trained only.
                parameters = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
            if len(parameters) != len(self._copy):
                total = len(list(model.parameters()))
                raise BindError(
                    f"the tracked copy holds {len(self._copy)} tensors; the model has {total} parameters, {len(parameters)} of "
                    "them with requires_grad. Pass a dict by name instead"
                )
            named = {name: tensor for (name, _), tensor in zip(parameters, self._copy, strict=True)}
        found: dict[str, Tensor] = {}
        for given, tensor in named.items():
            name = self._symmetry.aliases.get(given, given)
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != tuple(self._symmetry.shapes[name]):
                form = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"type {type(tensor).__name__}"
                raise BindError(
                    f"{name!r} of the tracked copy has {form}, the model's has shape {tuple(self._symmetry.shapes[name])}: "
                    "nothing was rescaled"
                )
            if name in self._symmetry.exponents:
                found[name] = tensor
        return found

    def masters(self, model: nn.Module) -> set[str]:
        """Returns the names of the parameters whose 16-bit values are rewritten from this copy's wider ones."""
        if not self.master:
            return set()
        return {name for name, tensor in self.tensors(model).items() if tensor.dtype in (torch.float32, torch.float64)}


def distinct(copies: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Returns the copies without tensors that an earlier one holds under the same name: nothing is multiplied twice."""
    seen: set[tuple[str, Memory, tuple[int, ...] | None]] = set()
    found: list[dict[str, Tensor]] = []
    for copy in copies:
        places = {name: (name, memory_of(tensor), _strides(tensor)) for name, tensor in copy.items()}
        found.append({name: tensor for name, tensor in copy.items() if places[name] not in seen})
        seen.update(places.values())
    return found


def _resolved(copy: Any, symmetry: Symmetry) -> Any:
    """Returns the module, mapping or sequence inside a user's copy."""
    if isinstance(copy, Mapping):
        return copy
    if isinstance(copy, Sequence) and not isinstance(copy, str):
        return copy
    if isinstance(copy, nn.Module) and not differences(unwrap(copy), symmetry):
        return unwrap(copy)
    for holder in _HOLDERS:
        held = getattr(copy, holder, None)
        if isinstance(held, nn.Module) and not differences(unwrap(held), symmetry):
            return unwrap(held)
    if isinstance(copy, nn.Module):
        listed = "\n  ".join(differences(unwrap(copy), symmetry))
        raise BindError(f"the tracked copy has other parameters than the model of this plan:\n  {listed}")
    raise OptionError(
        f"copy must be a module of the model's shape (or hold one as .{', .'.join(_HOLDERS)}), a dict of tensors by name, or a "
        f"list of tensors in the order of model.parameters(); got {type(copy).__name__}"
    )


def _same_entries(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are one, or start at the same place in memory and go on in the same order."""
    if one is other:
        return True
    if one.is_meta or memory_of(one) != memory_of(other) or memory_of(one)[-1] == 0:
        return False
    return _strides(one) == _strides(other)


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    """Returns the strides of this process's part of a tensor; None: it has none."""
    part = local_part(tensor)
    return part.stride() if part.layout == torch.strided else None
