"""Plans, answers and results in a notebook: well-formed HTML that says what the text says, and in which names do no harm."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.text.html import html_block, html_table
from fxenorm.text.table import Column

from ..symmetry.test_structures import analysed
from ..zoo import CASES

HOSTILE = "<script>alert('x')&\"</script>"


class Reader(HTMLParser):
    """Reads tags, which have to be closed in order, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        assert all(name in ("style", "class") for name, _ in attrs), attrs
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def words(text: str) -> set[str]:
    return set(re.sub(r"[-:;,()]", " ", text).split()) - {"balance", "held", "out", "in", "now", "mode", "dtype"}


@pytest.mark.filterwarnings("ignore::fxenorm.FxenormWarning")  # of those that have nothing to move
@pytest.mark.parametrize("name", [*sorted(CASES)[::5], "residual"])
def test_html_says_what_the_text_says(name: str) -> None:
    plan = analysed(name)[1]
    layer = plan.why().layers[0].layer
    for shown in (plan, plan.why(), plan.why(layer), plan.balance(), plan.verify()):
        page = Reader(shown._repr_html_())
        assert page.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "br"}
        text = str(shown).replace("largest difference", "").replace("tolerance", "")
        assert words(text) - words(page.words) <= {"->", ">"} | words("-" * 200), words(text) - words(page.words)


def hostile_plan() -> fxenorm.Plan:
    model = nn.Module()
    model.add_module(HOSTILE.replace(".", ""), nn.Linear(4, 6))
    model.add_module("b", nn.Linear(6, 2))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(HOSTILE, nn.Linear(4, 6))
            self.b = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(getattr(self, HOSTILE)(x)))

    return fxenorm.analyze(Named(), torch.randn(3, 4))


def test_names_are_escaped() -> None:
    plan = hostile_plan()
    shown = {"plan": plan, "why": plan.why(), "balance": plan.balance(), "verify": plan.verify()}
    for name, value in shown.items():
        page = value._repr_html_()
        assert "<script" not in page and Reader(page)
        assert html.escape(HOSTILE) in page or name in ("balance", "verify")


def test_a_table_escapes_headings_and_keeps_lines_apart() -> None:
    page = html_block("<b>", [html_table([Column("<i>"), Column("n", "right")], [["a\nb", "<1>"]]), ["<hr>", "x"]])
    assert {"i", "hr"} & Reader(page).tags == set() and "a<br>b" in page and "text-align:right" in page


def test_a_long_answer_is_short_in_a_notebook_too() -> None:
    model = nn.Sequential(*(part for _ in range(60) for part in (nn.Linear(3, 3), nn.ReLU())))
    plan = fxenorm.analyze(model, torch.randn(2, 3))
    assert plan._repr_html_().count("<tr>") < 6 and plan.why()._repr_html_().count("<tr>") < 8
    assert "{2,4,...,116}" in plan.why()._repr_html_()


def test_printing_in_a_notebook_leaves_no_empty_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich shows what it captures as a block of its own where it believes to be in a notebook."""
    console = pytest.importorskip("rich.console")
    shown: list[Any] = []
    monkeypatch.setattr(console, "_is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *what: shown.append(what))
    plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    assert "g0" in str(plan) and shown == []


def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    pytest.importorskip("matplotlib")
    plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    plan.history.record()
    for figure in (plan.draw(), plan.history.plot(), plan.balance().plot()):
        assert figure._repr_png_().startswith(b"\x89PNG")
