"""Models with several inputs are analysed without example inputs, and parts that the guess does not reach are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import ExampleInputsError


class Made(nn.Module):
    """Layers by name."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class GraphLayer(nn.Module):
    """Sums messages; its own arguments have other names than the model's."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(width, out), nn.Linear(width, out)

    def forward(self, nodes: Tensor, links: Tensor, weight: Tensor | None = None) -> Tensor:
        source, target = links
        messages = self.other(nodes)[source] if weight is None else self.other(nodes)[source] * weight[:, None]
        return self.own(nodes).index_add(0, target, messages)


class Graph(Made):
    def __init__(self) -> None:
        super().__init__(first=GraphLayer(5, 8), last=GraphLayer(8, 3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.first(x, edge_index).relu(), edge_index)


class WeightedGraph(Graph):
    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        return self.last(self.first(x, edge_index, edge_weight).relu(), edge_index, weight=edge_weight)


class Pooled(Graph):
    """One answer a graph."""

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.first(x, edge_index).relu()
        h = self.last(h, edge_index)
        return torch.zeros(int(batch.numel()), 3, device=x.device, dtype=x.dtype).index_add(0, batch, h)


class EdgeFeatures(Made):
    """Atoms and bonds by number, and vectors along the bonds."""

    def __init__(self) -> None:
        super().__init__(atom=nn.Embedding(9, 8), bond=nn.Linear(4, 8), out=nn.Linear(8, 2))

    def forward(self, z: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        h = self.atom(z)
        row, col = edge_index[0], edge_index[1]
        return self.out(torch.zeros_like(h).index_add(0, col, (h[row] * self.bond(edge_attr)).relu()))


class Ends(Made):
    """Edges in two vectors."""

    def __init__(self) -> None:
        super().__init__(a=nn.Linear(5, 8), o=nn.Linear(8, 2))

    def forward(self, feats: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        h = self.a(feats).relu()
        return self.o(torch.zeros_like(h).index_add(0, dst, h[src]))


class UnnamedEdges(Made):
    """What is an index is seen from its use alone."""

    def __init__(self) -> None:
        super().__init__(a=nn.Linear(5, 8), o=nn.Linear(8, 2))

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        h = self.a(p).relu()
        return self.o(h + h[q[0]].new_zeros(h.shape).index_add(0, q[1], h[q[0]]))


class Dense(Made):
    """A matrix of neighbours."""

    def __init__(self) -> None:
        super().__init__(a=nn.Linear(5, 8), o=nn.Linear(8, 2))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return self.o(adj @ self.a(adj @ x).relu())


class Diffusion(Made):
    """An image and the time step, as sines."""

    def __init__(self) -> None:
        super().__init__(
            into=nn.Conv2d(3, 8, 3, padding=1), time=nn.Linear(16, 8), down=nn.Conv2d(8, 8, 3, 2, 1), out=nn.Conv2d(8, 3, 1)
        )

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        steps = torch.exp(-torch.arange(8, device=timestep.device, dtype=sample.dtype))
        angles = timestep[:, None].to(sample.dtype) * steps
        h = self.into(sample) + self.time(torch.cat([angles.sin(), angles.cos()], -1))[:, :, None, None]
        return self.out(self.down(h.relu()).relu())


class Conditioned(Made):
    """With a class and a sequence of vectors."""

    def __init__(self) -> None:
        super().__init__(
            into=nn.Conv2d(3, 8, 3, padding=1), kind=nn.Embedding(4, 8), context=nn.Linear(7, 8), out=nn.Conv2d(8, 3, 1)
        )

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor, context: Tensor) -> Tensor:
        more = self.kind(class_labels) + self.context(context).mean(1)
        return self.out((self.into(x) + more[:, :, None, None] * t.reshape(-1, 1, 1, 1).cos().square()).relu())


class LearnedTime(Made):
    """The time step is the number of a row."""

    def __init__(self) -> None:
        super().__init__(into=nn.Linear(6, 8), steps=nn.Embedding(10, 8), out=nn.Linear(8, 6))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out((self.into(x) + self.steps(t)).relu())


class Towers(Made):
    """A picture and a sentence."""

    def __init__(self) -> None:
        super().__init__(
            visual=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)),
            words=nn.Embedding(11, 8),
            text=nn.Linear(8, 6),
        )

    def encode(self, sentence: Tensor) -> Tensor:
        return self.text(self.words(sentence).mean(1))

    def forward(self, image: Tensor, caption: Tensor) -> Tensor:
        return self.visual(image) @ self.encode(caption).T


class OptionalTowers(Towers):
    """Each may be left out."""

    def forward(self, image: Tensor | None = None, caption: Tensor | None = None) -> list[Tensor]:
        found = [self.visual(image)] if image is not None else []
        return found + ([self.encode(caption)] if caption is not None else [])


class NeedsBoth(Towers):
    """Optional by signature alone."""

    def forward(self, image: Tensor | None = None, caption: Tensor | None = None) -> Tensor:
        if image is None or caption is None:
            raise ValueError("both, please")
        return self.visual(image) @ self.encode(caption).T


class VectorTowers(Made):
    """Users and things, of other widths, and what they have in common."""

    def __init__(self) -> None:
        super().__init__(user=nn.Linear(5, 8), thing=nn.Linear(7, 8), both=nn.Linear(8, 1))

    def forward(self, user_features: Tensor, item_features: Tensor) -> Tensor:
        return self.both(self.user(user_features).relu() * self.thing(item_features).relu())


class Factors(Made):
    """Two tables of unequal length."""

    def __init__(self) -> None:
        super().__init__(users=nn.Embedding(20, 8), items=nn.Embedding(5, 8), out=nn.Linear(8, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.out(self.users(user) * self.items(item))


class IdsAndMask(Made):
    def __init__(self) -> None:
        super().__init__(words=nn.Embedding(11, 8), hidden=nn.Linear(8, 8), out=nn.Linear(8, 3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.hidden(self.words(input_ids)).relu() * attention_mask[..., None]
        return self.out(h.sum(1) / attention_mask.sum(1, keepdim=True))


class BooleanMask(IdsAndMask):
    def forward(self, ids: Tensor, pad_mask: Tensor) -> Tensor:
        h = self.hidden(self.words(ids)).relu().masked_fill(~pad_mask[..., None], 0.0)
        return self.out(h.sum(1))


class Lengths(IdsAndMask):
    """Sentences and how long they are."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return self.out((self.hidden(self.words(tokens)).relu() * inside[..., None]).sum(1) / lengths[:, None])


class Translation(Made):
    """Two sentences in two languages, and attention between them."""

    def __init__(self) -> None:
        super().__init__(left=nn.Embedding(11, 8), right=nn.Embedding(7, 8), key=nn.Linear(8, 4), query=nn.Linear(8, 4))
        self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 7)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        here, there = self.left(src), self.right(tgt)
        weights = (self.query(there) @ self.key(here).mT / math.sqrt(4)).softmax(-1)
        return self.out(weights @ self.value(here))


class Mixed(Made):
    """Numbers, a kind and a plain option."""

    def __init__(self) -> None:
        super().__init__(numbers=nn.Linear(6, 8), kinds=nn.Embedding(4, 8), out=nn.Linear(8, 1))

    def forward(self, dense: Tensor, category: Tensor, power: float, twice: bool) -> Tensor:
        h = self.numbers(dense).relu() + self.kinds(category)
        return self.out(h * power * (2 if twice else 1))


class Gated(Made):
    """A number a sample of which nothing is known."""

    def __init__(self) -> None:
        super().__init__(a=nn.Linear(6, 8), o=nn.Linear(8, 2))

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        return self.o(self.a(x).relu() * strength[:, None])


class PointCloud(Made):
    def __init__(self) -> None:
        super().__init__(a=nn.Linear(5, 8), p=nn.Linear(3, 8), o=nn.Linear(8, 2))

    def forward(self, features: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        way = pos[edge_index[0]] - pos[edge_index[1]]
        h = self.a(features)[edge_index[0]] + self.p(way)
        return self.o(torch.zeros(len(features), 8, dtype=h.dtype, device=h.device).index_add(0, edge_index[1], h.relu()))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "features and edges": (Graph, 8),
    "features, edges and weights": (WeightedGraph, 8),
    "edges and graphs": (Pooled, 8),
    "atoms, bonds and what they are": (EdgeFeatures, 16),
    "ends of edges": (Ends, 8),
    "edges by their use": (UnnamedEdges, 8),
    "a dense matrix": (Dense, 8),
    "image and time step": (Diffusion, 16),
    "image, time, class and context": (Conditioned, 8),
    "a time step that is a row": (LearnedTime, 8),
    "two towers": (Towers, 22),
    "two towers, either may be left out": (OptionalTowers, 16),
    "two towers, neither may be left out": (NeedsBoth, 22),
    "two towers of vectors": (VectorTowers, 16),
    "two tables": (Factors, 16),
    "ids and mask": (IdsAndMask, 16),
    "ids and boolean mask": (BooleanMask, 16),
    "ids and lengths": (Lengths, 16),
    "two sentences": (Translation, 28),
    "numbers, a category and options": (Mixed, 8),
    "an unknown number a sample": (Gated, 8),
    "points, places and edges": (PointCloud, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_with_several_inputs_need_no_examples(name: str) -> None:
    build, scales = MODELS[name]
    torch.manual_seed(0)
    plan = fxenorm.analyze(build())
    assert plan.num_scales == scales and plan.exact
    assert not any("do not reach" in note for note in plan.symmetry.notes)
    found = plan.verify()
    assert found, str(found)


@pytest.mark.parametrize("name", ["features and edges", "image and time step", "two towers", "ids and mask"])
def test_the_same_on_the_meta_device_and_in_other_types(name: str) -> None:
    build, scales = MODELS[name]
    assert fxenorm.analyze(build().to("meta")).num_scales == scales
    assert fxenorm.analyze(build().double()).num_scales == scales


class Flagged(Towers):
    """The second tower runs only where a flag says so, which no guess sets."""

    def forward(self, image: Tensor, caption: Tensor | None = None, *, use: bool = False) -> Any:
        h = self.visual(image)
        return (h, self.encode(caption)) if use and caption is not None else h


def test_a_part_that_the_guess_does_not_reach_is_named() -> None:
    model = Flagged()
    plan = fxenorm.analyze(model)
    (note,) = (note for note in plan.symmetry.notes if "do not reach" in note)
    assert plan.num_scales == 8 and "words" in note and "text" in note and "visual" not in note and note in str(plan)
    ids = torch.zeros(2, 4, dtype=torch.int64)
    whole = fxenorm.analyze(model, (torch.randn(2, 3, 9, 9), ids), example_kwargs={"use": True})
    assert whole.num_scales == 16 and not any("do not reach" in note for note in whole.symmetry.notes)


def test_where_no_guess_runs_the_error_lists_what_was_tried() -> None:
    class Picky(Graph):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            if edge_index.shape[1] != 31:
                raise ValueError("31 edges, please")
            return super().forward(x, edge_index)

    with pytest.raises(ExampleInputsError) as caught:
        fxenorm.analyze(Picky())
    text = str(caught.value)
    assert "31 edges" in text and "float32[6, 5], int64[2, 12]" in text and "example_inputs" in text
