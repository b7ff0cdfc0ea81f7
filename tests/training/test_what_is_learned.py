"""The tokens that a training is asked for are those that it reads and learns from."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.harvest import Buffer, Harvest
from workbench.surgery.finetuning.healing import heal
from workbench.surgery.finetuning.labelling import Labelled
from workbench.training import TrainingError, fine_tune

pytestmark = pytest.mark.usefixtures("tiny_cache")

POINT = "blocks.1.hook_resid_post"
MIXED = wb.Corpus([*"abcdefghijklmnopqrstuvwx", "The dog ran to the river.", "A cat.", "The dog and the cat."], "mixed")
HOW: dict[str, Any] = {"batch": 2, "context": 16, "lr": 1e-3}


def recounted(model: wb.model.LanguageModel, corpus: wb.Corpus, tokens: int) -> tuple[int, int]:
    """Steps until so many tokens are learned from, and how many those are, by loops over rows and tokens."""
    total = steps = 0
    for batch in corpus.batches(model, HOW["context"], HOW["batch"], seed=0, repeat=True):
        new = 0
        for row in batch.content.tolist():
            pairs = [one and other for one, other in itertools.pairwise(row)]
            new += sum(row) if any(pairs) else 0
        if new:
            total, steps = total + new, steps + 1
        if total >= tokens:
            break
    return steps, total


@pytest.mark.parametrize("learn", [fine_tune, heal])
def test_texts_of_one_token_teach_nothing_and_do_not_count(learn: Any, llama: wb.model.LanguageModel) -> None:
    lines: list[Any] = []
    made = learn(llama, MIXED, tokens=90, log=lines.append, **HOW)
    steps, tokens = recounted(llama, MIXED, 90)
    assert (lines[-1]["step"], lines[-1]["tokens"]) == (steps, tokens)
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    about = made.model.about["surgery"][-1]["done"] if learn is heal else made.about["trained"]["tokens"]
    assert about == tokens
    with pytest.raises(TrainingError, match="nothing to learn from"):
        learn(llama, wb.Corpus(list("abcdef")), tokens=90, **HOW)


def test_labels_count_with_the_tokens_of_their_rows(llama: wb.model.LanguageModel) -> None:
    texts = Labelled([["the", "dog"], ["cat"], ["the", "cat", "ran"]], [[0, 1], [1], [0, 1, 0]], ("a", "b"))
    child = heal(llama, texts, tokens=40, **HOW)
    total = 0
    for batch in texts.batches(llama, 16, 2, repeat=True):
        total += int(batch.mask.sum())
        if total >= 40:
            break
    assert child.model.about["surgery"][-1]["done"] == total


def test_a_training_reads_no_more_than_it_learns_from(
    llama: wb.model.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = wb.Corpus([f"Story {number}. " + "The dog ran to the river. " * 6 for number in range(200)])
    positions = 0
    run = type(llama.network).run

    def counting(self: Any, tokens: torch.Tensor, *args: Any, **how: Any) -> torch.Tensor:
        nonlocal positions
        positions += tokens.numel()
        return run(self, tokens, *args, **how)

    monkeypatch.setattr(type(llama.network), "run", counting)
    assert llama.network.causal
    positions = 0
    lines: list[Any] = []
    wb.train(wb.TopKSAE(32, 64, 4), llama, POINT, corpus, tokens=600, batch_size=256, context=64, log=lines.append)
    assert lines[-1]["tokens"] == 768
    assert positions <= 768 + 2 * 16 * 64  # a run of the model has 16 windows of at most 64 positions
    assert 0 <= lines[-1]["massive"] <= 1


@pytest.mark.parametrize("batches", [1, 3, 4, 7])
def test_a_limited_buffer_gives_each_token_once(batches: int, llama: wb.model.LanguageModel) -> None:
    harvest = Harvest(llama, wb.Corpus(["The dog ran to the river. " * 9] * 9), POINT, context=32, batch=2)
    buffer = Buffer(harvest, batch_size=16, block=64, seed=1, batches=batches)
    taken = list(buffer)
    assert [len(one) for one in taken] == [16] * batches
    wanted = harvest.collect()[: 16 * batches]
    texts, positions = (torch.cat([getattr(one, name) for one in taken]).tolist() for name in ("texts", "positions"))
    found = sorted(zip(texts, positions, strict=True))
    assert found == sorted(zip(wanted.texts.tolist(), wanted.positions.tolist(), strict=True))
    resumed = Buffer(harvest, batch_size=16, block=64, seed=1, batches=batches)
    resumed.restore(resumed.state() | {"handed": batches - 1})
    assert torch.equal(next(resumed).values[POINT], taken[-1].values[POINT])


def test_texts_of_one_token_are_refused_where_no_bos_stands_before_them(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(TrainingError, match="no token to learn from"):
        wb.train(wb.TopKSAE(32, 64, 4), llama, POINT, wb.Corpus(list("abc")), tokens=100)


@pytest.mark.parametrize("learn", [fine_tune, heal])
def test_a_training_that_counted_positions_ends_as_it_is_and_does_not_go_on(
    learn: Any, llama: wb.model.LanguageModel, tmp_path: Path
) -> None:
    def older(file: Path) -> None:
        """Say no more than notes once did; a model without dictionaries had `fresh`."""
        note = json.loads(file.read_text())
        assert note["settings"].pop("counts") == "tokens of texts"
        assert note["settings"]["fresh"] is (learn is fine_tune)
        file.write_text(json.dumps(note))

    asked = itertools.count()
    learn(llama, MIXED, tokens=90, folder=tmp_path / "part", cancel=lambda: next(asked) > 3, **HOW)
    older(next((tmp_path / "part").glob("step-*")) / "progress.json")
    with pytest.raises(TrainingError, match="its counts is 'positions', not 'tokens of texts'"):
        learn(llama, MIXED, tokens=90, folder=tmp_path / "part", **HOW)
    whole = learn(llama, MIXED, tokens=90, folder=tmp_path / "whole", **HOW)
    older(tmp_path / "whole" / "progress.json")
    lines: list[Any] = []
    again = learn(llama, MIXED, tokens=90, folder=tmp_path / "whole", log=lines.append, **HOW)
    assert not lines
    models = [one.model if learn is heal else one for one in (whole, again)]
    assert models[0].hash == models[1].hash
