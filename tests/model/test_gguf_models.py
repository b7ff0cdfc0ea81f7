"""Tiny models in GGUF files against the plain models and tokenizers that they were converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import ggufs
import numpy as np
import pytest
import tiny
import tokenizers_zoo
import torch
import zoo
from gguf import GGMLQuantizationType as Form
from torch import Tensor, nn

import workbench as wb
from workbench.model.gguf_files import GgufModel

pytestmark = pytest.mark.usefixtures("tiny_cache")

LINEAR: dict[str, Any] = {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
LINEAR["full_attention"] = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0}
LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with a head": ("llama", {"tie_word_embeddings": False}),
    "llama with biases": ("llama-biased", {}),
    "llama of a long context": ("llama", {"rope_parameters": LLAMA3, "head_dim": 64}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2moe": ("qwen2-moe", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3moe": ("qwen3-moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {"num_hidden_layers": 7}),
    "gemma3 of a long context": ("gemma3", {"num_hidden_layers": 7, "rope_parameters": LINEAR}),
    "gpt2": ("gpt2", {}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3 in part": ("phi3", {"partial_rotary_factor": 0.5}),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", {}),
    "stablelm in parallel": ("stablelm-parallel", {"qk_layernorm": False}),
    "nemotron": ("nemotron", {}),
}
"""Entries of the zoo, and what differs from them."""
TOKENS = torch.tensor([[5, 17, 200, 41, 41, 7, 300, 12, 9, 150, 33, 2, 77, 101, 64, 250]])
TEXTS = [tiny.TEXT, "In 1969, 42 dogs' café 🐶\n\n  def f(x):", "<|end|>", " ", "a  b   c\t", "ﬁn\tß"]


def source(name: str) -> nn.Module:
    """The plain model of an entry."""
    entry, changes = SOURCES[name]
    return zoo.build(entry, **changes)


def logits(module: Any) -> Tensor:
    """What a plain model writes, with the attention of the zoo."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        return module(TOKENS).logits


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_the_model_that_it_was_converted_from(name: str, tmp_path: Path) -> None:
    plain = source(name)
    model = GgufModel(ggufs.write(tmp_path / "model.gguf", plain, tiny.tokenizer()))
    module, _, _ = model.module(torch.float32)
    assert torch.allclose(
        logits(module), logits(plain), rtol=0, atol=0 if model.header.architecture != "nemotron" else 1e-5
    )
    assert model.dtype == torch.float32
    ours, theirs = dict(module.named_parameters()), dict(plain.named_parameters())
    assert {one: ours[one].shape for one in ours} == {one: theirs[one].shape for one in theirs}


def test_a_file_has_the_hash_of_the_folder_with_its_values(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "model.gguf", source("llama"), tiny.tokenizer(), Form.Q8_0)
    model = wb.load_model(path)
    model.network.module.save_pretrained(tmp_path / "folder")  # type: ignore[operator]
    model.tokenizer.save_pretrained(tmp_path / "folder")
    assert wb.load_model(tmp_path / "folder").hash == model.hash
    rounded = wb.load_model(path, dtype="bfloat16")
    assert (rounded.dtype, rounded.hash, model.dtype) == (torch.bfloat16, model.hash, torch.float32)
    for name, weight in model.network.module.named_parameters():
        assert torch.equal(dict(rounded.network.module.named_parameters())[name], weight.bfloat16())
    assert rounded.held_hash == wb.load_model(rounded.network.module).weights_hash != rounded.weights_hash
    assert model.generate("The dog", 3).text == wb.load_model(tmp_path / "folder").generate("The dog", 3).text


@pytest.mark.parametrize("form", [Form.F16, Form.BF16, Form.Q8_0, Form.Q4_0, Form.Q5_1])
def test_blocks_have_the_values_of_their_rule(form: Form, tmp_path: Path) -> None:
    """Against a second reader: what the package `gguf` makes of the same bytes in one piece, in its own file reader."""
    path = ggufs.write(tmp_path / "model.gguf", source("gemma3"), tiny.tokenizer(), form)
    model = GgufModel(path)
    tensors, _, _ = model.tensors(torch.float32)
    stored = {one.name: one for one in gguf.GGUFReader(path).tensors}
    part = stored["blk.1.ffn_gate.weight"]
    assert part.tensor_type == form
    expected = gguf.dequantize(part.data, part.tensor_type)
    assert np.array_equal(tensors["model.layers.1.mlp.gate_proj.weight"].numpy(), expected)
    assert np.array_equal(tensors["model.norm.weight"].numpy() + 1, stored["output_norm.weight"].data)
    assert model.dtype == {Form.F16: torch.float16}.get(form, torch.bfloat16)


def test_a_large_matrix_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ggufs.write(tmp_path / "model.gguf", source("llama"), tiny.tokenizer(), Form.Q8_0)
    whole = GgufModel(path).tensors(torch.float32)
    monkeypatch.setattr("workbench.model.gguf_files.AT_ONCE", 100)
    pieces = GgufModel(path).tensors(torch.float32)
    assert pieces[1:] == whole[1:]


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path: Path) -> None:
    plain = source("gpt2")
    fields = ggufs.fields_of(plain.config) | ggufs.tokenizer_fields(tiny.tokenizer())
    tensors = ggufs.tensors_of(plain)
    twice = tensors | {"output.weight": tensors["token_embd.weight"]}
    module, _, _ = GgufModel(ggufs.write_parts(tmp_path / "tied.gguf", fields, twice)).module(torch.float32)
    assert module.lm_head.weight is module.transformer.wte.weight
    other = tensors | {"output.weight": 2 * tensors["token_embd.weight"]}
    module, _, _ = GgufModel(ggufs.write_parts(tmp_path / "own.gguf", fields, other)).module(torch.float32)
    assert torch.equal(module.lm_head.weight, 2 * module.transformer.wte.weight)
    assert torch.allclose(logits(module), 2 * logits(plain))


def test_a_model_in_parts(tmp_path: Path) -> None:
    plain = source("qwen2")
    fields = ggufs.fields_of(plain.config) | ggufs.tokenizer_fields(tiny.tokenizer())
    tensors = ggufs.tensors_of(plain)
    whole = GgufModel(ggufs.write_parts(tmp_path / "whole.gguf", fields, tensors))
    first = ggufs.write_split(tmp_path / "model", fields, tensors, 3)
    parts = GgufModel(first)
    assert parts.tensors(torch.float32)[1] == whole.tensors(torch.float32)[1]
    for path, words in (
        (first.with_name("model-00002-of-00003.gguf"), "not the first of 3 parts"),
        (first, "beside it"),
    ):
        if path == first:
            first.with_name("model-00003-of-00003.gguf").unlink()
        with pytest.raises(wb.WorkbenchError, match=words):
            wb.load_model(path)


KINDS = ("bytes", "bytes-bos", "bytes-eos-chat", "bytes-both-chat-bos", "fallback-bos", "fallback-both-chat")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_the_one_that_was_converted(kind: str, tmp_path: Path) -> None:
    theirs = tokenizers_zoo.build(kind)
    plain = zoo.build("llama", vocab_size=max(len(theirs), tiny.VOCAB))
    ours = GgufModel(ggufs.write(tmp_path / "model.gguf", plain, theirs)).tokenizer()
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours(text).input_ids == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours(text, add_special_tokens=False).input_ids == theirs(text, add_special_tokens=False).input_ids
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)


CUTS = {
    "gpt-2": "It|'s| 1234567| dogs|,| AbC|\n\n  | x",
    "smollm": "It|'s| |1|2|3|4|5|6|7| dogs|,| AbC|\n\n  | x",
    "llama-bpe": "It|'s| |123|456|7| dogs|,| AbC|\n\n|  | x",
    "qwen2": "It|'s| |1|2|3|4|5|6|7| dogs|,| AbC|\n\n|  | x",
    "tekken": "It|'s| |1|2|3|4|5|6|7| dogs|,| Ab|C|\n\n|  | x",
    "gpt-4o": "It's| |123|456|7| dogs|,| Ab|C|\n\n|  | x",
}


@pytest.mark.parametrize("name", CUTS)
def test_words_are_cut_as_the_file_names_it(name: str, tmp_path: Path) -> None:
    """Against words that were cut by hand after llama.cpp's expressions."""
    path = ggufs.write(tmp_path / "model.gguf", zoo.build("llama"), tiny.tokenizer(), tokenizer__ggml__pre=name)
    cutter = GgufModel(path).tokenizer().backend_tokenizer.pre_tokenizer
    text = "It's 1234567 dogs, AbC\n\n   x"
    words = [text[slice(*place)] for _, place in cutter.pre_tokenize_str(text)]
    assert "|".join(words) == CUTS[name]


def test_stop_tokens_are_those_that_end_a_turn(tmp_path: Path) -> None:
    """The template writes `<|end|>`; the file states another token as the end of a text."""
    keys = {"tokenizer__ggml__eos_token_id": 1}
    path = ggufs.write(tmp_path / "model.gguf", zoo.build("llama"), tiny.tokenizer(), **keys)
    model = wb.load_model(path)
    assert model.stop_tokens == {0, 1}
    assert model.chat_prompt("hi") == "<|user|>hi<|end|><|assistant|>"
    model = wb.load_model(ggufs.write(path, zoo.build("llama"), tiny.tokenizer(chat=False), **keys))
    assert model.stop_tokens == {1}
    path = ggufs.write(path, zoo.build("llama"), tiny.tokenizer(), **keys, tokenizer__ggml__eot_token_id=2)
    assert wb.load_model(path).stop_tokens == {0, 1, 2}
