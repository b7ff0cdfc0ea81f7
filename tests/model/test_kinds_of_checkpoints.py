"""What is no model that continues a text, or has no plain weights, is refused by its name; what was seen is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import zoo
from httpx import Request, Response
from huggingface_hub.errors import GatedRepoError
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.weights import buffers_of, parameters_of

pytestmark = pytest.mark.usefixtures("tiny_cache")
SMALL = {"vocab_size": tiny.VOCAB, "num_attention_heads": 2, "num_hidden_layers": 2}


def encoders() -> dict[str, torch.nn.Module]:
    bert = BertLMHeadModel(BertConfig(hidden_size=16, intermediate_size=24, **SMALL))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=tiny.VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    )
    return {"an encoder whose tokens see later ones": bert, "encodes a text and writes another": t5}


def test_encoders_are_refused(tmp_path: Path) -> None:
    for words, module in encoders().items():
        with pytest.raises(wb.model.ModelError, match=words):
            wb.load_model(module, tokenizer=tiny.tokenizer())
        module.save_pretrained(tmp_path / words)
        tiny.tokenizer().save_pretrained(tmp_path / words)
        with pytest.raises(wb.model.ModelError, match=words):
            wb.load_model(tmp_path / words)


@pytest.mark.parametrize("method", ["gptq", "mxfp4", "fp8", "bitsandbytes", "awq"])
def test_quantised_checkpoints_are_refused_by_name(method: str, tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(wb.model.ModelError, match=rf"is quantised \({method}\), .* dequantised copy"):
        wb.load_model(tmp_path)


def test_a_name_that_needs_a_permission_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, *rest: object, **how: object) -> None:
        try:
            raise GatedRepoError("403", response=Response(403, request=Request("GET", "https://huggingface.co")))
        except GatedRepoError as error:
            raise OSError("You are trying to access a gated repo.\nMake sure …") from error

    monkeypatch.setattr("workbench.model.reading._read", refuse)
    with pytest.raises(
        wb.model.ModelError, match=r"ask for it at https://huggingface\.co/some/model, then log in .* `hf auth"
    ):
        wb.load_model("some/model")


def test_values_that_are_not_finite_are_told_from_damaged_weights(own_cache: object) -> None:
    large = zoo.build("llama")
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if name.endswith(("up_proj.weight", "gate_proj.weight")):
                parameter.mul_(3000.0)
    wb.load_model(large)
    with pytest.raises(
        wb.model.ModelError, match=r"first at blocks\.0\..*weights are finite.*float16 is 6.55e\+04.*float32"
    ):
        wb.load_model(large.half())
    wb.load_model(zoo.build("llama").half())  # the hook points of its kind are in the cache now
    with pytest.raises(wb.WorkbenchError, match=r"not finite.*too large for their type"):
        wb.load_model(large).generate(torch.arange(1, 5), 2)
    damaged = zoo.build("llama", num_hidden_layers=2)
    with torch.no_grad():
        damaged.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(wb.model.ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .*weights are damaged"):
        wb.load_model(damaged)


def test_a_hash_is_of_all_that_a_checkpoint_holds() -> None:
    plain = zoo.build("llama")
    assert not buffers_of(plain)
    assert wb.load_model(plain).weights_hash == fingerprint(parameters_of(plain))
    one, other = zoo.build("apertus"), zoo.build("apertus")
    name, buffer = next((name, one) for name, one in other.named_buffers() if name.endswith("beta"))
    assert name in buffers_of(one)
    assert wb.load_model(one).hash == wb.load_model(other).hash
    buffer.fill_(0.3)
    assert wb.load_model(one).hash != wb.load_model(other).hash
