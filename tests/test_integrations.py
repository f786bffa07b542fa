"""The trainers of Lightning and Transformers run with their callbacks, on the digits."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import BindError, OptionError

from .trainer_helpers import Timeline, digits, loader, network

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the trainers themselves warn of is theirs."""


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
    # 16-bit weights move by powers of two: what is nearer than that stays.
    assert float(callback.plan.imbalance()) < (0.1 if precision == "32-true" else 0.7)


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
    with pytest.raises(BindError, match="another plan"):
        trainer(tmp_path, [callback_class(every=3, p=1)], max_steps=14).fit(module(), loader(), ckpt_path=path)


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


class ForTrainer(nn.Module):
    """What the Trainer of Transformers trains: a dict with the loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(pixels)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def transformers_trainer(tmp_path: Path, callbacks: list[Any], **settings: Any) -> Any:
    """The Trainer, on the digits."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    rows = [{"pixels": image, "labels": label} for image, label in digits()]
    arguments = transformers.TrainingArguments(**{
        "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "use_cpu": True, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "learning_rate": 1e-2, "dataloader_pin_memory": False, **settings,
    })  # fmt: skip
    return transformers.Trainer(model=ForTrainer(), args=arguments, train_dataset=rows, callbacks=callbacks)


@pytest.mark.parametrize("bf16", [False, True])
def test_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """50 steps of two batches each: the rescaling follows each real step, and nothing moves the weights in between."""
    transformers = pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    reported: list[dict[str, Any]] = []

    class Watch(transformers.TrainerCallback):
        """Sees the optimizer before anything is attached, and the logs as a reporter does."""

        def on_train_begin(self, *_: Any, optimizer: Any, **more: Any) -> None:
            timeline.watch(optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            reported.append({"step": state.global_step, **logs})

    callback = FxenormCallback()
    settings = {"max_steps": 50, "gradient_accumulation_steps": 2, "logging_steps": 10, "bf16": bf16}
    run = transformers_trainer(tmp_path, [Watch()], **settings)
    run.callback_handler.callbacks.insert(0, callback)
    timeline = Timeline(run.model.body, monkeypatch)
    run.train()
    assert timeline.events == ["forward", "backward", "forward", "backward", "step", "rescale"] * 50
    assert timeline.rescaled[0] > 1e-3
    assert callback.state()["attributes"]["_stored"]["steps"] == 50 and callback.plan.num_scales == 48
    for entries in (run.state.log_history, reported):
        logged = [entry for entry in entries if "fxenorm/norm" in entry]
        assert [entry["step"] for entry in logged] == [10, 20, 30, 40, 50]
        assert all(entry["fxenorm/imbalance"] < 0.2 and "loss" in entry for entry in logged)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_transformers_logs_when_it_is_asked_to(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    run = transformers_trainer(tmp_path, [FxenormCallback(log_every=3)], max_steps=10, logging_steps=4)
    run.train()
    steps = {entry["step"]: "fxenorm/norm" in entry for entry in run.state.log_history if "loss" in entry}
    assert steps == {3: True, 4: False, 6: True, 8: False, 9: True}


def test_transformers_compiled(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    callback = FxenormCallback()
    transformers_trainer(tmp_path, [callback], max_steps=6, torch_compile=True, torch_compile_backend="eager").train()
    assert callback.state()["attributes"]["_stored"]["steps"] == 6 and float(callback.plan.imbalance()) < 0.1


def test_transformers_needs_a_model_that_is_called(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    class Aside(transformers.Trainer):
        """Computes its loss without calling the model."""

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **more: Any) -> Tensor:
            return nn.functional.cross_entropy(model.body(inputs["pixels"]), inputs["labels"])

    run = transformers_trainer(tmp_path, [], max_steps=2)
    aside = Aside(model=run.model, args=run.args, train_dataset=run.train_dataset, callbacks=[FxenormCallback()])
    with pytest.raises(OptionError, match=r"forward of ForTrainer was not called"):
        aside.train()


def test_transformers_resumes_the_count_and_refuses_another_graph(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    saving = {"save_strategy": "steps", "save_steps": 5, "seed": 3}
    whole, half, rest = (FxenormCallback(every=2) for _ in range(3))
    uninterrupted = transformers_trainer(tmp_path / "whole", [whole], max_steps=10, **saving)
    uninterrupted.train()
    transformers_trainer(tmp_path / "half", [half], max_steps=10, **saving).train()
    run = transformers_trainer(tmp_path / "half", [rest], max_steps=10, **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-5"))
    assert rest.state()["attributes"]["_stored"] == whole.state()["attributes"]["_stored"]
    for one, other in zip(uninterrupted.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(one, other)
    other = transformers_trainer(tmp_path / "half", [FxenormCallback(every=2, p=1)], max_steps=10, **saving)
    with pytest.raises(BindError, match="another plan"):
        other.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-5"))


def test_transformers_takes_up_a_run_that_began_without_the_callback(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    saving = {"save_strategy": "steps", "save_steps": 3}
    transformers_trainer(tmp_path, [], max_steps=3, **saving).train()
    callback = FxenormCallback()
    run = transformers_trainer(tmp_path, [callback], max_steps=6, **saving)
    run.train(resume_from_checkpoint=True)
    assert callback.state()["attributes"]["_stored"]["steps"] == 6


def test_every_must_be_positive() -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    for name in ("every", "log_every"):
        with pytest.raises(OptionError, match=f"{name}=0"):
            FxenormCallback(**{name: 0})


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    plan = fxenorm.analyze(model)
    model, optimizer, batches = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader())
    handle = plan.attach(optimizer)
    for index, (images, labels) in enumerate(batches):
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        if index == 9:
            break
    assert handle.steps == 5 and float(plan.imbalance()) < 0.1
