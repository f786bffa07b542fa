"""Rows of sparse tensors: edges of a graph of four nodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .case import Case

A = torch.ops.aten
EDGES = torch.tensor([[0, 0, 1, 2], [1, 3, 0, 2]])
GRAPH = torch.tensor([[0, 2.0, 0, 1], [0, 0, 3, 1], [1, 1, 0, 0], [0, 0, 1, 2]], dtype=torch.float64)
ALONE = "an entry that is alone in its row"
PLACES = "entries carry one field, also where their places are known"


def _coo(values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(EDGES, values, (4, 4, *values.shape[1:]), check_invariants=False)


def _graph(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *x: call(GRAPH.to_sparse(), *x)


CASES = (
    Case("aten::_sparse_mm", _graph(torch.sparse.mm), ((4, 3),)),
    Case("aten::_sparse_mm", lambda v, x: torch.sparse.mm(_coo(v), x), ((4,), (4, 3)), "entries", misses=PLACES),
    Case("aten::_sparse_addmm", _graph(lambda g, c, x: torch.sparse.addmm(c, g, x, beta=0.5)), ((4, 3), (4, 3))),
    Case("aten::smm", _graph(lambda g, x: torch.smm(g, x).to_dense()), ((4, 3),), dimension=3),
    Case("aten::sparse_coo_tensor", lambda v: _coo(v).to_dense(), ((4,),), misses=PLACES),
    Case("aten::sparse_coo_tensor", lambda v: _coo(v).to_dense(), ((4, 2),), "dense axes", misses=PLACES),
    Case("aten::coalesce", lambda v: _coo(v).coalesce().to_dense().sum(), ((4,),)),
    Case("aten::to_dense", lambda x: x.to_sparse().to_dense(), ((2, 3),)),
    Case("aten::to_sparse", lambda x: x.to_sparse().to_dense().sum(0), ((2, 3),)),
    Case("aten::sparse_mask", lambda x: x.sparse_mask(GRAPH.to_sparse().coalesce()).to_dense(), ((4, 4),)),
    Case("aten::values", lambda v: _coo(v).coalesce().values(), ((4,),), misses=PLACES),
    Case("aten::_values", lambda v: _coo(v)._values().sum(), ((4,),), dimension=1),
    Case(
        "aten::sspaddmm", lambda x, y: A.sspaddmm(x.to_sparse(), GRAPH.to_sparse(), y).to_dense(), ((4, 3), (4, 3)), dimension=3
    ),
    Case("aten::hspmm", lambda x: A.hspmm(GRAPH.to_sparse(), x).to_dense(), ((4, 3),), dimension=3),
    Case("aten::_coalesce", lambda v: A._coalesce(_coo(v)).to_dense().sum(), ((4,),)),
    Case("aten::_to_dense", lambda x: A._to_dense(x.to_sparse()), ((2, 3),)),
    Case("aten::_to_sparse", lambda x: A._to_sparse(x).to_dense(), ((2, 3),)),
    Case("aten::_sparse_coo_tensor_unsafe", lambda v: A._sparse_coo_tensor_unsafe(EDGES, v, (4, 4)).to_dense().sum(), ((4,),)),
    Case(
        "aten::_sparse_coo_tensor_with_dims_and_tensors",
        lambda v: (
            A._sparse_coo_tensor_with_dims_and_tensors(2, 0, (4, 4), EDGES, v, layout=torch.sparse_coo, dtype=v.dtype)
            .to_dense()
            .sum()
        ),
        ((4,),),
    ),
    Case("aten::_sparse_log_softmax", lambda v: A._sparse_log_softmax(_coo(v).coalesce(), 1).to_dense(), ((4,),), misses=ALONE),
    Case("aten::_sparse_sum", lambda v: torch.sparse.sum(_coo(v), 1).to_dense().sum(), ((4,),)),
    Case("aten::_sparse_sum", lambda v: torch.sparse.sum(_coo(v)), ((4,),), "all axes"),
    Case("aten::_sparse_softmax", lambda v: torch.sparse.softmax(_coo(v), 1).to_dense(), ((4,),), misses=ALONE),
)
