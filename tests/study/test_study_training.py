"""A stack trains each of its networks as that network is trained alone, by every method (test_study_objectives.py: the rest)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from study.configuration import StudyError
from study.data.task import Task
from study.measures import imbalances, norms
from study.methods import METHODS, BalancedOnce, Method, Objective, PlanStep
from study.networks.build import NETWORKS, layers_of
from study.networks.stack import Stack
from study.optimizers import set_rates
from study.starts import STARTS, start
from study.training import Training, train
from torch import nn

import fxenorm

from ..helpers import relative_difference
from .made_up import small, small_task

TASK = small_task()
CPU = torch.device("cpu")
CHAIN_METHODS = [
    name
    for name, method in METHODS.items()
    if "gains" not in name and "from" not in name and name != "AdamW, balanced once" and not isinstance(method, Objective)
]


def weights_after(of: Any, task: Task = TASK) -> list[list[torch.Tensor]]:
    """The weights of all layers after training, by run."""
    kept: list[Training] = []

    @dataclass(frozen=True)
    class Keeping(type(of[0].method)):  # type: ignore[misc]
        def before_training(self, training: Training) -> None:
            kept.append(training)
            super().before_training(training)

    watched = [one.but(method=Keeping(**vars(one.method))) for one in of]
    train(watched, task)
    model = kept[0].model
    if isinstance(model, Stack):
        return [[layer.effective()[run].detach() for layer in model.layers] for run in range(len(of))]
    return [[layer.weight.detach() for layer in layers_of(model)]]


@pytest.mark.parametrize("name", CHAIN_METHODS)
def test_a_stack_trains_each_network_as_it_trains_alone(name: str) -> None:
    """The one has `StackedSGD`, `StackedAdamW` and batched layers, the other PyTorch's own; both have `plan.step`."""
    pairs = ((0.01, 3), (0.04, 4))
    of = [small(name, start="layers", dtype="float64", steps=8, rate=rate, seed=seed) for rate, seed in pairs]
    together = weights_after(of)
    tolerance = 1e-5 if isinstance(METHODS[name], BalancedOnce) else 1e-9  # balance ends somewhere within its own tolerance
    (alone,) = weights_after([of[1]])
    assert all(relative_difference(other, mine) < tolerance for mine, other in zip(together[1], alone, strict=True))
    assert not torch.allclose(together[0][0], together[1][0]), "control: rate and seed matter"


def test_one_cycle_of_a_stack_is_plan_step_of_each_network() -> None:
    example = TASK.inputs(TASK.train.images[None, :2])[0]
    networks = [start(small(seed=seed, start="channels"), example, 10) for seed in range(3)]
    stack = Stack(networks)
    fxenorm.analyze(stack, torch.randn(3, 2, 16)).step()
    for number, network in enumerate(networks):
        before = layers_of(network)[1].weight.detach().clone()
        fxenorm.analyze(network, torch.randn(2, 16)).step()
        for mine, layer in zip(stack.layers, layers_of(network), strict=True):
            assert relative_difference(layer.weight.detach(), mine.weight[number].detach()) < 1e-6
        assert not torch.allclose(before, layers_of(network)[1].weight), "control: the cycle moved something"


@pytest.mark.parametrize("name", ["plan.step", "AdamW"])
def test_a_run_that_diverges_leaves_the_others_alone(name: str) -> None:
    of = [small(name, rate=0.02, seed=3), small(name, rate=1e6, seed=3)]
    good, lost = train(of, TASK)
    (alone,) = train([of[0]], TASK)
    assert lost["diverged"] and lost["score"] == 10.0 and lost["loss"] is None
    assert not good["diverged"] and good["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    (alone_lost,) = train([of[1]], TASK)
    assert alone_lost["diverged"] and alone_lost["score"] == 10.0


def test_training_learns_and_all_methods_see_the_same_batches() -> None:
    losses: list[float] = []
    (result,) = train(
        [small("plan.step", depth=3, steps=80, rate=0.1)], TASK, tick=lambda step, found: losses.append(float(found[0]))
    )
    assert result["score"] > 50 and losses[-1] < 0.5 * losses[0]
    assert result["curve_steps"][-1] == 80 and len(result["curve_norm"]) == len(result["curve_steps"])
    again: list[float] = []
    train([small("AdamW", depth=3, steps=1)], TASK, tick=lambda step, found: again.append(float(found[0])))
    assert again[0] == pytest.approx(losses[0], rel=1e-6)


# ---------------------------------------------------------------- starts


def started(name: str, method: str = "plain", seed: int = 3) -> nn.Module:
    """A network in float64 with the weights of a start."""
    example = TASK.inputs(TASK.train.images[None, :8])[0]
    return start(small(method, start=name, seed=seed), example, 10).double()


@pytest.mark.parametrize("name", STARTS)
def test_starts_of_one_function_are_one_and_the_others_are_not(name: str) -> None:
    x = TASK.inputs(TASK.train.images[None, :8])[0].double()
    he, other = started("he"), started(name)
    difference = relative_difference(he(x).detach(), other(x).detach())
    changed = relative_difference(layers_of(he)[1].weight.detach(), layers_of(other)[1].weight.detach())
    assert (difference < 1e-5) == (name in ("he", "layers", "channels"))
    assert (changed > 1e-2) == (name != "he")


@pytest.mark.parametrize("method", ["BatchNorm", "GroupNorm", "WeightNorm"])
def test_methods_start_from_the_same_weights(method: str) -> None:
    plain, other = started("layers"), started("layers", method)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers_of(plain), layers_of(other), strict=True))


def test_balanced_once_is_one_network_from_three_starts() -> None:
    found = []
    for name in ("he", "layers", "channels"):
        network = started(name)
        fxenorm.analyze(network, torch.randn(2, 16, dtype=torch.float64)).balance(tol=1e-9)
        found.append(layers_of(network))
    for others in found[1:]:
        assert all(relative_difference(a.weight, b.weight) < 1e-6 for a, b in zip(found[0], others, strict=True))


def test_the_three_rows_of_the_noise_start_from_one_network() -> None:
    arms = [method for method in METHODS.values() if isinstance(method, BalancedOnce) and method.optimizer == "sgd"]
    assert len(arms) == 3
    ends = [train([small(arm.name, dtype="float64", steps=5)], TASK)[0]["loss"] for arm in arms]
    assert max(ends) - min(ends) < 1e-5


# ---------------------------------------------------------------- measures, methods, networks


def test_measures_of_a_stack_are_those_of_its_plans() -> None:
    of = [small(start="layers", seed=seed, dtype="float64") for seed in (1, 2)]
    together = Training(of, TASK, CPU)
    for run, one in enumerate(of):
        alone = Training([one], TASK, CPU)
        assert norms(together)[run] == pytest.approx(norms(alone)[0], rel=1e-9) == float(alone.plan().norm())
        assert imbalances(together)[run] == pytest.approx(imbalances(alone)[0], rel=1e-9)


def test_norms_in_front_of_a_batchnorm_are_kept() -> None:
    results = train([small("BatchNorm", seed=seed) for seed in (1, 2)], TASK)
    (alone,) = train([small("BatchNorm", seed=1)], TASK)
    assert len(results[0]["norms_before_batchnorm"]) == 3
    assert results[0]["norms_before_batchnorm"] == pytest.approx(alone["norms_before_batchnorm"], rel=1e-3)
    assert train([small("plain")], TASK)[0]["norms_before_batchnorm"] == []


def test_a_method_of_ones_own_needs_no_other_loop() -> None:
    calls: list[int] = []

    @dataclass(frozen=True)
    class Own(Method):
        def before_training(self, training: Training) -> None:
            calls.append(0)

        def after_step(self, training: Training, step: int) -> None:
            calls.append(step)

    train([small(Own("mine"), steps=4)], TASK)
    assert calls == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("every", "cycles"), [(1, 12), (4, 3), (0, 2)])
def test_every_k_steps_and_every_epoch(every: int, cycles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 training images in batches of 16 are six steps an epoch."""
    count = []
    monkeypatch.setattr(PlanStep, "cycle", lambda self, training: count.append(1))
    train([small(PlanStep("some", every=every))], TASK)
    assert len(count) == cycles


def test_displacement_moves_weights_as_plan_step_and_buffers_by_their_factors() -> None:
    names = ("plan.step", "plan.step, momentum kept", "plan.step, momentum as displacement")
    trainings = [Training([small(name, start="layers", dtype="float64", bias=True)], TASK, CPU) for name in names]
    for training in trainings:
        for parameter in training.model.parameters():
            training.optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        training.of[0].method.after_step(training, 1)
    stepped, kept, carried = trainings
    for a, b, c in zip(stepped.model.parameters(), kept.model.parameters(), carried.model.parameters(), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=0)
        gradient, same, moved = (
            training.optimizer.state[p]["momentum_buffer"] for training, p in ((stepped, a), (kept, b), (carried, c))
        )
        assert torch.equal(same, torch.ones_like(same))
        torch.testing.assert_close(moved, 1 / gradient, rtol=1e-9, atol=0)
    assert not torch.allclose(moved, torch.ones_like(moved)) or a.ndim == 1, "control"


@pytest.mark.parametrize(("decay_on", "decoupled"), [("matrices", False), ("none", False), ("all", True), ("matrices", True)])
def test_decay_is_where_it_is_asked_for(decay_on: str, decoupled: bool) -> None:
    """Where gradients are zero nothing but the decay moves: a gain, a bias and a matrix tell the cases apart."""
    of = [
        small("BatchNorm", decay_on=decay_on, decoupled=decoupled, weight_decay=0.5, momentum=0.0, rate=0.1, seed=s)
        for s in (1, 2)
    ]
    for runs in (of, of[:1]):
        training = Training(runs, TASK, CPU)
        set_rates(training.optimizer, torch.tensor([0.1] * len(runs)))
        before = {name: value.detach().clone() for name, value in training.model.named_parameters()}
        for parameter in training.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        training.optimizer.step()
        for name, value in training.model.named_parameters():
            matrix = name.startswith("layers") and name.endswith("weight")
            decays = decay_on == "all" or (decay_on == "matrices" and matrix)
            torch.testing.assert_close(value.detach(), before[name] * (0.95 if decays else 1.0))


SHAPES = {"mlp": (1, 4), "autoencoder": (1, 8), "conv": (3, 28), "resnet18": (3, 8), "transformer": (1, 4)}


@pytest.mark.parametrize("experiment", NETWORKS)
def test_every_experiment_trains_with_cycles(experiment: str) -> None:
    channels, size = SHAPES[experiment]
    task = small_task(size, channels)
    width = {"mlp": 8, "transformer": 8}.get(experiment, 1 / 32)
    (result,) = train([small("AdamW, plan.step", experiment=experiment, width=width, steps=2)], task)
    assert not result["diverged"] and result["curve_norm"][-1] > 0


@pytest.mark.parametrize("shortcuts", ["learned", "standard"])
def test_resnet_has_both_kinds_of_shortcuts(shortcuts: str) -> None:
    task = small_task(8, 3)
    training = Training([small(experiment="resnet18", width=1 / 16, variant=shortcuts)], task, CPU)
    assert len(layers_of(training.model)) == 1 + 16 + (8 if shortcuts == "learned" else 3) + 1
    assert training.plan().num_scales > 0 and training.plan().exact


def test_the_released_network_is_that_of_the_paper() -> None:
    """15 layers: 3072 to 500, 13 of 500 × 500, 500 to 10; nine convolutions of 128, 256 and 320 channels."""
    shapes = [(3072, 500), *[(500, 500)] * 13, (500, 10)]
    task = small_task(32, 3)
    mlp = Training([small("BatchNorm", depth=15, width=500, bias=False)], task, CPU).model
    assert [(layer.in_features, layer.out_features) for layer in layers_of(mlp)] == shapes  # type: ignore[union-attr]
    conv = Training([small("BatchNorm", experiment="conv", width=1)], small_task(28, 3), CPU).model
    channels = [3, 128, 128, 128, 256, 256, 256, 320, 320, 10]
    assert [(layer.in_channels, layer.out_channels) for layer in layers_of(conv)] == list(pairwise(channels))  # type: ignore[union-attr]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in conv.modules()) == 2
    assert all(layer.bias is None for layer in layers_of(conv))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experiment": "vgg"}, "no experiment is called 'vgg'"),
        ({"start": "cold"}, "no start is called 'cold'"),
        ({"experiment": "resnet18", "width": 1 / 16, "start": "layers"}, "for chains of layers"),
        ({"experiment": "transformer", "width": 8, "method": "BatchNorm"}, "norms of its own"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        train([small(**changes)], TASK)


def test_stacks_of_unequal_runs_are_refused() -> None:
    with pytest.raises(StudyError, match="rate and seed alone"):
        train([small(), small(batch=8)], TASK)
    with pytest.raises(StudyError, match="cannot be stacked"):
        train([small(experiment="resnet18", seed=seed) for seed in (1, 2)], TASK)
