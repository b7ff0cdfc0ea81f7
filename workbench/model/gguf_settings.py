"""Settings of the architectures that are read from GGUF, in the words of Hugging Face.

A file states what llama.cpp needs to run it, so what a file leaves out means what llama.cpp does then. A field that no
line here asks for is refused: it could change what the model computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.core.type_words import shown
from workbench.model.gguf_header import Header
from workbench.model.weights import ModelError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
"""What llama.cpp divides the rotary frequencies by: the form in which a file states the scaling of Llama 3."""
LAYOUT = "Meta AI original pth"
"""What old files call the order of rows in which files of llama hold queries and keys."""
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LOCAL_THETA = 10_000.0
"""The rotary base of Gemma 3's sliding windows, which files leave out."""
LARGEST_GEMMAS = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and layers of the Gemmas whose attention is scaled by the width of the stream over the heads."""


class Keys:
    """The fields of an architecture; each that was asked for is noted."""

    def __init__(self, header: Header):
        self.header = header
        self.prefix = f"{header.architecture}."
        self._read: set[str] = set()

    def whole(self, name: str, default: int | None = None) -> int:
        """A field that is a whole number."""
        return self.header.whole(self._noted(name), default)

    def number(self, name: str, default: float | None = None) -> float:
        """A field that is a number."""
        return self.header.number(self._noted(name), default)

    def text(self, name: str, default: str | None = None) -> str:
        """A field that is a text."""
        return self.header.text(self._noted(name), default)

    def yes(self, name: str, default: bool | None = None) -> bool:
        """A field that is true or false."""
        return self.header.yes(self._noted(name), default)

    def has(self, name: str) -> bool:
        """Whether a field is stated."""
        return self._noted(name) in self.header.fields

    def refuse_others(self) -> None:
        """Raise `ModelError` for a field of the architecture that nobody asked for."""
        own = {key for key in self.header.fields if key.startswith(self.prefix)}
        if left := own - self._read:
            raise ModelError(
                f"{self.header.path} states {min(left)}, which Workbench does not know of a {self.prefix[:-1]}, so the "
                "model might be another than the one that was converted; open its safetensors instead."
            )

    def refuse(self, what: str) -> ModelError:
        """The error of a setting that is not read."""
        return ModelError(f"{self.header.path} {what}, which Workbench does not read; open its safetensors instead.")

    def _noted(self, name: str) -> str:
        self._read.add(self.prefix + name)
        return self.prefix + name


def _sizes(keys: Keys) -> dict[str, Any]:
    """Settings that most architectures have."""
    if keys.whole("expert_count", 0) and keys.prefix not in ("qwen2moe.", "qwen3moe."):
        raise keys.refuse(f"is a {keys.prefix[:-1]} of several experts")
    keys.whole("expert_used_count", 0)
    if keys.text("tensor_data_layout", LAYOUT) != LAYOUT:
        raise keys.refuse("holds its tensors in another layout")
    if not keys.yes("attention.causal", True):
        raise keys.refuse("states attention.causal = false: its tokens see later ones")
    rows = _rows(keys)
    heads, width = keys.whole("attention.head_count"), keys.whole("embedding_length")
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": _head_dim(keys, width, heads),
        "max_position_embeddings": keys.whole("context_length"),
        "tie_word_embeddings": HEAD not in keys.header.tensors,
    }


def _decoder(keys: Keys) -> dict[str, Any]:
    """Settings of a decoder with root mean square norms."""
    return _sizes(keys) | {
        "intermediate_size": keys.whole("feed_forward_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
    }


def _rows(keys: Keys) -> int:
    """Rows of the embedding, which a file may state too."""
    header = keys.header
    if EMBEDDING not in header.tensors or len(header.tensors[EMBEDDING].shape) != 2:
        raise ModelError(f"{header.path} has no matrix {EMBEDDING}: it holds no whole model; fetch it again.")
    rows = header.tensors[EMBEDDING].shape[0]
    if keys.whole("vocab_size", rows) != rows:
        raise header.fault(f"{keys.prefix}vocab_size", f"the {rows:,} rows of its embedding")
    return rows


def _head_dim(keys: Keys, width: int, heads: int) -> int:
    """Width of a head, of queries, keys and values alike."""
    if heads == 0 or (not keys.has("attention.key_length") and width % heads):
        raise keys.header.fault(f"{keys.prefix}attention.head_count", f"a divisor of its width {width:,}")
    size = keys.whole("attention.key_length", width // heads)
    if keys.whole("attention.value_length", size) != size:
        raise keys.refuse("has values of another width than its keys")
    return size


def _rope(keys: Keys, settings: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """Rotary settings; `partial` allows that only a part of a head turns."""
    size = settings["head_dim"]
    turning = keys.whole("rope.dimension_count", size)
    found: dict[str, Any] = {"rope_theta": keys.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    if partial:
        found["partial_rotary_factor"] = turning / size
    elif turning != size:
        raise keys.refuse(f"turns {turning:,} of the {size:,} dimensions of a head")
    kind = keys.text("rope.scaling.type", "linear" if keys.has("rope.scaling.factor") else "none")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    keys.whole("rope.scaling.original_context_length", 0)
    keys.yes("rope.scaling.finetuned", True)
    if kind not in ("none", "linear"):
        raise keys.refuse(f"scales its rotary frequencies by {shown(kind)}")
    if kind == "linear" and factor != 1:
        found |= {"rope_type": "linear", "factor": factor}
    if ROPE_FACTORS in keys.header.tensors:
        found |= _llama3(keys, size, found)
    return found


def _llama3(keys: Keys, size: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of Llama 3 that give the factors of a file."""
    stored = keys.header.tensors[ROPE_FACTORS]
    if stored.form != 0 or stored.shape != (size // 2,) or found["rope_type"] != "default":
        raise keys.refuse(f"holds {ROPE_FACTORS} in another form than float32, one for each pair of a head")
    factors = np.fromfile(stored.file, "<f4", size // 2, offset=stored.offset).astype(np.float64)
    factor = round(float(factors.max(initial=1)), 4)
    wave = 2 * math.pi * found["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high = LLAMA3_SCALING["low_freq_factor"], LLAMA3_SCALING["high_freq_factor"]
    smooth = (LLAMA3_SCALING["original_max_position_embeddings"] / wave - low) / (high - low)
    expected = 1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))
    if not np.allclose(factors, expected, rtol=1e-4):
        raise keys.refuse(f"holds {ROPE_FACTORS} that are not those of Llama 3")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3_SCALING}


def _with_rope(keys: Keys, settings: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
    return settings | {"rope_parameters": _rope(keys, settings, partial=partial)}


def llama(keys: Keys) -> dict[str, Any]:
    """Settings of Llama, Mistral and others of their form."""
    names = keys.header.tensors
    biases = {"attention_bias": "blk.0.attn_q.bias" in names, "mlp_bias": "blk.0.ffn_up.bias" in names}
    return _with_rope(keys, _decoder(keys)) | {"hidden_act": "silu"} | biases


def qwen2(keys: Keys) -> dict[str, Any]:
    """Settings of Qwen 2."""
    settings = _with_rope(keys, _decoder(keys)) | {"hidden_act": "silu", "use_sliding_window": False}
    return _without_head_dim(keys, settings)


def qwen3(keys: Keys) -> dict[str, Any]:
    """Settings of Qwen 3."""
    bias = "blk.0.attn_q.bias" in keys.header.tensors
    settings = {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": bias}
    return _with_rope(keys, _decoder(keys)) | settings


def _experts(keys: Keys) -> dict[str, Any]:
    return {
        "num_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def qwen2moe(keys: Keys) -> dict[str, Any]:
    """Settings of Qwen 2 with experts."""
    shared = {"shared_expert_intermediate_size": keys.whole("expert_shared_feed_forward_length")}
    return qwen2(keys) | _experts(keys) | shared | {"norm_topk_prob": False, "qkv_bias": True}


def qwen3moe(keys: Keys) -> dict[str, Any]:
    """Settings of Qwen 3 with experts."""
    return qwen3(keys) | _experts(keys) | {"norm_topk_prob": True}


def gemma(keys: Keys) -> dict[str, Any]:
    """Settings of Gemma."""
    return _with_rope(keys, _tied(keys, _decoder(keys))) | {"hidden_act": "gelu_pytorch_tanh"}


def _tied(keys: Keys, settings: dict[str, Any]) -> dict[str, Any]:
    if not settings["tie_word_embeddings"]:
        raise keys.refuse(f"holds {HEAD} beside its embedding")
    return settings


def _gemma_scale(keys: Keys, settings: Mapping[str, Any]) -> int:
    if (keys.header.architecture, settings["num_hidden_layers"]) in LARGEST_GEMMAS:
        return settings["hidden_size"] // settings["num_attention_heads"]
    return settings["head_dim"]


def _windows(keys: Keys, layers: int, period: int) -> dict[str, Any]:
    """Sliding windows of all layers but each last one of a period."""
    if keys.whole("attention.sliding_window_pattern", period) != period:
        raise keys.refuse("has its sliding windows in other layers than the Gemma that it states")
    kinds = ["full_attention" if number % period == period - 1 else "sliding_attention" for number in range(layers)]
    return {"sliding_window": keys.whole("attention.sliding_window"), "layer_types": kinds}


def gemma2(keys: Keys) -> dict[str, Any]:
    """Settings of Gemma 2."""
    settings = _with_rope(keys, _tied(keys, _decoder(keys)))
    if keys.number("rope.freq_base_swa", settings["rope_parameters"]["rope_theta"]) != keys.number(
        "rope.freq_base", 10_000.0
    ):
        raise keys.refuse("has another rotary base in its sliding windows")
    return settings | {
        **_windows(keys, settings["num_hidden_layers"], 2),
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": keys.number("attn_logit_softcapping"),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
        "query_pre_attn_scalar": _gemma_scale(keys, settings),
    }


def gemma3(keys: Keys) -> dict[str, Any]:
    """Settings of Gemma 3."""
    settings = _tied(keys, _decoder(keys))
    cap = keys.number("final_logit_softcapping") if keys.has("final_logit_softcapping") else None
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", LOCAL_THETA)}
    if not keys.has("rope.freq_base"):
        raise keys.header.fault(f"{keys.prefix}rope.freq_base", "a finite number")
    return settings | {
        **_windows(keys, settings["num_hidden_layers"], 6),
        "rope_parameters": {"sliding_attention": local, "full_attention": _rope(keys, settings)},
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": cap,
        "query_pre_attn_scalar": _gemma_scale(keys, settings),
    }


def gpt2(keys: Keys) -> dict[str, Any]:
    """Settings of GPT-2."""
    sizes = _sizes(keys)
    inner, width = keys.whole("feed_forward_length"), sizes["hidden_size"]
    if (
        sizes["num_key_value_heads"] != sizes["num_attention_heads"]
        or sizes["head_dim"] * sizes["num_attention_heads"] != width
    ):
        raise keys.refuse("has heads that a GPT-2 can't have")
    return {
        "vocab_size": sizes["vocab_size"],
        "n_positions": sizes["max_position_embeddings"],
        "n_embd": width,
        "n_layer": sizes["num_hidden_layers"],
        "n_head": sizes["num_attention_heads"],
        "n_inner": None if inner == 4 * width else inner,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "tie_word_embeddings": sizes["tie_word_embeddings"] or _are_equal(keys.header, HEAD, EMBEDDING),
    }


def _are_equal(header: Header, one: str, other: str) -> bool:
    """Whether two tensors hold the same bytes: the conversion of GPT-2 writes its embedding twice."""
    first, second = header.tensors[one], header.tensors[other]
    if (first.form, first.shape) != (second.form, second.shape):
        return False
    pieces = [np.memmap(at.file, np.uint8, "r", at.offset, (at.size,)) for at in (first, second)]
    return np.array_equal(pieces[0], pieces[1])


def phi3(keys: Keys) -> dict[str, Any]:
    """Settings of Phi-3 and Phi-4."""
    if long := next((name for name in keys.header.tensors if name.startswith("rope_factors_")), None):
        raise keys.refuse(f"holds {long}, the rotary factors of a long context")
    settings = _with_rope(keys, _decoder(keys), partial=True)
    window = keys.whole("attention.sliding_window", 0)
    length = settings["max_position_embeddings"]
    more = {"sliding_window": window or None, "original_max_position_embeddings": length, "hidden_act": "silu"}
    return _without_head_dim(keys, settings) | more


def _layer_norms(keys: Keys, name: str, *, partial: bool = False) -> dict[str, Any]:
    """Settings of a decoder with layer norms, whose epsilon Hugging Face calls `name`."""
    settings = _with_rope(keys, _sizes(keys), partial=partial)
    return settings | {
        "intermediate_size": keys.whole("feed_forward_length"),
        name: keys.number("attention.layer_norm_epsilon"),
    }


def starcoder2(keys: Keys) -> dict[str, Any]:
    """Settings of StarCoder 2."""
    settings = _layer_norms(keys, "norm_epsilon")
    return _without_head_dim(keys, settings) | {
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": None,
        "use_bias": True,
    }


def stablelm(keys: Keys) -> dict[str, Any]:
    """Settings of StableLM."""
    parallel = "blk.0.ffn_norm.weight" not in keys.header.tensors
    if keys.yes("use_parallel_residual", parallel) != parallel:
        raise keys.refuse("states another order of attention and MLP than its tensors have")
    bias = "blk.0.attn_q.bias" in keys.header.tensors
    return _without_head_dim(keys, _layer_norms(keys, "layer_norm_eps", partial=True)) | {
        "hidden_act": "silu",
        "use_qkv_bias": bias,
        "use_parallel_residual": parallel,
        "qk_layernorm": False,
    }


def nemotron(keys: Keys) -> dict[str, Any]:
    """Settings of Nemotron."""
    settings = _layer_norms(keys, "norm_eps", partial=True)
    return settings | {"hidden_act": "relu2", "attention_bias": False, "mlp_bias": False}


def _without_head_dim(keys: Keys, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an architecture whose heads share out the stream."""
    if settings["head_dim"] * settings["num_attention_heads"] != settings["hidden_size"]:
        raise keys.refuse("has heads whose widths are not that of the stream together")
    return {name: value for name, value in settings.items() if name != "head_dim"}
