"""Averages beside a plan: those that callbacks of a trainer hold follow every rescaling; options are checked when given."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fxenorm
from fxenorm.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the trainer itself warns of is its own."""

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def unbalanced() -> nn.Sequential:
    """Far from its least norm, so that a rescaling changes every weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight.mul_(5)
        net[0].bias.mul_(5)
        net[2].weight.div_(5)
    return net


def lightning_module(with_forward: bool) -> Any:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        """Learns so slowly that its function stays as it is."""

        def __init__(self) -> None:
            super().__init__()
            self.net = unbalanced()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return (self(batch[0]) if with_forward else self.net(batch[0])).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-12)

    class WithForward(Module):
        """The whole module is analysed."""

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return WithForward() if with_forward else Module()


class OwnAverage:
    """A callback as users write it: an average that is made in the third step."""

    def __init__(self, wraps: bool) -> None:
        self.wraps, self.ema, self.steps = wraps, None, 0

    def update(self, module: nn.Module) -> None:
        self.steps += 1
        if self.steps == 3:
            self.ema = AveragedModel(module) if self.wraps else copy.deepcopy(module)
        elif self.ema is not None and self.wraps:
            self.ema.update_parameters(module)
        elif self.ema is not None:
            for mine, other in zip(self.ema.parameters(), module.parameters(), strict=True):
                mine.data.lerp_(other.data, 0.3)


def averaging(kind: str) -> Any:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if kind == "swa":
        return callbacks.StochasticWeightAveraging(1e-12, swa_epoch_start=1)
    if kind == "ema":
        return callbacks.EMAWeightAveraging(decay=0.7)
    if kind == "averaging":
        return callbacks.WeightAveraging()

    class Own(OwnAverage, callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.update(pl_module)

    return Own(kind == "own, wrapped")


def fit(module: Any, callbacks: list[Any], **settings: Any) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), 8)
    lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, **settings,
    ).fit(module, data)  # fmt: skip


def average_of(callback: Any, module: nn.Module) -> nn.Module:
    """What the callback made of it all; the trainer's own put it into the module at the end."""
    return module if getattr(callback, "ema", None) is None else getattr(callback.ema, "module", callback.ema)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("with_forward", [True, False])
@pytest.mark.parametrize("kind", ["swa", "ema", "averaging", "own", "own, wrapped"])
def test_lightning_averages_are_in_one_gauge(kind: str, with_forward: bool, first: bool) -> None:
    """Whatever the order of the callbacks, and whether the whole module is analysed or its part."""
    from fxenorm.integrations.lightning import FxenormCallback

    module = lightning_module(with_forward)
    before, weight = module.net(X).detach(), module.net[0].weight.detach().clone()
    average, ours = averaging(kind), FxenormCallback(every=3)
    fit(module, [ours, average] if first else [average, ours])
    for found in (module, average_of(average, module)):
        torch.testing.assert_close(found.net(X).detach(), before, rtol=0, atol=1e-5 * float(before.abs().max()))
    assert not torch.allclose(module.net[0].weight, weight, rtol=0.1), "control: the weights were moved"
    assert not ours.plan.rescaler.tracked, "nothing follows when the training is over"


def test_without_following_the_average_is_another_function() -> None:
    """The reason for all this: it must be seen here, or the test above could not fail."""
    from fxenorm.integrations.averages import Averages
    from fxenorm.integrations.lightning import FxenormCallback

    module = lightning_module(True)
    before = module.net(X).detach()
    average = averaging("ema")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Averages, "look", lambda *_: None)
        fit(module, [FxenormCallback(every=3), average])
    assert float((module.net(X) - before).abs().max()) > 0.05 * float(before.abs().max())


def test_what_a_user_names_follows_and_other_models_are_left_alone() -> None:
    from fxenorm.integrations.lightning import FxenormCallback

    callbacks = pytest.importorskip("lightning.pytorch.callbacks")

    class Teacher(callbacks.Callback):  # type: ignore[misc]
        """Holds a model of another shape, and the trained one itself."""

        def __init__(self, student: nn.Module) -> None:
            self.teacher, self.student, self.words = nn.Linear(6, 3), student, "a word"

    module = lightning_module(False)
    mine = copy.deepcopy(module.net)
    teacher = Teacher(module)
    weights = copy.deepcopy(teacher.teacher.state_dict())
    fit(module, [FxenormCallback(track=[mine]), teacher])
    assert all(torch.equal(value, weights[name]) for name, value in teacher.teacher.state_dict().items())
    for one, other in zip(mine.parameters(), module.net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_loop_of_ones_own() -> None:
    """As the README says: `plan.track(average)` once, before the first step."""
    for tracked in (True, False):
        model = unbalanced()
        before, optimizer = model(X).detach(), torch.optim.SGD(model.parameters(), lr=1e-12)
        plan, average = fxenorm.analyze(model, X), AveragedModel(model)
        if tracked:
            plan.track(average)
        for _ in range(6):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
            plan.step(optimizer)
            average.update_parameters(model)
        plan.rescale(torch.full((8,), 1.0), optimizer)
        change = float((average(X).detach() - before).abs().max() / before.abs().max())
        average.update_parameters(model)
        mixed = float((average(X).detach() - before).abs().max() / before.abs().max())
        assert change < 1e-5 and ((mixed < 1e-5) if tracked else (mixed > 1e-2))


# -------------------------------------------------------------------- options of the callbacks

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"log_evry": 5}, "log_evry=5.*did you mean log_every"),
    ({"batchnorm": "fold"}, "batchnorm='fold'"),
    ({"state": "rest"}, "state='rest'"),
    ({"cycles": 0}, "cycles=0"),
    ({"every": 0}, "every=0"),
    ({"start": -1}, "start=-1"),
    ({"stop": "never"}, "stop='never'"),
    ({"grads": 1}, "grads=1"),
    ({"log_every": 0}, "log_every=0"),
    ({"example_inputs": 3}, "first batch"),
    ({"c": -1}, "c=-1"),
    ({"resume": "maybe"}, "resume='maybe'"),
    ({"record": 0}, "record=0"),
]


def callbacks() -> list[Any]:
    found = []
    for library, name in (("lightning.pytorch", "lightning"), ("transformers", "transformers")):
        found.append(pytest.param((library, f"fxenorm.integrations.{name}"), id=name))
    return found


def made(where: tuple[str, str], **options: Any) -> Any:
    pytest.importorskip(where[0])
    return pytest.importorskip(where[1]).FxenormCallback(**options)


@pytest.mark.parametrize("where", callbacks())
@pytest.mark.parametrize(("options", "words"), WRONG)
def test_wrong_options_are_refused_when_the_callback_is_made(where: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        made(where, **options)


@pytest.mark.parametrize("where", callbacks())
def test_right_options_are_handed_on(where: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """`state`, `cycles` and `grads` reach `attach`, and those of `analyze` the plan."""
    seen: list[dict[str, Any]] = []
    real = fxenorm.Plan.attach
    monkeypatch.setattr(fxenorm.Plan, "attach", lambda plan, o, **given: seen.append(given) or real(plan, o, **given))
    given = {"every": 2, "start": 1, "stop": 9, "cycles": 2, "grads": True, "state": "keep"}
    callback = made(where, **given, p=1, biases="count")
    if where[0] == "transformers":
        from .test_integrations import transformers_trainer

        transformers_trainer(tmp_path, [callback], max_steps=3).train()
        assert callback.state()["args"].items() >= {**given, "p": 1, "biases": "count"}.items()
    else:
        fit(lightning_module(True), [callback], default_root_dir=tmp_path)
    assert seen == [given]
    assert callback.plan.options.p == 1.0 and callback.plan.options.biases == "count"


def test_an_optimizer_without_a_rule_trains_with_a_choice() -> None:
    """The error for one names `state`, which the callback takes."""
    from fxenorm.integrations.lightning import FxenormCallback

    class Unknown(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> Any:
            return closure()

    module = lightning_module(True)
    module.configure_optimizers = lambda: Unknown(module.parameters())
    with pytest.raises(fxenorm.errors.OptimizerError, match="state='keep'"):
        fit(module, [FxenormCallback()])
    callback = FxenormCallback(state="keep")
    with warnings.catch_warnings():
        fit(module, [callback])
    assert callback.state_dict()["steps"] == 12 and float(callback.plan.imbalance()) < 0.1
