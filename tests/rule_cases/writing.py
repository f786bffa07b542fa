"""Rows of writing among the entries of a tensor: at positions that are known, and at ones that are not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .case import Case

A = torch.ops.aten
I = torch.tensor([2, 0])  # noqa: E741
REPEATED = torch.tensor([1, 1])
PAIRS = torch.tensor([[0, 2], [1, 0]])
MASK = torch.tensor([True, False, True])
X, Y = (2, 3), (2, 2)
PRODUCTS = "products are not followed: what is written is held"
LOST = "tensors of no axis are not told from what is written over them"
SAME_ROWS = "all rows of the positions that are not known carry one field"


def _ordered(call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A call on two tensors and positions that come from the order of a third one."""
    return lambda x, y, z: call(x, y, z.argsort(-1))


KNOWN = (
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, I], y), (X, Y)),
    Case("aten::_unsafe_index_put", lambda x, y: A._unsafe_index_put(x, [None, I], y), (X, Y)),
    Case("aten::index_put", lambda x, y: A.index_put(x, [I], y, True), ((3, 2), Y), "accumulate"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, REPEATED], y, True), (X, Y), "one place twice"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [I, None, I], y), ((3, 2, 4), (2, 2)), "axes apart"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, PAIRS, I], y), ((2, 3, 4), (2, 2)), "positions of two axes"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, MASK], y), (X, Y), "mask"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, I], y), (X, ()), "one value"),
    Case("aten::index_put", lambda x: A.index_put(x, [None, I], torch.zeros(()).double()), (X,), "zero"),
    Case("aten::index_put", lambda y: A.index_put(torch.zeros(2, 3).double(), [None, I], y), (Y,), "into zeros"),
    Case("aten::index_put", lambda x, y: A.index_put(x, [None, I[:0]], y[:, :0]), (X, Y), "nothing"),
    Case("aten::scatter", lambda x, y: torch.scatter(x, 1, PAIRS, y), (X, Y)),
    Case("aten::scatter", lambda x, y: torch.scatter(x, -1, PAIRS[:1], y), (X, (1, 2)), "smaller index"),
    Case(
        "aten::scatter", lambda x, y: torch.scatter(x, 2, PAIRS[:, None].repeat(1, 2, 1), y), ((2, 2, 3), (2, 2, 2)), "axes apart"
    ),
    Case("aten::scatter", lambda x, y: torch.scatter(x, 1, I.expand(2, 2), y), (X, Y), "rows alike"),
    Case("aten::scatter", lambda x: torch.scatter(x, 1, torch.tensor([[0], [1]]), 3.0), (X,), "constant"),
    Case("aten::scatter", lambda x: torch.scatter(x, 1, torch.tensor([[0], [1]]), 0.0), (X,), "zero"),
    Case(
        "aten::scatter",
        lambda x, y: torch.scatter(x, 1, PAIRS, y, reduce="multiply"),
        (X, Y),
        "multiply",
        dimension=10,
        misses=PRODUCTS,
    ),
    Case("aten::scatter", lambda x, y: torch.scatter(x, 1, PAIRS, y, reduce="add"), (X, Y), "add", dimension=6),
    Case("aten::scatter_add", lambda x, y: torch.scatter_add(x, 1, PAIRS, y), (X, Y)),
    Case("aten::scatter_add", lambda y: torch.zeros(2, 3).double().scatter_add(1, PAIRS, y), (Y,), "into zeros"),
    Case("aten::scatter_reduce", lambda x, y: torch.scatter_reduce(x, 1, PAIRS, y, "amax"), (X, Y), draws=60),
    Case("aten::scatter_reduce", lambda x, y: torch.scatter_reduce(x, 1, PAIRS, y, "mean"), (X, Y), "mean"),
    Case(
        "aten::scatter_reduce",
        lambda x, y: torch.scatter_reduce(x, 1, PAIRS, y, "amin", include_self=False),
        (X, Y),
        "without what was there",
        draws=60,
    ),
    Case("aten::scatter_reduce", lambda x, y: torch.scatter_reduce(x, 1, PAIRS, y, "prod"), (X, Y), "prod", misses=PRODUCTS),
    Case(
        "aten::scatter_reduce",
        lambda y: torch.scatter_reduce(torch.full((2, 3), -torch.inf).double(), 1, PAIRS, y, "amax"),
        (Y,),
        "into -inf",
    ),
    Case(
        "aten::scatter_reduce",
        lambda x, y: torch.scatter_reduce(x, 1, PAIRS, y, "prod", include_self=False),
        (X, Y),
        "prod alone",
        misses=PRODUCTS,
    ),
    Case("aten::index_add", lambda x, y: torch.index_add(x, 1, I, y), (X, Y)),
    Case("aten::index_add", lambda x, y: torch.index_add(x, 0, REPEATED, y), ((3, 2), Y), "one place twice"),
    Case("aten::index_add", lambda y: torch.zeros(2, 3).double().index_add(1, I, y), (Y,), "into zeros"),
    Case("aten::index_add", lambda y: torch.zeros(3, 2).double().index_add(0, REPEATED, y), (Y,), "into zeros twice"),
    Case("aten::index_copy", lambda x, y: torch.index_copy(x, -1, I, y), (X, Y)),
    Case("aten::index_reduce", lambda x, y: torch.index_reduce(x, 1, I, y, "amax"), (X, Y), draws=60),
    Case(
        "aten::index_reduce",
        lambda x, y: torch.index_reduce(x, 1, I, y, "mean", include_self=False),
        (X, Y),
        "without what was there",
    ),
    Case("aten::index_reduce", lambda x, y: torch.index_reduce(x, 1, I, y, "prod"), (X, Y), "prod", misses=PRODUCTS),
    Case("aten::index_fill", lambda x: torch.index_fill(x, 1, I, 0.0), (X,), "zero"),
    Case("aten::index_fill", lambda x: torch.index_fill(x, 1, I, 2.0), (X,)),
    Case("aten::index_fill", lambda x, y: torch.index_fill(x, 1, I, y), (X, ()), "tensor"),
    Case("aten::masked_scatter", lambda x, y: torch.masked_scatter(x, MASK, y), (X, (4,)), misses=SAME_ROWS),
    Case(
        "aten::masked_scatter", lambda x, y: torch.masked_scatter(x, MASK[:, None], y), ((3, 4), (2, 4)), "rows", misses=SAME_ROWS
    ),
    Case("aten::select_scatter", lambda x, y: torch.select_scatter(x, y, 1, -1), (X, (2,))),
    Case("aten::slice_scatter", lambda x, y: torch.slice_scatter(x, y, 1, 0, 4, 2), ((2, 5), (2, 2))),
    Case("aten::diagonal_scatter", lambda x, y: torch.diagonal_scatter(x, y), (X, (2,))),
    Case("aten::diagonal_scatter", lambda x, y: torch.diagonal_scatter(x, y, 1, 2, 0), ((2, 3, 4), (3, 1)), "off"),
    Case("aten::index_add", lambda x, y: torch.index_add(x, 1, I, y, alpha=0), (X, Y), "nothing", dimension=10),
    Case("aten::index_add", lambda x, y: torch.index_add(x, 0, I[:1] * 0, y), ((), ()), "one number"),
    Case("aten::scatter", lambda x, y: torch.scatter(x, 0, I[0] * 0, y), ((), ()), "one number", misses=LOST),
)


def _of_signs(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """x times 1 plus what an operator makes of the integers that say where x is positive."""
    return lambda x: x * (1 + call((x > 0).long()))


# Integers carry no scale, whatever is written among them.
INTEGERS = tuple(
    Case(f"aten::{name}", _of_signs(call), (X,), "integers", dimension=6)
    for name, call in {
        "index_put": lambda s: A.index_put(s, [None, I], s[:, :2]),
        "scatter": lambda s: s.scatter(1, PAIRS, s[:, :2]),
        "index_add": lambda s: s.index_add(1, I, s[:, :2]),
        "slice_scatter": lambda s: torch.slice_scatter(s, s[:, :2], 1, 1, 3),
        "masked_scatter": lambda s: torch.masked_scatter(s, MASK, s),
    }.items()
)

# What is read of `z` is an order, which positive factors of all of z keep: z adds one dimension.
ANYWHERE = (
    Case(
        "aten::index_put", _ordered(lambda x, y, i: A.index_put(x, [None, i], y)), ((2, 3), (2, 3), (3,)), "anywhere", dimension=3
    ),
    Case(
        "aten::index_put",
        _ordered(lambda x, y, i: A.index_put(x, [i], y, True)),
        ((3, 2), (1, 2), (3,)),
        "accumulated anywhere",
        dimension=3,
    ),
    Case(
        "aten::index_put", lambda x, z: A.index_put(x, [z > 0], torch.zeros(()).double()), ((2, 3), (2, 3)), "zeros", dimension=12
    ),
    Case("aten::scatter", _ordered(lambda x, y, i: x.scatter(1, i, y)), ((2, 3), (2, 3), (2, 3)), "anywhere", dimension=4),
    Case(
        "aten::scatter_add", _ordered(lambda x, y, i: x.scatter_add(1, i, y)), ((2, 3), (2, 3), (1, 3)), "anywhere", dimension=8
    ),
    Case(
        "aten::scatter_reduce",
        _ordered(lambda x, y, i: x.scatter_reduce(0, i, y, "amax")),
        ((2, 2), (1, 2), (1, 2)),
        "anywhere",
        dimension=3,
    ),
    Case(
        "aten::index_add",
        _ordered(lambda x, y, i: x.index_add(1, i, y)),
        ((2, 3, 4), (2, 3, 4), (3,)),
        "anywhere",
        dimension=9,
    ),
    Case("aten::index_copy", _ordered(lambda x, y, i: x.index_copy(0, i, y)), ((3, 2), (3, 2), (3,)), "anywhere", dimension=3),
    Case(
        "aten::index_reduce",
        _ordered(lambda x, y, i: x.index_reduce(0, i, y, "amin", include_self=False)),
        ((3, 2), (3, 2), (3,)),
        "anywhere",
        dimension=3,
    ),
    Case("aten::masked_scatter", lambda x, y, z: x.masked_scatter(z > 0, y), ((2, 3), (6,), (2, 3)), "anywhere", dimension=7),
    Case(
        "aten::masked_scatter",
        lambda x, y, z: x.masked_scatter((z > 0)[:, None].expand(2, 3), y),
        ((2, 3), (4, 3), (2,)),
        "rows anywhere",
        dimension=5,
    ),
)

CASES = (*KNOWN, *INTEGERS, *ANYWHERE)
