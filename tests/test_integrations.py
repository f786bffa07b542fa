"""The trainers of Lightning and Transformers run with their callbacks, on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxenorm
from fxenorm.errors import BindError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the trainers themselves warn of is theirs."""


def digits() -> TensorDataset:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images[:800], dtype=torch.float32) / 16, torch.tensor(labels[:800]))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


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
        default_root_dir=tmp_path, log_every_n_steps=1, **settings,
    )  # fmt: skip


def loader() -> DataLoader[Any]:
    return DataLoader(digits(), batch_size=16)


@pytest.mark.parametrize(("form", "precision"), [(0, "32-true"), (0, "bf16-mixed"), (1, "32-true")])
def test_lightning(tmp_path: Path, form: int, precision: Any) -> None:
    modules, callback_class = lightning_parts()
    callback = callback_class(log_every=2)
    run = trainer(tmp_path, [callback], max_steps=20, accumulate_grad_batches=2, precision=precision)
    module = modules[form]()
    run.fit(module, loader())
    assert callback.plan is not None and callback.plan.num_scales == 48
    assert callback.state_dict()["steps"] == 20, "one count a real optimizer step"
    text = "".join(path.read_text() for path in tmp_path.rglob("metrics.csv"))
    assert "fxenorm/norm" in text and "fxenorm/imbalance" in text
    assert not run.optimizers[0]._optimizer_step_post_hooks
    assert float(callback.plan.imbalance()) < 0.1


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


@pytest.mark.parametrize("bf16", [False, True])
def test_transformers(tmp_path: Path, bf16: bool) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from fxenorm.integrations.transformers import FxenormCallback

    callback = FxenormCallback()
    rows = [{"pixels": image, "labels": label} for image, label in digits()]
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=8, gradient_accumulation_steps=2, logging_steps=5,
        use_cpu=True, bf16=bf16, report_to=[], save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer = transformers.Trainer(model=ForTrainer(), args=settings, train_dataset=rows, callbacks=[callback])
    steps: list[int] = []
    on_train_end = callback.on_train_end
    callback.on_train_end = lambda *a, **k: (steps.append(callback._handle.steps), on_train_end(*a, **k))[1]
    trainer.train()
    assert steps == [20] and callback.plan.num_scales == 48
    logged = [entry for entry in trainer.state.log_history if "fxenorm/norm" in entry]
    assert len(logged) == 4 and all(entry["fxenorm/imbalance"] < 0.2 for entry in logged)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_every_must_be_positive() -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    with pytest.raises(OptionError, match="every=0"):
        FxenormCallback(every=0)


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
