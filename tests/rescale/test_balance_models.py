"""`balance` on whole models: few iterations, three passes, the same answer from any start, whatever the solver."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fxenorm

from ..helpers import TOLERANCE, load_tool, mlp, outputs, randomise, relative_difference, state_of

BENCH = load_tool("bench_balance")
NAMES = ["chain4", "chain16", "chain16-heavy", "chain16-sparse", "unet", "llama"]


def made(name: str) -> tuple[torch.nn.Module, Any]:
    """A model in float64 and its inputs."""
    torch.manual_seed(0)
    if name == "mlp":
        return randomise(mlp(9, 8, 7, 6, 5, 4).double(), seed=1), torch.zeros(6, 9, dtype=torch.float64)
    model, inputs = BENCH.CASES[name]()
    return model.double(), inputs if not inputs.is_floating_point() else inputs.double()


def random_scales(plan: fxenorm.Plan, seed: int, size: float = 1.0) -> torch.Tensor:
    """Log-scales, 0 where balance could not undo them."""
    scales = size * torch.randn(plan.num_scales, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for item in plan.held:
        scales[list(item.variables)] = 0.0
    return scales


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in (*NAMES, "mlp")), ("resnet18", {"batchnorm": "folded"}), ("chain16-heavy", {"p": 32.0})],
)
def test_same_weights_from_any_start_and_they_are_undone(name: str, options: dict[str, Any]) -> None:
    """Five random rescalings of the start, the last with lognormal(3) factors."""
    model, inputs = made(name)
    inputs = torch.randn(inputs.shape, dtype=torch.float64) if inputs.is_floating_point() else inputs
    plan = fxenorm.analyze(model, inputs, **options)
    original, before = copy.deepcopy(model), outputs(model, [inputs])
    result = plan.balance(tol=1e-10)
    passes = (3,) if plan.options.p <= 4 else range(3, 11)  # beyond p = 4, looks at the largest entries count too
    assert result.converged and result.solver == "newton" and result.iterations <= 30 and result.passes in passes
    assert float(plan.imbalance()) <= 2e-10
    expected = state_of(model)
    plan.rescale(-result.log_scales)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, original.state_dict()[key], rtol=1e-12, atol=0)
    torch.testing.assert_close(plan.balance(tol=1e-10).log_scales, result.log_scales, rtol=1e-8, atol=1e-10)
    for seed in range(5):
        other = copy.deepcopy(original)
        bound = plan.bind(other)
        bound.rescale(random_scales(plan, seed, 3.0 if seed == 4 else 1.0).tolist())
        again = bound.balance(tol=1e-10)
        assert again.converged and again.iterations <= 30 and again.passes in passes
        assert relative_difference(before, outputs(other, [inputs])) <= TOLERANCE
        for key, tensor in other.state_dict().items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["chain16", "chain16-heavy", "unet", "llama"])
def test_nothing_is_better(name: str) -> None:
    """The gradient vanishes at the answer, and L-BFGS from the same start finds nothing lower; from a badly scaled start too."""
    model, inputs = made(name)
    plan = fxenorm.analyze(model, inputs)
    for bad in (False, True):
        if bad:
            BENCH.random_rescaling(plan, 3.0)
        _, held = BENCH.problem_of(plan)
        assert plan.balance().converged
        problem, _ = BENCH.problem_of(plan)
        value, slope = BENCH.value_and_gradient(problem, held, torch.zeros(plan.num_scales, dtype=torch.float64))
        assert float(slope.abs().max()) < 1e-6
        if not bad:
            model, inputs = made(name)
            start, held = BENCH.problem_of(plan.bind(model))
            assert value <= BENCH.lbfgs(start, held) + 1e-12
            plan = plan.bind(model)


def test_gradient_of_the_bench_is_that_of_the_objective() -> None:
    """Control: by differences."""
    model, inputs = made("llama")
    plan = fxenorm.analyze(model, inputs)
    problem, held = BENCH.problem_of(plan)
    scales = random_scales(plan, 0, 0.3)
    _, slope = BENCH.value_and_gradient(problem, held, scales)
    for place in range(0, plan.num_scales, 61):
        small = torch.zeros_like(scales)
        small[place] = 1e-5
        ahead, behind = (BENCH.value_and_gradient(problem, held, scales + sign * small)[0] for sign in (1, -1))
        assert (ahead - behind) / 2e-5 == pytest.approx(float(slope[place]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("solver", ["auto", "jacobi", "newton", "gauss-seidel"])
def test_solvers_by_name(solver: str) -> None:
    """The same optimum whatever is named; one step never raises the norm and keeps the function."""
    model, inputs = made("unet")
    torch.nn.init.normal_(model.head.bias)  # type: ignore[union-attr, arg-type]
    plan = fxenorm.analyze(model, inputs, solver=solver)
    inputs = torch.randn(inputs.shape, dtype=torch.float64)
    before, norm = model(inputs), float(plan.norm())
    plan.step()
    assert float(plan.norm()) < norm
    plan.step(cycles=3)
    result = plan.balance(tol=1e-7)
    assert result.converged and result.solver == ("gauss-seidel" if solver == "gauss-seidel" else "newton")
    torch.testing.assert_close(model(inputs), before, rtol=1e-9, atol=1e-9)
    reference = fxenorm.analyze(made("unet")[0], inputs)
    assert result.norm_after == pytest.approx(reference.balance().norm_after, rel=1e-9)


@pytest.mark.parametrize(
    ("named", "used"), [("auto", "max-balance"), ("jacobi", "max-balance"), ("gauss-seidel", "gauss-seidel")]
)
def test_infinite_p_takes_sweeps_where_they_are_named(named: str, used: str) -> None:
    model, inputs = made("chain4")
    plan = fxenorm.analyze(model, inputs, p=float("inf"), solver=named)
    result = plan.balance()
    assert result.converged and result.solver == used and used in str(result)
    assert result.residual is not None and result.residual <= (1e-12 if used == "max-balance" else 1e-2)
    assert fxenorm.analyze(made("chain4")[0], inputs).balance().residual is None, "for finite p there is none"


def test_a_minimum_beyond_the_limit_is_reported() -> None:
    """What max_log_scale stops is named, and the function is kept."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    plan = fxenorm.analyze(model, torch.zeros(1, 2, dtype=torch.float64), max_log_scale=0.05)
    before = model(torch.ones(1, 2, dtype=torch.float64))
    result = plan.balance()
    assert result.log_scales.abs().max() <= 0.05 + 1e-12
    assert not result.converged and any("not attained" in item.reason for item in result.held)
    torch.testing.assert_close(model(torch.ones(1, 2, dtype=torch.float64)), before)


def test_the_bench_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["chain4", "--json"], ["chain4", "--json", "--check"]):
        assert BENCH.main(arguments) == 0
        assert '"converged": true' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        BENCH.main(["nothing"])
