"""Devices and types of models that are opened: what they compute, what their hash is, and what is refused."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo
from torch import nn
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model import placing, reading
from workbench.model.weights import identity, state_of
from workbench.surgery.child import make_child

TOKENS = torch.arange(9)[None] * 37 % tiny.VOCAB
WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
HALVES = (torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("tiny_cache")


def saved(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """A folder of a tiny model in a type."""
    zoo.build(name).to(dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def everything(module: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of a module, those that no checkpoint holds too."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"device": "gpu"}, r"There is no device 'gpu'; write .*\"cpu\""),
        ({"device": "meta"}, r"There is no device 'meta'; write "),
        ({"device": "cuda:97"}, r"This machine has no device 'cuda:97' that torch can use; write "),
        ({"dtype": "bf16"}, r"There is no type 'bf16'; write \"float32\", \"bfloat16\", \"float16\" or \"auto\"\."),
        ({"dtype": "nn"}, "There is no type 'nn'"),
        ({"dtype": torch.int8}, "int8 is no type of floats"),
        ({"device": "cpu", "dtype": "float8_e4m3fn"}, "The device 'cpu' can't compute in float8_e4m3fn; write "),
    ],
)
def test_a_wrong_device_or_type_is_one_sentence(choice: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    for source in (folder, tiny.build("llama")):
        with pytest.raises(wb.model.ModelError, match=sentence):
            wb.load_model(source, **choice)


def test_each_process_of_torchrun_takes_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = ["cuda:0", "cuda:1", "cpu"]
    monkeypatch.setattr(placing, "devices", lambda: cards)
    assert placing.chosen_device("auto", wb.model.ModelError) == torch.device("cuda:0")
    for rank, card in enumerate(("cuda:0", "cuda:1", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert placing.chosen_device("auto", wb.model.ModelError) == torch.device(card)
    cards[:] = ["cpu"]
    assert placing.chosen_device("auto", wb.model.ModelError) == torch.device("cpu")


def test_too_little_memory_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = saved(tmp_path, "llama"), tiny.build("llama")
    values = sum(one.numel() for one in zoo.build("llama").parameters())
    monkeypatch.setattr(placing, "free_memory", lambda device: 3 * values)
    assert wb.load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    monkeypatch.setattr("workbench.model.reading._load_module", None)
    with pytest.raises(wb.model.ModelError, match=r"The weights of .* take .* GB in float32, and .* free.*bfloat16"):
        wb.load_model(folder)
    monkeypatch.setattr(placing, "free_memory", lambda device: 100)
    with pytest.raises(wb.model.ModelError, match=r"take .* GB in bfloat16, and .* open a smaller model"):
        wb.load_model(plain, dtype="bfloat16")
    assert wb.load_model(plain).dtype == torch.float32


def test_what_a_container_leaves_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "CGROUP", tmp_path)
    processor = torch.device("cpu")
    assert placing.free_memory(processor) > 2**20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 50\n")
    assert placing.free_memory(processor) == 1000 - 900 + 150
    (tmp_path / "memory.max").write_text("max\n")
    assert placing.free_memory(processor) > 2**20


@pytest.mark.parametrize("name", zoo.sample(len(zoo.ZOO), without=zoo.UNOPENED) if WHOLE else ["gemma3", "gpt-neo"])
def test_a_model_is_the_one_that_transformers_opens_in_the_type(name: str, tmp_path: Path) -> None:
    """Bit for bit, with the buffers that no checkpoint holds; the hash is that of the checkpoint's values."""
    hashes = set()
    for stored in (torch.float32, torch.bfloat16):
        folder = saved(tmp_path / str(stored), name, stored)
        for kind in (torch.float32, *HALVES):
            model = wb.load_model(folder, dtype=str(kind).removeprefix("torch."))
            plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
            wanted, found = everything(plain), everything(model.network.module)
            assert wanted.keys() == found.keys()
            for place, tensor in wanted.items():
                assert found[place].dtype == tensor.dtype, (place, kind)
                assert torch.equal(found[place], tensor), (place, kind)
            with torch.no_grad():
                assert torch.equal(model.run(TOKENS), plain(input_ids=TOKENS).logits)
            hashes.add((stored, model.hash))
            if stored == torch.float32:  # values of bfloat16 of this size are values of float16 too
                assert bool(model.rounded_hash) is (kind != torch.float32)
            assert model.held_hash == identity(plain)
    assert len(hashes) == 2


def test_a_checkpoint_of_two_types_is_not_built_in_the_wider_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms in float32 beside matrices in bfloat16: the hash is that of the values that are stored."""
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "mixed", "llama", torch.bfloat16)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors |= {name: one.float() * 1.001 for name, one in tensors.items() if "norm" in name}
    save_file(tensors, file, {"format": "pt"})
    wanted = wb.load_model(folder, dtype="float32")
    built: list[torch.dtype] = []
    load = reading._load_module
    monkeypatch.setattr(reading, "_load_module", lambda *args, **how: built.append(args[1]) or load(*args, **how))
    model = wb.load_model(folder, dtype="bfloat16")
    assert built == [torch.bfloat16]
    assert model.hash == wanted.hash
    assert model.rounded_hash == identity(model.network.module)
    assert model.rounded_hash != model.weights_hash
    other = {f"{name}x" if name == "model.norm.weight" else name: one for name, one in tensors.items()}
    save_file(other, file, {"format": "pt"})
    with pytest.raises(wb.model.ModelError):
        wb.load_model(folder, dtype="bfloat16")


def test_a_loaded_model_keeps_its_type_unless_another_is_named() -> None:
    plain = zoo.build("gemma3")
    before = {place: tensor.clone() for place, tensor in everything(plain).items()}
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    for kind in HALVES:
        half = wb.load_model(plain, tokenizer=tiny.tokenizer(), dtype=kind, device="cpu")
        assert (half.dtype, half.hash) == (kind, model.hash)
        assert wb.load_model(half.network.module).dtype == kind
        whole = wb.load_model(half.network.module, dtype="float32")
        assert whole.weights_hash == half.rounded_hash
        assert torch.equal(whole.network.module.model.embed_tokens.embed_scale, plain.model.embed_tokens.embed_scale)
    assert all(torch.equal(tensor, before[place]) for place, tensor in everything(plain).items())


def test_a_module_that_its_configuration_does_not_state_is_not_built_in_another_type() -> None:
    plain: Any = tiny.build("llama")
    plain.model.layers[0].mlp.act_fn = nn.ReLU()
    assert wb.load_model(plain).dtype == torch.float32
    with pytest.raises(wb.model.ModelError, match=r"something else than its configuration states.*give it in bfloat16"):
        wb.load_model(plain, dtype="bfloat16")


def test_an_adapter_is_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    base = saved(tmp_path / "adapter" / "base", "llama", torch.bfloat16)
    chance = torch.Generator().manual_seed(0)
    start = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    rows = {f"{start}A.weight": torch.randn(2, 48, generator=chance), f"{start}B.weight": torch.randn(32, 2)}
    save_file(rows, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["layers.0.mlp.down_proj"]})
    )
    assert base.is_dir()
    whole, half = (wb.load_model(tmp_path / "adapter", dtype=kind) for kind in ("float32", "bfloat16"))
    assert whole.hash == half.hash
    for place, tensor in state_of(whole.network.module).items():
        assert torch.equal(state_of(half.network.module)[place], tensor.bfloat16())


def test_a_model_that_was_rounded_on_opening_stays_itself(tmp_path: Path) -> None:
    """Through a child that changes nothing, through saving and through dictionaries."""
    folder = saved(tmp_path / "plain", "llama")
    model, whole = wb.load_model(folder, dtype="bfloat16"), wb.load_model(folder)
    child = make_child(model, {}, {"operation": "none"})
    assert child.model.hash == child.undo().hash == model.hash
    child.save_pretrained(tmp_path / "child")
    again = wb.surgery.open_child(tmp_path / "child", model)
    assert (again.model.hash, again.model.dtype, again.own) == (model.hash, torch.bfloat16, ())
    assert again.undo() is model
    place, tensor = next(iter(state_of(model.network.module).items()))
    other = make_child(model, {place: tensor + 1}, {"operation": "more"})
    assert other.model.hash not in (model.hash, whole.hash)
    assert not other.model.rounded_hash
    wb.interventions.save_model(model, tmp_path / "saved")
    for kind, held in (("bfloat16", model.rounded_hash), ("float32", model.rounded_hash)):
        opened = wb.load_model(tmp_path / "saved", dtype=kind)
        assert (opened.hash, opened.held_hash) == (model.hash, held)
    model.network.module.get_parameter(place).data += 1
    with pytest.raises(wb.surgery.SurgeryError, match="were changed since this child was made"):
        child.undo()


def test_records_of_a_model_in_16_bits_are_known_by_their_former_hash() -> None:
    plain = tiny.build("llama").to(torch.bfloat16)
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    former = fingerprint(state_of(plain))
    assert model.weights_hash != former
    assert model.is_named(former)
    assert not wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer()).is_named(former)


def test_auto_is_float32_on_the_processor_and_a_checkpoints_own_type_elsewhere() -> None:
    processor, card = torch.device("cpu"), torch.device("meta")
    kinds = (torch.float32, *HALVES)
    for own in kinds:
        assert placing.chosen_dtype("auto", processor, own, wb.model.ModelError) == torch.float32
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(placing, "_computes", lambda dtype, device: True)
            assert placing.chosen_dtype("auto", card, own, wb.model.ModelError) == own
            patch.setattr(placing, "_computes", lambda dtype, device: dtype == torch.float32)
            assert placing.chosen_dtype("auto", card, own, wb.model.ModelError) == torch.float32
    for own, kind in itertools.product(kinds, kinds):
        assert placing.chosen_dtype(str(kind), processor, own, wb.model.ModelError) == kind
