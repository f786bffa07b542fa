"""Words for rows of repeated structure: "model.layers.{0..31}.mlp.up_proj -> .down_proj", "32 × 11,008"."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from .repeats import Name, Numbers, Row, folded_names, name_of
from .table import TOGETHER

__all__ = [
    "RELATIVE",
    "channel_words",
    "ends_words",
    "group_words",
    "is_relative",
    "name_words",
    "number_words",
    "operator_words",
    "some_names",
]

RELATIVE = "A leading dot: in the module of the name before the arrow."
"""Says how to read what `ends_words` returns; a table that has such a name says so once."""


def ends_words(row: Row, most: int | None) -> str:
    """Returns the layers of a row, as "layers.{0..31}.up -> .down".

    Args:
        row: the groups.
        most: number of names on each side; None: all, each written out.
    """
    if most is None:
        item = row.members[0]
        return _arrow(", ".join(item.producers) or "-", ", ".join(item.consumers) or "-")
    producers, consumers = folded_names(row.producers), folded_names(row.consumers)
    module = _cut(producers[0][0])[0] if len(producers) == 1 else ""
    left = _listed([(_cut(name), count) for name, count in producers], most)
    right = _listed([(_relative(_cut(name), module), count) for name, count in consumers], most)
    return _arrow(left, right)


def is_relative(ends: str) -> bool:
    """Whether a text of `ends_words` has a name that begins with a dot."""
    return any(word.startswith(".") for word in ends.replace(TOGETHER, " ").split(" "))


def _arrow(left: str, right: str) -> str:
    """Returns both sides; a line is broken before the arrow, not behind it."""
    return f"{left} ->{TOGETHER}{right}"


def group_words(row: Row) -> str:
    """Returns the first and the last group's names, as "g4 ... g159"."""
    names = [item.name for item in row.members]
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def channel_words(row: Row) -> str:
    """Returns the number of groups and of the channels of each, as "32 × 11,008"; "6 × 64..224" where they differ."""
    each = number_words(sorted({item.channels for item in row.members}))
    return each if len(row.members) == 1 else f"{len(row.members):,} × {each}"


def number_words(ascending: Sequence[int]) -> str:
    """Returns the range of some numbers: "11,008", or "64..224" where they differ."""
    first, last = ascending[0], ascending[-1]
    return f"{first:,}" if first == last else f"{first:,}..{last:,}"


def some_names(names: Sequence[str], most: int) -> str:
    """Returns names joined by commas; those that differ in their numbers together, the end of a long list counted.

    Example:
        >>> some_names(["layers.0.up", "layers.1.up", "layers.2.up", "norm"], 4)
        'layers.{0..2}.up, norm'
    """
    return _listed([(_cut(name), count) for name, count in folded_names([name_of(name) for name in names])], most)


def operator_words(paths: Iterable[Sequence[str]], most: int) -> str:
    """Returns the different operators of several paths in order of first appearance, the end of a long list counted."""
    found = list(dict.fromkeys(operator for path in paths for operator in path))
    return ", ".join(found if len(found) <= most else [*found[: most - 1], f"+{len(found) - most + 1}"])


def name_words(name: Name) -> str:
    """Returns a name, its numbers as ranges.

    Example:
        >>> name_words(("layers.", Numbers(0, (0, 1, 2, 3)), ".mlp"))
        'layers.{0..3}.mlp'
    """
    return "".join(f"{{{_ranges(token.values)}}}" if isinstance(token, Numbers) else str(token) for token in name)


def _ranges(values: Sequence[int]) -> str:
    """Returns numbers as ranges, without blanks: "0..31", "0,2,...,30", "0,5..7"."""
    steps = {later - one for one, later in itertools.pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"{values[0]},{values[1]},...,{values[-1]}"
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _cut(name: Name) -> tuple[str, str]:
    """Returns a name as its module and its last part; the module ends in its dot."""
    for place in range(len(name) - 1, -1, -1):
        token = name[place]
        if isinstance(token, str) and "." in token:
            head, dot, tail = token.rpartition(".")
            return name_words((*name[:place], head + dot)), name_words((tail, *name[place + 1 :]))
    return "", name_words(name)


def _relative(cut: tuple[str, str], module: str) -> tuple[str, str]:
    """Returns a name counted from a module, with a leading dot, where it is in this module."""
    return (f".{cut[0][len(module) :]}", cut[1]) if module and cut[0].startswith(module) else cut


def _listed(names: Sequence[tuple[tuple[str, str], int]], most: int) -> str:
    """Returns names joined by commas, those of one module in braces, the end of a long list counted."""
    shown = names if len(names) <= most else names[: most - 1]
    words: list[tuple[str, list[str]]] = []
    for (module, last), _ in shown:
        before, parts = words[-1] if words else ("", [])
        common = _common(before, module)
        inside = [name.removeprefix(common) for name in (*(f"{before}{part}" for part in parts), f"{module}{last}")]
        if common and (len(parts) == 1 or common == before) and not any("{" in part or part[:1].isdigit() for part in inside):
            words[-1] = (common, inside)
        else:
            words.append((module, [last]))
    left = sum(count for _, count in names[len(shown) :])
    found = [f"{module}{{{','.join(parts)}}}" if len(parts) > 1 else f"{module}{parts[0]}" for module, parts in words]
    return ", ".join([*found, *([f"+{left:,}"] if left else [])]) or "-"


def _common(one: str, other: str) -> str:
    """Returns the innermost module that holds both modules, "" where there is none."""
    parts = itertools.takewhile(lambda both: both[0] == both[1], zip(one.split(".")[:-1], other.split(".")[:-1], strict=False))
    shared = "".join(f"{part}." for part, _ in parts)
    return shared if shared.strip(".") else ""
