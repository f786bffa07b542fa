"""Rows of the operators that obey no law."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision

from .case import Case

A = torch.ops.aten
X = (2, 3)
LOSS = "a loss of both scales would pass"
JUMPS = ("floor", "ceil", "round", "trunc")

CASES = (
    *(
        Case(f"aten::{name}", getattr(F, name, None) or getattr(torch, name), (X,))
        for name in ("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "hardswish", "hardsigmoid")
    ),
    *(
        Case(f"aten::{name}", getattr(torch, name), (X,))
        for name in ("sigmoid", "tanh", "exp", "expm1", "exp2", "sin", "cos", "tan")
    ),
    *(Case(f"aten::{name}", getattr(torch, name), (X,)) for name in ("sinh", "cosh", "atan", "erf", "erfc", "frac")),
    *(Case(f"aten::{name}", getattr(torch, name), (X,), positive=True) for name in ("log", "log2", "log10", "log1p")),
    *(Case(f"aten::{name}", getattr(torch, name), (X,), dimension=0) for name in ("asin", "acos", "logit", *JUMPS)),
    *(Case(f"aten::{name}", getattr(torch, name), (X,)) for name in ("asinh", "sinc", "lgamma", "digamma", "i0")),
    *(Case(f"aten::{name}", getattr(torch, name), (X,), dimension=0) for name in ("acosh", "atanh", "erfinv")),
    Case("aten::special_expit", torch.special.expit, (X,)),
    Case("aten::log_sigmoid", F.logsigmoid, (X,)),
    Case("aten::hardshrink", F.hardshrink, (X,), dimension=0),
    Case("aten::softshrink", F.softshrink, (X,), draws=40),
    Case("aten::glu", lambda x: F.glu(x, 1), ((2, 6),)),
    Case("aten::alpha_dropout", lambda x: F.alpha_dropout(x, 0.5, True), (X,), dimension=0),
    Case("aten::feature_alpha_dropout", lambda x: A.feature_alpha_dropout(x, 0.5, True), ((2, 3, 2),), dimension=0),
    Case("aten::softmax", lambda x: F.softmax(x, 1), (X,)),
    Case("aten::log_softmax", lambda x: F.log_softmax(x, 1), (X,)),
    Case("aten::_softmax", lambda x: A._softmax(x, 1, False), (X,)),
    Case("aten::_log_softmax", lambda x: A._log_softmax(x, 1, False), (X,)),
    Case("aten::_safe_softmax", lambda x: A._safe_softmax(x, 1), (X,)),
    Case("aten::logsumexp", lambda x: torch.logsumexp(x, 1), (X,)),
    Case("aten::logcumsumexp", lambda x: torch.logcumsumexp(x, 1), (X,)),
    Case("aten::nan_to_num", lambda x: torch.nan_to_num(x), (X,), misses="activations without infinities would pass"),
    Case("aten::mse_loss", F.mse_loss, (X, X), misses=LOSS),
    Case("aten::l1_loss", F.l1_loss, (X, X), misses=LOSS),
    Case("aten::smooth_l1_loss", F.smooth_l1_loss, (X, X)),
    Case("aten::cross_entropy_loss", lambda x: F.cross_entropy(x, torch.tensor([0, 2])), (X,)),
    Case("aten::nll_loss", lambda x: A.nll_loss(x, torch.tensor([0, 2])), (X,), misses=LOSS),
    Case("aten::nll_loss_nd", lambda x: A.nll_loss_nd(x, torch.tensor([0, 2])), (X,), misses=LOSS),
    Case("aten::huber_loss", F.huber_loss, (X, X)),
    Case("aten::kl_div", lambda x, y: A.kl_div(x, y), (X, X), positive=True),
    Case("aten::binary_cross_entropy", lambda x, y: F.binary_cross_entropy(x / 100, y / 100), (X, X), positive=True),
    Case("aten::binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits, (X, X)),
    Case("aten::bucketize", lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 2.0]).double()), (X,), dimension=0),
    Case("aten::searchsorted", lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 2.0]).double(), x), (X,), dimension=0),
    Case("aten::histc", lambda x: torch.histc(x, 4, -5.0, 5.0), (X,), dimension=0),
    Case(
        "torchvision::nms",
        lambda x, s: torch.ops.torchvision.nms(x, s, 0.5),
        ((4, 4), (4,)),
        dimension=2,
        misses="the order of the scores is held",
    ),
)
