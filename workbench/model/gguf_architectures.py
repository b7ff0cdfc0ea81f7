"""Architectures that are read from GGUF: their tensors in the words of Hugging Face, and how their settings are read.

A tensor that no line here takes is refused: it could change what the model computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from workbench.core.type_words import shown
from workbench.model import gguf_settings as settings
from workbench.model.gguf_header import Header
from workbench.model.gguf_settings import Keys
from workbench.model.weights import ModelError

NUMBER = re.compile(r"^blk\.([0-9]+)\.")
MOST_LAYERS = 1000


def _as_it_is(part: str, weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    return weight


@dataclass(frozen=True)
class Architecture:
    """How a file of one architecture is read."""

    model_type: str
    """As Hugging Face calls it."""
    settings: Callable[[Keys], dict[str, Any]]
    parts: Mapping[str, str]
    """Path in the Hugging Face model by the beginning of a tensor's name; `*` stands for the number of a layer."""
    change: Callable[[str, Tensor, Mapping[str, Any]], Tensor] = _as_it_is
    """Undoes what the conversion did to a tensor in float32: its part, the tensor, and the settings."""
    joined: Mapping[str, str] = field(default_factory=dict)
    """As `parts`, for tensors of experts that lie behind one another on axis 1 of one parameter, in this order."""

    def place(self, name: str) -> tuple[str, str] | None:
        """The part and the parameter that a tensor belongs to; None where there is none."""
        number = NUMBER.match(name)
        general = NUMBER.sub("blk.*.", name)
        stem, _, ending = general.rpartition(".")
        if general in self.joined:
            path = self.joined[general]
        elif stem in self.parts and ending in ("weight", "bias"):
            path = f"{self.parts[stem]}.{ending}"
        else:
            return None
        return general, path.replace("*", number[1]) if number else path


def _llama_order(part: str, weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Rotary dimensions in two halves, where a file of llama has those that turn together next to each other."""
    heads = {"blk.*.attn_q": "num_attention_heads", "blk.*.attn_k": "num_key_value_heads"}.get(part.rpartition(".")[0])
    if heads is None:
        return weight
    return weight.view(settings[heads], -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _about_zero(part: str, weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Gains of norms about 0, where the file has them about 1."""
    return weight - 1 if part.endswith("norm.weight") else weight


def _transposed(part: str, weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Matrices of GPT-2, whose modules multiply from the other side."""
    return weight.T if part.startswith("blk.") and weight.ndim == 2 else weight


def _as_matrix(part: str, weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The gate of the shared expert as a matrix of one row."""
    return weight[None] if part == "blk.*.ffn_gate_inp_shexp.weight" and weight.ndim == 1 else weight


LAYER = "model.layers.*"
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {f"blk.*.attn_{part}": f"{LAYER}.self_attn.{part}_proj" for part in ("q", "k", "v")}
ATTENTION["blk.*.attn_output"] = f"{LAYER}.self_attn.o_proj"
NORMS = {"blk.*.attn_norm": f"{LAYER}.input_layernorm", "blk.*.ffn_norm": f"{LAYER}.post_attention_layernorm"}
GATED = {f"blk.*.ffn_{part}": f"{LAYER}.mlp.{part}_proj" for part in ("gate", "up", "down")}
HEAD_NORMS = {f"blk.*.attn_{part}_norm": f"{LAYER}.self_attn.{part}_norm" for part in ("q", "k")}
DECODER = ENDS | ATTENTION | NORMS | GATED
AROUND = {
    "blk.*.post_attention_norm": f"{LAYER}.post_attention_layernorm",
    "blk.*.ffn_norm": f"{LAYER}.pre_feedforward_layernorm",
    "blk.*.post_ffw_norm": f"{LAYER}.post_feedforward_layernorm",
}
"""Norms before and behind attention and MLP."""
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.ln_1",
    "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
    "blk.*.attn_output": "transformer.h.*.attn.c_proj",
    "blk.*.ffn_norm": "transformer.h.*.ln_2",
    "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
    "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
}
PHI3 = (
    ENDS
    | NORMS
    | {
        "blk.*.attn_qkv": f"{LAYER}.self_attn.qkv_proj",
        "blk.*.attn_output": f"{LAYER}.self_attn.o_proj",
        "blk.*.ffn_up": f"{LAYER}.mlp.gate_up_proj",
        "blk.*.ffn_down": f"{LAYER}.mlp.down_proj",
    }
)
STARCODER2 = (
    ENDS
    | ATTENTION
    | NORMS
    | {
        "blk.*.ffn_up": f"{LAYER}.mlp.c_fc",
        "blk.*.ffn_down": f"{LAYER}.mlp.c_proj",
    }
)
EXPERTS = {
    "blk.*.ffn_gate_exps.weight": f"{LAYER}.mlp.experts.gate_up_proj",
    "blk.*.ffn_up_exps.weight": f"{LAYER}.mlp.experts.gate_up_proj",
    "blk.*.ffn_down_exps.weight": f"{LAYER}.mlp.experts.down_proj",
}
ROUTED = ENDS | ATTENTION | NORMS | {"blk.*.ffn_gate_inp": f"{LAYER}.mlp.gate"}
SHARED = {f"blk.*.ffn_{part}_shexp": f"{LAYER}.mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
SHARED["blk.*.ffn_gate_inp_shexp"] = f"{LAYER}.mlp.shared_expert_gate"

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", settings.llama, DECODER, _llama_order),
    "qwen2": Architecture("qwen2", settings.qwen2, DECODER),
    "qwen2moe": Architecture("qwen2_moe", settings.qwen2moe, ROUTED | SHARED, _as_matrix, EXPERTS),
    "qwen3": Architecture("qwen3", settings.qwen3, DECODER | HEAD_NORMS),
    "qwen3moe": Architecture("qwen3_moe", settings.qwen3moe, ROUTED | HEAD_NORMS, _as_it_is, EXPERTS),
    "gemma": Architecture("gemma", settings.gemma, DECODER, _about_zero),
    "gemma2": Architecture("gemma2", settings.gemma2, DECODER | AROUND, _about_zero),
    "gemma3": Architecture("gemma3_text", settings.gemma3, DECODER | AROUND | HEAD_NORMS, _about_zero),
    "gpt2": Architecture("gpt2", settings.gpt2, GPT2, _transposed),
    "phi3": Architecture("phi3", settings.phi3, PHI3),
    "starcoder2": Architecture("starcoder2", settings.starcoder2, STARCODER2),
    "stablelm": Architecture("stablelm", settings.stablelm, DECODER),
    "nemotron": Architecture("nemotron", settings.nemotron, DECODER, _about_zero),
}
"""By the name that a file states."""


def architecture_of(header: Header) -> Architecture:
    """How a file is read.

    Raises:
        ModelError: it holds no model, or one of an architecture that is not read.
    """
    kind = header.text("general.type", "model")
    if kind != "model":
        raise ModelError(f"{header.path} holds no model but what it calls {shown(kind)}; give the model's own file.")
    name = header.architecture
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{header.path} is a {shown(name)}, and Workbench reads GGUF files of {', '.join(ARCHITECTURES)}; open the "
            "safetensors that it was converted from."
        )
    return ARCHITECTURES[name]


def settings_of_file(header: Header) -> dict[str, Any]:
    """The settings of a file's model, as the configuration of Hugging Face names them.

    Raises:
        ModelError: one is missing or can't be, or the file states more than is read.
    """
    architecture, keys = architecture_of(header), Keys(header)
    layers = {number[1] for name in header.tensors if (number := NUMBER.match(name))}
    if keys.whole("block_count") != len(layers) or len(layers) > MOST_LAYERS:
        raise header.fault(f"{keys.prefix}block_count", f"the {len(layers):,} layers that have tensors")
    found = architecture.settings(keys)
    keys.refuse_others()
    return found
