"""tools/quantise.py: the nets and starts keep their function, SmoothQuant is its formula, finished runs are not done again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from quantisation import cli, networks
from quantisation.measuring import SETTINGS, Kept, Run, runs_of
from quantisation.methods import METHODS, STARTS, Case, methods_of, sites_of, smoothed
from quantisation.networks import DepthwiseNet, Transformer
from quantisation.tables import Claim, Results, claims, table

import fxenorm

from ..helpers import generator, relative_difference

pytest.importorskip("sklearn", reason="the extra demo brings it")


def case_of(net: str) -> Case:
    torch.manual_seed(0)
    if net == "depthwise":
        model: torch.nn.Module = DepthwiseNet(6, 2)
        images = torch.randn(8, 1, 16, 16, generator=generator(0))
        model(images)  # so that running statistics are none of the start
        model = model.eval().folded()
    else:
        model, images = Transformer(16, 2, 24, 1), torch.randn(8, 16, 4, generator=generator(0))
    return Case(model.double().eval(), images.double())


@pytest.mark.parametrize("net", STARTS)
def test_folding_starts_and_methods_keep_the_function(net: str) -> None:
    torch.manual_seed(1)
    case = case_of(net)
    before = case.model(case.calibration).detach()
    assert all(parameter.requires_grad for parameter in case.model.parameters())
    for start in STARTS[net].values():
        start(case, 3)
        tried_here = {name: method for name, method in methods_of(net).items() if not name.startswith("p =")}
        for name, method in tried_here.items():
            tried = Case(case.model, case.calibration, case.plans)
            method.run(tried, SETTINGS["W8A8 tensor"])
            assert relative_difference(case.model(case.calibration), before) < 1e-9, name
    unfolded = DepthwiseNet(6, 2).eval()
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(unfolded(images), unfolded.folded()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_smooth_quant_moves_ranges_by_its_formula_at_every_site(alpha: float) -> None:
    """The last group of all is not touched again: its largest inputs and columns are those of the formula."""
    case = case_of("transformer")
    plan = case.plan()
    columns = case.model.head.weight.detach().abs().amax(0)
    inputs = plan.observe([case.calibration])["head", "input"]
    sizes = torch.maximum(inputs.maximum, -inputs.minimum)
    smoothed(case, alpha)
    factor = sizes.pow(alpha) / columns.pow(1 - alpha)
    torch.testing.assert_close(case.model.head.weight.detach().abs().amax(0), columns * factor, rtol=1e-9, atol=0)
    seen = fxenorm.analyze(case.model, case.calibration[:1]).observe([case.calibration])
    moved = [group for group in plan.groups if sites_of(plan, seen, group)]
    # norm to q, k and v; v to o; norm to gate and up; up to down; norm to head: all but q to k.
    assert len(moved) == 5 and len(plan.groups) == 6


@pytest.mark.parametrize("net", STARTS)
def test_smooth_quant_from_the_last_site_on_ends_alike_from_every_start(net: str) -> None:
    """A sweep in the order of the graph does not; sweeps until nothing moves end where that one sweep does."""

    def sizes_after(start: str, sweeps: int, last_first: bool) -> torch.Tensor:
        case = case_of(net)
        STARTS[net][start](case, 3)
        for _ in range(sweeps):
            smoothed(Case(case.model, case.calibration, case.plans), 0.5, last_first=last_first)
        return torch.cat([value.detach().abs().reshape(-1) for value in case.model.parameters()])

    trained, other = STARTS[net]
    wanted = sizes_after(trained, 1, last_first=True)
    torch.testing.assert_close(sizes_after(other, 1, last_first=True), wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sizes_after(other, 6, last_first=False), wanted, rtol=1e-9, atol=1e-12)
    assert float((sizes_after(other, 1, last_first=False) / wanted - 1).abs().max()) > 0.1


def test_outliers_are_channels_of_inputs_and_nothing_else_moves() -> None:
    case = case_of("transformer")
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    STARTS["transformer"]["outliers"](case, 0)
    for name in ("norm", "blocks.0.norm1", "blocks.0.norm2"):
        ratio = case.model.get_parameter(f"{name}.weight") / before[f"{name}.weight"]
        assert sorted(ratio.round().tolist())[-4:] == [1, 30, 30, 30]
    assert torch.equal(
        case.model.state_dict()["blocks.0.attention.q.weight"] != before["blocks.0.attention.q.weight"],
        (case.model.state_dict()["blocks.0.norm1.weight"] != before["blocks.0.norm1.weight"]).expand(16, 16),
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of a fraction of the size, on which three methods are tried."""
    monkeypatch.setitem(networks.NETS, "depthwise", lambda: DepthwiseNet(4, 1))
    for name in [name for name in METHODS if name not in ("nothing", "p = 2", "PredictedNoise")]:
        monkeypatch.delitem(METHODS, name)


@pytest.mark.usefixtures("small")
def test_the_command_prints_its_tables_and_does_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "depthwise",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--settings",
        "W8 tensor",
        "W8A8 tensor",
        "--networks",
        str(tmp_path),
    ]
    arguments += ["--results", str(tmp_path / "results.jsonl")]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    kept, runs = Kept(tmp_path / "results.jsonl"), runs_of("depthwise", [0], ["W8 tensor", "W8A8 tensor"])
    errors = {(run.start, run.method): kept[run]["error"] for run in runs if run.setting == "W8 tensor"}
    assert errors["rescaled", "nothing"] > 5 * errors["trained", "nothing"]
    assert math.isclose(errors["rescaled", "p = 2"], errors["trained", "p = 2"], rel_tol=0.02)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(first.err.splitlines()) == 2 * 2 * len(methods_of("depthwise"))
    assert "| rescaled | p = 2 |" in first.out and "not measured: " in first.out
    (tmp_path / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert cli.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == first.out and len(again.err.splitlines()) == 1
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines
    assert cli.main(["resnet"]) == 2 and "resnet" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_prediction_is_the_same_whichever_methods_ran_before(tmp_path: Path) -> None:
    given = ["depthwise", "--seeds", "1", "--epochs", "1", "--settings", "W8A8 tensor, predicted", "--networks", str(tmp_path)]
    paths = [tmp_path / "alone.jsonl", tmp_path / "all.jsonl"]
    assert cli.main([*given, "--results", str(paths[0]), "--methods", "p = 2"]) == 0
    assert cli.main([*given, "--results", str(paths[1])]) == 0
    alone, among_all = (Kept(path) for path in paths)
    runs = runs_of("depthwise", [0], ["W8A8 tensor, predicted"], methods=["p = 2"])
    assert len(runs) == 2
    for run in runs:
        assert math.isclose(alone[run]["error"], among_all[run]["error"], rel_tol=1e-9)


def test_claims_are_met_not_met_or_not_measured() -> None:
    assert str(Claim("a", 0.5, 0.9)).startswith("met: a") and str(Claim("a", 1.5, 0.9)).startswith("NOT MET: a")
    assert str(Claim("a", math.nan, 0.9)).startswith("not measured: a")
    for net in STARTS:
        kept = Kept(None)
        for seed in (0, 1):
            for run in runs_of(net, [seed]):
                kept.add(run, {"error": 1.0 + seed, "accuracy": 90.0})
        results = Results(net, (0, 1), kept)
        assert len(table(results, "error")) == 2 + 2 * len(methods_of(net)) and "1.50±0.71" in table(results, "error")[2]
        measured = [claim for claim in claims(results) if claim.value == claim.value]
        assert all(claim.value in (0, 1) for claim in measured)
        kept.add(Run(net, list(STARTS[net])[1], 0, "p = 2", "W8 tensor"), {"error": 1.0, "accuracy": 90.0 - 100 * 2 / 797})
        if net == "depthwise":
            (two,) = [claim for claim in claims(results) if "p = 2," in claim.words]
            assert two.value == 2 and str(two).startswith("NOT MET")
