"""The picture of a pair graph: nothing is lost, nothing is drawn twice, nothing overlaps, and repeated blocks are drawn once."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import MissingLibraryError, OptionError
from fxenorm.picture.build import picture_of
from fxenorm.picture.layout import Layout, box_words, placed
from fxenorm.picture.picture import Picture
from fxenorm.picture.svg import svg_file
from fxenorm.text.describe import ends_of, layers_that_multiply

MOST_ELEMENTS = 2_000


class Block(nn.Module):
    """A residual block, as one finds it many times in a model."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu()).relu()


class Deep(nn.Module):
    """A residual stream through equal blocks, and a chain of equal layers behind it."""

    def __init__(self, blocks: int, chain: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.Sequential(*(Block(4, 6) for _ in range(blocks)))
        layers = [part for _ in range(chain) for part in (nn.Linear(4, 4), nn.ReLU())]
        self.head = nn.Sequential(*layers, nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x).relu()))


@cache
def deep_plan(blocks: int = 40, chain: int = 30) -> fxenorm.Plan:
    return fxenorm.analyze(Deep(blocks, chain), torch.zeros(2, 3), modes="eval")


def pictures() -> list[tuple[str, fxenorm.Plan, Picture]]:
    """Pictures of several plans, collapsed, opened and with a box for each layer."""
    deep = deep_plan()
    analysis = deep.rescaler.analysis
    block = ("blocks.7.up", "blocks.7.down")
    return [
        ("collapsed", deep, picture_of(analysis)),
        ("expanded", deep, picture_of(analysis, expand=True)),
        ("opened", deep, picture_of(analysis, opened=block)),
        ("small", small_plan(), picture_of(small_plan().rescaler.analysis)),
        ("small, collapsed", small_plan(), picture_of(small_plan().rescaler.analysis, expand=False)),
    ]


@cache
def small_plan() -> fxenorm.Plan:
    return fxenorm.analyze(Deep(2, 1), torch.zeros(2, 3))


@pytest.mark.parametrize("index", range(5))
def test_each_layer_is_in_one_box_and_each_group_in_one_line_between_its_own_layers(index: int) -> None:
    _, plan, picture = pictures()[index]
    drawn = [layer for box in picture.boxes for layer in box.layers]
    assert sorted(drawn) == sorted(layers_that_multiply(plan.symmetry))
    assert sorted(name for line in picture.lines for name in line.groups) == sorted(group.name for group in plan.groups)
    groups = {group.name: group for group in plan.groups}
    for line in picture.lines:
        for side, boxes in (("producers", line.writers), ("consumers", line.readers)):
            for name in line.groups:  # no end is lost, and no box is joined that has none
                own = set(ends_of(groups[name], plan.symmetry, side))
                assert all(own.intersection(picture.boxes[box].layers) for box in boxes)
                assert own <= {layer for box in boxes for layer in picture.boxes[box].layers}
        assert all(groups[name].kind == line.kind for name in line.groups)


@pytest.mark.parametrize("index", range(5))
def test_nothing_overlaps_and_every_branch_ends_at_its_box(index: int) -> None:
    name, _, picture = pictures()[index]
    layout = placed(picture)
    assert len(layout.boxes) == len(picture.boxes), name
    rectangles = [(box.x, box.y, box.x + box.width, box.y + box.height) for box in layout.boxes]
    for one, other in itertools.combinations(rectangles, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for one, other in itertools.combinations(layout.tracks, 2):
        assert one.x != other.x or one.bottom < other.top or other.bottom < one.top, "two lines in one lane"
    place = {id(box.box): box for box in layout.boxes}
    seen = []
    for track in layout.tracks:
        for port in track.ports:
            box = place[id(picture.boxes[port.box])]
            assert port.x == box.x and box.y < port.y < box.y + box.height and track.top <= port.y <= track.bottom
            assert track.x < box.x
            seen.append((track.line, port.box, port.writes))
    wanted = [(n, box, True) for n, line in enumerate(picture.lines) for box in line.writers]
    wanted += [(n, box, False) for n, line in enumerate(picture.lines) for box in line.readers]
    assert sorted(seen) == sorted(wanted)
    assert_inside(layout)


def assert_inside(layout: Layout) -> None:
    """Everything lies inside the picture, and words inside their boxes."""
    for one in (*layout.boxes, *layout.frames):
        assert one.x >= 0 and one.y >= 0 and one.x + one.width <= layout.width and one.y + one.height <= layout.height
    for box in layout.boxes:
        assert len(box_words(box.box)) * 5 < box.width and len(box.box.name) * 7 < box.width


def test_blocks_of_equal_structure_are_one_and_are_opened_one_by_one() -> None:
    picture = picture_of(deep_plan().rescaler.analysis)
    frames = {frame.title: frame.copies for frame in picture.frames}
    assert frames == {"blocks.{0..39}": 40}
    assert [box.name for box in picture.boxes if box.frame == 0] == ["up", "down"]
    stream = next(line for line in picture.lines if line.kind == "residual")
    assert len(stream.groups) == 1 and len(stream.writers) + len(stream.readers) <= 4
    opened = picture_of(
        deep_plan().rescaler.analysis, opened=[f"blocks.{k}.{name}" for k in range(40) for name in ("up", "down")]
    )
    assert [frame.title for frame in opened.frames] == [f"blocks.{k}" for k in range(40)]
    assert sum(len(box.layers) > 1 for box in opened.boxes) == sum(len(box.layers) > 1 for box in picture.boxes) - 2


def test_layers_of_different_kinds_are_never_drawn_as_one() -> None:
    parts = [layer for _ in range(30) for layer in (nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.Sigmoid())]
    plan = fxenorm.analyze(nn.Sequential(*parts), torch.zeros(2, 2, 3), modes="eval")
    for box in picture_of(plan.rescaler.analysis, expand=False).boxes:
        assert len({type(plan.model.get_submodule(layer)) for layer in box.layers}) == 1


@pytest.mark.parametrize(("blocks", "chain"), [(40, 30), (3, 100)])
def test_a_deep_model_is_drawn_with_few_elements(blocks: int, chain: int) -> None:
    plan = deep_plan(blocks, chain)
    drawn = xml.fromstring(svg_file(picture_of(plan.rescaler.analysis), "Deep"))
    assert sum(1 for _ in drawn.iter()) < 150 < MOST_ELEMENTS


HOSTILE = ['</script><img src=x onerror="alert(1)">', "a]]>&b", "\x00\x1b[31m", "$x_1$", "'\""]


def test_names_are_words_and_never_markup(tmp_path: Path) -> None:
    model = nn.Sequential()
    for number, name in enumerate(HOSTILE):
        model.add_module(name, nn.Linear(3, 3))
        model.add_module(f"relu{number}", nn.ReLU())
    plan = fxenorm.analyze(model, torch.zeros(2, 3))
    text = svg_file(picture_of(plan.rescaler.analysis), HOSTILE[0])
    root = xml.fromstring(text)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "title", "style", "rect", "g", "path", "text"}
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert set(HOSTILE) - {"\x00\x1b[31m"} <= set(words) and "\\x00\\x1b[31m" in words
    assert not any(name.lower().startswith("on") for element in root.iter() for name in element.attrib)
    plan.draw(tmp_path / "plan.svg")
    xml.parse(tmp_path / "plan.svg")


def test_draw_writes_the_file_and_returns_a_figure(tmp_path: Path) -> None:
    plan = small_plan()
    figure = plan.draw(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {box.name for box in picture_of(plan.rescaler.analysis).boxes} <= set(words)
    assert {group.kind for group in plan.groups} <= set(words)
    assert len(deep_plan().draw(expand=True).axes[0].patches) > len(deep_plan().draw().axes[0].patches)


@pytest.mark.parametrize("path", ["plan.nothing", "no such folder/plan.png"])
def test_a_file_that_cannot_be_written_is_one_error(tmp_path: Path, path: str) -> None:
    with pytest.raises(OptionError, match="path="):
        small_plan().draw(tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_expand_is_a_flag() -> None:
    with pytest.raises(OptionError, match="expand='yes'"):
        small_plan().draw(expand="yes")  # type: ignore[arg-type]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match=r"fxenorm\[plot\]"):
        small_plan().draw()


def test_a_model_without_a_group_is_drawn_too() -> None:
    plan = fxenorm.analyze(nn.Linear(3, 2), torch.zeros(2, 3))
    picture = picture_of(plan.rescaler.analysis)
    assert [box.layers for box in picture.boxes] == [("",)] or len(picture.boxes) == 1
    assert picture.boxes[0].fixed == "in fixed by input, out by output"
    plan.draw()
    xml.fromstring(svg_file(picture, "Linear"))


def test_a_model_without_layers_is_an_empty_picture() -> None:
    plan = fxenorm.analyze(nn.Sequential(nn.ReLU()), torch.zeros(2, 3))
    assert picture_of(plan.rescaler.analysis) == Picture((), (), ())
    plan.draw()
    xml.fromstring(svg_file(Picture((), (), ()), "nothing"))
