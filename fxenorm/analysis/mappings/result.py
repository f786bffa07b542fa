"""`Mappings`: the maps of a plan for one tool, as data and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .entries import LeftOut, MapEntry
from .targets import target_named

__all__ = ["Mappings"]


@dataclass(frozen=True)
class Mappings:
    """The smooth and balance layers of every group that a quantiser can express, and the groups that it cannot; print it.

    Whatever positive factors s the quantiser chooses, one a channel: rows of the smooth layer / s, columns of all balance layers
    * s leaves the function as it is. Every group of the plan is in `entries` or in `left_out`.

    Attributes:
        target: the quantiser.
        entries: the maps, in graph order. Each has ``group``, ``smooth``, ``balance``, and for the special cases ``repeats`` and
            ``head`` (grouped-query attention), ``smooth.rows`` (fused layers) and ``offset`` (normalisations by 1 + w).
        left_out: the groups that the quantiser cannot express, with ``producers``, ``consumers`` and the ``reason``.

    Example:
        >>> import fxenorm
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> print(fxenorm.analyze(model).mappings("smoothquant"))
        smoothquant: 1 map, 1 group left out
          g0: 1 -> 2
        left out:
          g1: 2 is no normalisation, and the tool smooths behind these alone
    """

    target: str
    entries: tuple[MapEntry, ...]
    left_out: tuple[LeftOut, ...]

    def __repr__(self) -> str:
        """Returns one line: the tool and the counts."""
        maps, groups = len(self.entries), len(self.left_out)
        return f"<fxenorm.Mappings for {self.target}: {maps} map{'s' * (maps != 1)}, {groups} left out>"

    def __str__(self) -> str:
        """Returns a line for each map, and one for each group that is left out."""
        maps, groups = len(self.entries), len(self.left_out)
        lines = [f"{self.target}: {maps} map{'s' * (maps != 1)}, {groups} group{'s' * (groups != 1)} left out"]
        lines += [f"  {entry!r}" for entry in self.entries]
        lines += ["left out:"] * bool(groups) + [f"  {left!r}" for left in self.left_out]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON: "mappings" in the form that the quantiser takes, and "left_out".

        "llm-compressor": the arguments of an ``AWQMapping``. "autoawq": items of ``get_layers_for_scaling``, names inside the
        "block". "modelopt": the arguments of ``fuse_prequant_layernorm``, or the two ends for ``fuse_prequant_to_linear``.
        "smoothquant": the arguments of ``smooth_ln_fcs``. Names stand for the modules.

        Example:
            >>> import fxenorm
            >>> from torch import nn
            >>> plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
            >>> plan.mappings("llm-compressor").to_dict()["mappings"]
            [{'smooth_layer': '0', 'balance_layers': ['2']}]
        """
        tool = target_named(self.target)
        left = [
            {"group": one.group, "producers": list(one.producers), "consumers": list(one.consumers), "reason": one.reason}
            for one in self.left_out
        ]
        return {"target": self.target, "mappings": [tool.form(entry) for entry in self.entries], "left_out": left}
