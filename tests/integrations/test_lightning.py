"""Lightning's own Trainer runs with its callback, on the digits."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxenorm.errors import BindError, OptionError

from ..trainer_helpers import Timeline, loader, network

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the trainer itself warns of is its own."""


def lightning_parts() -> tuple[Any, Any]:
    lightning = pytest.importorskip("lightning.pytorch")
    from fxenorm.integrations.lightning import FxenormCallback

    class Module(lightning.LightningModule):
        """Classifies digits; `kind` says how its parts are arranged."""

        def __init__(self, kind: str = "child") -> None:
            super().__init__()
            whole = network()
            if kind == "child":
                self.body = whole
            else:
                self.backbone, self.head = whole[:4], whole[4:]
            self.kind = kind

        def training_step(self, batch: Any, index: int) -> Tensor:
            images, labels = batch
            logits = self.body(images) if self.kind == "child" else self.head(self.backbone(images))
            return nn.functional.cross_entropy(logits, labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    class WithForward(Module):
        """Defines forward, and says what it takes."""

        def __init__(self) -> None:
            super().__init__()
            self.example_input_array = torch.zeros(2, 64)

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images)

    return (Module, WithForward), FxenormCallback


def trainer(tmp_path: Path, callbacks: list[Any], **settings: Any) -> Any:
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    return lightning.Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, **settings,
    )  # fmt: skip


@pytest.mark.parametrize(("form", "precision"), [(0, "32-true"), (0, "bf16-mixed"), (1, "bf16-mixed")])
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: int, precision: Any) -> None:
    """50 steps of two batches each: the rescaling follows each real step, and nothing moves the weights in between."""
    modules, callback_class = lightning_parts()
    module = modules[form]()
    timeline = Timeline(module.body, monkeypatch)

    class Watch(callback_class.__mro__[1]):  # type: ignore[misc]
        """Sees the optimizer before anything is attached."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            timeline.watch(trainer.optimizers[0])

    callback = callback_class(log_every=20)
    run = trainer(
        tmp_path, [Watch(), callback], max_steps=50, accumulate_grad_batches=2, precision=precision, log_every_n_steps=7
    )
    run.fit(module, loader())
    assert timeline.events == ["forward", "backward", "forward", "backward", "step", "rescale"] * 50
    assert timeline.rescaled[0] > 1e-3
    assert callback.plan is not None and callback.plan.num_scales == 48
    assert callback.state_dict()["steps"] == 50
    rows = [row for path in tmp_path.rglob("metrics.csv") for row in csv.DictReader(path.open(newline=""))]
    logged = {int(row["step"]): row for row in rows if row.get("fxenorm/norm")}
    assert list(logged) == [20, 40], "whatever the steps at which the trainer itself logs"
    assert all(float(row["fxenorm/imbalance"]) < 0.1 for row in logged.values())
    assert float(run.callback_metrics["fxenorm/norm"]) == pytest.approx(float(logged[40]["fxenorm/norm"]))
    assert float(callback.plan.imbalance()) < 0.1
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert len(run.optimizers[0]._optimizer_step_post_hooks) == 1, "the callback's own hook is gone"


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_lightning_compiled(tmp_path: Path, precision: Any) -> None:
    (_, module), callback_class = lightning_parts()
    callback, model = callback_class(), module()
    run = trainer(tmp_path, [callback], max_steps=6, precision=precision)
    run.fit(torch.compile(model, backend="eager"), loader())
    assert callback.state_dict()["steps"] == 6 and callback.plan.num_scales == 48
    # 16-bit weights move by powers of two: a channel whose step is smaller than that stays, and its step is half its imbalance.
    assert float(callback.plan.imbalance()) < (0.1 if precision == "32-true" else 2 * math.log(2.0))


@pytest.mark.parametrize("fused", [False, True])
def test_lightning_with_a_scaler_that_skips(tmp_path: Path, fused: bool) -> None:
    (module, _), callback_class = lightning_parts()
    from lightning.pytorch.plugins import MixedPrecision

    class Poisoned(module):  # type: ignore[misc,valid-type]
        """Its gradients are infinite in three batches, the first one among them."""

        def training_step(self, batch: Any, index: int) -> Tensor:
            return super().training_step(batch, index) * (torch.inf if index in (0, 3, 4) else 1.0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=fused)

    callback, model = callback_class(), Poisoned()
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    trainer(tmp_path, [callback], max_epochs=1, limit_train_batches=10, plugins=[plugin]).fit(model, loader())
    assert callback.state_dict()["steps"] == 7 and float(callback.plan.imbalance()) < 0.1
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_lightning_with_two_optimizers_stepped_by_hand(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()

    class TwoOptimizers(module):  # type: ignore[misc,valid-type]
        """The head is stepped in every batch, the backbone in every second one."""

        def __init__(self) -> None:
            super().__init__("parts")
            self.automatic_optimization = False

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.backbone(images))

        def training_step(self, batch: Any, index: int) -> None:
            backbone, head = self.optimizers()
            head.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            head.step()
            if index % 2:
                backbone.step()
                backbone.zero_grad()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.AdamW(part.parameters(), lr=1e-2) for part in (self.backbone, self.head)]

    callback = callback_class(log_every=1)
    trainer(tmp_path, [callback], max_epochs=1, limit_train_batches=12).fit(TwoOptimizers(), loader())
    assert callback.state_dict()["steps"] == 6, "a round is over when both have stepped"
    assert float(callback.plan.imbalance()) < 0.1


def test_lightning_needs_the_inputs_of_what_it_analyses(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()

    class Aside(module):  # type: ignore[misc,valid-type]
        """Defines forward, but trains without calling it."""

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images)

    with pytest.raises(OptionError, match=r"forward of Aside was not called.*'body'.*example_input_array"):
        trainer(tmp_path, [callback_class()], max_steps=2).fit(Aside(), loader())
    for callback, example in ((callback_class("body"), None), (callback_class(), torch.zeros(2, 64))):
        model = Aside()
        model.example_input_array = example
        trainer(tmp_path, [callback], max_steps=2).fit(model, loader())
        assert callback.plan.num_scales == 48 and callback.state_dict()["steps"] == 2


def test_lightning_resumes_the_count_and_refuses_another_graph(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()
    run = trainer(tmp_path, [callback_class(every=3)], max_steps=7)
    run.fit(module(), loader())
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    again = callback_class(every=3)
    trainer(tmp_path, [again], max_steps=12).fit(module(), loader(), ckpt_path=path)
    assert again.state_dict()["steps"] == 12
    models = [module(), module()]
    trainer(tmp_path, [callback_class(every=3)], max_epochs=2, limit_train_batches=7).fit(models[0], loader())
    half = trainer(tmp_path, [callback_class(every=3)], max_epochs=1, limit_train_batches=7)
    half.fit(module(), loader())
    half.save_checkpoint(path)
    trainer(tmp_path, [callback_class(every=3)], max_epochs=2, limit_train_batches=7).fit(models[1], loader(), ckpt_path=path)
    assert all(torch.equal(one, other) for one, other in zip(*(model.parameters() for model in models), strict=True))
    run.save_checkpoint(path)
    with pytest.raises(BindError, match=r"another plan.* were p=2, and now are p=1"):
        trainer(tmp_path, [callback_class(every=3, p=1)], max_steps=14).fit(module(), loader(), ckpt_path=path)
    anew = callback_class(every=3, p=1, resume="ignore", record=2)
    trainer(tmp_path, [anew], max_steps=14).fit(module(), loader(), ckpt_path=path)
    assert anew.state_dict()["steps"] == 7 and [row.step for row in anew.plan.history.rows()] == [2, 4, 6]


def test_lightning_logs_as_often_as_its_trainer_and_shows_it_on_request(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()
    shown: list[set[str]] = []

    class Watch(callback_class.__mro__[1]):  # type: ignore[misc]
        """Sees the numbers that a progress bar shows."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            shown.append({name for name in trainer.progress_bar_metrics if name.startswith("fxenorm/")})

    for bar in (False, True):
        shown.clear()
        run = trainer(tmp_path / str(bar), [callback_class(prog_bar=bar), Watch()], max_steps=7, log_every_n_steps=3)
        run.fit(module(), loader())
        with open(next((tmp_path / str(bar)).rglob("metrics.csv"))) as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if row["fxenorm/norm"]]
        assert steps == [3, 6] and {"fxenorm/norm", "fxenorm/imbalance"} <= run.callback_metrics.keys()
        assert shown[-1] == ({"fxenorm/norm", "fxenorm/imbalance"} if bar else set())


def test_lightning_callback_that_is_used_again(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()

    class Failing(module):  # type: ignore[misc,valid-type]
        """Stops in the third batch."""

        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == 2:
                raise RuntimeError("stop")
            return super().training_step(batch, index)

    callback = callback_class("body")
    run, model = trainer(tmp_path, [callback], max_steps=5), Failing()
    with pytest.raises(RuntimeError, match="stop"):
        run.fit(model, loader())
    assert callback.state_dict()["steps"] == 2
    assert not run.optimizers[0]._optimizer_step_post_hooks and not model.body._forward_pre_hooks
    other = module()
    other.body[2], other.body[4] = nn.Linear(32, 20), nn.Linear(20, 10)
    trainer(tmp_path, [callback], max_steps=3).fit(other, loader())
    assert callback.state_dict()["steps"] == 3 and callback.plan.num_scales == 52


def test_lightning_names_the_children_to_choose_from(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()
    with pytest.raises(OptionError, match=r"backbone.*head"):
        trainer(tmp_path, [callback_class()], max_steps=1).fit(module("parts"), loader())
    with pytest.raises(OptionError, match=r"'tail'.*backbone.*head"):
        trainer(tmp_path, [callback_class("tail")], max_steps=1).fit(module("parts"), loader())
    callback = callback_class("backbone")
    trainer(tmp_path, [callback], max_steps=2).fit(module("parts"), loader())
    assert callback.plan.num_scales == 32
    with pytest.raises(OptionError, match="log_every"):
        callback_class(log_every=0)


@pytest.mark.parametrize("whole", [False, True])
def test_lightning_backbone_that_is_unfrozen_later(tmp_path: Path, whole: bool) -> None:
    (module, _), callback_class = lightning_parts()
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Whole(module):  # type: ignore[misc,valid-type]
        """Defines forward."""

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.backbone(images))

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    callback = callback_class(None if whole else "backbone")
    held = []

    class Look(type(callback).__mro__[1]):  # type: ignore[misc]
        """Notes what is held at the end of each epoch."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            held.append((sum(len(item.variables) for item in callback.plan.held), pl_module.backbone[0].weight.detach().clone()))

    callbacks = [BackboneFinetuning(unfreeze_backbone_at_epoch=2), callback, Look()]
    model = (Whole if whole else module)("parts")
    start = model.backbone[0].weight.detach().clone()
    trainer(tmp_path, callbacks, max_epochs=3, limit_train_batches=4).fit(model, loader())
    assert [count for count, _ in held] == ([48, 48, 0] if whole else [0, 0, 0])
    assert float(callback.plan.imbalance()) < 0.1
    assert torch.equal(start, held[1][1]) and not torch.equal(start, held[2][1])


def test_what_the_module_steps_when_training_has_ended_is_left_alone(tmp_path: Path) -> None:
    (module, _), callback_class = lightning_parts()
    hooks: list[int] = []

    class Last(module):  # type: ignore[misc,valid-type]
        """Looks at its optimizer once more."""

        def on_train_end(self) -> None:
            hooks.append(len(self.trainer.optimizers[0]._optimizer_step_post_hooks))

    trainer(tmp_path, [callback_class("body")], max_steps=2).fit(Last(), loader())
    assert hooks == [0]
