"""Plain Hugging Face models on which `bake` is tried: the tiny zoo, variants with biases, and Gemma."""

from __future__ import annotations

from dataclasses import dataclass

import tiny
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM

import workbench as wb

UNTIED = {"tie_word_embeddings": False, "mlp_bias": True, "attention_bias": True}
MODELS: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {}),  # gated, tied, no biases
    "llama-biases": ("llama", UNTIED),  # gated, untied, biases
    "gpt2": ("gpt2", {}),  # plain MLP, tied, biases, learned positions
    "neox": ("neox", {}),  # plain MLP, untied, parallel sublayers, fused projections
    "mistral": ("mistral", {}),  # gated, no place for biases
    "qwen2": ("qwen2", {}),  # gated, biases on q, k and v only
    "gemma": ("gemma", {}),  # gated, tied, scaled embeddings, gain of 1 + w
}
HOLDS_CONSTANTS = ("llama", "llama-biases", "gpt2", "neox")
EDITS = [wb.Clamp("neurons.1.post:3", 2.0), wb.Scale("neurons.0.up:5", 3.0)]
TOKENS = torch.arange(40).view(2, 20) * 7


def plain_model(name: str) -> nn.Module:
    """A plain Hugging Face model, the same each time."""
    architecture, changes = MODELS[name]
    if architecture != "gemma":
        return tiny.build(architecture, **changes)
    torch.manual_seed(3)
    size = {"vocab_size": tiny.VOCAB, "max_position_embeddings": tiny.CONTEXT, "hidden_size": 32, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 48}
    module = GemmaForCausalLM(GemmaConfig(**size | heads, eos_token_id=0, bos_token_id=None)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return module


@dataclass
class Parts:
    """Where things are in a plain model."""

    embeddings: list[nn.Module]
    layers: nn.ModuleList
    attention: list[nn.Module]
    mlp: list[nn.Module]
    out: list[nn.Module]
    """The projections that heads go into."""


def parts(module: nn.Module) -> Parts:
    kind = type(module).__name__
    if kind == "GPT2LMHeadModel":
        body = module.transformer
        layers = body.h
        attention = [layer.attn for layer in layers]
        out = [one.c_proj for one in attention]
        return Parts([body.wte, body.wpe], layers, attention, [layer.mlp for layer in layers], out)
    if kind == "GPTNeoXForCausalLM":
        body = module.gpt_neox
        attention = [layer.attention for layer in body.layers]
        out = [one.dense for one in attention]
        return Parts([body.embed_in], body.layers, attention, [layer.mlp for layer in body.layers], out)
    body = module.model
    attention = [layer.self_attn for layer in body.layers]
    out = [one.o_proj for one in attention]
    return Parts([body.embed_tokens], body.layers, attention, [layer.mlp for layer in body.layers], out)


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(tiny.VOCAB, (3, 20), generator=torch.Generator().manual_seed(seed))


def vector(width: int, seed: int = 0) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def opened(name: str) -> tuple[nn.Module, wb.model.LanguageModel]:
    plain = plain_model(name)
    return plain, wb.load_model(plain, tokenizer=tiny.tokenizer())


def off(child: wb.surgery.Child, wanted: Tensor) -> float:
    """How far the child's logits are from those wanted, relative to the largest where that is above 1."""
    with torch.inference_mode():
        found = child.model(tokens())
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


def fresh(name: str = "llama") -> wb.model.LanguageModel:
    return wb.load_model(tiny.build(name), tokenizer=tiny.tokenizer())


def certified(child: wb.surgery.Child) -> wb.surgery.Child:
    child.certify(tokens=64)
    return child
