"""What is written through views and into parts of an activation, each network with the scales that it has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .zoo_base import VECTOR, Case, Net, pair


def _first_half_doubled(h: Tensor) -> Tensor:
    """Writes through a view that `reshape` makes."""
    h = h.abs()
    h.reshape(9, 2, 3)[:, 0].mul_(2.0)
    return h


def _copy_doubled(h: Tensor) -> Tensor:
    """What is written is a copy that nobody reads."""
    h = h.abs()
    h.t().reshape(-1).mul_(2.0)
    return h


def _first_half_constant(h: Tensor) -> Tensor:
    """What stood in the first half is lost."""
    h = h.abs()
    h.reshape(9, 2, 3)[:, 0].fill_(1.0)
    return h


def _read_through_a_grid(h: Tensor) -> Tensor:
    """Views of two columns that are made before a write."""
    columns = h.abs()
    first, _ = torch.meshgrid(columns[:, 0], columns[:, 1], indexing="ij")
    columns[:, 1:2].mul_(2.0)
    return torch.cat([columns, first.sum(1, keepdim=True)], 1)


def _broadcast_then_written(h: Tensor) -> Tensor:
    """Both results of `broadcast_tensors` show the memory that is written."""
    h = h.abs()
    first, all_of_them = torch.broadcast_tensors(h[:, :1], h)
    h[:, :2].mul_(2.0)
    return first + all_of_them


def _through_windows(h: Tensor) -> Tensor:
    """Writes one entry of each window, which overlap only as a whole."""
    h = h.abs()
    h.unfold(1, 2, 1)[:, :, 0].mul_(2.0)
    return h


def _one_row_for_all(h: Tensor) -> Tensor:
    """Reads a row that is written after it was expanded."""
    h = h.abs()
    first = h[:1].expand(9, 6)
    h[:, :3].mul_(2.0)
    return h + first


def _halves_swapped(h: Tensor) -> Tensor:
    """Every second channel gets the values of its neighbour."""
    h = h.abs()
    h.t()[::2].t().copy_(h[:, 1::2].clone())
    return h


WRITTEN: dict[str, Case] = {
    "written_through_reshape": Case(pair(_first_half_doubled), VECTOR, 6),
    "written_into_a_copy": Case(pair(_copy_doubled), VECTOR, 6),
    "written_over_by_a_constant": Case(pair(_first_half_constant), VECTOR, 3 + 3),  # three rows of a are read by nobody
    "written_under_a_grid": Case(pair(_read_through_a_grid, 7), VECTOR, 6),
    "written_under_a_broadcast": Case(pair(_broadcast_then_written), VECTOR, 1),  # the first channel is added to all
    "written_through_windows": Case(pair(_through_windows), VECTOR, 6),
    "written_under_an_expanded_row": Case(pair(_one_row_for_all), VECTOR, 6),
    "written_over_by_a_neighbour": Case(pair(_halves_swapped), VECTOR, 3 + 3),
    "written_by_a_parameter": Case(
        lambda: Net(_half_from_a_parameter, a=nn.Linear(4, 6), b=nn.Linear(6, 3), g=nn.Parameter(torch.randn(3))),
        VECTOR,
        3 + 3 + 3,  # what g replaces is read by nobody, g itself is a producer
    ),
}


def _half_from_a_parameter(m: Net, x: Tensor) -> Tensor:
    """A parameter takes the place of three channels."""
    h = m.a(x).abs()
    h[:, :3] = m.g
    return m.b(h)
