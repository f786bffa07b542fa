"""`Landmarks`: a few entries of each parameter, by which observations are told from those of other weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..distributed.dtensors import is_distributed, local_part
from ..distributed.layout import layout_of
from ..distributed.ranks import Ranks
from ..symmetry.symmetry import Symmetry
from .packed import packed, unpacked, unpacked_tensor

__all__ = ["Landmarks", "landmarks_of", "variables_of"]

_MOST = 32
"""Entries of each parameter: a step of training changes nearly all, a rescaling whole channels."""

_ROUNDINGS, _LARGEST = 256, 0.05
"""Relative difference that counts as none: so many units of the parameter's type, and never more than the second."""


@dataclass(frozen=True)
class Landmarks:
    """Some entries of the parameters, with the exponents by which each follows a rescaling.

    Attributes:
        names: of the parameters.
        places: by parameter, the positions of the entries in the flat tensor.
        values: by parameter, the entries in float64; an offset that the model adds is in them.
        position: (num_scales,) the sum of the plan's rescalings up to these values.
        variables: a hash of the exponents, which says of which variables log-scales are.
    """

    names: tuple[str, ...]
    places: tuple[NDArray[np.int64], ...]
    values: tuple[NDArray[np.float64], ...]
    position: Tensor
    variables: str

    def differing(
        self, tensors: Mapping[str, Tensor], symmetry: Symmetry, position: Tensor, ranks: Ranks | None = None
    ) -> list[str]:
        """Returns the names of the parameters that are not as a rescaling has left them, by the entries that this process holds.

        Args:
            tensors: the parameters now, by name.
            symmetry: of the plan.
            position: (num_scales,) the sum of the plan's rescalings up to now, float64 on the CPU.
            ranks: the processes over which the model is spread; None: this one holds all.

        Raises:
            RescaleError: of a parameter it is not known which part this process holds.
        """
        found = []
        padded = np.append((position - self.position).numpy(), 0.0)
        for name, places, values in zip(self.names, self.places, self.values, strict=True):
            tensor, shape = tensors.get(name), symmetry.shapes.get(name)
            if tensor is None or shape is None or tuple(tensor.shape) != tuple(shape) or places.max() >= math.prod(shape):
                found.append(name)
                continue
            here, now = _here(name, tensor, places, ranks)
            now = now + symmetry.offsets.get(name, 0.0)
            expected = (values * np.exp(_logs(symmetry, name, places, padded)))[here]
            share = min(_ROUNDINGS * torch.finfo(tensor.dtype).eps, _LARGEST)
            # An entry of w stands in digits of o + w.
            room = share * np.maximum(np.abs(expected), abs(symmetry.offsets.get(name, 0.0)))
            if not bool((np.abs(now - expected) <= room + torch.finfo(tensor.dtype).tiny).all()):
                found.append(name)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the landmarks as a JSON-compatible dict; see `from_dict`."""
        rows = zip(self.names, self.places, self.values, strict=True)
        entries = {name: [packed(places, "<i8"), packed(values, "<f8")] for name, places, values in rows}
        return {"entries": entries, "position": packed(self.position, "<f8"), "variables": self.variables}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Landmarks:
        """Returns stored landmarks; raises a ValueError where they are damaged."""
        entries = stored["entries"]
        places = tuple(unpacked(row[0], "<i8") for row in entries.values())
        values = tuple(unpacked(row[1], "<f8") for row in entries.values())
        if any(one.size != other.size or not one.size or one.min() < 0 for one, other in zip(places, values, strict=True)):
            raise ValueError("the landmarks have values that belong to no entry")
        return cls(tuple(map(str, entries)), places, values, unpacked_tensor(stored["position"]), str(stored["variables"]))


def landmarks_of(tensors: Mapping[str, Tensor], symmetry: Symmetry, position: Tensor) -> Landmarks:
    """Returns entries of all floating-point parameters of the model as they are now; waits for the device.

    Args:
        tensors: the parameters, by name.
        symmetry: of the plan.
        position: (num_scales,) the sum of the plan's rescalings up to now.
    """
    names, places, values = [], [], []
    for name in symmetry.shapes:
        tensor = tensors.get(name)
        if tensor is None or not tensor.is_floating_point() or not tensor.numel() or is_distributed(tensor) or tensor.is_meta:
            continue
        chosen = np.unique(np.linspace(0, tensor.numel() - 1, min(_MOST, tensor.numel())).astype(np.int64))
        names.append(name)
        places.append(chosen)
        values.append(_entries(tensor, chosen) + symmetry.offsets.get(name, 0.0))
    return Landmarks(tuple(names), tuple(places), tuple(values), position, variables_of(symmetry))


def variables_of(symmetry: Symmetry) -> str:
    """Returns a hash of all exponents: equal ones mean that log-scales are of the same variables."""
    found = hashlib.sha256(str(symmetry.num_scales).encode())
    for name in sorted(symmetry.exponents):
        for coefficient, ids in symmetry.exponents[name]:
            found.update(f"{name} {int(coefficient)} {ids.shape}".encode())
            found.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
    return found.hexdigest()


def _here(
    name: str, tensor: Tensor, places: NDArray[np.int64], ranks: Ranks | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns which of some entries of a parameter this process holds, and these in float64."""
    if ranks is None or not is_distributed(tensor):
        return np.ones(places.shape, dtype=bool), _entries(tensor, places)
    here, rows = np.ones(places.shape, dtype=bool), []
    axes = np.unravel_index(places, tuple(tensor.shape)) if tensor.ndim else ()
    for row, held, size in zip(axes, layout_of(name, tensor, ranks.first_rank, ranks.rank).positions, tensor.shape, strict=True):
        known = np.full(size, -1, dtype=np.int64)
        own = np.arange(size, dtype=np.int64) if held is None else held
        known[own] = np.arange(own.size, dtype=np.int64)
        rows.append(known[row])
        here &= rows[-1] >= 0
    return here, _at(local_part(tensor), [row[here] for row in rows])[: here.sum()]


def _entries(tensor: Tensor, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns some entries of a tensor in float64."""
    return _at(tensor, np.unravel_index(places, tuple(tensor.shape)) if tensor.ndim else ())


def _at(tensor: Tensor, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Returns the entries of a tensor at some positions by axis, in float64; of one without axes the only one."""
    where = tuple(torch.from_numpy(row).to(tensor.device) for row in rows)
    picked = tensor.detach()[where] if where else tensor.detach().reshape(1)
    return np.asarray(picked.to("cpu", torch.float64).numpy(), dtype=np.float64)


def _logs(symmetry: Symmetry, name: str, places: NDArray[np.int64], padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the logarithms of the factors of some entries of a parameter."""
    logs = np.zeros(places.size, dtype=np.float64)
    shape = tuple(symmetry.shapes[name])
    for coefficient, ids in symmetry.exponents.get(name, ()):
        logs += coefficient * padded[np.broadcast_to(ids, shape)[np.unravel_index(places, shape)] if shape else ids.reshape(-1)]
    return logs
