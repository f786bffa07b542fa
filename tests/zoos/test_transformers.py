"""Language, vision and speech models of Hugging Face transformers at tiny sizes: counts derived by hand, soundness, pairs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import fxenorm

pytest.importorskip("transformers")

from ..helpers import draw_log_scales, relative_difference
from ..transformer_models import EXPERTS, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, MODELS, build, redraw

pytestmark = pytest.mark.filterwarnings("ignore")

H, KV = HIDDEN, KV_HEADS * HEAD_DIM
LLAMA = LAYERS * (2 * H + KV + KV // 2 + INTERMEDIATE)
"""Two norms (H each), v -> o (KV), rotary pairs of k (KV / 2), up -> down; the last norm is counted apart."""

COUNTS = {
    "llama": LLAMA + H,  # the last norm -> the head
    "llama-tied": LLAMA,  # the head is the embedding, which the residual stream holds
    "mistral": LLAMA + H,
    "phi3": LLAMA + H,  # q, k, v and gate, up as blocks of one weight each
    "qwen3": LLAMA + H - LAYERS * (KV // 2 - HEAD_DIM // 2),  # one norm of q and one of k for all heads
    "mixtral": LLAMA + H + LAYERS * (EXPERTS - 1) * INTERMEDIATE,  # up -> down of each expert; the router reads the norm too
    "gemma": LLAMA,  # the head is the embedding; its norms multiply by 1 + w
    "gemma3": LLAMA - LAYERS * (KV // 2 - HEAD_DIM // 2),  # as qwen3, with the head tied
    "gpt2": LAYERS * 4 * H,  # two norms, v -> o, q <-> k
    "bloom": LAYERS * 4 * H,
    "gpt-neox": LAYERS * (3 * H + HEADS * (2 + 12)) + H,  # a quarter of each head is rotary: 2 pairs, 12 single channels
    "falcon": LAYERS * (H + HEAD_DIM + HEAD_DIM // 2),  # one norm a layer, one key-value head, tied
    "opt": LAYERS * (4 * H + INTERMEDIATE),  # ReLU
    "bert": LAYERS * 2 * H + H,  # norms behind the sum: v -> o and q <-> k only; the last norm -> the head's transform
    "vit": LAYERS * 4 * H + H,
    "clip": 2 * LAYERS * 4 * H + H,  # the text's last norm and both pooled features are outputs
    "t5": LAYERS * (4 * H + INTERMEDIATE) + LAYERS * (7 * H + INTERMEDIATE),  # the encoder's last norm is an output
    "whisper": LAYERS * 4 * H + LAYERS * 7 * H,
}


def _outputs(model: torch.nn.Module, arguments: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [leaf.clone() for leaf in tree_leaves(dict(model(**arguments))) if isinstance(leaf, torch.Tensor)]


@pytest.fixture(scope="module")
def analysed() -> Any:
    """By name: the model with redrawn float64 weights, its inputs and its plan, each made once."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            model, arguments = build(name)
            redraw(model)
            arguments = {key: value.double() if value.is_floating_point() else value for key, value in arguments.items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = (model, arguments, fxenorm.analyze(model, arguments))
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_count_and_soundness(analysed: Any, name: str) -> None:
    model, arguments, plan = analysed(name)
    assert plan.num_scales == COUNTS[name]
    assert set(plan.modes) == {"eval", "train"}
    assert all(barrier.known for barrier in plan.barriers), [b for b in plan.barriers if not b.known]
    for mode in ("eval", "train"):
        model.train(mode == "train")
        before = _outputs(model, arguments)
        log_scales = draw_log_scales(plan)
        plan.rescale(log_scales)
        after = _outputs(model, arguments)
        plan.rescale(-log_scales)
        assert relative_difference(before, after) <= 1e-10


def test_pairs_of_a_llama_block(analysed: Any) -> None:
    _, _, plan = analysed("llama")
    pairs = {
        (pair.producer.removeprefix("model.layers.0."), pair.consumer.removeprefix("model.layers.0.")) for pair in plan.pairs
    }
    wanted = {("input_layernorm", f"self_attn.{name}_proj") for name in "qkv"}
    wanted |= {("post_attention_layernorm", f"mlp.{name}_proj") for name in ("gate", "up")}
    wanted |= {
        ("self_attn.v_proj", "self_attn.o_proj"),
        ("mlp.up_proj", "mlp.down_proj"),
        ("self_attn.q_proj", "self_attn.k_proj"),
    }
    assert wanted <= pairs


def test_rotary_pairs_are_tied_and_queries_share_their_keys_scale(analysed: Any) -> None:
    _, _, plan = analysed("llama")
    name = "model.layers.1.self_attn.{}_proj.weight"

    def channels(letter: str, sign: int) -> torch.Tensor:
        """The variable of each output channel, by head."""
        terms = [ids for coefficient, ids in plan.exponents[name.format(letter)] if coefficient == sign and ids.shape[0] > 1]
        assert len(terms) == 1
        return torch.as_tensor(terms[0]).reshape(-1, HEAD_DIM)

    queries, keys = channels("q", 1), channels("k", -1)
    assert len(queries) == HEADS and len(keys) == KV_HEADS
    for heads in (queries, keys):
        assert torch.equal(heads[:, : HEAD_DIM // 2], heads[:, HEAD_DIM // 2 :])
    assert torch.equal(queries, keys.repeat_interleave(HEADS // KV_HEADS, dim=0))


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_stacked_expert_weights_are_counted(implementation: str) -> None:
    model, arguments = build("mixtral")
    model.set_experts_implementation(implementation)
    plan = fxenorm.analyze(model, arguments, modes="eval")
    before = plan.norm()
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.mul_(3)
    assert plan.norm() > before
    kinds = {group.kind for group in plan.groups if any("experts.down_proj" in port.parameter for port in group.consumers)}
    assert kinds == {"chain"}


def test_grouped_products_of_experts() -> None:
    """The default expert implementation, which torch runs in float32 only, has the scales of the plain one."""
    model, arguments = build("mixtral")
    model.set_experts_implementation("grouped_mm")
    plan = fxenorm.analyze(model, arguments, modes="eval")
    assert plan.num_scales == COUNTS["mixtral"]
    redraw(model).float()
    before = _outputs(model.eval(), arguments)
    plan.rescale(0.5 * draw_log_scales(plan))
    assert relative_difference(before, _outputs(model, arguments)) <= 1e-4


def smooth_quant(plan: Any, ranges: dict[str, torch.Tensor], alpha: float) -> None:
    """SmoothQuant (Xiao et al., ICML 2023, eq. 4): behind a norm x / s and W * s, s = max|x|^alpha / max|W|^(1 - alpha)."""
    parameters = dict(plan.model.named_parameters())
    log_scales = torch.zeros(plan.num_scales, dtype=torch.float64)
    for group in plan.groups:
        readers = [parameters[port.parameter] for port in group.consumers if port.axis == 1]
        site = next((site for site in group.sites if site.direction == "output"), None)
        if parameters[group.producers[0].parameter].ndim == 1 and readers and site is not None:
            x, w = ranges[site.module].log(), torch.stack([weight.abs().amax(0) for weight in readers]).amax(0).log()
            log_scales[torch.as_tensor(site.variables)] = (1 - alpha) * w - alpha * x
    plan.rescale(log_scales)


def _ranges(model: torch.nn.Module, plan: Any, arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By module, the largest magnitude of each channel of its output."""
    found: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    handles = []
    for site in {(site.module, site.axis): site for group in plan.groups for site in group.sites}.values():
        if site.direction != "output":
            continue

        def note(module: Any, args: Any, output: Any, site: Any = site) -> None:
            if isinstance(output, torch.Tensor):
                found[site.module] = output.abs().movedim(site.axis, -1).flatten(0, -2).amax(0)

        handles.append(modules[site.module].register_forward_hook(note))
    _outputs(model, arguments)
    for handle in handles:
        handle.remove()
    return found


def test_a_users_smooth_quant() -> None:
    model, arguments = build("llama")
    redraw(model).eval()
    plan = fxenorm.analyze(model, arguments, modes="eval")
    before, ranges = _outputs(model, arguments), _ranges(model, plan, arguments)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    smooth_quant(plan, ranges, alpha=0.5)
    assert relative_difference(before, _outputs(model, arguments)) <= 1e-6  # the norms round to float32
    smoothed = _ranges(model, plan, arguments)
    for layer in range(LAYERS):
        for norm, readers in (("input_layernorm", "self_attn.{}_proj"), ("post_attention_layernorm", "mlp.{}_proj")):
            letters = ("q", "k", "v") if "attn" in readers else ("gate", "up")
            names = [f"model.layers.{layer}.{readers.format(letter)}.weight" for letter in letters]
            w = torch.stack([weights[name].abs().amax(0) for name in names]).amax(0)
            x = ranges[f"model.layers.{layer}.{norm}"]
            torch.testing.assert_close(smoothed[f"model.layers.{layer}.{norm}"], (x * w).sqrt(), rtol=1e-6, atol=0)


def test_layers_of_a_seven_billion_parameter_model_on_the_meta_device() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    # The real one has 32 layers; its analysis differs in nothing but their number.
    config = LlamaConfig(num_hidden_layers=2, use_cache=False, vocab_size=32000, hidden_size=4096, intermediate_size=11008)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    plan = fxenorm.analyze(model, {"input_ids": torch.zeros(1, 16, dtype=torch.int64, device="meta")}, modes="eval")
    assert plan.num_scales == 2 * (2 * 4096 + 4096 + 4096 // 2 + 11008) + 4096
