"""Rows of pooling, interpolation and sampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .case import Case

A = torch.ops.aten
LINE, IMAGE, VOLUME = (2, 3, 6), (2, 3, 4, 6), (1, 2, 2, 4, 2)
TILED = "all positions are tied, also those that no window or weighted mean joins"

CASES = (
    Case("aten::max_pool1d", lambda x: F.max_pool1d(x, 3, 1), (LINE,), draws=100),
    Case("aten::max_pool1d", lambda x: F.max_pool1d(x, 3, 1), ((3, 6),), "no batch", draws=100),
    Case("aten::max_pool2d", lambda x: F.max_pool2d(x, (2, 3), 1), ((1, 2, 3, 4),), draws=150),
    Case("aten::max_pool2d", lambda x: F.max_pool2d(x, 3, 2, padding=1), ((1, 2, 3, 5),), "padded", draws=200),
    Case("aten::max_pool2d", lambda x: F.max_pool2d(x, 2), ((1, 2, 2, 4),), "side by side", draws=60),
    Case("aten::max_pool3d", lambda x: F.max_pool3d(x, (2, 2, 1), 1), ((1, 2, 3, 3, 1),), draws=100),
    Case("aten::max_pool1d", lambda x: F.max_pool1d(x, 2, 2, dilation=2), (LINE,), "dilated", draws=100),
    Case("aten::max_pool2d", lambda x: F.max_pool2d(x, 2, 1, dilation=(2, 1)), ((1, 2, 4, 3),), "dilated", draws=150),
    Case("aten::max_pool3d", lambda x: F.max_pool3d(x, (1, 2, 2), 1, 0, (1, 1, 2)), ((1, 1, 2, 3, 4),), "dilated", draws=150),
    Case("aten::max_pool1d_with_indices", lambda x: A.max_pool1d_with_indices(x, [3], [1]), (LINE,), draws=100),
    Case("aten::max_pool2d_with_indices", lambda x: A.max_pool2d_with_indices(x, [2, 2], [1, 1]), ((1, 2, 3, 3),), draws=100),
    Case(
        "aten::max_pool3d_with_indices",
        lambda x: A.max_pool3d_with_indices(x, [2, 2, 1], [1, 1, 1]),
        ((1, 2, 3, 3, 1),),
        draws=100,
    ),
    Case("aten::avg_pool1d", lambda x: F.avg_pool1d(x, 3, 1), (LINE,)),
    Case("aten::avg_pool2d", lambda x: F.avg_pool2d(x, 2, 1), (IMAGE,)),
    Case("aten::avg_pool2d", lambda x: F.avg_pool2d(x, 2, 1, padding=1), (IMAGE,), "padded"),
    Case("aten::avg_pool2d", lambda x: F.avg_pool2d(x, 2, 1), ((3, 4, 6),), "no batch"),
    Case("aten::avg_pool2d", lambda x: F.avg_pool2d(x, 2), (IMAGE,), "side by side"),
    Case("aten::avg_pool3d", lambda x: F.avg_pool3d(x, (2, 3, 1), 1), ((1, 2, 3, 4, 1),)),
    Case("aten::adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 1), (LINE,)),
    Case("aten::adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 4), (LINE,), "4 of 6"),
    Case("aten::adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), (IMAGE,)),
    Case("aten::adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), ((3, 4, 5),), "no batch"),
    Case("aten::adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 1), (VOLUME,)),
    Case("aten::adaptive_max_pool1d", lambda x: A.adaptive_max_pool1d(x, [1]), (LINE,), draws=100),
    Case("aten::adaptive_max_pool2d", lambda x: A.adaptive_max_pool2d(x, [1, 1]), ((1, 2, 2, 3),), draws=100),
    Case("aten::adaptive_max_pool3d", lambda x: A.adaptive_max_pool3d(x, [1, 1, 1]), ((1, 2, 2, 3, 1),), draws=100),
    Case("aten::fractional_max_pool2d", lambda x: F.fractional_max_pool2d(x, 2, (2, 2)), ((1, 2, 3, 3),), draws=60),
    Case("aten::fractional_max_pool3d", lambda x: F.fractional_max_pool3d(x, 2, 2), ((1, 1, 4, 4, 4),), draws=100, misses=TILED),
    Case("aten::upsample_nearest1d", lambda x: A.upsample_nearest1d(x, [9]), ((2, 3, 4),), misses=TILED),
    Case("aten::upsample_nearest2d", lambda x: F.interpolate(x, scale_factor=2), ((1, 2, 3, 4),), misses=TILED),
    Case("aten::upsample_nearest3d", lambda x: F.interpolate(x, scale_factor=2), ((1, 2, 2, 3, 1),), misses=TILED),
    Case(
        "aten::_upsample_nearest_exact1d",
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        ((2, 3, 4),),
        misses=TILED,
    ),
    Case(
        "aten::_upsample_nearest_exact2d",
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        ((1, 2, 3, 4),),
        misses=TILED,
    ),
    Case(
        "aten::_upsample_nearest_exact3d",
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        ((1, 2, 2, 3, 1),),
        misses=TILED,
    ),
    Case("aten::upsample_linear1d", lambda x: F.interpolate(x, scale_factor=2, mode="linear"), ((2, 3, 4),)),
    Case("aten::upsample_bilinear2d", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), ((1, 2, 3, 4),)),
    Case(
        "aten::upsample_bilinear2d",
        lambda x: F.interpolate(x, (7, 5), mode="bilinear", align_corners=True),
        ((1, 2, 3, 4),),
        "corners",
    ),
    Case("aten::upsample_bicubic2d", lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), ((1, 2, 3, 4),)),
    Case("aten::upsample_trilinear3d", lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), ((1, 2, 2, 3, 2),)),
    Case(
        "aten::_upsample_bilinear2d_aa",
        lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True),
        ((1, 2, 4, 5),),
    ),
    Case(
        "aten::_upsample_bicubic2d_aa",
        lambda x: F.interpolate(x, (2, 3), mode="bicubic", antialias=True),
        ((1, 2, 4, 5),),
    ),
    Case(
        "aten::grid_sampler",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        ((1, 2, 3, 4), (1, 5, 3, 2)),
    ),
    Case("aten::grid_sampler_2d", lambda x, g: A.grid_sampler_2d(x, g, 0, 0, False), ((1, 2, 3, 4), (1, 5, 3, 2))),
    Case("aten::grid_sampler_3d", lambda x, g: A.grid_sampler_3d(x, g, 0, 0, False), ((1, 2, 3, 2, 2), (1, 2, 3, 2, 3))),
)
