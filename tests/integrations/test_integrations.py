"""The Trainer of Transformers runs with its callback, Accelerate and timm in loops of their own, on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm
from fxenorm.errors import BindError, OptionError

from ..trainer_helpers import Timeline, digits, loader, network

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the trainers themselves warn of is theirs."""


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
    with pytest.raises(BindError, match=r"another plan.* were p=2, and now are p=1"):
        other.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-5"))
    anew = FxenormCallback(every=2, p=1, resume="ignore")
    transformers_trainer(tmp_path / "half", [anew], max_steps=10, **saving).train(
        resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-5")
    )
    assert anew.state()["attributes"]["_stored"]["steps"] == 10 and anew.plan is not None and anew.plan.options.p == 1


def test_transformers_callback_that_is_used_again(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    def fail(*_: Any) -> None:
        if failing.state.global_step == 2:
            raise RuntimeError("stop")

    callback = FxenormCallback()
    failing = transformers_trainer(tmp_path, [callback], max_steps=4)
    failing.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        failing.train()
    hooks = failing.optimizer.optimizer._optimizer_step_post_hooks
    assert len(hooks) == 1, "the Trainer says nothing of errors"
    transformers_trainer(tmp_path, [callback], max_steps=3).train()
    assert not hooks and callback.state()["attributes"]["_stored"]["steps"] == 3


def test_transformers_takes_up_a_run_that_began_without_the_callback(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    saving = {"save_strategy": "steps", "save_steps": 3}
    transformers_trainer(tmp_path, [], max_steps=3, **saving).train()
    callback = FxenormCallback()
    run = transformers_trainer(tmp_path, [callback], max_steps=6, **saving)
    run.train(resume_from_checkpoint=True)
    assert callback.state()["attributes"]["_stored"]["steps"] == 6


@pytest.mark.parametrize("lora", [False, True])
def test_transformers_with_a_language_model(tmp_path: Path, lora: bool) -> None:
    """Grouped-query attention and gates; with adapters over a base that stays bit for bit."""
    transformers = pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 16}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    if lora:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    rows = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in torch.randint(0, 30, (40, 10))]
    callback = FxenormCallback()
    run = transformers_trainer(tmp_path, [callback], max_steps=8, per_device_train_batch_size=4)
    run = transformers.Trainer(model=model, args=run.args, train_dataset=rows, callbacks=[callback])
    run.train()
    # Three norms, rotated pairs of the two key heads, values, the gate's linear branch, and the ranks.
    assert callback.plan.num_scales == 3 * 16 + 4 + 8 + 24 + (2 * 2 if lora else 0)
    assert callback.state()["attributes"]["_stored"]["steps"] == 8 and float(callback.plan.imbalance()) < 0.05
    assert all(torch.equal(parameter, base[name]) for name, parameter in model.named_parameters() if name in base)
    assert bool(base) == lora


def test_every_must_be_positive() -> None:
    pytest.importorskip("transformers")
    from fxenorm.integrations.transformers import FxenormCallback

    for name in ("every", "log_every"):
        with pytest.raises(OptionError, match=f"{name}=0"):
            FxenormCallback(**{name: 0})


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
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


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own order: step, rescaling, update of the averaged model."""
    pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3, NativeScaler

    model = network()
    timeline = Timeline(model, monkeypatch)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    timeline.watch(optimizer)
    average, scaler = ModelEmaV3(model, decay=0.9), NativeScaler(device="cpu")
    plan = fxenorm.analyze(model)
    plan.track(average)
    handle = plan.attach(optimizer)
    for _, (images, labels) in zip(range(20), loader(), strict=False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        timeline.events.append("average")
        average.update(model)
    assert timeline.events == ["forward", "backward", "step", "rescale", "average"] * 20
    assert handle.steps == 20 and float(plan.imbalance()) < 0.1
    # In one gauge with the model, the average is nearly as well balanced.
    assert float(plan.bind(average.module).imbalance()) < 0.3
