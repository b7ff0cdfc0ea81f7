"""What a GGUF file may not say: each is refused in one sentence that names the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ggufs
import numpy as np
import pytest
import tiny
import torch
import zoo

import workbench as wb
from workbench.model.gguf_files import GgufModel

pytestmark = pytest.mark.usefixtures("tiny_cache")

FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another architecture": ("llama", {"general.architecture": "mamba"}, "is a 'mamba', and Workbench reads GGUF"),
    "an adapter": ("llama", {"general.type": "adapter"}, "holds no model but what it calls 'adapter'"),
    "experts": ("llama", {"llama.expert_count": 8}, "a llama of several experts"),
    "an unknown field": ("llama", {"llama.attention.temperature": 2.0}, "llama.attention.temperature, which"),
    "another scaling": ("llama", {"llama.rope.scaling.type": "yarn"}, "rotary frequencies by 'yarn'"),
    "a part of a head": ("llama", {"llama.rope.dimension_count": 4}, "turns 4 of the 8 dimensions"),
    "tokens that see later ones": ("llama", {"llama.attention.causal": False}, "its tokens see later ones"),
    "no width": ("llama", {"llama.embedding_length": None}, "does not state llama.embedding_length"),
    "no epsilon": ("llama", {"llama.attention.layer_norm_rms_epsilon": None}, "does not state llama.attention.layer"),
    "a text for a number": ("llama", {"llama.context_length": "long"}, "as 'long', not as a whole number"),
    "an epsilon of NaN": ("llama", {"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not as a finite number"),
    "more layers": ("llama", {"llama.block_count": 4}, "not as the 3 layers that have tensors"),
    "heads of each layer": ("llama", {"llama.attention.head_count_kv": [2, 2, 2]}, "as a list of 3"),
    "fewer heads": ("llama", {"llama.attention.head_count_kv": 1}, "holds blk.0.attn_k.weight in the shape"),
    "another vocabulary": ("llama", {"llama.vocab_size": 300}, "not as the 331 rows of its embedding"),
    "other windows": ("gemma3", {"gemma3.attention.sliding_window_pattern": 4}, "sliding windows in other layers"),
    "no window": ("gemma3", {"gemma3.attention.sliding_window": None}, "does not state gemma3.attention.sliding"),
    "no cap": ("gemma2", {"gemma2.attn_logit_softcapping": None}, "does not state gemma2.attn_logit_softcapping"),
    "no rotary base": ("gemma3", {"gemma3.rope.freq_base": None}, "does not state gemma3.rope.freq_base"),
    "another order": ("stablelm", {"stablelm.use_parallel_residual": True}, "another order of attention and MLP"),
    "words cut otherwise": ("llama", {"tokenizer.ggml.pre": "own"}, "in a way it calls 'own'"),
    "words cut somehow": ("llama", {"tokenizer.ggml.pre": None}, "has no tokenizer.ggml.pre"),
    "another tokenizer": ("llama", {"tokenizer.ggml.model": "t5"}, "a tokenizer of the kind 't5'"),
    "no tokens": ("llama", {"tokenizer.ggml.tokens": None}, "does not state tokenizer.ggml.tokens"),
    "no kinds": ("llama", {"tokenizer.ggml.token_type": None}, "does not state tokenizer.ggml.token_type"),
    "fewer kinds": ("llama", {"tokenizer.ggml.token_type": [1, 1]}, "each with its kind"),
    "an unknown flag": ("llama", {"tokenizer.ggml.lowercase": True}, "tokenizer.ggml.lowercase, which Workbench does"),
    "another end": ("llama", {"tokenizer.ggml.eos_token_id": 900}, "as 900, not as one of its 331 tokens"),
    "a first token": ("llama", {"tokenizer.ggml.add_bos_token": True}, "does not state tokenizer.ggml.bos_token_id"),
    "merges of others": ("llama", {"tokenizer.ggml.merges": ["q q"]}, "has a damaged tokenizer"),
}
"""An entry of the zoo, fields that replace those of its file (None: left out), and words of the sentence."""


def refused(path: Path, words: str) -> None:
    """Opening refuses a file in one sentence with these words and its name."""
    with pytest.raises(wb.WorkbenchError) as caught:
        wb.load_model(path)
    sentence = str(caught.value)
    assert words in sentence
    assert path.stem in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_refused(name: str, tmp_path: Path) -> None:
    entry, changes, words = FIELDS[name]
    path = ggufs.write(
        tmp_path / "model.gguf",
        zoo.build(entry),
        tiny.tokenizer(),
        **{k.replace(".", "__"): v for k, v in changes.items()},
    )
    refused(path, words)


Tensors = dict[str, np.ndarray]
TENSORS: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "one more": ("llama", lambda own: own | {"blk.0.attn_q_norm.weight": own["output_norm.weight"]}, "which no part"),
    "a bias": ("qwen2", lambda own: own | {"blk.0.ffn_up.bias": np.ones(48)}, "'blk.0.ffn_up.bias', which no part"),
    "one of a task": ("llama", lambda own: own | {"cls.weight": np.ones((2, 32))}, "'cls.weight', which no part"),
    "one less": ("llama", lambda own: _without(own, "blk.1.ffn_up.weight"), "has no weights for model.layers.1.mlp.up"),
    "a bias less": ("qwen2", lambda own: _without(own, "blk.0.attn_q.bias"), "has no weights for model.layers.0.self"),
    "no embedding": ("llama", lambda own: _without(own, "token_embd.weight"), "holds no whole model"),
    "a layer less": (
        "llama",
        lambda own: {name: one for name, one in own.items() if "blk.1." not in name},
        "the 2 layers",
    ),
    "one turned": (
        "llama",
        lambda own: own | {"blk.0.ffn_up.weight": own["blk.0.ffn_up.weight"].T},
        "in the shape (32, 48)",
    ),
    "one not finite": ("llama", lambda own: own | {"output_norm.weight": np.full(32, np.inf)}, "that are not finite"),
    "other rotary factors": (
        "llama",
        lambda own: own | {"rope_freqs.weight": np.array([1, 2, 3, 9.0])},
        "not those of Llama 3",
    ),
    "long rotary factors": ("phi3", lambda own: own | {"rope_factors_long.weight": np.ones(4)}, "of a long context"),
    "a second head": ("gemma", lambda own: own | {"output.weight": own["token_embd.weight"]}, "beside its embedding"),
}


def _without(own: Tensors, name: str) -> Tensors:
    return {other: one for other, one in own.items() if other != name}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_refused(name: str, tmp_path: Path) -> None:
    entry, change, words = TENSORS[name]
    plain = zoo.build(entry)
    fields = ggufs.fields_of(plain.config) | ggufs.tokenizer_fields(tiny.tokenizer())
    refused(ggufs.write_parts(tmp_path / "model.gguf", fields, change(ggufs.tensors_of(plain))), words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "model.gguf"
    return ggufs.write(path, zoo.build("llama"), tiny.tokenizer()).read_bytes()


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda own: b"", "no GGUF file"),
    "a page": (lambda own: b"<html>not found</html>", "no GGUF file"),
    "the first version": (lambda own: own[:4] + struct.pack("<I", 1) + own[8:], "in version 1"),
    "another byte order": (lambda own: own[:4] + struct.pack(">I", 3) + own[8:], "big-endian"),
    "half of its header": (lambda own: own[:3000], "cut off or damaged"),
    "half of its weights": (lambda own: own[: len(own) * 3 // 4], "is cut off"),
    "a byte less": (lambda own: own[:-60], "is cut off"),
    "more": (lambda own: own + b"x" * 40, "40 bytes follow its last tensor"),
    "no text": (lambda own: own.replace(b"general.architecture", b"general." + b"\xff" * 12), "no UTF-8"),
    "a name twice": (lambda own: own.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"), "stands there twice"),
    "a field twice": (lambda own: own.replace(b"ggml.tokens", b"ggml.merges"), "stands there twice"),
}


@pytest.mark.parametrize("name", BYTES)
def test_damaged_bytes_are_refused(name: str, whole: bytes, tmp_path: Path) -> None:
    change, words = BYTES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(whole))
    refused(path, words)


def test_tensors_that_lie_elsewhere_are_refused(whole: bytes, tmp_path: Path) -> None:
    """Two offsets of one size change places: both weights would be read, each as the other."""
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    fields = {one.name: one.field for one in gguf.GGUFReader(path).tensors}
    one, other = (fields[f"blk.{layer}.ffn_up.weight"] for layer in (0, 1))
    content = bytearray(whole)
    for field, offset in ((one, other.parts[-1][0]), (other, one.parts[-1][0])):
        place = field.offset + sum(part.nbytes for part in field.parts[:-1])
        content[place : place + 8] = struct.pack("<Q", int(offset))
    path.write_bytes(content)
    refused(path, "does not lie behind the tensor before it")


def test_a_type_without_a_rule_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    plain = zoo.build("llama")
    for key, value in (ggufs.fields_of(plain.config) | ggufs.tokenizer_fields(tiny.tokenizer())).items():
        if key != "general.architecture":
            ggufs.add(writer, key, value)
    for name, values in ggufs.tensors_of(plain).items():
        writer.add_tensor(name, np.ascontiguousarray(values).astype(np.int32 if "attn_v" in name else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "model.gguf", "in I32, which the package gguf can't dequantise")


def test_a_tokenizer_of_the_persons_own_is_taken(tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "model.gguf", zoo.build("llama"), tiny.tokenizer(), tokenizer__ggml__pre="own")
    model = wb.load_model(path, tokenizer=tiny.tokenizer())
    assert model.tokenizer is tiny.tokenizer()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.gguf", "There is no file")
    (tmp_path / "folder").mkdir()
    ggufs.write(tmp_path / "folder" / "model.gguf", zoo.build("llama"), tiny.tokenizer())
    refused(tmp_path / "folder", "give the path of model.gguf in it")


def test_too_little_memory_is_said_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ggufs.write(tmp_path / "model.gguf", zoo.build("llama"), tiny.tokenizer())
    monkeypatch.setattr("workbench.model.placing.free_memory", lambda device: 1000)
    monkeypatch.setattr(GgufModel, "tensors", None)
    with pytest.raises(wb.WorkbenchError, match=r"The weights of model\.gguf take"):
        wb.load_model(path, dtype=torch.float16)
