"""GGUF files of tiny models, written as llama.cpp's own conversion writes them.

`write(path, module, tokenizer)` converts a plain Hugging Face model. Names of tensors come from the table of `gguf`;
what the conversion changes (rows of queries and keys, gains of norms, transposed matrices) is written here in the
direction of the conversion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from torch import nn

F32 = GGMLQuantizationType.F32
NAMES = {"mistral": "llama", "gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
"""Architectures that llama.cpp calls otherwise than Hugging Face."""
ABOUT_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
"""Architectures whose norms are stored about 1."""


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration, without the tokenizer's."""
    arch, sizes = NAMES.get(config.model_type, config.model_type), config.to_dict()
    heads, width = config.num_attention_heads, config.hidden_size
    own: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": sizes.get("intermediate_size") or sizes.get("n_inner") or 4 * width,
        "attention.head_count": heads,
    }
    if arch != "gpt2":
        own["attention.head_count_kv"] = config.num_key_value_heads
        rope = config.rope_parameters.get("full_attention", config.rope_parameters)
        own["rope.freq_base"] = float(rope["rope_theta"])
        size = sizes.get("head_dim") or width // heads
        own["rope.dimension_count"] = int(rope.get("partial_rotary_factor", 1) * size)
        if size * heads != width or arch.startswith("gemma"):
            own |= {"attention.key_length": size, "attention.value_length": size}
        if rope["rope_type"] == "linear":
            own |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    for name in ("norm_epsilon", "norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
        if name in sizes:
            own["attention.layer_norm_epsilon"] = sizes[name]
    if "rms_norm_eps" in sizes:
        own["attention.layer_norm_rms_epsilon"] = sizes["rms_norm_eps"]
    if arch in ("gemma2", "gemma3", "phi3"):
        own["attention.sliding_window"] = config.sliding_window or 0
    if arch == "gemma2":
        own["attn_logit_softcapping"] = config.attn_logit_softcapping
        own["final_logit_softcapping"] = config.final_logit_softcapping
    if arch == "stablelm":
        own["use_parallel_residual"] = config.use_parallel_residual
    if arch.endswith("moe"):
        own |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        own["expert_feed_forward_length"] = config.moe_intermediate_size
    if arch == "qwen2moe":
        own["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return {"general.architecture": arch} | {f"{arch}.{name}": value for name, value in own.items()}


def tokenizer_fields(tokenizer: Any) -> dict[str, Any]:
    """The fields of a byte-level tokenizer whose words are those of GPT-2, or of one of SentencePiece's kind."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    added = {token["content"] for token in state["added_tokens"] if not token["special"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    pieces = state["model"].get("byte_fallback", False)
    kinds = [
        3 if word in special else 4 if word in added else 6 if pieces and word[:3] == "<0x" else 1 for word in words
    ]
    fields: dict[str, Any] = {"tokens": words, "token_type": kinds, "model": "llama" if pieces else "gpt2"}
    if pieces:
        ranks = {merge.replace(" ", ""): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
        fields["scores"] = [ranks.get(word, -1e4 - number) for number, word in enumerate(words)]
        fields["pre"] = "default"
    else:
        fields |= {"merges": merges, "pre": "gpt-2"}
    added_first = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    fields |= {"add_bos_token": added_first, "add_eos_token": tokenizer("a").input_ids[-1] == tokenizer.eos_token_id}
    for name, known in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            fields[f"{known}_token_id"] = number
    stated = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return stated | ({"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})


def tensors_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The tensors of a model as the conversion writes them, in float32, by name."""
    config: Any = module.config
    arch = NAMES.get(config.model_type, config.model_type)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tensors: dict[str, np.ndarray] = {}
    tied = config.tie_word_embeddings
    for path, tensor in module.state_dict().items():
        if path == "lm_head.weight" and tied:
            continue
        values = tensor.detach().float().numpy()
        if path.endswith("experts.gate_up_proj"):
            layer, half = path.split(".")[2], values.shape[1] // 2
            tensors[f"blk.{layer}.ffn_gate_exps.weight"] = values[:, :half]
            tensors[f"blk.{layer}.ffn_up_exps.weight"] = values[:, half:]
            continue
        if path.endswith("experts.down_proj"):
            tensors[f"blk.{path.split('.')[2]}.ffn_down_exps.weight"] = values
            continue
        stem, _, ending = path.rpartition(".")
        name = names.get_name(stem)
        assert name is not None, path
        tensors[f"{name}.{ending}"] = _converted(arch, config, path, values)
    rope = config.to_dict().get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(rope, config.head_dim)
    return tensors


def _llama3_factors(rope: Mapping[str, float], size: int) -> np.ndarray:
    """What rotary frequencies are divided by, one after another."""
    factors = []
    for place in range(0, size, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (place / size)
        turns = rope["original_max_position_embeddings"] / wave
        if turns > rope["high_freq_factor"]:
            factors.append(1.0)
        elif turns < rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _converted(arch: str, config: Any, path: str, values: np.ndarray) -> np.ndarray:
    """A tensor as the conversion changes it."""
    if arch == "llama" and ".q_proj." in path:
        return _permuted(values, config.num_attention_heads)
    if arch == "llama" and ".k_proj." in path:
        return _permuted(values, config.num_key_value_heads)
    if arch in ABOUT_ONE and path.endswith("norm.weight"):
        return values + 1
    if arch == "gpt2" and path.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    return values[0] if path.endswith("shared_expert_gate.weight") else values


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_parts(
    path: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    form: GGMLQuantizationType = F32,
) -> Path:
    """Write a file of these fields and tensors; matrices whose rows are whole blocks are stored in `form`."""
    writer = GGUFWriter(path, fields["general.architecture"])
    for key, value in fields.items():
        if key != "general.architecture":
            add(writer, key, value)
    block = gguf.GGML_QUANT_SIZES[form][0]
    for name, values in tensors.items():
        whole = values.ndim > 1 and values.shape[-1] % block == 0
        plain = np.ascontiguousarray(values, np.float32)
        writer.add_tensor(name, gguf.quantize(plain, form) if whole else plain, raw_dtype=form if whole else F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_split(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], count: int) -> Path:
    """Write a model in several files whose names begin with `path`; the first one's path."""
    names = list(tensors)
    step = -(-len(names) // count)
    paths = [path.with_name(f"{path.name}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]
    for number, part in enumerate(paths):
        own = dict(fields) if number == 0 else {"general.architecture": fields["general.architecture"]}
        own |= {"split.no": number, "split.count": count, "split.tensors.count": len(names)}
        write_parts(part, own, {name: tensors[name] for name in names[number * step : (number + 1) * step]})
    return paths[0]


def write(path: Path, module: nn.Module, tokenizer: Any, form: GGMLQuantizationType = F32, **changes: Any) -> Path:
    """Write a model and its tokenizer; `changes` replace fields, whose dots are written as two underscores."""
    fields = fields_of(module.config) | tokenizer_fields(tokenizer)
    fields |= {key.replace("__", "."): value for key, value in changes.items()}
    kept = {key: value for key, value in fields.items() if value is not None}
    return write_parts(path, kept, tensors_of(module), form)


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a field in the type of its value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
