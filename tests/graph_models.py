"""Small models of torch_geometric, on one graph of 24 nodes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fxenorm.symmetry import Symmetry

__all__ = ["JUMPS", "MODELS", "NODES", "build", "claimed_and_true", "inputs"]

FEATURES, WIDTH, CLASSES, NODES = 5, 8, 3, 24

JUMPS = {"pna-std": "a standard deviation below sqrt(1e-5) becomes 0, which a derivative does not see"}


class _Layers(nn.Module):
    """Layers of one class with ReLU between them."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.first, self.last = kind(FEATURES, WIDTH, **options), kind(WIDTH, CLASSES, **options)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.first(x, edge_index).relu(), edge_index)


class _Pooled(nn.Module):
    """One answer for the whole graph."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(CLASSES, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        return self.head(global_mean_pool(self.body(x, edge_index), None).relu())


def _library() -> Any:
    """torch_geometric's layers; it warns about torch.jit as it is imported.

    Raises:
        ImportError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_geometric.nn as library
    return library


def _edges() -> Tensor:
    """(2, E) every node sends to three others, or two where one of them is itself."""
    generator = torch.Generator().manual_seed(7)
    source = torch.arange(3 * NODES, dtype=torch.int64) % NODES
    target = torch.randint(NODES, (3 * NODES,), generator=generator)
    return torch.stack([source, target])[:, source != target]


def _pna(*aggregators: str) -> Callable[[Any], nn.Module]:
    """A net of principal neighbourhood aggregation."""
    degrees = torch.bincount(torch.bincount(_edges()[1], minlength=NODES))
    options = {"aggregators": list(aggregators), "scalers": ["identity", "amplification", "attenuation"], "deg": degrees}
    return lambda library: library.PNA(FEATURES, WIDTH, 2, CLASSES, **options)


MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "gcn": lambda library: library.GCN(FEATURES, WIDTH, 2, CLASSES, dropout=0.5),
    "gcn-norm": lambda library: library.GCN(FEATURES, WIDTH, 2, CLASSES, norm="BatchNorm", jk="cat"),
    "gcn-pooled": lambda library: _Pooled(library.GCN(FEATURES, WIDTH, 2, CLASSES)),
    "gat": lambda library: library.GAT(FEATURES, WIDTH, 2, CLASSES),
    "gat-heads": lambda library: library.GAT(FEATURES, WIDTH, 2, CLASSES, heads=2),
    "gatv2": lambda library: library.GAT(FEATURES, WIDTH, 2, CLASSES, v2=True),
    "sage": lambda library: library.GraphSAGE(FEATURES, WIDTH, 2, CLASSES),
    "sage-max": lambda library: library.GraphSAGE(FEATURES, WIDTH, 2, CLASSES, aggr="max", project=True),
    "gin": lambda library: library.GIN(FEATURES, WIDTH, 2, CLASSES, train_eps=True),
    "pna": _pna("mean", "min", "max", "sum"),
    "pna-var": _pna("mean", "var"),
    "pna-std": _pna("mean", "std"),
    "edge-cnn": lambda library: library.EdgeCNN(FEATURES, WIDTH, 2, CLASSES),
    "res-gated": lambda library: _Layers(library.ResGatedGraphConv),
}
"""By name, what makes it from the library."""


def build(name: str) -> nn.Module:
    """A model in eval mode with seeded weights."""
    library = _library()
    torch.manual_seed(0)
    return MODELS[name](library).eval()


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features, and the edges, the same for all seeds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NODES, FEATURES, generator=generator, dtype=torch.float64), _edges()


def claimed_and_true(name: str, symmetry: Symmetry) -> tuple[int, int]:
    """The dimension of the group that was found, and of the true one as measured from the outputs in both modes."""
    from .completeness_harness import Found, claimed_dimension, measure

    measurement = measure(lambda: build(name), inputs)
    return claimed_dimension(Found(build(name), symmetry), measurement.live), measurement.dimension
