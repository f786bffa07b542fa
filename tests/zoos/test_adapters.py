"""LoRA over a frozen base, trained with the plan attached: the base stays bit for bit, the adapters' own scales are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxenorm

from ..helpers import generator, outputs, relative_difference

pytestmark = pytest.mark.filterwarnings("ignore")
"""What peft warns of is its own."""

WIDTH, RANK = 8, 3
INPUTS = (torch.randn(12, 4, dtype=torch.float64, generator=generator(1)),)


class Attention(nn.Module):
    """One head between two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))


class Base(nn.Module):
    """A block between an input and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.last = nn.Linear(4, WIDTH), Attention(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.block(torch.relu(self.first(x)).unsqueeze(0)).squeeze(0)))


def adapted(**settings: Any) -> Any:
    """The base with adapters on three of its layers."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=RANK, target_modules=["q_proj", "v_proj", "first"], lora_dropout=0.0, **settings)
    return peft.get_peft_model(Base().double(), config)


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}], ids=["plain", "rslora", "gaussian"]
)
def test_training_with_lora(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    base = {name: value.clone() for name, value in model.state_dict().items() if "lora" not in name}
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    assert all("lora" in name for name in adapters(model))

    # Only the scale between the two factors of an adapter touches nothing that is frozen.
    held = {
        variable for item in plan.held if "requires_grad" in item.reason or "frozen" in item.reason for variable in item.variables
    }
    assert len(held) == plan.num_scales - 3 * RANK

    moved: list[bool] = []
    stages: dict[str, Any] = {}

    def before(*_: object) -> None:
        stages.update(outputs=outputs(model, INPUTS), weights=adapters(model), state=products())

    def products() -> list[Tensor]:
        """First moments times weights: what no rescaling changes."""
        return [optimizer.state[p]["exp_avg"] * p.detach() for p in model.parameters() if p in optimizer.state]

    def after(*_: object) -> None:
        assert relative_difference(stages["outputs"], outputs(model, INPUTS)) <= 1e-10
        for one, other in zip(stages["state"], products(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-18)
        moved.append(any(not torch.equal(value, stages["weights"][name]) for name, value in adapters(model).items()))

    optimizer.register_step_post_hook(before)
    handle = plan.attach(optimizer)
    optimizer.register_step_post_hook(after)
    for _ in range(10):
        optimizer.zero_grad()
        (model(*INPUTS) - 1).square().mean().backward()
        optimizer.step()
    assert handle.steps == 10 and all(moved), "from the first step on, after which no factor is zero any more"
    for name, value in model.state_dict().items():
        assert "lora" in name or torch.equal(value, base[name]), f"{name} belongs to the frozen base"
    # A and B of each adapter are balanced channel by channel (AdamW moves them a little after each cycle, so nearly).
    plan.step(optimizer, cycles=30)
    for layer in (model.base_model.model.first, model.base_model.model.block.q_proj, model.base_model.model.block.v_proj):
        into, out = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(into.norm(dim=1), out.norm(dim=0), rtol=1e-6, atol=0)


def test_a_base_that_is_unfrozen_later_joins() -> None:
    model = adapted()
    plan = fxenorm.analyze(model, INPUTS)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    plan.attach(optimizer)

    def train_step() -> None:
        model.zero_grad()
        (model(*INPUTS) - 1).square().mean().backward()
        optimizer.step()

    train_step()
    base = model.base_model.model.first.base_layer.weight
    frozen = base.detach().clone()
    still = sum(len(item.variables) for item in plan.held)
    newly = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in newly:
        parameter.requires_grad_(True)
    optimizer.add_param_group({"params": newly, "lr": 0.0})
    train_step()
    assert sum(len(item.variables) for item in plan.held) < still
    assert not torch.equal(base, frozen), "moved by the rescaling alone: its learning rate is 0"
