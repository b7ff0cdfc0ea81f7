"""Everything that registers itself gives the same on a device of its own as on the processor.

The device is that of `tests/accelerator.py`. A new kind, intervention or operation is under this as soon as its file is
there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, emulated
from intervention_laws import cases, logits
from public_calls import differences, plain
from test_operation_laws import CORPUS, TOKENS, settings, tuned

import workbench as wb
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.trainable import Trainable
from workbench.interventions import INTERVENTIONS
from workbench.surgery.operations.custom import CustomChild
from workbench.surgery.registry import OPERATIONS, apply_operation

WHOLE = bool(os.environ.get("WORKBENCH_LAWS"))
CHANCE = random.Random(int(os.environ.get("WORKBENCH_SEED", "0")))
SLOW = {"drop_sublayers", "extract_expert", "heal", "prune", "swap_activation"}
"""Operations that are in no sample."""


def some(names: Iterable[str], count: int) -> list[str]:
    """All names, or a seeded sample."""
    return sorted(names) if WHOLE else sorted(CHANCE.sample(sorted(names), count))


KINDS = {word: kind for word, kind in Dictionary.kinds.items() if not kind.of_model}
LEARNING = [word for word, kind in KINDS.items() if issubclass(kind, Trainable)]
POINT = "blocks.1.hook_resid_post"
pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.mark.parametrize("name", some(INTERVENTIONS, 2))
def test_an_intervention_is_the_same_on_a_device(name: str, pair: tuple[Any, Any]) -> None:
    here, there = pair
    kind = INTERVENTIONS[name]
    wanted = [logits(here, [one]) for one in cases(here, kind)]
    with emulated():
        found = [logits(there, [one]) for one in cases(there, kind)]
        assert all(one.device == DEVICE for one in found)
        found = [one.cpu() for one in found]
    assert wanted
    assert list(differences(plain(wanted), plain(found))) == []


@pytest.mark.parametrize("word", some(KINDS, 3))
def test_a_dictionary_is_the_same_on_a_device(word: str, tmp_path: Path) -> None:
    """Its codes, reconstructions and directions, and what it is after it was saved there."""
    kind = KINDS[word]
    x = torch.randn(5, 3, kind.example().d_in, generator=torch.Generator().manual_seed(2))

    def act(dictionary: Any, x: torch.Tensor) -> Any:
        codes = dictionary.encode(x)
        return [codes.dense(), dictionary.decode(codes), dictionary.reconstruct(x), dictionary.direction(3)]

    dictionary = kind.example()
    wanted, hash = plain(act(dictionary, x)), dictionary.hash
    with emulated() as device:
        dictionary.to(device)
        assert list(differences(wanted, plain(act(dictionary, x.to(device))))) == []
        assert dictionary.hash == hash
        dictionary.save(tmp_path)
        with pytest.raises(wb.WorkbenchError, match="is on the device emulated:0 and the activations are on"):
            dictionary.encode(x)
    opened = wb.load_dictionary(tmp_path)
    assert opened.hash == hash
    assert list(differences(wanted, plain(act(opened, x)))) == []


@pytest.mark.parametrize("word", some(LEARNING, 1))
def test_a_dictionary_learns_the_same_on_a_device(word: str, pair: tuple[Any, Any], tmp_path: Path) -> None:
    """Some steps in which features die and are revived; the dictionary is made on the processor."""
    kind: Any = KINDS[word]
    how: dict[str, Any] = {"tokens": 400, "context": 16, "batch_size": 16, "block": 64, "dead_after": 48}

    def learn(model: Any, folder: Path) -> Any:
        d_in = model.network.d_model * kind.example().n_reads
        dictionary = kind(d_in, 24, **({"k": 3} if "topk" in kind.kind or "groupmax" in kind.kind else {}))
        places = {"hook_point": POINT} if not dictionary.transcodes else {}
        if dictionary.transcodes:
            dictionary.reads, dictionary.writes = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
        if dictionary.across:
            sides = ("mlp.hook_in", "hook_mlp_out") if dictionary.transcodes else ("hook_resid_post",) * 2
            places = {}
            dictionary.reads, dictionary.writes = (f"blocks.0.{one} + blocks.1.{one}" for one in sides)
        wb.training.train(dictionary, model, *places.values(), corpus=CORPUS, folder=folder, **how)
        codes = dictionary.encode(torch.ones(2, dictionary.d_in, device=model.device))
        return plain([*dictionary.tensors().values(), codes])

    wanted = learn(pair[0], tmp_path / "here")
    with emulated():
        found = learn(pair[1], tmp_path / "there")
    assert list(differences(wanted, found)) == []


@pytest.mark.parametrize("operation", some(OPERATIONS if WHOLE else {*OPERATIONS} - SLOW, 1))
def test_an_operation_is_the_same_on_a_device(operation: str, pair: tuple[Any, Any], tmp_path: Path) -> None:
    """The child, its certificate, and the child that is saved and opened again."""
    tuned(pair[0], tmp_path / "tuned")

    def operate(model: Any, folder: Path) -> Iterator[Any]:
        every = list(settings(OPERATIONS[operation], tmp_path / "tuned"))
        for number, chosen in enumerate(every if WHOLE else every[-1:]):
            child = apply_operation(model, operation, **chosen)
            assert child.model.device == model.device
            yield plain([child.model(TOKENS), child.own, child.model.hash])
            if isinstance(child, CustomChild):
                continue
            yield plain(child.certify(CORPUS, 60, context=16))
            child.save_pretrained(folder / str(number))
            opened = wb.surgery.open_child(folder / str(number), model)
            assert opened.model.device == model.device
            assert opened.model.hash == child.model.hash
            yield plain([opened.model(TOKENS), opened.own])

    wanted = list(operate(pair[0], tmp_path / "here"))
    with emulated():
        found = list(operate(pair[1], tmp_path / "there"))
    assert list(differences(wanted, found)) == []
