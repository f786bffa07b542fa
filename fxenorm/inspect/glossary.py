"""The words of plans and tables, for ``--help`` and the README; imports nothing, so that ``--help`` stays fast."""

from __future__ import annotations

__all__ = ["GLOSSARY", "glossary_lines"]

GLOSSARY = (
    ("channel", "one position of a layer's output or input: a unit, a feature map"),
    ("scale", "a positive number by which channels may be multiplied; several channels may share one"),
    ("group", "all scales with the same producers and consumers"),
    ("producer", "a layer that writes the channels of a group; its weights are multiplied by the scales"),
    ("consumer", "a layer that reads the channels of a group; its weights are divided by the scales"),
    ("pair", "a producer and a consumer with no other layer of the group between them"),
    ("free", "said of a channel that has a scale of its own"),
    ("tied", "said of a channel that carries the scale of a channel met before"),
    ("fixed", "said of a channel without a scale: an input, an output, a barrier or an option stops it"),
    ("barrier", "an operator that fixes the channels which enter it, as gelu, or any operator without a rule"),
    (
        "held",
        "said of a scale that step and balance leave alone now, for a reason: its weights are frozen or zero, or no minimum",
    ),
    ("counted", "said of a weight whose entries are part of the norm"),
    ("imbalance", "|log(N / P)| / p of a scale: N sums |w|^p over its consumers, P over its producers; 0 is balanced"),
)
"""(word, meaning), in the order in which one explains the other."""


def glossary_lines() -> list[str]:
    """Returns a line a word, the meanings below one another."""
    return [f"  {word:<10} {meaning}" for word, meaning in GLOSSARY]
