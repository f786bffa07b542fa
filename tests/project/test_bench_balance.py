"""tools/bench_balance.py: what it says of the answer of p = inf; no time is looked at."""

from __future__ import annotations

import json

import pytest

from ..helpers import load_tool

BENCH = load_tool("bench_balance")


def test_p_inf_has_one_answer_in_both_types(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCH.CASES, "chain4", lambda: BENCH.chain(4, 16))
    assert BENCH.main(["chain4", "unet", "llama", "--check", "-p", "inf", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["model"], row["dtype"]) for row in rows] == [
        (name, dtype) for name in ("chain4", "unet", "llama") for dtype in ("float64", "float32")
    ]
    for row in rows:
        most = {"float64": 1e-9, "float32": 1e-5}[row["dtype"]]
        assert row["converged"] and row["passes"] <= 10
        assert float(row["weights from 5 starts apart"]) <= most and float(row["residual"]) <= 1e-9
        assert float(row["of the weights as written"]) <= most


def test_the_cases_are_those_that_are_asked_for() -> None:
    """Chains 4 x 512, 64 x 64 and 256 x 16 and four models, all of which are there."""
    assert set(BENCH.ONE_ANSWER) <= set(BENCH.CASES) and set(BENCH.VISION) <= set(BENCH.CASES)
    for name, depth, width in (("chain4x512", 4, 512), ("chain64", 64, 64), ("chain256x16", 256, 16)):
        model, _ = BENCH.CASES[name]()
        shapes = [tuple(module.weight.shape) for module in model if hasattr(module, "weight")]
        assert name in BENCH.ONE_ANSWER and shapes == [(width, 32), *[(width, width)] * (depth - 2), (10, width)]
