"""LoRA adapters in PEFT's format, written by hand: the opened model is plain arithmetic on the base's weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.model.weights import identity

pytestmark = pytest.mark.usefixtures("tiny_cache")
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "peft_version": "0.18.0",
    "inference_mode": True,
    "r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.1,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "loftq_config": {},
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "revision": None,
}
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.v_proj"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a base that an adapter names lies in the folder of the process, or in its own
    return saved(tmp_path / "base", "llama")


def saved(folder: Path, name: str, **changes: object) -> Path:
    tiny.build(name, **changes).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def pair(module: nn.Linear | Any, rank: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A and B for a layer: `[r, in]`, `[out, r]`."""
    chance = torch.Generator().manual_seed(seed)
    wide, high = module.weight.shape if type(module).__name__ in ("Conv1D", "Embedding") else module.weight.shape[::-1]
    return torch.randn(rank, wide, generator=chance), torch.randn(high, rank, generator=chance)


def write(folder: Path, base: Path | str, tensors: dict[str, Tensor], **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    config = CONFIG | {"base_model_name_or_path": str(base)} | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def lora(path: str, both: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{path}.lora_A.weight": both[0], f"{path}.lora_B.weight": both[1]}


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def same(folder: Path, expected: nn.Module) -> wb.model.LanguageModel:
    """Open a folder and compare it with a plain model, in weights, hash and logits."""
    model = wb.load_model(folder)
    ours = model.network.module.state_dict()
    assert ours.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    tokens = model.to_tokens("The dog ran to the river")
    with torch.no_grad():
        assert torch.allclose(model(tokens), expected(tokens).logits, atol=1e-5)
    return model


def test_an_adapter_is_merged_into_its_base(base: Path, tmp_path: Path) -> None:
    expected = plain(base)
    modules = dict(expected.named_modules())
    q, v, down = pair(modules[Q]), pair(modules[V], 2, 1), pair(modules["model.layers.1.mlp.down_proj"], 3, 2)
    tensors = lora(Q, q) | lora(V, v) | lora("model.layers.1.mlp.down_proj", down)
    how = {"target_modules": [Q, V, "layers.1.mlp.down_proj"], "rank_pattern": {r"layers\.2\..*v_proj": 2}}
    folder = write(
        tmp_path / "a",
        base,
        {name: one.bfloat16() for name, one in tensors.items()},
        alpha_pattern={"q_proj": 7},
        **how,
    )
    with torch.no_grad():
        for path, (a, b), scale in ((Q, q, 7 / 3), (V, v, 5 / 2), ("model.layers.1.mlp.down_proj", down, 5 / 3)):
            modules[path].weight += b.bfloat16().float() @ a.bfloat16().float() * scale
    model = same(folder, expected)
    original = wb.load_model(base)
    assert model.weights_hash == identity(expected) != original.weights_hash
    about = model.about["adapter"]
    assert (about["base"], about["base_hash"]) == (str(base), original.weights_hash)
    wb.interventions.save_model(model, tmp_path / "merged")
    again = wb.load_model(tmp_path / "merged")
    assert (again.hash, again.about) == (model.hash, model.about)
    same(tmp_path / "merged" / "model", expected)
    write(tmp_path / "a", base, tensors, use_rslora=True, **how)
    expected = plain(base)
    modules = dict(expected.named_modules())
    with torch.no_grad():
        for path, (a, b), rank in ((Q, q, 3), (V, v, 2), ("model.layers.1.mlp.down_proj", down, 3)):
            modules[path].weight += b @ a * (5 / math.sqrt(rank))
    same(folder, expected)


def test_layers_that_store_the_weight_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's `Conv1D`, with a bias of B and whole biases."""
    monkeypatch.chdir(tmp_path)
    base = saved(tmp_path / "base", "gpt2")
    expected = plain(base)
    path = "transformer.h.1.attn.c_attn"
    module = expected.get_submodule(path)
    both, bias = pair(module), torch.randn(96)
    biases = {name: torch.randn(one.shape) for name, one in expected.named_parameters() if name.endswith(".bias")}
    whole = {name.replace(path, f"{path}.base_layer"): one for name, one in biases.items()}
    with torch.no_grad():
        for name, one in biases.items():
            expected.get_parameter(name).copy_(one)
        module.weight += (both[1] @ both[0]).T * (5 / 3)
        module.bias += bias * (5 / 3)
    tensors = lora(path, both) | {f"{path}.lora_B.bias": bias} | whole
    how = {"target_modules": r".*\.1\.attn\.c_attn", "fan_in_fan_out": True, "bias": "all", "lora_bias": True}
    same(write(tmp_path / "a", base, tensors, **how), expected)


@pytest.mark.parametrize("what", ["embedding", "head", "kept"])
def test_tied_weights_part_where_one_changes(what: str, base: Path, tmp_path: Path) -> None:
    expected = plain(base)
    expected.lm_head.weight = nn.Parameter(expected.lm_head.weight.detach().clone())
    expected.config.tie_word_embeddings = False
    embedding, head = expected.model.embed_tokens, expected.lm_head
    with torch.no_grad():
        if what == "embedding":
            a, b = pair(embedding)
            tensors = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
            tensors["model.embed_tokens.base_layer.weight"] = embedding.weight.clone()
            embedding.weight += (b @ a).T * (5 / 3)
            how: dict[str, Any] = {"target_modules": ["embed_tokens"]}
        elif what == "head":
            a, b = pair(head)
            tensors, how = lora("lm_head", (a, b)), {"target_modules": ["lm_head"]}
            head.weight += b @ a * (5 / 3)
        else:
            new = torch.randn(head.weight.shape)
            tensors, how = {"lm_head.weight": new} | lora(Q, pair(expected.get_submodule(Q))), {}
            how = {"target_modules": [Q], "modules_to_save": ["lm_head"]}
            head.weight.copy_(new)
            a, b = pair(expected.get_submodule(Q))
            expected.get_submodule(Q).weight += b @ a * (5 / 3)
    model = same(write(tmp_path / "a", base, tensors, **how), expected)
    wb.interventions.save_model(model, tmp_path / "merged")
    assert wb.load_model(tmp_path / "merged").hash == model.hash


def test_the_folder_may_have_a_tokenizer_and_a_base_beside_it(base: Path, tmp_path: Path) -> None:
    expected = plain(base)
    a, b = pair(expected.get_submodule(Q))
    folder = write(tmp_path / "a", "../base", lora(Q, (a, b)), target_modules=["0.self_attn.q_proj"])
    tiny.tokenizer(chat=False).save_pretrained(folder)
    with torch.no_grad():
        expected.get_submodule(Q).weight += b @ a * (5 / 3)
    assert same(folder, expected).tokenizer.chat_template is None


def test_what_is_not_plain_lora_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    module = plain(base).get_submodule(Q)
    good = lora(Q, pair(module))
    how: dict[str, Any] = {"target_modules": [Q]}
    bias = {f"{Q}.lora_B.bias": torch.ones(32)}
    cases: list[tuple[str, dict[str, Tensor], dict[str, Any]]] = [
        ("of the kind 'PROMPT_TUNING'", good, {"peft_type": "PROMPT_TUNING"}),
        ("of the kind 'IA3'", good, {"peft_type": "IA3"}),
        ("is a DoRA adapter", good, {"use_dora": True}),
        ("init_lora_weights = 'pissa'", good, {"init_lora_weights": "pissa"}),
        (r"layer_replication = \[\[0, 2\]\]", good, {"layer_replication": [[0, 2]]}),
        ("trainable_token_indices", good, {"trainable_token_indices": [1]}),
        ("some_new_thing = True", good, {"some_new_thing": True}),
        ("r should be a valid integer", good, {"r": None}),
        ("names no base model", good, {"base_model_name_or_path": " "}),
        ("names no base model", good, {"base_model_name_or_path": None}),
        ("base of the adapter .* can't be opened: There is no folder", good, {"base_model_name_or_path": "/nowhere"}),
        ("to the revision 'v2'", good, {"base_model_name_or_path": "some/model", "revision": "v2"}),
        ("no regular expression", good, {"rank_pattern": {"(": 3}}),
        ("not of rank 4", good, {"r": 4}),
        ("only one of A and B", dict(list(good.items())[:1]), {}),
        ("without tensors", {}, {}),
        ("no finite numbers", {name: one * math.inf for name, one in good.items()}, {}),
        ("no plain LoRA adapter has", good | {f"{Q}.lora_magnitude_vector": torch.ones(32)}, {}),
        ("changes model.layers.9.q, which its base model does not have", lora("model.layers.9.q", pair(module)), {}),
        ("no tensors for model.layers.1.self_attn.q_proj", good, {"target_modules": ["q_proj"]}),
        ("no tensor for lm_head.weight", good, {"modules_to_save": ["lm_head"]}),
        ("which has none", good | bias, {}),
        (r"has \[7, 32\] for lm_head.weight", good | {"lm_head.weight": torch.ones(7, 32)}, {}),
        (r"has \[32, 9\] for", lora(Q, (torch.ones(3, 9), torch.ones(32, 3))), {}),
    ]
    for sentence, tensors, changes in cases:
        folder = write(tmp_path / "a", base, tensors, **how | changes)
        with pytest.raises(wb.model.ModelError, match=sentence) as caught:
            wb.load_model(folder)
        assert "\n" not in str(caught.value)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(wb.model.ModelError, match="can't be read"):
        wb.load_model(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(wb.model.ModelError, match=r"has no adapter_model\.safetensors"):
        wb.load_model(tmp_path / "a")
    write(base, base, good, **how)
    with pytest.raises(wb.model.ModelError, match="whole model beside the adapter"):
        wb.load_model(base)


def test_a_base_outside_is_opened_where_a_person_names_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(base)
    a, b = pair(expected.get_submodule(Q))
    folder = write(tmp_path / "a", base, lora(Q, (a, b)), target_modules=["0.self_attn.q_proj"])
    with torch.no_grad():
        expected.get_submodule(Q).weight += b @ a * (5 / 3)
    same(folder, expected)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(wb.model.ModelError, match=r"outside its folder.* base=\.\.\."):
        wb.load_model(folder)
    given = wb.load_model(folder, base=base)
    ours = given.network.module.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.state_dict().items())
    with pytest.raises(wb.model.ModelError, match="is no folder of an adapter"):
        wb.load_model(base, base=base)


def test_an_adapter_fetches_no_base(base: Path, tmp_path: Path) -> None:
    a, b = pair(plain(base).get_submodule(Q))
    folder = write(tmp_path / "a", "some/model-nobody-has", lora(Q, (a, b)), target_modules=[Q])
    with pytest.raises(wb.model.ModelError, match="nothing is fetched because a folder names it"):
        wb.load_model(folder)
