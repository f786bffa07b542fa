"""Rows of the structural family: what moves entries without looking at them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
X = (2, 3, 4)
IMAGE = (2, 8, 3, 5)

_CLASS_TOKEN = (
    "beside an activation that does not vary along the joined axis, a parameter takes the activation's field, "
    "so that the sequence needs no variable a position"
)

CASES = (
    Case("aten::view", lambda x: x.view(6, 4), (X,)),
    Case("aten::view", lambda x: x.view(2, 4, 3), (X,), "blocks that cross"),
    Case("aten::view", lambda x: x.view(2, 2, 2, 3, 1), ((2, 12),), "split"),
    Case("aten::reshape", lambda x: torch.reshape(x.transpose(0, 1), (6, 4)), (X,)),
    Case("aten::reshape", lambda x: torch.reshape(x, ()), ((1, 1),), "to a scalar"),
    Case("aten::_unsafe_view", lambda x: A._unsafe_view(x, [6, 4]), (X,)),
    Case("aten::flatten", lambda x: torch.flatten(x, 1), (X,)),
    Case("aten::unflatten", lambda x: torch.unflatten(x, 1, (2, 3)), ((2, 6, 5),)),
    Case("aten::squeeze", lambda x: torch.squeeze(x, 1), ((2, 1, 4),)),
    Case("aten::squeeze", lambda x: torch.squeeze(x), ((1, 3, 1, 4),), "all"),
    Case("aten::squeeze", lambda x: torch.squeeze(x, 1), ((2, 3),), "nothing to do"),
    Case("aten::unsqueeze", lambda x: torch.unsqueeze(x, -2), (X,)),
    Case("aten::view_as", lambda x, y: x.view_as(y), (X, (6, 4))),
    Case("aten::reshape_as", lambda x, y: x.reshape_as(y), (X, (6, 4))),
    Case("aten::ravel", torch.ravel, (X,)),
    Case("aten::atleast_1d", torch.atleast_1d, ((),)),
    Case("aten::atleast_2d", torch.atleast_2d, ((3,),)),
    Case("aten::atleast_3d", torch.atleast_3d, ((2, 3),)),
    Case("aten::atleast_3d", torch.atleast_3d, ((3,),), "vector"),
    Case("aten::_reshape_alias", lambda x: A._reshape_alias(x, [6, 4], [4, 1]), (X,)),
    Case("aten::permute", lambda x: torch.permute(x, (2, 0, -2)), (X,)),
    Case("aten::transpose", lambda x: torch.transpose(x, 0, -1), (X,)),
    Case("aten::swapaxes", lambda x: torch.swapaxes(x, 0, 1), (X,)),
    Case("aten::swapdims", lambda x: torch.swapdims(x, 0, 2), (X,)),
    Case("aten::t", torch.t, ((2, 3),)),
    Case("aten::t", torch.t, ((3,),), "vector"),
    Case("aten::numpy_T", lambda x: A.numpy_T(x), (X,)),
    Case("aten::mT", lambda x: x.mT, (X,)),
    Case("aten::adjoint", lambda x: x.adjoint(), (X,)),
    Case("aten::movedim", lambda x: torch.movedim(x, 0, -1), (X,)),
    Case("aten::movedim", lambda x: torch.movedim(x, (0, 1), (2, 0)), (X,), "two"),
    Case("aten::moveaxis", lambda x: torch.moveaxis(x, 2, 0), (X,)),
    Case("aten::expand", lambda x: x.expand(5, 2, 3, 4), ((2, 1, 4),)),
    Case("aten::expand", lambda x: x.expand(-1, 3, -1), ((2, 1, 4),), "-1"),
    Case("aten::expand_as", lambda x, y: x.expand_as(y), ((2, 1, 4), X)),
    Case("aten::broadcast_to", lambda x: torch.broadcast_to(x, X), ((3, 1),)),
    Case("aten::broadcast_tensors", lambda x, y: torch.broadcast_tensors(x, y), ((2, 1, 4), (3, 1))),
    Case("aten::meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="ij"), ((2,), (3,))),
    Case("aten::meshgrid", lambda x, y: torch.meshgrid(x, y, indexing="xy"), ((2,), (3,)), "xy"),
    Case("aten::repeat", lambda x: x.repeat(3, 1, 2), ((2, 4),)),
    Case("aten::repeat", lambda x: x.repeat(2, 3), ((1, 4),), "size 1"),
    Case("aten::tile", lambda x: torch.tile(x, (3,)), ((2, 4),)),
    Case("aten::tile", lambda x: torch.tile(x, (2, 3)), ((2, 4),), "both axes"),
    Case("aten::repeat_interleave.self_int", lambda x: torch.repeat_interleave(x, 2, 1), (X,)),
    Case("aten::repeat_interleave.self_int", lambda x: torch.repeat_interleave(x, 2), ((2, 3),), "flattened"),
    Case("aten::repeat_interleave.self_Tensor", lambda x: torch.repeat_interleave(x, torch.tensor([2, 0, 1]), -2), (X,)),
    Case("aten::repeat_interleave.self_Tensor", lambda x: torch.repeat_interleave(x, torch.tensor([2])), ((2, 3),), "flattened"),
    Case(
        "aten::repeat_interleave.self_Tensor",
        lambda x, y: torch.repeat_interleave(x, y.argsort(), 0),
        ((3, 2), (3,)),
        "numbers from the run",
        dimension=3,
    ),
    Case("aten::repeat_interleave.Tensor", lambda x: torch.repeat_interleave((x > 0).long()), ((3,),), dimension=3),
    Case("aten::cat", lambda x, y: torch.cat([x, y], 1), ((2, 3), (2, 4)), misses=_CLASS_TOKEN),
    Case(
        "aten::cat",
        lambda x, y: torch.cat([x, torch.zeros(2, 2, dtype=x.dtype), y], 1),
        ((2, 3), (2, 4)),
        "zeros",
        misses=_CLASS_TOKEN,
    ),
    Case(
        "aten::cat",
        lambda x, y: torch.cat([x, torch.ones(2, 2, dtype=x.dtype), y], 1),
        ((2, 3), (2, 4)),
        "ones",
        misses=_CLASS_TOKEN,
    ),
    Case("aten::concat", lambda x, y: torch.concat([x, y], 0), ((2, 3), (4, 3)), misses=_CLASS_TOKEN),
    Case("aten::concatenate", lambda x, y: torch.concatenate([x, y], -1), ((2, 3), (2, 4)), misses=_CLASS_TOKEN),
    Case("aten::cat", lambda x: torch.cat([x, torch.zeros_like(x)], 1).sum(1), ((2, 3, 2),), "zeros, then summed"),
    Case("aten::stack", lambda x: torch.stack([x, torch.zeros_like(x)]).sum(0), ((2, 3),), "zeros, then summed"),
    Case("aten::stack", lambda x, y: torch.stack([x, y], 1), ((2, 3), (2, 3))),
    Case("aten::stack", lambda x: torch.stack([x, torch.zeros_like(x)], -1), ((2, 3),), "zeros"),
    Case("aten::hstack", lambda x, y: torch.hstack([x, y]), ((2, 3), (2, 4)), misses=_CLASS_TOKEN),
    Case("aten::hstack", lambda x, y: torch.hstack([x, y]), ((3,), (4,)), "vectors"),
    Case("aten::vstack", lambda x, y: torch.vstack([x, y]), ((2, 3), (4, 3)), misses=_CLASS_TOKEN),
    Case("aten::vstack", lambda x, y: torch.vstack([x, y]), ((3,), (3,)), "vectors"),
    Case("aten::flip", lambda x: torch.flip(x, (0, -1)), (X,)),
    Case("aten::fliplr", torch.fliplr, (X,)),
    Case("aten::flipud", torch.flipud, (X,)),
    Case("aten::roll", lambda x: torch.roll(x, (1, -1), (1, 2)), (X,)),
    Case("aten::roll", lambda x: torch.roll(x, 5), ((2, 3),), "flattened"),
    Case("aten::rot90", lambda x: torch.rot90(x, 1, (0, 1)), (X,)),
    Case("aten::pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (IMAGE,)),
    Case("aten::pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), ((2, 3, 4, 6),)),
    Case("aten::channel_shuffle", lambda x: F.channel_shuffle(x, 2), ((2, 6, 3, 1),)),
    Case("aten::native_channel_shuffle", lambda x: F.native_channel_shuffle(x, 2), ((2, 6, 3, 1),), dimension=36),
    *(
        Case(f"aten::atleast_{n}d", lambda x, y, n=n: getattr(A, f"atleast_{n}d").Sequence([x, y]), ((3,), (2, 3)), "list")
        for n in (1, 2, 3)
    ),
    Case("aten::squeeze", lambda x: torch.squeeze(x, (0, 2)), ((1, 3, 1),), "two axes"),
    Case("aten::view", lambda x: x.view(torch.int64), (X,), "bits", dimension=0),
    Case("aten::tril", torch.tril, ((3, 4),)),
    Case("aten::triu", lambda x: torch.triu(x, 1), ((3, 4),)),
    Case("aten::diagonal", lambda x: torch.diagonal(x, 1, 0, 2), ((3, 2, 4),)),
    Case("aten::diag_embed", lambda x: torch.diag_embed(x), ((2, 3),)),
)
