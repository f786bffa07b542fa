"""The README's section for users of the original ENorm: each line of its table is run, and is as exact as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]
TITLE = "Coming from ENorm"
# Calls of the original and values alone stand in code spans too.
OURS = re.compile(r"(\w+ = )?(fxenorm|plan|optimizer|loss)\.\w+")


def rows(text: str) -> list[list[str]]:
    """The rows of the section's table, without its head."""
    found = re.search(rf"^## {TITLE}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    lines = [line for line in found.group(1).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


class Model(nn.Module):
    """Convolutions, a BatchNorm, biases: all that the original leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU())
        self.hidden = nn.Linear(5, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of a batch of images."""
        return self.head(torch.relu(self.hidden(self.body(x).mean((2, 3)))))


def run(spans: list[str]) -> tuple[fxenorm.Plan, float]:
    """Runs some lines as they stand and then a step; the plan, and by how much outputs changed in eval mode."""
    torch.manual_seed(0)
    model, x = Model().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(x).square().sum().backward()
    optimizer.step()
    model.eval()
    names: dict[str, Any] = {
        "fxenorm": fxenorm,
        "model": model,
        "x": x,
        "optimizer": optimizer,
        "plan": fxenorm.analyze(model, x),
        "loss": model(x).square().sum(),
    }
    before = model(x).detach()
    for span in spans:
        exec(compile(span, "README.md", "exec"), names)
    if "handle" in names:  # attached: the rate is 0, so that the steps of the optimizer move nothing themselves
        for _ in range(4):
            optimizer.step()
    else:
        names["plan"].step(optimizer)
    return names["plan"], float((model(x).detach() - before).abs().max() / before.abs().max())


ROWS = rows((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_line_runs_and_is_as_exact_as_it_says(row: list[str]) -> None:
    plan, change = run([span for span in re.findall(r"`([^`]+)`", row[1]) if OURS.match(span)])
    exact = row[2] == "yes" if len(row) > 2 else True
    assert plan.exact == exact
    assert (change < 1e-10) == exact, change


def test_the_table_names_the_originals_call_and_its_step() -> None:
    assert len(ROWS) >= 4
    left = " ".join(row[0] for row in ROWS)
    assert "ENorm(model.named_parameters(), optimizer, model_type, c=1)" in left and "enorm.step()" in left


def test_the_call_that_a_user_of_the_original_types_names_the_section() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match=TITLE):
        fxenorm.analyze(model.named_parameters(), optimizer, c=1)  # type: ignore[arg-type]
