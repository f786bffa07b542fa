"""Models of very many layers: small matrices are taken together, and what couples their groups is a sparse matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.solve.coarse import CoarseProblem
from fxenorm.solve.sparse_coarse import SparseCoarseProblem
from fxenorm.weights.objective import CurrentObjective


def chain(depth: int, width: int = 3) -> nn.Sequential:
    """Layers of one size, each with ReLU behind it, of very different norms."""
    torch.manual_seed(depth)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(nn.Linear(5, width), nn.ReLU(), *layers, nn.Linear(width, 2)).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(torch.exp(2 * torch.randn(layer.out_features, 1, dtype=torch.float64, device="cpu")))
    return model


def convolutions(depth: int) -> nn.Sequential:
    """Kernels, groups of channels, and tables of several sizes."""
    torch.manual_seed(depth)
    parts = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU()]
    parts += [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    more = [type(part)(*arguments(part)) if isinstance(part, nn.Conv2d) else part for _ in range(depth) for part in parts]
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), *more, nn.Conv2d(4, 3, 1)).double()


def arguments(part: nn.Conv2d) -> tuple[object, ...]:
    """What makes another convolution of the same kind."""
    return part.in_channels, part.out_channels, part.kernel_size, part.stride, part.padding, part.dilation, part.groups


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (lambda: chain(20), (2, 5)),
    "convolutions": (lambda: convolutions(10), (2, 2, 4, 4)),
}


def problem_of(name: str, p: float) -> CurrentObjective:
    """The objective of a model, read."""
    make, shape = MODELS[name]
    plan = fxenorm.analyze(make(), torch.randn(shape, dtype=torch.float64, device="cpu"), p=p)
    return plan.rescaler.open().objective()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("name", list(MODELS))
def test_matrices_that_are_taken_together_say_what_they_say_alone(name: str, p: float) -> None:
    alone = problem_of(name, p)
    together = alone.stacked()
    assert len(together.matrices) < len(alone.matrices)
    generator = torch.Generator().manual_seed(1)

    def near(given: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)

    for size in (0.0, 1.0, 5.0):
        count = alone.program.num_scales
        scales = size * torch.randn(count, generator=generator, dtype=torch.float64, device="cpu")
        sums = alone.log_sums(scales)
        for given, expected in zip(together.log_sums(scales), sums, strict=True):
            near(given, expected)
        near(together.log_objective(scales), alone.log_objective(scales))
        free = torch.logaddexp(*sums).isfinite()
        diagonal = torch.where(free, torch.logaddexp(*sums), 0.0)
        vector = torch.randn(count, generator=generator, dtype=torch.float64, device="cpu")
        near(*(item.curvature(scales, diagonal, free).product(vector) for item in (together, alone)))
        labels = torch.arange(count, dtype=torch.int64, device="cpu") // 3
        groups = int(labels.max()) + 1
        change = torch.randn(groups + 1, generator=generator, dtype=torch.float64, device="cpu")
        change[-1] = 0.0
        totals = []
        for item in (together, alone):
            logs, (entry, label, exponent) = item.aggregate(scales, labels, groups)
            totals.append(logs.index_add(0, entry, p * exponent * change[label]).logsumexp(0))
        near(*totals)


@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("shape", ["chain", "star"])
def test_the_sparse_coarse_problem_is_the_dense_one(shape: str, spare: int) -> None:
    """Also where `spare` groups have no entry: these stay."""
    count, entries = 30, 90
    generator = torch.Generator().manual_seed(3)
    logs = 4 * torch.randn(entries, generator=generator, dtype=torch.float64, device="cpu")
    numbers = torch.arange(entries, dtype=torch.int64, device="cpu")
    first = numbers % count
    second = (first + 1) % count if shape == "chain" else torch.where(first == 0, 1, 0)
    # Two signs, so that the minimum is attained.
    sign = torch.where(numbers // count % 2 == 0, 1, -1)
    exponents = torch.cat([torch.stack([numbers, first, sign]), torch.stack([numbers, second, -sign])], 1)
    alone = torch.stack(
        [torch.tensor([0, 1], device="cpu"), torch.tensor([0, 0], device="cpu"), torch.tensor([1, -1], device="cpu")]
    )
    exponents = torch.cat([exponents, alone], 1)
    dense, sparse = (kind(logs, exponents, count + spare, 2.0) for kind in (CoarseProblem, SparseCoarseProblem))
    rows = torch.zeros(entries, count + spare, dtype=torch.float64, device="cpu")
    rows.index_put_((exponents[0], exponents[1]), exponents[2].double(), accumulate=True)

    def value(scalars: Tensor) -> Tensor:
        return (logs + 2.0 * rows @ scalars).logsumexp(0)

    torch.testing.assert_close(value(sparse.minimise()), value(dense.minimise()), rtol=1e-10, atol=1e-10)
    vector = rows.T @ torch.randn(entries, generator=generator, dtype=torch.float64, device="cpu")
    solutions = []
    for problem in (dense, sparse):
        solve = problem.preconditioner(logs.max())
        assert solve is not None
        solutions.append(solve(vector))
    hessian = rows.T @ ((logs - logs.max()).exp()[:, None] * rows)
    torch.testing.assert_close(hessian @ solutions[1], hessian @ solutions[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hessian @ solutions[1], vector, rtol=1e-4, atol=1e-4)
    for scalars in (sparse.minimise(), dense.minimise(), *solutions):
        assert not scalars[count:].any()


def test_a_chain_of_hundreds_of_layers_is_balanced_to_equal_norms_in_few_iterations() -> None:
    model = chain(400)
    inputs = torch.randn(4, 5, dtype=torch.float64, device="cpu")
    plan = fxenorm.analyze(model, inputs)
    before = model(inputs)
    result = plan.balance()
    assert result.converged and result.iterations <= 15
    norms = torch.stack(list(plan.layer_norms().values()))
    assert len(norms) == 402
    assert float(norms.max() / norms.min()) < 1 + 1e-4
    torch.testing.assert_close(model(inputs), before, rtol=1e-9, atol=0)
