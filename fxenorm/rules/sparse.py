"""Sparse tensors: the field of one is that of the dense tensor for which it stands.

The entries that it does not hold are 0 and carry any field.

A product with one is a contraction over all positions of the axis, whichever of them it holds: for a graph, over all nodes.
"""

from __future__ import annotations

from typing import Any

from ..field import AnyField, ScaleField
from ..field.structure import broadcast, reshape, take_slice
from .call import Call, Field, is_floating
from .contraction import addmm, matmul
from .laws import barrier, passes, reduce, zero_field
from .registry import family, scale_rule

PRODUCTS = ["aten::_sparse_mm", "aten::smm", "aten::hspmm", "aten::_sparse_mm_reduce_impl"]
SUMS = ["aten::_sparse_addmm", "aten::sspaddmm", "aten::sparse_sampled_addmm"]
COMPRESSED = [
    "aten::sparse_csr_tensor", "aten::sparse_csc_tensor", "aten::sparse_compressed_tensor", "aten::_sparse_csr_tensor_unsafe",
    "aten::_sparse_compressed_tensor_unsafe", "aten::to_sparse_csr", "aten::_to_sparse_csr", "aten::to_sparse_csc",
    "aten::_to_sparse_csc", "aten::_sparse_mm_reduce_impl", "aten::sparse_sampled_addmm",
]  # fmt: skip
LAYOUTS = [
    "aten::to_dense", "aten::_to_dense", "aten::to_sparse", "aten::_to_sparse", "aten::to_sparse_csr", "aten::_to_sparse_csr",
    "aten::to_sparse_csc", "aten::_to_sparse_csc", "aten::coalesce", "aten::_coalesce", "aten::sparse_mask",
]  # fmt: skip
PATTERNS = [
    "aten::indices", "aten::_indices", "aten::crow_indices", "aten::col_indices", "aten::ccol_indices", "aten::row_indices",
    "aten::_nnz", "aten::sparse_dim", "aten::dense_dim", "aten::is_coalesced",
]  # fmt: skip


def sparse_product(call: Call) -> Any:
    """y[n, m] = sum (or mean, maximum, minimum) over j of a[n, j] b[j, m]."""
    y = matmul(call)
    return (y, *(ScaleField(tuple(other.shape)) for other in call.output[1:])) if isinstance(call.output, (tuple, list)) else y


def same_entries(call: Call) -> Field:
    """The same entries in another layout."""
    return passes(call)


def pattern(call: Call) -> Any:
    """The places of entries do not depend on their values: nothing is imposed."""
    return zero_field(call)


family("contraction", sparse_product, PRODUCTS)
family("contraction", addmm, SUMS)
family("structural", same_entries, LAYOUTS)
family("constant", pattern, PATTERNS)


@scale_rule(
    "aten::sparse_coo_tensor", "aten::_sparse_coo_tensor_unsafe", "aten::_sparse_coo_tensor_with_dims_and_tensors",
    "aten::sparse_csr_tensor", "aten::sparse_csc_tensor", "aten::sparse_compressed_tensor", "aten::_sparse_csr_tensor_unsafe",
    "aten::_sparse_compressed_tensor_unsafe",
    family="structural",
)  # fmt: skip
def sparse_tensor(call: Call) -> Field:
    """A list of entries at places that may be anywhere: one field for all of them; axes behind the sparse ones pass."""
    values = call["values"]
    shape = call.out_shape
    if values is None:
        return AnyField(shape)
    if not is_floating(call.fakes["values"]):
        return ScaleField(shape)
    if isinstance(values, AnyField):
        return AnyField(shape)
    one = take_slice(call.constant(call.settle(values), [0]), 0, slice(0, 1))
    dense = one.shape[1:]
    return broadcast(reshape(one, (*(1,) * (len(shape) - len(dense)), *dense)), shape)


@scale_rule("aten::values", "aten::_values", family="structural")
def values_of(call: Call) -> Field:
    """The entries as a list, at places that may be anywhere: constant along the sparse axes."""
    new = call.out_shape
    if isinstance(call["self"], AnyField):
        return AnyField(new)
    field = call.field("self")
    sparse = len(field.shape) - (len(new) - 1)
    dense = field.shape[sparse:]
    constant = call.constant(field, range(sparse))
    return broadcast(reshape(ScaleField((*(1,) * sparse, *dense), constant.terms), (1, *dense)), new)


@scale_rule("aten::_sparse_sum", family="reduction")
def sparse_sum(call: Call) -> Field:
    """y = sum of x along axes: the field is constant along them."""
    rank = len(call.shape("self"))
    axes = list(range(rank)) if call["dim"] is None else [axis % rank for axis in call["dim"]]
    return reduce(call, call["self"], axes, call.out_shape)


@scale_rule("aten::_sparse_softmax", "aten::_sparse_log_softmax", family="barrier")
def sparse_softmax(call: Call) -> Any:
    """softmax(t x) is no power of t times softmax(x), so x is held."""
    return barrier(call, "softmax is not homogeneous")
