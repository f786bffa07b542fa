"""Symmetries built by hand, for tests of what stands behind the symmetry stage; no model and no tracer is involved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxenorm.symmetry.symmetry import Barrier, FlowNode, NormFold, ParameterUse, Role, Site, Symmetry, Term

__all__ = ["Builder", "attention", "chain", "residual"]


class Builder:
    """Collects groups, parameters and operators, and makes a `Symmetry` of them."""

    def __init__(self) -> None:
        self.starts = [0]
        self.exponents: dict[str, tuple[Term, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.roles: dict[str, Role] = {}
        self.flow: list[FlowNode] = []
        self.sites: list[Site] = []
        self.barriers: list[Barrier] = []
        self.folds: list[NormFold] = []

    def group(self, size: int) -> int:
        """A new group of `size` variables; returns its number."""
        self.starts.append(self.starts[-1] + size)
        return len(self.starts) - 2

    def ids(self, group: int, shape: Sequence[int]) -> np.ndarray:
        """The variables of a group, laid out in `shape`."""
        return np.arange(self.starts[group], self.starts[group + 1], dtype=np.int64).reshape(tuple(shape))

    def parameter(self, name: str, shape: Sequence[int], role: Role, *terms: Term) -> str:
        """A parameter; returns its name."""
        self.shapes[name], self.roles[name] = tuple(shape), role
        if terms:
            self.exponents[name] = terms
        return name

    def linear(
        self, name: str, out: int, into: int, out_group: int | None = None, in_group: int | None = None, bias: bool = False
    ) -> list[str]:
        """The parameters of a fully connected layer, whose sides may carry groups."""
        terms = []
        if out_group is not None:
            terms.append((1, self.ids(out_group, (out, 1))))
        if in_group is not None:
            terms.append((-1, self.ids(in_group, (1, into))))
        names = [self.parameter(f"{name}.weight", (out, into), "weight", *terms)]
        if bias:
            names.append(
                self.parameter(
                    f"{name}.bias", (out,), "bias", *([(1, self.ids(out_group, (out,)))] if out_group is not None else [])
                )
            )
        return names

    def node(self, operator: str, inputs: Sequence[int] = (), carried: Sequence[int] = (), parameters: Sequence[str] = ()) -> int:
        """An operator; returns its position."""
        uses = tuple(ParameterUse(name, self.roles[name]) for name in parameters)
        position = len(self.flow)
        name = f"{operator.split('.')[0]}_{position}"
        module = parameters[0].rpartition(".")[0] if parameters else ""
        self.flow.append(
            FlowNode(name, operator, module, f"model.py:{position + 10}, in forward", tuple(inputs), frozenset(carried), uses)
        )
        return position

    def build(self, **changes: object) -> Symmetry:
        """The symmetry of everything collected so far."""
        values: dict[str, object] = {
            "num_scales": self.starts[-1],
            "exponents": self.exponents,
            "group_starts": np.array(self.starts, dtype=np.int64),
            "shapes": self.shapes,
            "buffers": frozenset(),
            "aliases": {},
            "roles": self.roles,
            "flows": {"eval": tuple(self.flow)},
            "sites": tuple(self.sites),
            "barriers": tuple(self.barriers),
            "folds": tuple(self.folds),
            "fixed_by_output": 0,
            "modes": ("eval",),
            "tracer": "export",
            "inexact_reasons": (),
        }
        return Symmetry(**{**values, **changes})  # type: ignore[arg-type]


def chain(widths: Sequence[int], bias: bool = False) -> Symmetry:
    """A fully connected ReLU net: layers fc1, fc2, ... with a group on every hidden width."""
    builder = Builder()
    groups: list[int | None] = [None, *(builder.group(width) for width in widths[1:-1]), None]
    position = builder.node("input")
    for layer in range(1, len(widths)):
        names = builder.linear(f"fc{layer}", widths[layer], widths[layer - 1], groups[layer], groups[layer - 1], bias)
        out = groups[layer]
        carried = [] if out is None else [out]
        if out is not None:
            ids = builder.ids(out, (widths[layer],))
            builder.sites.append(Site(f"fc{layer}", "output", 1, ids, 1))
        position = builder.node("linear.default", [position], carried, names)
        if out is not None:
            position = builder.node("relu.default", [position], carried)
    return builder.build(fixed_by_output=widths[-1])


def residual(blocks: int, width: int, inner: int) -> Symmetry:
    """A residual ReLU net: stem, then `blocks` times x + up(relu(down(x))), then a head."""
    builder = Builder()
    stream = builder.group(width)
    position = builder.node("input")
    position = builder.node("conv2d.default", [position], [stream], builder.linear("stem", width, 3, stream, None))
    for number in range(blocks):
        hidden = builder.group(inner)
        branch = builder.node(
            "conv2d.default", [position], [hidden], builder.linear(f"block{number}.down", inner, width, hidden, stream)
        )
        branch = builder.node("relu_.default", [branch], [hidden])
        branch = builder.node(
            "conv2d.default", [branch], [stream], builder.linear(f"block{number}.up", width, inner, stream, hidden)
        )
        position = builder.node("add.Tensor", [position, branch], [stream])
        position = builder.node("relu.default", [position], [stream])
    builder.node("linear.default", [position], [], builder.linear("head", 10, width, None, stream))
    return builder.build(fixed_by_output=10)


def attention(width: int, packed: bool) -> Symmetry:
    """One attention layer: queries against keys, values against the output projection; q, k, v packed or apart."""
    builder = Builder()
    query_key, value = builder.group(width), builder.group(width)
    start = builder.node("input")
    if packed:
        fixed = np.full((width, 1), -1, dtype=np.int64)
        up, down, values = builder.ids(query_key, (width, 1)), builder.ids(query_key, (width, 1)), builder.ids(value, (width, 1))
        terms = [(1, np.concatenate([up, fixed, values])), (-1, np.concatenate([fixed, down, fixed]))]
        name = builder.parameter("attn.in_proj_weight", (3 * width, width), "weight", *terms)
        mixed = builder.node("linear.default", [start], [query_key, value], [name])
        q, k, v = (builder.node("select.int", [mixed], [group]) for group in (query_key, query_key, value))
    else:
        q = builder.node("linear.default", [start], [query_key], builder.linear("q", width, width, query_key, None))
        down = builder.ids(query_key, (width, 1))
        k = builder.node(
            "linear.default", [start], [query_key], [builder.parameter("k.weight", (width, width), "weight", (-1, down))]
        )
        v = builder.node("linear.default", [start], [value], builder.linear("v", width, width, value, None))
    mixed = builder.node("scaled_dot_product_attention.default", [q, k, v], [value])
    builder.node("linear.default", [mixed], [], builder.linear("out", width, width, None, value))
    return builder.build()
