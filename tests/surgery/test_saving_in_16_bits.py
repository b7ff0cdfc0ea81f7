"""Children of models in 16 bits on disk: compared without a second copy, opened again in their type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.model.weights import state_of
from workbench.surgery import child_building
from workbench.surgery.child_building import SurgeryError, build, check_checkpoint

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus(tiny.TEXT.strip().split("\n"))
EDITS = [wb.Scale("neurons.1.post:3", 1.7), wb.Ablate("neurons.0.up:5")]
TOKENS = torch.arange(12)[None] * 37 % tiny.VOCAB


def in_bfloat16() -> wb.model.LanguageModel:
    """A model as its checkpoint opens in bfloat16; what no checkpoint holds is not rounded."""
    plain: Any = tiny.build("llama")
    module = build(type(plain), plain.config, {name: one.bfloat16() for name, one in state_of(plain).items()})
    return wb.load_model(module, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("large", [False, True])
def test_a_child_is_compared_with_its_files(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = wb.bake(in_bfloat16(), EDITS)
    child.certify(CORPUS, 40, context=16)
    opened = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: opened.append(a) or real(*a, **k))
    if large:
        monkeypatch.setattr(child_building, "LARGE", 0)
    child.save_pretrained(tmp_path / "child")
    assert bool(opened) is not large
    plain = real(tmp_path / "child")
    assert plain.dtype == torch.bfloat16
    with torch.no_grad():
        logits = plain.eval()(input_ids=TOKENS, use_cache=False).logits
    assert float((logits - child.model(TOKENS)).abs().max()) <= 0.02 * float(logits.abs().max())
    again = wb.surgery.open_child(tmp_path / "child", child.parent)
    assert (again.model.dtype, again.model.hash, again.own) == (torch.bfloat16, child.model.hash, child.own)
    assert torch.equal(again.model(TOKENS), child.model(TOKENS))
    assert again.certificate == child.certificate
    assert child.undo() is child.parent
    file = tmp_path / "child" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] *= -1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SurgeryError, match="would not compute the same"):
        check_checkpoint(child.model, tmp_path / "child")


def test_what_a_cast_rounded_is_in_no_checkpoint(tmp_path: Path) -> None:
    for module in (tiny.build("llama").bfloat16(), tiny.build("llama").bfloat16().float()):
        model = wb.load_model(module, tokenizer=tiny.tokenizer())
        child = wb.bake(model, EDITS)  # it computes with the rounded frequencies, as its parent does
        with model.intervening(EDITS):
            wanted = model(TOKENS).float()
        off = float((child.model(TOKENS).float() - wanted).abs().max())
        assert off <= 4 * torch.finfo(model.dtype).eps * float(wanted.abs().max())
        child.certify(CORPUS, 40, context=16)
        with pytest.raises(SurgeryError, match="cast to 16 bits once, which rounded its model"):
            child.save_pretrained(tmp_path / "child")
        assert not (tmp_path / "child").exists()
