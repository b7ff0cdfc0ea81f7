"""What opening a model in another type than its files' takes at its peak: its weights once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufs
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.model.gguf_files import read_gguf
from workbench.model.reading import Opened, read_huggingface
from workbench.model.weights import identity

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SHAPE: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 1, "head_dim": 128}
SHAPE |= {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": tiny.VOCAB}
pytestmark = pytest.mark.usefixtures("tiny_cache")


def resident(field: str) -> int:
    """Bytes of resident memory: now (`VmRSS`) or at most (`VmHWM`), pages of mapped files among them."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))


def peak(read: Callable[..., Opened], source: Path, small: Path) -> float:
    """How many times its weights a plain model takes at the peak of its reading in bfloat16, in a fork.

    Another one is read there first: what is imported, or comes into memory with the libraries, is no part of it.
    """
    there, here = multiprocessing.get_context("fork").Pipe()

    def measure() -> None:
        torch.set_num_threads(1)  # a fork has no other threads
        read(small, torch.device("cpu"), "bfloat16")
        PEAK.write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        module = read(source, torch.device("cpu"), "bfloat16").module
        weights = sum(one.nbytes for one in module.parameters())
        here.send((resident("VmHWM") - before) / weights)

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    found = there.recv() if there.poll(120) else float("nan")
    process.join()
    return found


@pytest.mark.skipif(not PEAK.exists(), reason="the peak is what Linux states")
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_reading_in_another_type_holds_the_weights_once(form: str, tmp_path: Path) -> None:
    sources: list[Path] = []
    for name, shape in (("large", SHAPE), ("small", SHAPE | {"intermediate_size": 64})):
        with torch.device("meta"):
            plain: Any = LlamaForCausalLM(LlamaConfig(**shape))
        plain = plain.to_empty(device="cpu").eval()
        for one in plain.parameters():
            nn.init.uniform_(one, -1, 1)
        if form == "folder":
            plain.save_pretrained(tmp_path / name)
            tiny.tokenizer().save_pretrained(tmp_path / name)
            sources.append(tmp_path / name)
        else:
            sources.append(ggufs.write(tmp_path / f"{name}.gguf", plain, tiny.tokenizer()))
    found = peak((lambda path, *how: read_huggingface(str(path), *how)) if form == "folder" else read_gguf, *sources)
    assert found < 1.4  # of 59 MB, a quarter of it one tensor


@pytest.mark.parametrize("form", ["tied names", "layers alone", "shards"])
def test_the_hash_of_a_rounded_model_needs_no_second_build(form: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Where a checkpoint names a tied tensor twice, or leaves out the prefix of the layers; or has several files."""
    name = "gpt2" if form == "layers alone" else "llama"
    tied: Any = tiny.build(name, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path, max_shard_size="20kB" if form == "shards" else "1GB")
    tiny.tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if form == "shards":
        assert not file.exists()
    else:
        tensors = load_file(file)
        if form == "tied names":
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        else:
            tensors = {key.removeprefix("transformer."): one for key, one in tensors.items()}
        save_file(tensors, file, {"format": "pt"})
    wanted = wb.load_model(tmp_path)
    built: list[Any] = []
    from workbench.model import reading

    load = reading._load_module
    monkeypatch.setattr(reading, "_load_module", lambda *args, **how: built.append(args[1]) or load(*args, **how))
    found = wb.load_model(tmp_path, dtype="bfloat16")
    assert built == [torch.bfloat16]
    assert found.hash == wanted.hash
    assert found.weights_hash == identity(tied)
    assert found.rounded_hash == identity(found.network.module) != found.weights_hash
