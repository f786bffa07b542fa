"""Tiny Hugging Face models (2 layers, hidden size 64) built from configs, with inputs: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY, LENGTH = 64, 2, 4, 2, 96, 128, 12
HEAD_DIM = HIDDEN // HEADS
EXPERTS = 3

Built = tuple[nn.Module, dict[str, torch.Tensor]]


def _tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))


def _picture(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _decoder(name: str, config_name: str = "", **options: Any) -> Callable[[], Built]:
    """A Llama-like causal language model."""

    def build() -> Built:
        import transformers

        config = getattr(transformers, f"{config_name or name}Config")(
            **{
                "hidden_size": HIDDEN,
                "intermediate_size": INTERMEDIATE,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 64,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "attention_dropout": 0.0,
                "use_cache": False,
                **options,
            }
        )
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        if hasattr(config, "num_local_experts"):
            # The default, a grouped product, knows no float64.
            model.set_experts_implementation("batched_mm")
        return model, {"input_ids": _tokens()}

    return build


def _bert() -> Built:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config), {"input_ids": _tokens(), "attention_mask": torch.ones(2, LENGTH, dtype=torch.int64)}


def _gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config), {"input_ids": _tokens()}


def _t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=HIDDEN,
        d_kv=HEAD_DIM,
        d_ff=INTERMEDIATE,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,
        use_cache=False,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config), {"input_ids": _tokens(), "decoder_input_ids": _tokens(8)}


def _opt() -> Built:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        ffn_dim=INTERMEDIATE,
        num_attention_heads=HEADS,
        word_embed_proj_dim=HIDDEN,
        max_position_embeddings=64,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        use_cache=False,
    )
    return OPTForCausalLM(config), {"input_ids": _tokens()}


def _whisper() -> Built:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=16,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=INTERMEDIATE,
        decoder_ffn_dim=INTERMEDIATE,
        d_model=HIDDEN,
        max_source_positions=32,
        max_target_positions=24,
        dropout=0.0,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    features = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    return WhisperForConditionalGeneration(config), {"input_features": features, "decoder_input_ids": _tokens(8)}


def _vit() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        image_size=32,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=5,
    )
    return ViTForImageClassification(config), {"pixel_values": _picture()}


def _clip() -> Built:
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "projection_dim": 32,
        "attention_dropout": 0.0,
    }
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(
        text_config={**shared, **text}, vision_config={**shared, "image_size": 32, "patch_size": 8}, projection_dim=32
    )
    return CLIPModel(config), {"input_ids": _tokens(), "pixel_values": _picture()}


def _bloom() -> Built:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
    )
    return BloomForCausalLM(config), {"input_ids": _tokens()}


def _falcon() -> Built:
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
    )
    return FalconForCausalLM(config), {"input_ids": _tokens()}


MODELS: dict[str, Callable[[], Built]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _decoder("Llama", tie_word_embeddings=False),
    "llama-tied": _decoder("Llama", tie_word_embeddings=True),
    "qwen3": _decoder("Qwen3", tie_word_embeddings=False, head_dim=HEAD_DIM),
    "mistral": _decoder("Mistral", tie_word_embeddings=False, sliding_window=8),
    "gemma": _decoder("Gemma", head_dim=HEAD_DIM),
    "gemma3": _decoder("Gemma3", "Gemma3Text", head_dim=HEAD_DIM, sliding_window=8),
    "t5": _t5,
    "opt": _opt,
    "whisper": _whisper,
    "vit": _vit,
    "clip": _clip,
    "mixtral": _decoder("Mixtral", tie_word_embeddings=False, num_local_experts=EXPERTS, num_experts_per_tok=2),
    "phi3": _decoder("Phi3", tie_word_embeddings=False),
    "gpt-neox": _decoder("GPTNeoX", tie_word_embeddings=False, hidden_dropout=0.0),
    "bloom": _bloom,
    "falcon": _falcon,
}


def build(name: str) -> Built:
    """One model in float32 and its keyword arguments; the weights are whatever the library draws."""
    import transformers

    transformers.logging.set_verbosity_error()
    return MODELS[name]()


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of both signs in every parameter, of a size that keeps activations near 1; in float64."""
    model.double()
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        draw = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        if parameter.ndim >= 2:
            parameter.copy_(draw * parameter.shape[-1] ** -0.5)
        else:
            parameter.copy_(draw.sign() * (0.5 + draw.abs() / 2))
    for module in model.modules():
        if type(module).__name__ in ("GemmaRMSNorm", "Gemma3RMSNorm"):
            module.forward = MethodType(_norm_in_its_own_type, module)
    return model


def _norm_in_its_own_type(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Gemma's norm without its casts, by which float64 weights would be rounded to float32."""
    return norm._norm(x) * (1.0 + norm.weight)
