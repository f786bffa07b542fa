"""The four tools: how each writes a map, and which maps it can carry out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import OptionError
from .entries import MapEntry

__all__ = ["TARGETS", "Target", "block_of", "target_named"]

Form = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One tool: the form of its maps, and the maps that it can carry out.

    Attributes:
        name: as users write it.
        form: from a map to the arguments that the tool takes.
        norms_only: the smooth layer has to be a normalisation.
        linear_only: every balance layer has to be an ``nn.Linear``.
        one_consumer: a smooth layer that is no normalisation has one balance layer.
        in_block: all layers lie in one decoder block.
        last_rows: of a smooth layer with more rows than there are channels, the last ones are divided (fused q, k, v).
        repeats: repeated heads are understood.
        unpacks_experts: stacked experts are taken apart into ``experts.0.gate_proj``, ``.up_proj`` and ``.down_proj``.
        adds_one: classes of normalisations which multiply by 1 + w and are moved as such.
    """

    name: str
    form: Callable[[MapEntry], Form]
    norms_only: bool = False
    linear_only: bool = False
    one_consumer: bool = False
    in_block: bool = False
    last_rows: bool = False
    repeats: bool = False
    unpacks_experts: bool = False
    adds_one: frozenset[str] = frozenset()


def target_named(name: str) -> Target:
    """Returns the tool of that name.

    Raises:
        OptionError: there is none; the message lists the four.
    """
    known = TARGETS.get(name) if isinstance(name, str) else None
    if known is None:
        raise OptionError(f"target={name!r}: there is no such tool; the tools are {', '.join(map(repr, TARGETS))}")
    return known


def block_of(name: str) -> str:
    """Returns the decoder block of a layer: its name up to the first number; "" where it has none."""
    parts = name.split(".")
    return next((".".join(parts[: place + 1]) for place, part in enumerate(parts[:-1]) if part.isdigit()), "")


def _balance_names(entry: MapEntry) -> list[str]:
    """Returns the names of the balance layers."""
    return [layer.module for layer in entry.balance]


def _llm_compressor(entry: MapEntry) -> Form:
    """Returns the arguments of an ``AWQMapping``."""
    return {"smooth_layer": entry.smooth.module, "balance_layers": _balance_names(entry)}


def _autoawq(entry: MapEntry) -> Form:
    """Returns an item of ``get_layers_for_scaling``, with names inside the block."""
    block = block_of(entry.smooth.module)
    layers = [name.removeprefix(f"{block}.") for name in _balance_names(entry)]
    shared = layers[0].split(".")[:-1]
    while any(name.split(".")[: len(shared)] != shared for name in layers):
        shared.pop()
    inspect = {"module2inspect": ".".join(shared)} if len(layers) > 1 else {}
    return {
        "block": block,
        "prev_op": entry.smooth.module.removeprefix(f"{block}."),
        "layers": layers,
        "inp": layers[0],
        **inspect,
    }


def _modelopt(entry: MapEntry) -> Form:
    """Returns the arguments of ``fuse_prequant_layernorm``, or a row for ``fuse_prequant_to_linear``."""
    if entry.norm:
        return {"layernorm": entry.smooth.module, "modules": _balance_names(entry)}
    return {"fuse_into": entry.smooth.module, "fuse_from": entry.balance[0].module, "fuse_grouped_heads": entry.repeats > 1}


def _smoothquant(entry: MapEntry) -> Form:
    """Returns the arguments of ``smooth_ln_fcs``."""
    return {"ln": entry.smooth.module, "fcs": _balance_names(entry)}


TARGETS = {
    target.name: target
    for target in (
        Target("llm-compressor", _llm_compressor, last_rows=True, unpacks_experts=True),
        Target("autoawq", _autoawq, in_block=True, last_rows=True, adds_one=frozenset({"GemmaRMSNorm", "Gemma2RMSNorm"})),
        Target(
            "modelopt",
            _modelopt,
            linear_only=True,
            one_consumer=True,
            repeats=True,
            adds_one=frozenset({"GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "LayerNorm1P"}),
        ),
        Target("smoothquant", _smoothquant, norms_only=True, linear_only=True),
    )
}
"""By name, the tools in the order in which messages list them."""
