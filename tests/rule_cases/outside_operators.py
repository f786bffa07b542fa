"""Rows of the operators of other libraries."""

from __future__ import annotations

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision

from .case import Case

V = torch.ops.torchvision
BOXES = torch.tensor([[0, 0.5, 0.2, 3.5, 2.9], [0, 1.0, 0.0, 4.0, 3.0]]).double()
IMAGE = (1, 2, 4, 5)
PLACES = "all positions are tied, and held boxes are the only ones that are known"

CASES = (
    Case("torchvision::roi_align", lambda x: V.roi_align(x, BOXES, 1.0, 2, 2, 2, False), (IMAGE,)),
    Case("torchvision::roi_pool", lambda x: V.roi_pool(x, BOXES, 1.0, 2, 2), (IMAGE,), draws=60, misses=PLACES),
    Case("torchvision::ps_roi_align", lambda x: V.ps_roi_align(x, BOXES, 1.0, 1, 2, 2), ((1, 4, 4, 5),), misses=PLACES),
    Case("torchvision::ps_roi_align", lambda x: V.ps_roi_align(x, BOXES, 1.0, 2, 2, 2), ((1, 4, 4, 5),), "bins", misses=PLACES),
    Case("torchvision::ps_roi_pool", lambda x: V.ps_roi_pool(x, BOXES, 1.0, 1, 2), ((1, 4, 4, 5),), misses=PLACES),
    Case(
        "torchvision::deform_conv2d",
        lambda x, w, o, m, b: V.deform_conv2d(x, w, o, m, b, 1, 1, 0, 0, 1, 1, 1, 1, True),
        ((1, 2, 3, 4), (3, 2, 2, 2), (1, 8, 2, 3), (1, 4, 2, 3), (3,)),
        sizes=(1.0, 0.5, 0.3),
    ),
)
