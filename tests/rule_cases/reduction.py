"""Rows of the reduction family."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
X = (2, 3, 4)

CASES = (
    Case("aten::mean", lambda x: torch.mean(x, 1), (X,)),
    Case("aten::mean", lambda x: torch.mean(x, (0, -1), keepdim=True), (X,), "two axes, kept"),
    Case("aten::mean", torch.mean, (X,), "all"),
    Case("aten::sum", lambda x: torch.sum(x, 1), (X,)),
    Case("aten::sum", lambda x: torch.sum(x, -1, keepdim=True), (X,), "kept"),
    Case("aten::sum", torch.sum, (X,), "all"),
    Case("aten::sum", torch.sum, ((),), "scalar"),
    Case("aten::nansum", lambda x: torch.nansum(x, 1), (X,)),
    Case("aten::nanmean", lambda x: torch.nanmean(x, 1), (X,)),
    Case("aten::amax", lambda x: torch.amax(x, 1), (X,), draws=60),
    Case("aten::amax", lambda x: torch.amax(x, ()), ((2, 3),), "all", draws=80),
    Case("aten::amin", lambda x: torch.amin(x, (0, 1)), ((2, 3, 1),), draws=80),
    Case("aten::max.dim", lambda x: torch.max(x, 1), (X,), draws=60),
    Case("aten::min.dim", lambda x: torch.min(x, 0, keepdim=True), ((3, 2),), draws=60),
    Case("aten::max.default", torch.max, ((2, 3),), draws=80),
    Case("aten::min.default", torch.min, ((2, 3),), draws=80),
    Case("aten::aminmax", lambda x: torch.aminmax(x, dim=1), ((2, 3),), draws=60),
    Case("aten::aminmax", torch.aminmax, ((2, 3),), "all", draws=80),
    Case("aten::median.default", torch.median, ((5,),), draws=80),
    Case("aten::std", lambda x: torch.std(x, 1), (X,)),
    Case("aten::std", torch.std, ((2, 3),), "all"),
    Case("aten::var", lambda x: torch.var(x, 1), (X,)),
    Case("aten::var", lambda x: torch.var(x, (1, 2), correction=0, keepdim=True), (X,), "kept"),
    Case("aten::var", torch.var, ((2, 3),), "all"),
    Case("aten::var_mean", lambda x: torch.var_mean(x, 1), (X,)),
    Case("aten::std_mean", lambda x: torch.std_mean(x, 1), (X,)),
    Case("aten::norm", lambda x: A.norm.ScalarOpt_dim(x, 2, [1]), (X,)),
    Case("aten::norm", lambda x: A.norm.Scalar(x, 3), ((2, 3),), "all"),
    Case("aten::norm", lambda x: A.norm.ScalarOpt_dim(x, 0, [1]), ((2, 3),), "order 0", dimension=6),
    Case("aten::linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, 2, 1), (X,)),
    Case(
        "aten::linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True), ((2, 3),), "inf", draws=60
    ),
    Case("aten::linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, 0.5), ((2, 3),), "0.5"),
    Case("aten::frobenius_norm", lambda x: A.frobenius_norm(x, [1, 2]), (X,)),
    Case("aten::linalg_norm", lambda x: torch.linalg.norm(x, dim=1), (X,)),
    Case("aten::linalg_matrix_norm", lambda x: torch.linalg.matrix_norm(x), (X,)),
    Case("aten::renorm", lambda x: torch.renorm(x, 2, 0, 0.5), ((2, 3),)),
    Case("aten::cdist", torch.cdist, ((2, 3), (4, 3))),
    Case("aten::cdist", torch.cdist, ((5, 2, 3), (1, 4, 3)), "batches"),
    Case("aten::pdist", torch.pdist, ((3, 2),)),
    Case("aten::dist", torch.dist, ((2, 3), (2, 3))),
    Case(
        "aten::cosine_similarity",
        lambda x, y: F.cosine_similarity(x, y, 1, 0.1),
        ((2, 3), (2, 3)),
        misses="vectors longer than eps",
    ),
    Case("aten::pairwise_distance", lambda x, y: F.pairwise_distance(x, y, eps=0.1), ((2, 3), (2, 3))),
    Case("aten::trace", torch.trace, ((3, 3),), misses="entries off the diagonal are not read, but tied"),
)
