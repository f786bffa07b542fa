"""Rows of the backward operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Case

A = torch.ops.aten
X, IMAGE = (2, 3), (2, 3, 4, 4)
AROUND = "positions are tied"
UNREAD = "the bias of the norm, whose result is not read"


def _on(name: str, *rest: Any) -> Callable[..., Any]:
    """The backward operator of (gradient, input) with further arguments."""
    return lambda g, x: getattr(A, name)(g, x, *rest)


def _pool(name: str, size: tuple[int, ...], *rest: Any) -> Case:
    """A pooling's backward operator on a constant input: only its places matter."""
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Case(f"aten::{name}", lambda g: getattr(A, name)(g, x, *rest), (size,))


def _max_pool(g: Tensor) -> Tensor:
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, places = A.max_pool2d_with_indices(x, [2, 2], [1, 1])
    return A.max_pool2d_with_indices_backward(g, x, [2, 2], [1, 1], [0, 0], [1, 1], False, places)


def _convolution(transposed: bool, groups: int, mask: list[bool], padding: int = 0) -> Callable[..., Any]:
    def call(g: Tensor, x: Tensor, w: Tensor) -> Any:
        options = ([1], [padding], [1], transposed, [0], groups, mask)
        found = A.convolution_backward(g, x, w, [g.shape[1]], *options)
        return [value for value in found if value is not None]

    return call


def _layer_norm(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Any:
    _, mean, rstd = A.native_layer_norm(x, [3], w, b, 0.1)
    return A.native_layer_norm_backward(g, x, [3], mean, rstd, w, b, [True, True, True])


CASES = (
    *(Case(f"aten::{name}_backward", _on(f"{name}_backward"), (X, X), draws=40) for name in ("tanh", "sigmoid", "gelu")),
    *(Case(f"aten::{name}_backward", _on(f"{name}_backward"), (X, X), dimension=6) for name in ("mish", "silu", "hardswish")),
    Case("aten::hardsigmoid_backward", _on("hardsigmoid_backward"), (X, X), dimension=6),
    Case("aten::elu_backward", lambda g, x: A.elu_backward(g, 1.5, 1, 1, False, x), (X, X), draws=40),
    Case("aten::softplus_backward", _on("softplus_backward", 1, 20), (X, X), draws=40),
    Case("aten::log_sigmoid_backward", lambda g, x: A.log_sigmoid_backward(g, x, A.log_sigmoid_forward(x)[1]), (X, X), draws=40),
    Case("aten::softshrink_backward", _on("softshrink_backward", 0.5), (X, X), dimension=6),
    Case("aten::hardshrink_backward", _on("hardshrink_backward", 0.5), (X, X), dimension=6),
    Case("aten::logit_backward", _on("logit_backward"), (X, X), positive=True, sizes=(0.2, 0.3, 0.5), dimension=6),
    Case("aten::threshold_backward", _on("threshold_backward", 0), (X, X), dimension=12),
    Case("aten::threshold_backward", _on("threshold_backward", 0.5), (X, X), "of .5", dimension=6),
    Case("aten::hardtanh_backward", _on("hardtanh_backward", 0.0, torch.inf), (X, X), dimension=12),
    Case("aten::hardtanh_backward", _on("hardtanh_backward", -1.0, 1.0), (X, X), "of 1", dimension=6),
    Case("aten::leaky_relu_backward", _on("leaky_relu_backward", 0.2, False), (X, X), dimension=12),
    Case("aten::native_dropout_backward", lambda g: A.native_dropout_backward(g, torch.tensor([True, False, True]), 2.0), (X,)),
    Case("aten::_prelu_kernel_backward", lambda g, x, a: A._prelu_kernel_backward(g, x, a), (X, X, (3,)), draws=40),
    Case("aten::_softmax_backward_data", lambda g, y: A._softmax_backward_data(g, y, 1, torch.float64), (X, X)),
    Case("aten::_log_softmax_backward_data", lambda g, y: A._log_softmax_backward_data(g, y, 1, torch.float64), (X, X)),
    Case("aten::slice_backward", lambda g: A.slice_backward(g, [2, 7, 3], 1, 1, 6, 2), ((2, 3, 3),)),
    Case("aten::slice_backward", lambda g: A.slice_backward(g, [2, 7], 1, 1, 4, 1).sum(1), ((2, 3),), "then summed"),
    Case("aten::select_backward", lambda g: A.select_backward(g, [2, 4, 3], 1, 2), ((2, 3),)),
    Case(
        "aten::value_selecting_reduction_backward",
        lambda g: A.value_selecting_reduction_backward(g, 1, torch.tensor([2, 0]), [2, 3], False),
        ((2,),),
    ),
    Case(
        "aten::embedding_dense_backward",
        lambda g: A.embedding_dense_backward(g, torch.tensor([[1, 0], [1, 2]]), 4, -1, False).sum(0),
        ((2, 2, 3),),
    ),
    Case("aten::convolution_backward", _convolution(False, 1, [True, True, True]), ((2, 4, 4), (2, 3, 5), (4, 3, 2))),
    Case(
        "aten::convolution_backward", _convolution(False, 1, [True, False, False]), ((2, 4, 3), (2, 2, 3), (4, 2, 1)), "pointwise"
    ),
    Case(
        "aten::convolution_backward",
        _convolution(False, 2, [True, False, True], 1),
        ((1, 4, 5), (1, 6, 5), (4, 3, 3)),
        "groups",
    ),
    Case(
        "aten::convolution_backward",
        _convolution(True, 1, [True, True, True]),
        ((1, 3, 5), (1, 2, 4), (2, 3, 2)),
        "transposed",
    ),
    Case("aten::native_layer_norm_backward", _layer_norm, (X, X, (3,), (3,)), misses=UNREAD),
    Case("aten::max_pool2d_with_indices_backward", _max_pool, ((2, 3, 3, 3),), misses=AROUND),
    _pool("avg_pool2d_backward", (2, 3, 3, 3), [2, 2], [1, 1], [0, 0], False, True, None),
    _pool("_adaptive_avg_pool2d_backward", (2, 3, 3, 3)),
    Case(
        "aten::upsample_bilinear2d_backward",
        lambda g: A.upsample_bilinear2d_backward(g, [8, 8], [2, 3, 4, 4], False),
        ((2, 3, 8, 8),),
    ),
    Case("aten::mse_loss_backward", lambda g, x, y: A.mse_loss_backward(g, x, y, 0), (X, X, X), misses="a loss of both scales"),
)
