"""Laws of every operation of surgery, over the registry; a new operation comes under them by registering."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny
import torch
import zoo as architectures
from torch import Tensor
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.weights import buffers_of, parameters_of, state_of
from workbench.surgery.child import SurgeryError
from workbench.surgery.operations.custom import CustomChild
from workbench.surgery.registry import OPERATIONS, Argument, Operation, apply_operation

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
MOST = 1000
"""Of tokens and positions, enough for a greedy search on a tiny model."""
TOKENS = torch.arange(24).view(2, 12) * 5 % tiny.VOCAB


def values(argument: Argument, checkpoint: Path) -> list[Any]:
    """All words of a choice; else one value: the first layer, the default, for whole numbers at most `MOST`."""
    if argument.kind == "choice":
        return list(argument.choices)
    if argument.kind == "whole":
        return [min(argument.default, MOST)]
    if argument.kind in ("layers", "heads"):
        return [[0]]
    if argument.kind == "edits":
        return [[wb.Scale("neurons.0.post:0", 0.5)]]
    if argument.kind == "text":
        return [argument.default or str(checkpoint)]
    return [argument.default]


def settings(operation: Operation, checkpoint: Path) -> Iterator[dict[str, Any]]:
    """Small settings of an operation, with each of its choices."""
    names = [one.name for one in operation.arguments]
    for chosen in itertools.product(*(values(one, checkpoint) for one in operation.arguments)):
        yield dict(zip(names, chosen, strict=True))


def tuned(model: wb.model.LanguageModel, folder: Path) -> dict[str, Tensor]:
    """Save a model whose weights are a little off; its tensors."""
    twin = copy.deepcopy(model.network.module)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=chance))
    twin.save_pretrained(folder)
    return state_of(twin)


def check_child(operation: str, model: wb.model.LanguageModel, folder: Path) -> None:
    """The law: the model stays as it is, and the child's checkpoint opens in plain transformers with equal logits.

    A child that plain transformers can't hold refuses to be saved in one sentence.
    """
    checkpoint = folder / "checkpoint"
    tuned(model, checkpoint)
    before = model(TOKENS)
    for number, chosen in enumerate(settings(OPERATIONS[operation], checkpoint)):
        child = apply_operation(model, operation, **chosen)
        assert fingerprint(parameters_of(model.network.module)) == model.weights_hash
        assert torch.equal(model(TOKENS), before)
        assert child.history[-1]["parent"] == {"name": model.name, "hash": model.hash}
        assert child.history[-1]["hash"] == child.model.hash
        if isinstance(child, CustomChild):
            with pytest.raises(SurgeryError, match=re.escape(child.why)):
                child.save_pretrained(folder / str(number))
            continue
        child.certify(CORPUS, 60)
        child.save_pretrained(folder / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(folder / str(number), dtype=torch.float32).eval()
        assert torch.allclose(reference.logits_under(loaded, TOKENS), child.model(TOKENS), atol=1e-5)
        opened = wb.surgery.open_child(folder / str(number), model)
        assert (opened.model.hash, opened.certificate) == (child.model.hash, child.certificate)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_children_are_plain_checkpoints(operation: str, llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    check_child(operation, llama, tmp_path)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_names_are_snake_case_and_arguments_take_their_defaults(operation: str) -> None:
    known = OPERATIONS[operation]
    assert known.name == operation
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", operation)
    assert known.about.endswith(".")
    for one in known.arguments:
        assert one.title
        if one.kind not in ("layers", "heads", "edits"):
            one.check(one.default, SurgeryError)


MORE: dict[str, list[dict[str, Any]]] = {
    "prune": [{"sparsity": 0.0, "score": "magnitude", "pattern": "matrix"}],
    "dare": [{"p": 0.0}, {"p": 0.9}, {"p": 0.9, "weight": -2.0}],
    "heal": [{"lr": 1e-12, "rank": 0}],
}
"""Further settings at which nothing is done, by operation; the tuned model of DARE is the base itself."""
FEW = 40
"""Tokens that are enough where nothing changes."""
WITH_BUFFERS = ("llama", "apertus")
"""The second has buffers that a checkpoint holds."""


def neutral(operation: str) -> list[dict[str, Any]]:
    """Settings at which nothing is done: with each choice those that the operation declares, and those of the table."""
    known = OPERATIONS[operation]
    found = []
    for stated in known.settings_that_change_nothing():
        free = [one for one in known.arguments if one.kind == "choice" and one.name not in stated]
        for chosen in itertools.product(*(one.choices for one in free)):
            found.append(stated | dict(zip((one.name for one in free), chosen, strict=True)))
    few = {one.name: FEW for one in known.arguments if one.name == "tokens"}
    return [few | one for one in [*found, *MORE.get(operation, [])]]


def says(operation: str) -> bool:
    """Whether an operation has settings at which nothing is done; one that does not say counts, and fails below."""
    try:
        return bool(neutral(operation))
    except SurgeryError:
        return True


def check_neutral(operation: str, name: str, folder: Path) -> None:
    """The law: at settings at which an operation changes nothing, the child is the parent to the bit."""
    model = with_buffers(name)
    assert bool(buffers_of(model.network.module)) is (name == "apertus")
    how = {"tuned": str(folder / "itself")} if operation == "dare" else {}
    if operation == "dare":
        model.network.module.save_pretrained(folder / "itself")
    old, logits = state_of(model.network.module), model(TOKENS)
    for chosen in neutral(operation):
        child = apply_operation(model, operation, **how, **chosen)
        new = state_of(child.model.network.module)
        assert new.keys() == old.keys()
        for path, tensor in old.items():
            if operation == "heal":  # Adam's first steps are as long as its learning rate
                assert float((new[path] - tensor).abs().max()) < 1e-9, path
            else:
                assert torch.equal(new[path], tensor), path
        assert operation == "heal" or child.model.plain_hash == model.plain_hash
        assert torch.allclose(child.model(TOKENS), logits, atol=1e-6)
        assert not child.own or operation == "heal"


def with_buffers(name: str) -> wb.model.LanguageModel:
    """A model whose buffers, if it has any, hold other numbers than a fresh one's."""
    plain = architectures.build(name)
    for number, tensor in enumerate(buffers_of(plain).values()):
        tensor.copy_(tensor + 0.37 + number)
    return wb.load_model(plain, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("name", WITH_BUFFERS)
@pytest.mark.parametrize("operation", [name for name in sorted(OPERATIONS) if says(name)])
def test_nothing_done_changes_nothing(operation: str, name: str, tmp_path: Path) -> None:
    check_neutral(operation, name, tmp_path)


@pytest.mark.parametrize("name", WITH_BUFFERS)
def test_rounding_to_16_bits_changes_no_more_than_it_rounds(name: str) -> None:
    model = with_buffers(name)
    child = apply_operation(model, "quantise", bits=16)
    old, new = state_of(model.network.module), state_of(child.model.network.module)
    assert new.keys() == old.keys()
    for path, tensor in old.items():
        half = tensor.abs().max() / (2**15 - 1) / 2 if path in child.own else 0.0
        assert bool(((new[path] - tensor).abs() <= half + 1e-9).all()), path
    assert all(torch.equal(new[path], old[path]) for path in buffers_of(model.network.module))
    assert any(path.endswith("proj.weight") for path in child.own)


@pytest.mark.parametrize("name", WITH_BUFFERS)
def test_the_whole_delta_makes_the_tuned_model(name: str, tmp_path: Path) -> None:
    model = with_buffers(name)
    wanted = tuned(model, tmp_path / "tuned")
    child = apply_operation(model, "dare", tuned=str(tmp_path / "tuned"), p=0.0)
    for path, tensor in state_of(child.model.network.module).items():
        torch.testing.assert_close(tensor, wanted[path], rtol=0, atol=1e-6)


def test_a_models_hash_is_that_of_all_its_tensors() -> None:
    fresh = wb.load_model(architectures.build("apertus"), tokenizer=tiny.tokenizer())
    other = with_buffers("apertus")
    assert state_of(other.network.module).keys() == state_of(fresh.network.module).keys()
    assert other.hash == with_buffers("apertus").hash != fresh.hash


def test_relu_in_place_of_relu_changes_nothing() -> None:
    model = wb.load_model(tiny.build("llama", hidden_act="relu"), tokenizer=tiny.tokenizer())
    same = apply_operation(model, "swap_activation", kind="relu")
    assert same.model.plain_hash == model.plain_hash
    assert torch.equal(same.model(TOKENS), model(TOKENS))
    fitted = apply_operation(model, "swap_activation", kind="polyrelu", order=2, tokens=200)
    assert torch.allclose(fitted.model(TOKENS), model(TOKENS), atol=2e-2)


@pytest.mark.parametrize("operation", [name for name in sorted(OPERATIONS) if not says(name)])
def test_the_parents_buffers_are_the_childs(operation: str, tmp_path: Path) -> None:
    model = with_buffers("apertus")
    model.network.module.save_pretrained(tmp_path / "checkpoint")
    old = buffers_of(model.network.module)
    try:
        child = apply_operation(model, operation, **next(settings(OPERATIONS[operation], tmp_path / "checkpoint")))
    except SurgeryError:
        return
    new = buffers_of(child.model.network.module)
    for path, tensor in new.items():
        if path in old:  # layers that moved up have the buffers of another number
            assert any(torch.equal(tensor, one) for one in old.values()), path
    if len(new) == len(old):
        assert all(torch.equal(new[path], old[path]) for path in old)
