"""Tiny random models of many architectures, from Hugging Face configurations: what laws run over.

`build(name)` gives the same weights each time. Every parameter is drawn anew, norms about 1 and biases about 0, so that
no part is an identity by chance: a norm's gain, a bias or a scale that is left out shows. `ZOO[name]` is the
configuration.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import CONTEXT, VOCAB
from torch import nn

LAYERS = 3


@dataclass(frozen=True)
class Entry:
    """One configuration."""

    model_type: str
    """As Hugging Face calls it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from `SIZES`."""
    without: tuple[str, ...] = ()
    """Names of `SIZES` that this configuration has no field for."""


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OLD = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OLD += ("num_key_value_heads", "head_dim", "max_position_embeddings")
"""Fields of newer configurations that GPT-2 and its kin call otherwise."""
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
EXPERTS |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
GPT2 = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": LAYERS, "n_head": 4}
GROUPED = ("num_key_value_heads", "head_dim")

ZOO: dict[str, Entry] = {
    "llama": Entry("llama", {"tie_word_embeddings": True}),
    "llama-biased": Entry("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Entry("mistral", {"sliding_window": 8}),
    "ministral": Entry("ministral3"),
    "mixtral": Entry("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": Entry("gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": Entry("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": Entry("gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "qwen2": Entry("qwen2"),
    "qwen2-moe": Entry("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 24}),
    "qwen3": Entry("qwen3"),
    "qwen3-moe": Entry("qwen3_moe", EXPERTS),
    "gpt-oss": Entry("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "gpt2": Entry("gpt2", GPT2 | {"n_inner": 40}, OLD),
    "gpt-bigcode": Entry("gpt_bigcode", GPT2 | {"n_inner": 40, "multi_query": True}, OLD),
    "gpt-neo": Entry(
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        ("num_hidden_layers", "num_attention_heads", *GROUPED),
    ),
    "gpt-neox": Entry("gpt_neox", {"rotary_pct": 0.25, "use_parallel_residual": True}, GROUPED),
    "gpt-neox-sequential": Entry("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": False}, GROUPED),
    "gpt-j": Entry("gptj", GPT2 | {"n_inner": 40, "rotary_dim": 4}, OLD),
    "codegen": Entry("codegen", GPT2 | {"n_inner": 40, "rotary_dim": 4}, OLD),
    "opt": Entry("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, ("intermediate_size", *GROUPED)),
    "opt-350m": Entry(
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        ("intermediate_size", *GROUPED),
    ),
    "bloom": Entry("bloom", {"n_layer": LAYERS, "n_head": 4}, OLD[1:]),
    "mpt": Entry(
        "mpt", {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": CONTEXT, "expansion_ratio": 2}, OLD
    ),
    "falcon": Entry("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, ("intermediate_size", *GROUPED)),
    "falcon-parallel": Entry(
        "falcon", {"new_decoder_architecture": False, "multi_query": True}, ("intermediate_size", *GROUPED)
    ),
    "falcon-alibi": Entry(
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "parallel_attn": False, "bias": True},
        ("intermediate_size", *GROUPED),
    ),
    "phi": Entry("phi", {"partial_rotary_factor": 0.5}, ("head_dim",)),
    "phi3": Entry("phi3", {}, ("head_dim",)),
    "stablelm": Entry("stablelm", {"partial_rotary_factor": 0.5}, ("head_dim",)),
    "stablelm-parallel": Entry(
        "stablelm", {"partial_rotary_factor": 0.5, "use_parallel_residual": True, "qk_layernorm": True}, ("head_dim",)
    ),
    "nemotron": Entry("nemotron", {"partial_rotary_factor": 0.5}),
    "olmo": Entry("olmo", {"clip_qkv": 2.0}, ("head_dim",)),
    "olmo2": Entry("olmo2", {}, ("head_dim",)),
    "olmo3": Entry("olmo3", {"sliding_window": 8}, ("head_dim",)),
    "olmoe": Entry("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, ("head_dim",)),
    "glm": Entry("glm", {"partial_rotary_factor": 0.5}),
    "glm4": Entry("glm4", {"partial_rotary_factor": 0.5}),
    "cohere": Entry("cohere", {"logit_scale": 0.25}, ("head_dim",)),
    "cohere2": Entry("cohere2", {"logit_scale": 0.25, "sliding_window": 8}, ("head_dim",)),
    "granite": Entry(
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
            "logits_scaling": 4.0,
        },
        ("head_dim",),
    ),
    "granite-moe": Entry(
        "granitemoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.5, "logits_scaling": 4.0},
        ("head_dim",),
    ),
    "starcoder2": Entry("starcoder2", {"sliding_window": 8}, ("head_dim",)),
    "xglm": Entry(
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": LAYERS, "attention_heads": 4},
        ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", *GROUPED),
    ),
    "smollm3": Entry("smollm3", {"no_rope_layer_interval": 2}, ("head_dim",)),
    "apertus": Entry("apertus", {}, ("head_dim",)),
    "seed-oss": Entry("seed_oss"),
    "ernie": Entry("ernie4_5"),
    "exaone4": Entry("exaone4", {"sliding_window": 8, "sliding_window_pattern": 2}, ("head_dim",)),
    "arcee": Entry("arcee"),
    "deepseek-v2": Entry(
        "deepseek_v2",
        {
            "q_lora_rank": None,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "n_group": 1,
            "topk_group": 1,
        },
        ("head_dim",),
    ),
}


def settings(name: str) -> dict[str, Any]:
    """All settings of a configuration."""
    entry = ZOO[name]
    return {key: value for key, value in SIZES.items() if key not in entry.without} | entry.settings


UNOPENED = ("opt-350m", "falcon")
"""Architectures that TransformerLens can't open; docs/models.md quotes why."""


def sample(number: int, always: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
    """Some architectures for a law: `always`, and a seeded sample of `number` others; all others in `make laws`."""
    others = sorted(set(ZOO) - {*always, *without})
    if os.environ.get("WORKBENCH_LAWS") == "all":
        return [*always, *others]
    return [*always, *random.Random(int(os.environ.get("WORKBENCH_SEED", "0"))).sample(others, number)]


def build(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A plain model; its weights depend on the name, the seed and the changes of its configuration only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(ZOO[name].model_type, **settings(name) | changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    redraw(model, seed)
    return model


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew: norms' gains about what they are at first, all else about 0."""
    chance = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=chance)
            if parameter.ndim == 1:
                first = 1.0 if path.endswith("weight") and float(parameter.mean()) > 0.5 else 0.0
                parameter.copy_(first + 0.2 * noise)
            else:
                parameter.copy_(0.25 * noise)
