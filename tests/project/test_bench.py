"""tools/bench.py: every row runs and says what it compared; no time is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..helpers import load_tool

BENCH = load_tool("bench")


def test_every_row_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(BENCH, "build", lambda name: BENCH.released_fc(4, 16, 12))
    monkeypatch.setitem(BENCH.TRAINED, "fc", (12,))
    monkeypatch.setattr(BENCH, "WIDTHS", (8, 16))
    monkeypatch.setattr(BENCH, "GROWN", ("p = 3", "bfloat16", "Gauss-Seidel"))
    monkeypatch.setattr(BENCH, "GROWTH", {"depth": ((3, 8), (6, 8)), "width": ((3, 8), (3, 16))})
    files = tmp_path / "bench.json", tmp_path / "bench.md"
    arguments = ["--models", "fc", "--quick", "--threads", "1", "--json", str(files[0]), "--markdown", str(files[1])]
    assert BENCH.main(arguments) == 0
    stored = json.loads(files[0].read_text())
    rows = stored["rows"]
    assert {row["row"] for row in rows} == {*BENCH.ROWS, *BENCH.GROWING} and stored["threads"] == 1
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["pairs"] >= 1 for row in rows)
    assert all((row["met"] is None) == (row["target"] is None) for row in rows)
    table = files[1].read_text()
    assert table in capsys.readouterr().out and table.count("\n| ") == len(rows) + 1
    with pytest.raises(SystemExit):
        BENCH.main(["--rows", "nothing"])


def test_models_and_targets_are_known() -> None:
    """Each target belongs to a row and a model that there is."""
    assert {row for row, _ in BENCH.TARGETS} <= set(BENCH.ROWS)
    assert {name for _, name in BENCH.TARGETS} <= {*BENCH.RELEASED, *BENCH.VISION}
    layers = [module for module in BENCH.build("fc")[0] if hasattr(module, "weight")]
    assert [tuple(layer.weight.shape) for layer in layers] == [(500, 3072), *[(500, 500)] * 13, (10, 500)]
    channels = [module.weight.shape[0] for module in BENCH.build("conv")[0] if hasattr(module, "weight")]
    assert channels == [128] * 3 + [256] * 3 + [320] * 3 + [10]
