"""Rows of the homogeneous family."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
X = (2, 3, 4)
_ONE_SCALE = "both parts of a complex number carry one scale"
INF = math.inf


CASES = (
    Case("aten::alias", A.alias, (X,)),
    Case("aten::clone", torch.clone, (X,)),
    Case("aten::contiguous", lambda x: x.transpose(0, 1).contiguous(), (X,)),
    Case("aten::detach", A.detach, (X,), dimension=24),
    Case("aten::lift_fresh_copy", A.lift_fresh_copy, (X,)),
    Case("aten::positive", torch.positive, (X,)),
    Case("aten::resolve_conj", A.resolve_conj, (X,)),
    Case("aten::resolve_neg", A.resolve_neg, (X,)),
    Case("aten::dropout", lambda x: F.dropout(x, 0.5, True), (X,), draws=1),
    Case("aten::dropout", lambda x: F.dropout(x, 0.5, False), (X,), "eval"),
    Case("aten::feature_dropout", lambda x: F.dropout2d(x, 0.5, True), ((3, 4, 2, 5),), draws=1),
    Case("aten::to", lambda x: A.to.dtype(x, torch.float64), (X,), "dtype"),
    Case("aten::to", lambda x: A.to.other(x, torch.zeros(1, dtype=torch.float64)), (X,), "other"),
    Case("aten::to", lambda x: A.to.dtype(x, torch.int64), (X,), "to integers", dimension=0),
    Case("aten::to", lambda x: A.to.device(x, "cpu", torch.float64), (X,), "device"),
    Case("aten::_to_copy", lambda x: A._to_copy(x, dtype=torch.float64), (X,)),
    Case("aten::type_as", lambda x, y: x.type_as(y), (X, (2,))),
    Case("aten::relu", torch.relu, (X,)),
    Case("aten::leaky_relu", lambda x: F.leaky_relu(x, 0.2), (X,)),
    Case("aten::leaky_relu", lambda x: F.leaky_relu(x, -0.2), (X,), "negative slope"),
    Case("aten::rrelu", lambda x: F.rrelu(x, 0.1, 0.3, True), (X,)),
    Case("aten::abs", torch.abs, (X,)),
    Case("aten::neg", torch.neg, (X,)),
    Case("aten::negative", torch.negative, (X,)),
    Case("aten::real", lambda x: torch.real(x.to(torch.complex128)), (X,)),
    Case("aten::imag", lambda x, y: torch.imag(torch.complex(x, y)), (X, X), misses=_ONE_SCALE),
    Case("aten::_conj", lambda x, y: A._conj(torch.complex(x, y)), (X, X), misses=_ONE_SCALE),
    Case("aten::conj", lambda x: A.conj(x), (X,), "real"),
    Case("aten::_conj_physical", lambda x, y: A._conj_physical(torch.complex(x, y)), (X, X), misses=_ONE_SCALE),
    Case("aten::conj_physical", lambda x, y: A.conj_physical(torch.complex(x, y)), (X, X), misses=_ONE_SCALE),
    Case("aten::abs", lambda x, y: torch.abs(torch.complex(x, y)), (X, X), "complex"),
    Case("aten::prelu", F.prelu, ((2, 3, 4), (3,))),
    Case("aten::prelu", F.prelu, ((2, 3, 4), (1,)), "one slope"),
    Case("aten::_prelu_kernel", A._prelu_kernel, ((2, 3, 4), (1, 3, 1))),
    Case("aten::clamp", lambda x: torch.clamp(x, min=0), (X,), "min 0"),
    Case("aten::clamp", lambda x: torch.clamp(x, max=0), (X,), "max 0"),
    Case("aten::clamp", lambda x: torch.clamp(x, 0, INF), (X,), "0 to inf"),
    Case("aten::clamp", lambda x: torch.clamp(x, 0, 0), (X,), "0 to 0"),
    Case("aten::clamp", lambda x: torch.clamp(x, 0, 6), (X,), "0 to 6", draws=30),
    Case("aten::clamp", lambda x: torch.clamp(x, -1, 1), (X,), "-1 to 1"),
    Case("aten::clamp", lambda x: torch.clamp(x, 1, INF), (X,), "1 to inf"),
    Case("aten::clamp", lambda x, a, b: torch.clamp(x, a, b), ((2, 3), (3,), (2, 1)), "tensors", draws=60),
    Case("aten::clip", lambda x: torch.clip(x, 0), (X,)),
    Case("aten::clip", lambda x: torch.clip(x, -1, 1), (X,), "-1 to 1"),
    Case("aten::clamp_min", lambda x: torch.clamp_min(x, 0), (X,)),
    Case("aten::clamp_min", lambda x: torch.clamp_min(x, 0.7), (X,), "0.7"),
    Case("aten::clamp_min", torch.clamp_min, ((2, 3), (2, 3)), "tensor", draws=30),
    Case("aten::clamp_max", lambda x: torch.clamp_max(x, 0), (X,)),
    Case("aten::clamp_max", torch.clamp_max, ((2, 3), (2, 3)), "tensor", draws=30),
    Case("aten::clip", lambda x, y: torch.clip(x, y), ((2, 3), (2, 3)), "tensors", draws=30),
    Case("aten::clip", lambda x, y: torch.clip(x, max=y), ((2, 3), (3,)), "upper tensor", draws=30),
    Case("aten::clamp_max", lambda x: torch.clamp_max(x, 0.7), (X,), "0.7"),
    Case("aten::hardtanh", lambda x: F.hardtanh(x, 0.0, 6.0), (X,), "relu6", draws=30),
    Case("aten::hardtanh", lambda x: F.hardtanh(x), (X,), "-1 to 1"),
    Case("aten::hardtanh", lambda x: F.hardtanh(x, 0.0, INF), (X,), "0 to inf"),
    Case("aten::relu6", A.relu6, (X,), draws=30),
    Case("aten::threshold", lambda x: F.threshold(x, 0, 0), (X,)),
    Case("aten::threshold", lambda x: F.threshold(x, 0.8, 0), (X,), "0.8", dimension=0),
    Case("aten::threshold", lambda x: F.threshold(x, 0, 2), (X,), "to 2"),
    Case("aten::maximum", torch.maximum, ((2, 3, 4), (3, 1)), draws=40),
    Case("aten::maximum", lambda x: torch.maximum(x, torch.zeros((), dtype=torch.float64)), (X,), "with 0"),
    Case("aten::maximum", lambda x: torch.maximum(x, torch.ones((), dtype=torch.float64)), (X,), "with 1"),
    Case("aten::minimum", torch.minimum, ((2, 3), (2, 3)), draws=30),
    Case("aten::max.other", torch.max, ((2, 3), (3,)), draws=30),
    Case("aten::min.other", torch.min, ((2, 3), (3,)), draws=30),
    Case("aten::fmax", torch.fmax, ((2, 3), (3,)), draws=30),
    Case("aten::max.out", lambda x, y: torch.max(x, y, out=torch.empty(2, 3, dtype=x.dtype)), ((2, 3), (2, 3)), dimension=6),
    Case("aten::min.out", lambda x, y: torch.min(x, y, out=torch.empty(2, 3, dtype=x.dtype)), ((2, 3), (2, 3)), dimension=6),
    Case("aten::hypot", torch.hypot, ((2, 3), (2, 3))),
    Case("aten::fmin", torch.fmin, ((2, 3), (3,)), draws=30),
)
