"""Operators that make tensors out of nothing, ask for shapes, or check: they impose nothing."""

from __future__ import annotations

import math
from typing import Any

from ..field import AnyField, ParameterView, ScaleField
from .call import Call, is_floating
from .laws import barrier, expand_to, zero_field
from .registry import family, scale_rule


def _carries_any(value: Any) -> bool:
    """Whether a constant stays the same under every positive factor."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (value == 0 or math.isinf(value))


def constant(call: Call) -> Any:
    """Leaves the first argument free, as the result does not depend on its values; holds others (bounds, probabilities)."""
    for name, value in call.tensors():
        if name != "self":
            call.zero(value)
    return zero_field(call)


family(
    "constant",
    constant,
    [
        "aten::arange", "aten::ones", "aten::ones_like", "aten::new_ones", "aten::empty", "aten::empty_like",
        "aten::new_empty", "aten::eye", "aten::empty_strided", "aten::empty_permuted", "aten::linspace", "aten::rand",
        "aten::rand_like", "aten::randn", "aten::randn_like", "aten::randint", "aten::randint_like", "aten::randperm",
        "aten::bernoulli_", "aten::uniform_", "aten::normal_", "aten::scalar_tensor", "aten::sym_size", "aten::sym_stride",
        "aten::sym_numel", "aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::_assert_async",
        "aten::tril_indices", "aten::triu_indices", "aten::is_same_size", "aten::numel", "aten::size", "aten::exponential_",
        "aten::one_hot",
    ],
)  # fmt: skip


@scale_rule(
    "aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::zero", "aten::_efficientzerotensor",
    "aten::_new_zeros_with_same_feature_meta",
    family="constant",
)  # fmt: skip
def zeros(call: Call) -> Any:
    """0 t = 0: zeros carry any field."""
    return AnyField(call.out_shape) if is_floating(call.output) else zero_field(call)


@scale_rule("aten::full", "aten::full_like", "aten::new_full", "aten::fill", family="constant")
def full(call: Call) -> Any:
    """0 and infinity carry any field, other constants none; a tensor as the filling value hands its field on."""
    value = call["value"] if call.operator == "aten::fill" else call["fill_value"]
    if call.operator == "aten::fill" and isinstance(value, AnyField):
        return AnyField(call.out_shape)
    if call.operator == "aten::fill" and isinstance(value, (ScaleField, ParameterView)):
        return expand_to(call.field("value"), call.out_shape)
    if isinstance(value, (ScaleField, AnyField, ParameterView)):
        call.zero(value)
    return AnyField(call.out_shape) if _carries_any(value) and is_floating(call.output) else ScaleField(call.out_shape)


@scale_rule("aten::_has_compatible_shallow_copy_type", "aten::_has_same_storage_numel", family="constant")
def question(call: Call) -> Any:
    """Leaves all arguments free: the result depends on their types and sizes alone."""
    return zero_field(call)


@scale_rule("aten::bernoulli", family="constant")
def bernoulli(call: Call) -> Any:
    """Draws with the given probabilities, which must not move."""
    for _, value in call.tensors():
        call.zero(value)
    return zero_field(call)


@scale_rule("aten::copy", family="constant")
def copy(call: Call) -> Any:
    """y = x: the source replaces the former values, and hands its field on."""
    source = call["src"]
    if isinstance(source, AnyField):
        return AnyField(call.out_shape)
    return expand_to(call.field("src"), call.out_shape)


@scale_rule("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::allclose", family="barrier")
def item(call: Call) -> Any:
    """A value that reaches Python is held."""
    return barrier(call, "its value reaches Python")
