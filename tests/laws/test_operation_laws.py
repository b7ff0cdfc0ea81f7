"""Laws of every operation of surgery, over the registry; a new operation comes under them by registering."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny
import torch
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.weights import parameters_of
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


def check_child(operation: str, model: wb.model.LanguageModel, folder: Path) -> None:
    """The law: the model stays as it is, and the child's checkpoint opens in plain transformers with equal logits.

    A child that plain transformers can't hold refuses to be saved in one sentence.
    """
    checkpoint = folder / "checkpoint"
    model.network.module.save_pretrained(checkpoint)
    before = model(TOKENS)
    for number, chosen in enumerate(settings(OPERATIONS[operation], checkpoint)):
        child = apply_operation(model, operation, **chosen)
        assert fingerprint(parameters_of(model.network.module)) == model.hash
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
