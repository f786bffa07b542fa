"""Maps for quantisers: each, applied with any factors, keeps the function, and no consumer of a group is missing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxenorm
from fxenorm import Mappings, Plan
from fxenorm.analysis.mappings.entries import MapEntry, MapLayer
from fxenorm.analysis.mappings.targets import TARGETS

from ..transformer_models import EXPERTS, MODELS, _decoder, redraw

pytest.importorskip("transformers", reason="the extra dev brings it")

BLOCK = "model.layers.0."
MODELS_HERE: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    **{name: MODELS[name] for name in ("llama", "mixtral", "phi3", "gemma", "opt")},
    "llama, a head for each": _decoder("Llama", num_key_value_heads=4, num_hidden_layers=1),
    "phi3, a head for each": _decoder("Phi3", num_key_value_heads=4, num_hidden_layers=1),
    "qwen2": _decoder("Qwen2", tie_word_embeddings=False),
}


class Expert(nn.Module):
    """One expert of Mixtral, as a module of its own."""

    def __init__(self, stack: nn.Module, place: int) -> None:
        super().__init__()
        gate_up, down = stack.gate_up_proj[place], stack.down_proj[place]
        for name, weight in (("w1", gate_up[: len(gate_up) // 2]), ("w3", gate_up[len(gate_up) // 2 :]), ("w2", down)):
            setattr(self, name, nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            getattr(self, name).weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class SparseBlock(nn.Module):
    """Mixtral's block with a Linear as router and a module for each expert."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(block.gate.weight.shape[1], EXPERTS, bias=False)
        self.gate.weight = block.gate.weight
        self.experts = nn.ModuleList([Expert(block.experts, place) for place in range(EXPERTS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.gate(x).softmax(-1)
        return sum(weights[..., place : place + 1] * expert(x) for place, expert in enumerate(self.experts))


class Case:
    """A model in float64, its inputs, and its plan."""

    def __init__(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        self.model, self.inputs = model.eval(), inputs
        self.plan: Plan = fxenorm.analyze(model, example_kwargs=inputs, modes="eval")

    @torch.no_grad()
    def outputs(self) -> torch.Tensor:
        return self.model(**self.inputs).logits


@pytest.fixture(scope="module")
def cases() -> Callable[[str], Case]:
    known: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in known:
            apart = name == "mixtral, experts apart"
            model, inputs = MODELS_HERE["mixtral" if apart else name]()
            redraw(model)
            for layer in model.model.layers if apart else ():
                layer.mlp = SparseBlock(layer.mlp)
            known[name] = Case(model, inputs)
        return known[name]

    return case


NAMES = [*MODELS_HERE, "mixtral, experts apart"]


# ---------------------------------------------------------------- SmoothQuant, as the tools do it


def weight_of(model: nn.Module, layer: MapLayer) -> torch.Tensor:
    """The layer's weight by the tool's name; of an expert that it takes apart, the part of the stack with that name."""
    if layer.expert is None:
        return model.get_submodule(layer.module).weight
    path, place, part = layer.module.rsplit(".", 2)
    stack = model.get_submodule(path)
    if part == "down_proj":
        return stack.down_proj[int(place)]
    gate, up = stack.gate_up_proj[int(place)].chunk(2)
    return gate if part == "gate_proj" else up


@torch.no_grad()
def smooth(model: nn.Module, entry: MapEntry, random: torch.Generator) -> None:
    """Divides the smooth layer's rows and multiplies the balance layers' columns by random factors, as the tool would."""
    weights = [weight_of(model, layer) for layer in entry.balance]
    factors = torch.empty(weights[0].shape[1], dtype=torch.float64).uniform_(0.3, 3.0, generator=random)
    rows = factors
    if entry.repeats > 1:
        heads = factors.view(-1, entry.repeats, entry.head).mean(1, keepdim=True)
        rows, factors = heads.reshape(-1), heads.expand(-1, entry.repeats, -1).reshape(-1)
    for weight in weights:
        weight.mul_(factors)
    weight = weight_of(model, entry.smooth)
    if weight.ndim == 1:
        weight.copy_((entry.offset + weight) / rows - entry.offset)
    else:
        weight[-len(rows) :].div_(rows[:, None])
    bias = None if entry.smooth.expert is not None else getattr(model.get_submodule(entry.smooth.module), "bias", None)
    if bias is not None:
        bias.div_(rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_map_keeps_the_function(cases: Callable[[str], Case], name: str) -> None:
    case, random = cases(name), torch.Generator().manual_seed(1)
    before = case.outputs()
    kept = {key: value.clone() for key, value in case.model.state_dict().items()}
    for target in TARGETS:
        maps = case.plan.mappings(target)
        assert bool(maps.entries) != ((name, target) == ("gemma", "smoothquant"))
        for entry in maps.entries:
            smooth(case.model, entry, random)
            case_output = case.outputs()
            assert (case_output - before).abs().max() <= 1e-10 * before.abs().max(), (target, entry)
            case.model.load_state_dict(kept)


def test_a_map_without_one_of_its_consumers_changes_the_function(cases: Callable[[str], Case]) -> None:
    """The check above can fail, and sees each expert and the router."""
    case = cases("mixtral, experts apart")
    before, entry = case.outputs(), entries_behind(case.plan.mappings("llm-compressor"), f"{BLOCK}post_attention_layernorm")[0]
    kept = {key: value.clone() for key, value in case.model.state_dict().items()}
    for missing in entry.balance:
        fewer = MapEntry(entry.group, entry.smooth, tuple(layer for layer in entry.balance if layer is not missing), True)
        smooth(case.model, fewer, torch.Generator().manual_seed(1))
        assert (case.outputs() - before).abs().max() > 1e-3 * before.abs().max(), missing
        case.model.load_state_dict(kept)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_group_is_written_with_all_consumers_or_left_out(cases: Callable[[str], Case], name: str, target: str) -> None:
    plan = cases(name).plan
    maps = plan.mappings(target)
    written: dict[str, list[MapEntry]] = {}
    for entry in maps.entries:
        written.setdefault(entry.group, []).append(entry)
    left = {one.group: one for one in maps.left_out}
    assert not written.keys() & left.keys() and len(left) == len(maps.left_out)
    for group in plan.groups:
        producers, consumers = ([port.parameter for port in ports] for ports in (group.producers, group.consumers))
        if group.name in left:
            one = left[group.name]
            assert (list(one.producers), list(one.consumers)) == (list(dict.fromkeys(producers)), list(dict.fromkeys(consumers)))
            assert len(one.reason.split()) >= 6
            continue
        entries = written[group.name]
        assert {layer.parameter for entry in entries for layer in entry.balance} == set(consumers)
        assert {entry.smooth.parameter for entry in entries} == {item for item in producers if not item.endswith("bias")}
        channels = sum(entry.smooth.rows[1] - entry.smooth.rows[0] for entry in entries)
        assert channels == len(group.variables)


# ---------------------------------------------------------------- architectures


def entries_behind(maps: Mappings, module: str) -> list[MapEntry]:
    return [entry for entry in maps.entries if entry.smooth.module == module]


def names_behind(maps: Mappings, module: str) -> list[str]:
    (entry,) = entries_behind(maps, module)
    return [layer.module for layer in entry.balance]


def reasons(maps: Mappings, producer: str) -> list[str]:
    return [one.reason for one in maps.left_out if producer in one.producers]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_llama_and_qwen2(cases: Callable[[str], Case], name: str) -> None:
    plan = cases(name).plan
    for target in TARGETS:
        maps = plan.mappings(target)
        projections = [f"{BLOCK}self_attn.{part}_proj" for part in "qkv"]
        assert names_behind(maps, f"{BLOCK}input_layernorm") == projections
        assert names_behind(maps, f"{BLOCK}post_attention_layernorm") == [f"{BLOCK}mlp.gate_proj", f"{BLOCK}mlp.up_proj"]
        assert "k_proj.weight" in reasons(maps, f"{BLOCK}self_attn.q_proj.weight")[0]
    assert names_behind(plan.mappings("autoawq"), f"{BLOCK}mlp.up_proj") == [f"{BLOCK}mlp.down_proj"]
    (heads,) = entries_behind(plan.mappings("modelopt"), f"{BLOCK}self_attn.v_proj")
    assert (heads.repeats, heads.head) == (2, 16)
    for target in ("llm-compressor", "autoawq"):
        assert "grouped-query" in reasons(plan.mappings(target), f"{BLOCK}self_attn.v_proj.weight")[0]
    assert names_behind(plan.mappings("llm-compressor"), "model.norm") == ["lm_head"]
    assert "block" in reasons(plan.mappings("autoawq"), "model.norm.weight")[0]
    assert "normalisation" in reasons(plan.mappings("smoothquant"), f"{BLOCK}mlp.up_proj.weight")[0]


def test_mixtral_with_all_experts_and_the_router(cases: Callable[[str], Case]) -> None:
    norm = f"{BLOCK}post_attention_layernorm"
    maps = cases("mixtral").plan.mappings("llm-compressor")
    experts = [f"{BLOCK}mlp.experts.{place}" for place in range(EXPERTS)]
    both = [f"{expert}.{part}_proj" for expert in experts for part in ("gate", "up")]
    assert names_behind(maps, norm) == [f"{BLOCK}mlp.gate", *both]
    assert all(names_behind(maps, f"{expert}.up_proj") == [f"{expert}.down_proj"] for expert in experts)
    for target in ("autoawq", "modelopt", "smoothquant"):
        assert "stacks the experts" in reasons(cases("mixtral").plan.mappings(target), f"{norm}.weight")[0]
        apart = cases("mixtral, experts apart").plan.mappings(target)
        assert set(names_behind(apart, norm)) == {
            f"{BLOCK}mlp.gate",
            *(f"{one}.{part}" for one in experts for part in ("w1", "w3")),
        }


def test_phi3_with_fused_layers(cases: Callable[[str], Case]) -> None:
    for name, fused in (("phi3", False), ("phi3, a head for each", True)):
        plan = cases(name).plan
        for target in ("llm-compressor", "autoawq"):
            maps = plan.mappings(target)
            assert names_behind(maps, f"{BLOCK}mlp.gate_up_proj") == [f"{BLOCK}mlp.down_proj"]
            assert entries_behind(maps, f"{BLOCK}mlp.gate_up_proj")[0].smooth.rows == (96, 192)
            assert bool(entries_behind(maps, f"{BLOCK}self_attn.qkv_proj")) == fused
        assert names_behind(plan.mappings("smoothquant"), f"{BLOCK}input_layernorm") == [f"{BLOCK}self_attn.qkv_proj"]


def test_gemma_where_the_stored_weight_is_multiplied(cases: Callable[[str], Case]) -> None:
    plan = cases("gemma").plan
    assert plan.offsets
    for target in ("llm-compressor", "smoothquant"):
        maps = plan.mappings(target)
        assert all("1 + " in reasons(maps, name)[0] for name in plan.offsets)
    for target in ("autoawq", "modelopt"):
        assert names_behind(plan.mappings(target), f"{BLOCK}mlp.up_proj") == [f"{BLOCK}mlp.down_proj"]
        offsets = [entry.offset for entry in plan.mappings(target).entries if entry.norm]
        assert offsets == [1.0] * len(plan.offsets)


# ---------------------------------------------------------------- other shapes


class OwnNorm(nn.Module):
    """A norm by 1 + w of a class that no tool knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (8,)) * (1 + self.weight)


class TwoProducers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.a(x) + self.b(x)))


class Joined(TwoProducers):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], -1))


class Shuffled(TwoProducers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.a(x)).flip(-1))


class TwoOrders(TwoProducers):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.c(x) + self.b(x.flip(-1))


class FirstRows(TwoProducers):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up, gate = self.a(x).chunk(2, -1)
        return self.c(up * torch.sigmoid(gate))


class LastRowsWithBias(FirstRows):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.a(x).chunk(2, -1)
        return self.c(up * torch.sigmoid(gate))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(4, 8), OwnNorm(), nn.Linear(8, 2)), "1 + 1.weight"),
        (TwoProducers(), "both a and b"),
        (Joined(), "reads other channels"),
        (Shuffled(), "another order"),
        (TwoOrders(), "different orders"),
        (FirstRows(), "not its last"),
        (LastRowsWithBias(), "a.bias"),
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 3)), "3 axes"),
        (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2)), "axis 1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_group_that_the_tool_would_break_is_left_out(model: nn.Module, words: str) -> None:
    inputs = {nn.Conv1d: torch.randn(2, 4, 9), nn.Embedding: torch.arange(9)[None]}
    first = next(iter(model.children()))
    plan = fxenorm.analyze(model, inputs.get(type(first), torch.randn(2, 4)))
    for target in ("llm-compressor", "modelopt"):
        maps = plan.mappings(target)
        assert not maps.entries and len(maps.left_out) == len(plan.groups) > 0
    assert words in plan.mappings("llm-compressor").left_out[0].reason


class OwnRouter(nn.Module):
    """A matrix that is no nn.Linear, as the router of Mixtral."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


def test_a_consumer_that_is_no_linear_layer_is_left_out_where_the_tool_would_skip_it() -> None:
    plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), OwnRouter()), torch.randn(2, 4))
    assert names_behind(plan.mappings("llm-compressor"), "1") == ["2"]
    for target in ("modelopt", "smoothquant"):
        assert "no nn.Linear" in reasons(plan.mappings(target), "1.weight")[0]


@pytest.mark.parametrize("name", ["llama", "mixtral, experts apart"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_data_name_modules_of_the_model(cases: Callable[[str], Case], name: str, target: str) -> None:
    case = cases(name)
    maps = case.plan.mappings(target)
    told = json.loads(json.dumps(maps.to_dict()))
    assert told["target"] == target and len(told["mappings"]) == len(maps.entries) and len(told["left_out"]) == len(maps.left_out)
    for form, entry in zip(told["mappings"], maps.entries, strict=True):
        block = form.pop("block", "")
        values = [
            item
            for value in form.values()
            if not isinstance(value, bool)
            for item in ([value] if isinstance(value, str) else value)
        ]
        names = [f"{block}.{value}" if block else value for value in values]
        assert all(case.model.get_submodule(one) is not None for one in names)
        assert {entry.smooth.module, *(layer.module for layer in entry.balance)} <= set(names)
    text = str(maps)
    assert all(repr(entry) in text for entry in maps.entries) and all(one.reason in text for one in maps.left_out)


@pytest.mark.parametrize("target", ["awq", "", None, ["autoawq"]])
def test_another_target_lists_the_four(target: object) -> None:
    plan = fxenorm.analyze(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.raises(fxenorm.errors.OptionError) as caught:
        plan.mappings(target)  # type: ignore[arg-type]
    assert all(repr(name) in str(caught.value) for name in ("llm-compressor", "autoawq", "modelopt", "smoothquant"))
