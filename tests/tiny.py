"""Tiny Hugging Face models with random weights, and a tiny byte-level tokenizer, for tests.

`build(name)` gives the same weights each time, so that a test can hold a plain model beside the one it tests.
"""

from __future__ import annotations

import functools

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 331
"""Not a multiple of anything, so that a wrong block size shows."""
CONTEXT = 256

ARCHITECTURES = ("llama", "gpt2", "neox", "mistral", "qwen2")

TEXT = """The dog ran to the river and the cat ran to the house. The dog and the cat and the mouse are friends.
What is your favourite animal? My favourite animal is a dog, and your favourite animal is a cat.
Once upon a time there was a small green boat, which sailed over the wide water every morning with three children.
"""

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can write every text; `<|end|>` ends a turn."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    control = ["<|end|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT], trainer)
    assert bpe.get_vocab_size() == VOCAB
    bpe.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        chat_template=CHAT if chat else None,
        clean_up_tokenization_spaces=False,
    )


def build(name: str, seed: int = 0, **changes: object) -> nn.Module:
    """A plain model; its weights depend on the name and the seed only."""
    size = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "bos_token_id": None, "eos_token_id": 0}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    gpt2 = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40}
    grouped = shape | {"num_key_value_heads": 2}
    make = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**size | grouped | {"tie_word_embeddings": True} | changes)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2 | {"bos_token_id": None, "eos_token_id": 0} | changes)),
        "neox": lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(**size | shape | {"rotary_pct": 0.25, "num_hidden_layers": 2} | changes)
        ),
        "mistral": lambda: MistralForCausalLM(
            MistralConfig(**size | grouped | {"sliding_window": 8, "head_dim": 8} | changes)
        ),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**size | grouped | {"num_hidden_layers": 2} | changes)),
    }[name]
    torch.manual_seed(seed)
    model = make().eval()
    chance = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=chance)
            norm = parameter.ndim == 1 and path.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else (0.2 if parameter.ndim == 1 else 0.25) * noise)
    return model


def mlp(module: nn.Module, layer: int) -> dict[str, tuple[nn.Module, str]]:
    """Where the neurons of a layer live in a plain model, by site: the module, and whether its input or output."""
    kind = type(module).__name__
    if kind == "GPT2LMHeadModel":
        part = module.transformer.h[layer].mlp
        return {"up": (part.c_fc, "out"), "post": (part.c_proj, "in")}
    if kind == "GPTNeoXForCausalLM":
        part = module.gpt_neox.layers[layer].mlp
        return {"up": (part.dense_h_to_4h, "out"), "post": (part.dense_4h_to_h, "in")}
    part = module.model.layers[layer].mlp
    return {"gate": (part.gate_proj, "out"), "up": (part.up_proj, "out"), "post": (part.down_proj, "in")}


def weights(module: nn.Module, layer: int) -> dict[str, Tensor]:
    """Each neuron's vector in the residual stream, `[d_mlp, d_model]`, by weight."""
    kind = type(module).__name__
    if kind == "GPT2LMHeadModel":
        part = module.transformer.h[layer].mlp
        return {"up": part.c_fc.weight.detach().T, "down": part.c_proj.weight.detach()}
    if kind == "GPTNeoXForCausalLM":
        part = module.gpt_neox.layers[layer].mlp
        return {"up": part.dense_h_to_4h.weight.detach(), "down": part.dense_4h_to_h.weight.detach().T}
    part = module.model.layers[layer].mlp
    return {
        "gate": part.gate_proj.weight.detach(),
        "up": part.up_proj.weight.detach(),
        "down": part.down_proj.weight.detach().T,
    }
