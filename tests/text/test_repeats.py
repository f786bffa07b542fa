"""Repeated structure as rows: nothing is lost, nothing is counted twice, and the words stand for the groups behind them."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxenorm.text.repeats import Item, Numbers, Row, folded_names, name_of, rows_of
from fxenorm.text.rows import channel_words, ends_words, group_words, is_relative, name_words

parts = st.sampled_from(["layer", "0", "1", "2", "10", "01", "conv", "bn", "3b", "block_"])
layers = st.lists(st.lists(parts, min_size=1, max_size=3).map("".join), min_size=1, max_size=4).map(".".join)
kinds = st.sampled_from(["chain", "norm"])
channels = st.integers(1, 3)


@st.composite
def drawn_items(draw: st.DrawFn) -> list[Item]:
    """Groups of random names, and copies of them whose numbers are moved: the repetition that rows are made of."""
    items: list[tuple[str, int, tuple[str, ...], tuple[str, ...]]] = []
    for _ in range(draw(st.integers(0, 5))):
        kind, size = draw(kinds), draw(channels)
        ends = tuple(draw(st.lists(layers, max_size=3).map(tuple)) for _ in range(2))
        for move in range(draw(st.integers(1, 5))):
            shift = draw(st.sampled_from([0, move]))
            moved = (
                tuple(re.sub("[0-9]+", lambda number, shift=shift: str(int(number[0]) + shift), name) for name in side)
                for side in ends
            )
            items.append((kind, size + draw(st.sampled_from([0, 0, 1])), *moved))
    items = draw(st.permutations(items))
    pairs = [len(producers) * len(consumers) for _, _, producers, consumers in items]
    return [Item(f"g{index}", *item, pairs[index]) for index, item in enumerate(items)]


@given(drawn_items(), st.none() | st.integers(1, 12))
def test_every_group_is_in_one_row_and_a_row_expands_to_its_groups(items: list[Item], most: int | None) -> None:
    rows = rows_of(items, most)
    assert sorted(item.name for row in rows for item in row.members) == sorted(item.name for item in items)
    assert sum(row.pairs for row in rows) == sum(item.pairs for item in items)
    for row in rows:
        assert list(row.expanded()) == [(item.producers, item.consumers) for item in row.members]
        assert len({item.kind for item in row.members}) == 1
    firsts = [min(items.index(item) for item in row.members) for row in rows]
    assert firsts == sorted(firsts)
    if most is None:
        assert len(rows) == len(items)


@given(st.lists(layers, max_size=8))
def test_folded_names_stand_for_all_names_of_a_list(names: list[str]) -> None:
    folded = folded_names([name_of(name) for name in names])
    assert sum(count for _, count in folded) == len(names)
    spelled = []
    for name, count in folded:
        axes = {token.axis: len(token.values) for token in name if isinstance(token, Numbers)}
        places = list(itertools.product(*(range(size) for size in axes.values())))
        assert len(places) == count
        for at in places:
            where = dict(zip(axes, at, strict=True))
            spelled.append("".join(str(t.values[where[t.axis]] if isinstance(t, Numbers) else t) for t in name))
    assert sorted(spelled) == sorted(names)


def blocks(count: int, *pairs: tuple[str, str], channels: int = 7) -> list[Item]:
    """Chains from one layer to another, in each of many blocks."""
    found = [(a.format(k, k + 1), b.format(k, k + 1)) for k in range(count) for a, b in pairs]
    return [Item(f"g{index}", "chain", channels, (a,), (b,), 1) for index, (a, b) in enumerate(found)]


def words(row: Row) -> str:
    return f"{group_words(row)} | {channel_words(row)} | {ends_words(row, 4)}".replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (blocks(32, ("h.{0}.up", "h.{0}.down")), "g0 ... g31 | 32 × 7 | h.{0..31}.up -> .down"),
        (blocks(4, ("b{0}.out", "b{1}.in")), "g0 ... g3 | 4 × 7 | b{0..3}.out -> b{1..4}.in"),
        (blocks(3, ("stem", "heads.{0}")), "g0 ... g2 | 3 × 7 | stem -> heads.{0..2}"),
        (blocks(32, ("h.{0}.up", "h.{0}.down"))[::-1], "g0 ... g31 | 32 × 7 | h.{0..31}.up -> .down"),
        (blocks(11, ("fc{0}", "fc{1}")), "g0 ... g10 | 11 × 7 | fc{0..10} -> fc{1..11}"),
    ],
)
def test_blocks_that_differ_in_their_numbers_are_one_row(items: list[Item], expected: str) -> None:
    assert [words(row) for row in rows_of(items, 24)] == [expected]


def test_blocks_within_blocks_are_one_row() -> None:
    names = [f"h.{k}.experts.{e}" for k in range(6) for e in range(4)]
    items = [Item(f"g{i}", "chain", 5, (f"{name}.w1",), (f"{name}.w2",), 1) for i, name in enumerate(names)]
    (row,) = rows_of(items, 24)
    assert ends_words(row, 4).split()[0] == "h.{0..5}.experts.{0..3}.w1"
    assert list(row.expanded()) == [(item.producers, item.consumers) for item in row.members]


def test_two_blocks_other_kinds_and_other_widths_stay_apart_while_there_is_room() -> None:
    two = blocks(2, ("h.{0}.up", "h.{0}.down"))
    assert len(rows_of(two, 24)) == 2
    widths = [Item(f"g{k}", "chain", 5 + k, (f"h.{k}.up",), (f"h.{k}.down",), 1) for k in range(6)]
    assert len(rows_of(widths, 24)) == 6
    (row,) = rows_of(widths, 5)
    assert channel_words(row) == "6 × 5..10"
    kinds = [Item(f"g{k}", ("chain", "norm")[k % 2], 5, (f"h.{k}.up",), (f"h.{k}.down",), 1) for k in range(8)]
    assert [name_words(row.producers[0]) for row in rows_of(kinds, 3)] == ["h.{0,2,...,6}.up", "h.{1,3,...,7}.up"]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (("bn{0}", "conv{1}"), "bn{0..8} -> conv{1..9}"),
        (("enc.{0}.up", "dec.{0}.down"), "enc.{0..8}.up -> dec.{0..8}.down"),
        (("m.bn{0}", "m.conv{1}"), "m.bn{0..8} -> .conv{1..9}"),
    ],
)
def test_numbers_behind_other_texts_go_together_where_there_is_no_room(ends: tuple[str, str], expected: str) -> None:
    items = blocks(9, ends)
    assert len(rows_of(items, 9)) == 9
    assert [words(row) for row in rows_of(items, 8)] == [f"g0 ... g8 | 9 × 7 | {expected}"]


def test_what_goes_together_where_there_is_room_does_so_where_there_is_none() -> None:
    items = [Item(f"g{k}", "chain", 7, (f"enc.{k}.up",), ("dec.3.down",), 1) for k in range(9)]
    assert [[words(row) for row in rows_of(items, most)] for most in (24, 0)] == [
        ["g0 ... g8 | 9 × 7 | enc.{0..8}.up -> dec.3.down"]
    ] * 2


def test_a_stream_names_its_writers_and_readers_once() -> None:
    writers = ("stem", *(f"layer.{k}.bn3" for k in range(30)), "layer.0.skip.1")
    readers = (*(f"layer.{k}.conv1" for k in range(1, 30)), "next.0.conv1", "next.0.skip.0", "head")
    (row,) = rows_of([Item("g0", "residual", 256, writers, readers, 900)], 24)
    assert words(row) == (
        "g0 | 256 | stem, layer.{0..29}.bn3, layer.0.skip.1 -> layer.{1..29}.conv1, next.0.{conv1,skip.0}, head"
    )
    assert not is_relative(ends_words(row, 4))
    assert ends_words(row, 2).replace("\N{NO-BREAK SPACE}", " ") == "stem, +31 -> layer.{1..29}.conv1, +3"
    written = re.split(r", | -> ", ends_words(row, None).replace("\N{NO-BREAK SPACE}", " "))
    assert written == [*writers, *readers]


def test_a_leading_dot_is_the_module_of_the_name_before_the_arrow() -> None:
    (row,) = rows_of([Item("g0", "branch", 5, ("m.0.norm",), ("m.0.attn.q", "m.0.attn.k", "m.01.q", "q"), 4)], 24)
    assert words(row) == "g0 | 5 | m.0.norm -> .attn.{q,k}, m.01.q, q" and is_relative(ends_words(row, 4))
    (row,) = rows_of([Item("g0", "residual", 5, ("m.0.norm", "m.1.up"), ("m.0.q", "b.q"), 4)], 24)
    assert words(row) == "g0 | 5 | m.0.norm, m.1.up -> m.0.q, b.q"
    (row,) = rows_of([Item("g0", "branch", 5, ("m.0.norm",), ("m.0.q", "m.0.k"), 4)], 24)
    assert words(row) == "g0 | 5 | m.0.norm -> .q, .k"
