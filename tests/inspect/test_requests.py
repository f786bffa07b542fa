"""The parts of an answer that are given on request, ``--json`` against its schema, ``--strict``, ``--verify``, ``--dot``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import fxenorm
from fxenorm.inspect.cli import main

MODEL = """
import torch
from torch import nn

@torch.library.custom_op("inspect_requests::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.sin()

@twist.register_fake
def _(x):
    return torch.empty_like(x)

class Net(nn.Module):
    def __init__(self, unknown=False):
        super().__init__()
        self.unknown = unknown
        self.first, self.act, self.second, self.third = nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        x = twist(x) if self.unknown else self.act(x)
        return self.third(self.second(x).relu())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("requests")
    (folder / "model.py").write_text(MODEL)
    return folder


@pytest.fixture
def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(folder)

    def ask(line: str, target: str = "model.py") -> tuple[int, str, str]:
        code = main([*([target] if target else []), *line.split()])
        told = capsys.readouterr()
        return code, told.out, told.err

    return ask


Ask = Callable[..., tuple[int, str, str]]


def schema() -> dict[str, Any]:
    return json.loads((files("fxenorm.inspect") / "answer.schema.json").read_text())


def check(text: str) -> dict[str, Any]:
    """Returns an answer that fits the kept schema."""
    jsonschema = pytest.importorskip("jsonschema")
    answer = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(answer)
    return answer


LINES = [
    "",
    "--p inf --exclude first --modes eval",
    "--c second=2",
    "--layer second --operators --verify --strict --groups",
    "--no-balance-last",
]


@pytest.mark.parametrize("line", LINES)
def test_json_fits_the_kept_schema(ask: Ask, line: str) -> None:
    code, out, _ = ask(f"{line} --json")
    answer = check(out)
    assert code == 0 and answer["class"] == "Net"
    assert {"layers", "operators", "verify", "strict"} & set(answer) == (
        {"layers", "operators", "verify", "strict"} if "--verify" in line else set()
    )


def test_the_schema_notices_what_is_missing_or_wrong(ask: Ask) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    answer = json.loads(ask("--json")[1])
    validator = jsonschema.Draft202012Validator(schema())
    for key in [key for key in answer if key in schema()["required"]]:
        assert not validator.is_valid({name: value for name, value in answer.items() if name != key})
    assert not validator.is_valid({**answer, "more": 1})
    assert not validator.is_valid({**answer, "totals": {**answer["totals"], "norm": "2"}})
    assert set(schema()["required"]) == set(answer)


def test_a_layer_is_explained(ask: Ask, folder: Path) -> None:
    code, out, _ = ask("--layer second --layer third")
    assert code == 0 and out.startswith("model.py: Net\n\nsecond: 6 channels out, 5 in\n")
    assert re.search(r"in +5 fixed by gelu, model\.py:\d+: gelu is not homogeneous", out)
    assert "out  6 free" in out and "third: 3 channels out, 6 in" in out and "Totals" not in out
    answer = json.loads(ask("--layer second --json")[1])["layers"]
    assert [layer["layer"] for layer in answer["layers"]] == ["second"]
    assert {(row["side"], row["kind"], row["channels"]) for row in answer["rows"]} == {("out", "free", 6), ("in", "barrier", 5)}
    code, out, err = ask("--layer secnd")
    assert (code, out) == (2, "") and "the nearest are: second" in err and err.count("\n") == 1


def test_groups_and_barriers_alone_are_complete(ask: Ask) -> None:
    _, out, _ = ask("--groups")
    assert "Groups: 1 with 6 free scales" in out and re.search(r"g0 +chain +6 +[\d.]+ +second -> third", out)
    assert "Totals" not in out and "Barriers" not in out
    _, out, _ = ask("--barriers")
    assert "Barriers: 5 channels fixed" in out and re.search(r"\n    act, model\.py:\d+", out) and "Totals" not in out
    _, out, _ = ask("--groups --barriers")
    assert out.index("Groups") < out.index("Barriers")


def test_operators_of_the_model_with_their_laws(ask: Ask) -> None:
    _, out, _ = ask("--operators")
    rows = [re.split(r"  +", line) for line in out.splitlines() if re.match(r"[\w.]+\.\w+ ", line)]
    assert [row[:3] for row in rows] == [
        ["linear.default", "3", "contraction"],
        ["gelu.default", "1", "barrier"],
        ["relu.default", "1", "homogeneous"],
    ]
    assert rows[2][3] == "f(t x) = t f(x), t > 0."
    found = json.loads(ask("--operators --json", "model.py:Net(True)")[1])["operators"]
    assert [(entry["operator"], entry["calls"]) for entry in found if not entry["rule"]] == [("twist.default", 1)]


def test_all_supported_operators_without_a_model(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask("--operators --json", "")
    found = json.loads(out)["operators"]
    assert code == 0 and [entry["operator"] for entry in found] == fxenorm.supported_operators()
    assert all(entry["law"] and entry["rule"] for entry in found)
    assert "aten::relu" in ask("--operators", "")[1]
    with pytest.raises(SystemExit) as ended:
        main(["--groups"])
    assert ended.value.code == 2 and "the model is missing" in capsys.readouterr().err


def test_strict_fails_on_operators_without_a_rule_and_on_what_is_not_exact(ask: Ask) -> None:
    assert ask("--strict")[0] == 0
    code, out, err = ask("--strict", "model.py:Net(True)")
    assert code == 1 and "Totals" in out and "twist" in err and "has no scale rule" in err and err.count("\n") == 1
    code, _, err = ask("--strict --biases skip")
    assert code == 1 and "bias" in err
    assert ask("", "model.py:Net(True)")[0] == 0
    code, out, _ = ask("--strict --json", "model.py:Net(True)")
    assert code == 1 and len(check(out)["strict"]) == 1


def test_verify_prints_and_returns_its_finding(ask: Ask) -> None:
    code, out, err = ask("--verify")
    assert code == 0 and "verified: outputs unchanged" in out and "Totals" in out and err == ""
    code, out, err = ask("--verify --biases skip")
    assert code == 1 and "OUTPUTS CHANGED" in out and "--verify: the outputs change" in err
    code, out, _ = ask("--verify --biases skip --json")
    found = check(out)["verify"]
    assert code == 1 and found["unchanged"] is False and max(found["differences"].values()) > 1e-4


def test_bits_predict_the_noise_of_rounding(ask: Ask) -> None:
    code, out, err = ask("--bits 4/8/channel --input 16x4")
    assert code == 0 and err == "" and "Totals" in out and "Bits(weights=4, per='channel')" in out
    found = check(ask("--bits 4/8/channel --input 16x4 --json")[1])["prediction"]
    assert out.count(found["verdict"]) == 1 and 0 < found["best"] <= found["now"]
    layers = ["first", "second", "third"]
    assert [one["layer"] for one in found["ranges"] if one["kind"] == "weight"] == layers
    wider = check(ask("--bits 8/- --input 16x4 --json")[1])["prediction"]
    assert {one["kind"] for one in wider["ranges"]} == {"weight"} and wider["now"] < found["now"]


def test_bits_run_the_model_on_the_inputs_of_the_analysis(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    plans, observed, kept = [], [], fxenorm.Plan.observe

    def observe(plan: fxenorm.Plan, loader: Any, **options: Any) -> Any:
        plans.append(plan)
        observed.extend(loader)
        return kept(plan, loader, **options)

    def again(*given: Any) -> Any:
        raise AssertionError(f"inputs are looked for again: {given}")

    monkeypatch.setattr(fxenorm.Plan, "observe", observe)
    monkeypatch.setattr("fxenorm.trace.guess.resolve_inputs", again)
    assert ask("--bits 8/8")[0] == 0 and ask("--bits 8/8 --input 7x4")[0] == 0
    assert [tuple(batch[0].shape) for batch in observed] == [(2, 4), (7, 4)]
    assert all(batch[0] is plan.example.args[0] for batch, plan in zip(observed, plans, strict=True))


@pytest.mark.parametrize("bits", ["8", "8/8/8/8", "1/8", "25/8", "-/-", "8/8/0", "8/8/rows", "x/8"])
def test_bits_that_no_quantiser_has_are_an_error(ask: Ask, bits: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ask(f"--bits={bits}")
    assert ended.value.code == 2 and f"'{bits}': expected WEIGHTS/ACTIVATIONS" in capsys.readouterr().err


def test_nothing_is_balanced_where_a_check_fails(ask: Ask, folder: Path) -> None:
    torch = pytest.importorskip("torch")
    namespace: dict[str, Any] = {}
    exec(MODEL.replace("twist", "twist_again").replace("requests", "requests2"), namespace)
    torch.save(namespace["Net"]().state_dict(), folder / "w.pt")
    assert ask("--weights w.pt --balance out.pt --strict --biases skip")[0] == 1
    assert not (folder / "out.pt").exists() and not (folder / "out.pt.log_scales.json").exists()


def test_the_pair_graph_for_graphviz(ask: Ask, folder: Path) -> None:
    text = MODEL.replace("model = ", "") + (
        "\nmodel = nn.Sequential()\n"
        "for name in ('a \"b\" \\\\', 'relu', 'c->d\\n;'):\n"
        "    model.add_module(name, nn.ReLU() if name == 'relu' else nn.Linear(4, 4))\n"
    ).replace("twist", "twist3")
    (folder / "named.py").write_text(
        text.replace("inspect_requests::", "inspect_requests3::").replace("def twist(", "def twist(")
    )
    code, _, err = ask("--dot pairs.dot", "named.py")
    assert code == 0, err
    lines = (folder / "pairs.dot").read_text().splitlines()
    nodes = [r'"a \"b\" \\"', r'"c->d\n;"']
    assert lines == ['digraph "named.py" {', "  node [shape=box];", *(f"  {node};" for node in nodes),
                     f'  {nodes[0]} -> {nodes[1]} [label="g0 (4)"];', "}"]  # fmt: skip
    assert ask("--dot pairs.dot", "named.py")[0] == 2 and ask("--dot pairs.dot --force", "named.py")[0] == 0


def test_python_dash_m_is_the_command() -> None:
    import runpy
    import sys

    before, sys.argv = sys.argv, ["fxenorm.inspect", "--version"]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("fxenorm.inspect", run_name="__main__")
    finally:
        sys.argv = before
    assert ended.value.code == 0
