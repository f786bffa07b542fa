"""Rows of the contraction family."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
_RAMP = "a factor exp(t position) on the activation, which exp(-t tap) on the kernel undoes, where no bias is added"
_ROWS = "the rows of the table carry one field, also where it is known which of them are read"
GRAPH = torch.tensor([[0, 2.0, 0, 1], [0, 0, 3, 1], [1, 1, 0, 0], [0, 0, 1, 2]], dtype=torch.float64)
INDEX = torch.tensor([[1, 0, 3, 1], [2, 2, 0, 3]])


def _pack(sizes: tuple[int, ...], *letters: str) -> tuple[tuple[int, ...], ...]:
    """Shapes from einsum letters."""
    named = dict(zip("bijkl", sizes, strict=False))
    return tuple(tuple(named[x] for x in word) for word in letters)


CASES = (
    Case("aten::linear", F.linear, ((2, 3, 5), (4, 5), (4,))),
    Case("aten::linear", F.linear, ((3, 5), (4, 5)), "no bias"),
    Case("aten::linear", F.linear, ((5,), (4, 5), (4,)), "vector"),
    Case("aten::linear", F.linear, ((3, 5), (5,)), "weight vector"),
    Case("aten::linear", lambda x, w: F.linear(x, w, torch.ones(4, dtype=x.dtype)), ((3, 5), (4, 5)), "constant bias"),
    Case("aten::linear", lambda x, w: F.linear(x, w) + F.linear(x, w.flip(0)), ((3, 5), (4, 5)), "used twice"),
    Case("aten::mm", torch.mm, ((2, 3), (3, 4))),
    Case("aten::bmm", torch.bmm, ((5, 2, 3), (5, 3, 4))),
    Case("aten::matmul", torch.matmul, ((2, 3), (3, 4))),
    Case("aten::matmul", torch.matmul, ((5, 1, 2, 3), (4, 3, 2)), "broadcast batches"),
    Case("aten::matmul", torch.matmul, ((2, 3), (5, 3, 4)), "first has no batch"),
    Case("aten::matmul", torch.matmul, ((5, 2, 3), (3, 4)), "second has no batch"),
    Case("aten::matmul", torch.matmul, ((3,), (5, 3, 4)), "vector first"),
    Case("aten::matmul", torch.matmul, ((5, 2, 3), (3,)), "vector second"),
    Case("aten::matmul", torch.matmul, ((3,), (3,)), "vectors"),
    Case("aten::matmul", lambda x: x @ x.t(), ((2, 3),), "with itself"),
    Case("aten::mv", torch.mv, ((2, 3), (3,))),
    Case("aten::dot", torch.dot, ((3,), (3,))),
    Case("aten::vdot", torch.vdot, ((3,), (3,))),
    Case("aten::inner", torch.inner, ((2, 3), (4, 3))),
    Case("aten::addmm", torch.addmm, ((4,), (2, 3), (3, 4))),
    Case("aten::addmm", lambda c, a, b: torch.addmm(c, a, b, beta=0, alpha=2), ((2, 4), (2, 3), (3, 4)), "beta 0"),
    Case(
        "aten::addmm",
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=0),
        ((2, 4), (2, 3), (3, 4)),
        "alpha 0",
        misses="a product times 0 is not seen to be 0",
    ),
    Case("aten::baddbmm", torch.baddbmm, ((5, 2, 4), (5, 2, 3), (5, 3, 4))),
    Case("aten::baddbmm", torch.baddbmm, ((5, 1, 4), (5, 2, 3), (5, 3, 4)), "broadcast"),
    Case("aten::addmv", torch.addmv, ((2,), (2, 3), (3,))),
    Case("aten::addr", torch.addr, ((2, 3), (2,), (3,))),
    Case("aten::addbmm", torch.addbmm, ((2, 4), (5, 2, 3), (5, 3, 4))),
    Case("aten::outer", torch.outer, ((3,), (4,))),
    Case("aten::ger", torch.ger, ((3,), (4,))),
    Case("aten::kron", torch.kron, ((2, 3), (4, 1))),
    Case("aten::tensordot", lambda a, b: torch.tensordot(a, b, ([1], [0])), ((2, 3), (3, 4))),
    Case("aten::einsum", lambda a, b: torch.einsum("bij,bkj->bik", a, b), _pack((2, 3, 4, 5), "bij", "bkj")),
    Case("aten::einsum", lambda a, b: torch.einsum("ij, kj -> ki", a, b), _pack((2, 3, 4, 5), "ij", "kj"), "spaces"),
    Case("aten::einsum", lambda a, b: torch.einsum("bij,j->bi", a, b), _pack((2, 3, 4, 5), "bij", "j"), "vector"),
    Case("aten::einsum", lambda a, b: torch.einsum("bi,bj->bij", a, b), _pack((2, 3, 4), "bi", "bj"), "outer"),
    Case("aten::einsum", lambda a: torch.einsum("bij->jb", a), _pack((2, 3, 4), "bij"), "one operand"),
    Case("aten::einsum", lambda a, b: torch.einsum("ij,jk", a, b), _pack((2, 3, 4, 5), "ij", "jk"), "implicit output"),
    Case("aten::einsum", lambda a, b: torch.einsum("...i,...i->...", a, b), ((2, 4, 3), (4, 3)), "ellipsis"),
    Case("aten::einsum", lambda a, b: torch.einsum("i...,ij->...j", a, b), ((3, 2, 4), (3, 5)), "ellipsis at the end"),
    Case("aten::einsum", lambda a: torch.einsum("ii->i", a), ((3, 3),), "diagonal"),
    Case("aten::einsum", lambda a, b: torch.einsum("iij,j->i", a, b), ((3, 3, 2), (2,)), "diagonal and sum"),
    Case("aten::einsum", lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), ((2, 3), (3, 4), (4, 5)), "three operands"),
    Case("aten::einsum", lambda a, b, c: torch.einsum("bi,bj,ij->b", a, b, c), ((2, 3), (2, 4), (3, 4)), "bilinear form"),
    Case("aten::bilinear", F.bilinear, ((2, 3), (2, 4), (5, 3, 4), (5,))),
    Case("aten::embedding", lambda w: F.embedding(INDEX, w), ((4, 3),), misses=_ROWS),
    Case("aten::embedding", lambda w: F.embedding(torch.tensor([1, 2]), w), ((4, 3),), "rows never read", misses=_ROWS),
    Case("aten::embedding", lambda w: F.embedding(INDEX, w, padding_idx=0), ((4, 3),), "padding", misses=_ROWS),
    Case("aten::embedding_bag", lambda w: F.embedding_bag(INDEX, w, mode="sum"), ((4, 3),)),
    Case(
        "aten::embedding_bag",
        lambda w: F.embedding_bag(INDEX, w, mode="mean", padding_idx=0),
        ((4, 3),),
        "mean, padding",
        misses=_ROWS,
    ),
    Case("aten::embedding_bag", lambda w: F.embedding_bag(INDEX, w, mode="max"), ((4, 3),), "maximum", draws=40),
    Case(
        "aten::embedding_bag",
        lambda w: F.embedding_bag(torch.tensor([1, 0, 3, 3, 2]), w, torch.tensor([0, 2, 2]), mode="sum"),
        ((4, 3),),
        "offsets, an empty bag",
        misses=_ROWS,
    ),
    Case(
        "aten::embedding_bag",
        lambda w, s: F.embedding_bag(INDEX, w, mode="sum", per_sample_weights=s),
        ((4, 3), (2, 4)),
        "weights of samples",
        misses=_ROWS,
    ),
    Case(
        "aten::_embedding_bag",
        lambda w: A._embedding_bag(w, INDEX.reshape(-1), torch.tensor([0, 4]), False, 1)[0],
        ((4, 3),),
    ),
    Case(
        "aten::_embedding_bag_forward_only",
        lambda w: A._embedding_bag_forward_only(w, INDEX.reshape(-1), torch.tensor([0, 4]), False, 0)[0],
        ((4, 3),),
        dimension=3,
    ),
    Case("aten::conv1d", F.conv1d, ((2, 3, 7), (4, 3, 2), (4,))),
    Case("aten::conv1d", F.conv1d, ((3, 7), (4, 3, 2), (4,)), "no batch"),
    Case("aten::conv1d", lambda x, w: F.conv1d(x, w), ((2, 3, 5), (4, 3, 1)), "pointwise"),
    Case(
        "aten::conv1d",
        lambda x, w, b: F.conv1d(x, w, b, padding=2, dilation=2),
        ((1, 2, 5), (3, 2, 3), (3,)),
        "dilated and padded",
    ),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b, padding=1), ((2, 3, 4, 5), (6, 3, 3, 2), (6,))),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b, groups=2), ((1, 4, 3, 2), (6, 2, 2, 1), (6,)), "groups"),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b, groups=3), ((2, 3, 3, 4), (3, 1, 2, 2), (3,)), "depthwise"),
    Case(
        "aten::conv2d",
        lambda x, w: F.conv2d(x, w, groups=3),
        ((1, 3, 3, 4), (6, 1, 2, 2)),
        "depthwise, twice the channels",
        misses=_RAMP,
    ),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 2, 4), (5, 3, 1, 1), (5,)), "pointwise"),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 4, 5), (3, 3, 2, 2), (3,)), "as many outputs as inputs"),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b, padding="same"), ((1, 2, 4, 5), (3, 2, 3, 3), (3,)), "same"),
    Case("aten::conv2d", lambda x, w: F.conv2d(x, w, padding="same"), ((1, 2, 3, 2), (3, 2, 1, 1)), "same, pointwise"),
    Case("aten::conv2d", lambda x, w, b: F.conv2d(x, w, b, padding="valid"), ((1, 2, 4, 5), (3, 2, 2, 3), (3,)), "valid"),
    Case(
        "aten::conv2d",
        lambda x, w: F.conv2d(x, w, stride=2),
        ((1, 2, 4, 6), (3, 2, 2, 2)),
        "windows side by side",
        misses="the positions that one window sees are tied to those of the others",
    ),
    Case(
        "aten::conv2d",
        lambda x, w: F.conv2d(x, w, stride=2),
        ((1, 2, 5, 3), (3, 2, 1, 1)),
        "pointwise, strided",
        misses="positions are tied",
    ),
    Case("aten::conv3d", F.conv3d, ((1, 2, 3, 3, 2), (3, 2, 2, 2, 1), (3,))),
    Case("aten::conv_transpose1d", F.conv_transpose1d, ((2, 3, 4), (3, 5, 2), (5,))),
    Case("aten::conv_transpose1d", F.conv_transpose1d, ((3, 4), (3, 5, 2), (5,)), "no batch"),
    Case("aten::conv_transpose2d", lambda x, w, b: F.conv_transpose2d(x, w, b, padding=1), ((2, 3, 3, 4), (3, 4, 3, 2), (4,))),
    Case(
        "aten::conv_transpose2d",
        lambda x, w, b: F.conv_transpose2d(x, w, b, groups=2),
        ((1, 4, 2, 3), (4, 3, 2, 2), (6,)),
        "groups",
    ),
    Case(
        "aten::conv_transpose2d",
        lambda x, w: F.conv_transpose2d(x, w, groups=3),
        ((1, 3, 2, 3), (3, 1, 2, 2)),
        "depthwise",
        misses=_RAMP,
    ),
    Case(
        "aten::conv_transpose2d",
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        ((1, 3, 2, 3), (3, 4, 2, 2)),
        "windows side by side",
        misses="positions and taps are tied",
    ),
    Case(
        "aten::conv_transpose1d",
        lambda x, w, b: F.conv_transpose1d(x, w, b, output_padding=1, dilation=2),
        ((2, 3, 4), (3, 5, 1), (5,)),
        "one tap, output padded",
    ),
    Case("aten::conv_transpose3d", F.conv_transpose3d, ((1, 2, 2, 3, 2), (2, 3, 2, 2, 1), (3,))),
    Case("aten::convolution", lambda x, w, b: A.convolution(x, w, b, [1], [1], [1], False, [0], 1), ((2, 3, 5), (4, 3, 3), (4,))),
    Case(
        "aten::convolution",
        lambda x, w: A.convolution(x, w, None, [1], [0], [1], True, [0], 1),
        ((2, 3, 4), (3, 4, 2)),
        "transposed",
        misses=_RAMP,
    ),
    Case(
        "aten::_convolution",
        lambda x, w, b: A._convolution(x, w, b, [1], [1], [1], False, [0], 1, False, False, False, False),
        ((2, 3, 5), (4, 3, 3), (4,)),
    ),
    Case("aten::matmul", lambda x: GRAPH.to_sparse() @ x, ((4,),), "sparse and vector"),
)
