"""The TokFSM language, models that are fine-tuned on it through codebooks, and what is measured of states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from speaker import HEADS, HOW, MACHINE, MLP, books, speaker_model  # noqa: F401 (a fixture)
from torch import Tensor

import workbench as wb
from workbench.corpus import CorpusError
from workbench.dictionaries.protocol import Rewrite
from workbench.synthetic import count_codes, force_state, next_states, state_codes, state_column
from workbench.training import read_history


def test_texts_walk_along_edges() -> None:
    machine = wb.synthetic.TokFSM()
    assert machine.successors.shape == (100, 10)
    assert all(len(set(row)) == 10 for row in machine.successors.tolist())
    walks = machine.walk(500, 63, 0)
    assert bool(machine.follows[walks[:, :-1], walks[:, 1:]].all())
    edges = torch.zeros(100, 100).index_put_((walks[:, :-1].flatten(), walks[:, 1:].flatten()), torch.tensor(1.0), True)
    shares = (edges / edges.sum(1, keepdim=True))[machine.follows].view(100, 10)
    assert float((shares - 0.1).abs().max()) < 0.08  # uniform: 310 visits to each state
    tokens = machine.write(walks)
    assert tokens.shape == (500, 127)
    assert bool((tokens[:, 0] == 10).all())
    assert torch.equal(machine.read(tokens), walks)
    assert tokens[0, 1:5].tolist() == [*divmod(int(walks[0, 0]), 10), *divmod(int(walks[0, 1]), 10)]
    assert not torch.equal(wb.synthetic.TokFSM(seed=1).follows, machine.follows)


def test_batches_are_the_same_again_and_shared_out(speaker: wb.model.LanguageModel) -> None:
    one = [batch.tokens for batch, _ in zip(MACHINE.batches(speaker, 32, 4, seed=3), range(4), strict=False)]
    two = [batch.tokens for batch, _ in zip(MACHINE.batches(speaker, 32, 4, seed=3), range(4), strict=False)]
    assert torch.equal(torch.stack(one), torch.stack(two))
    second = next(iter(MACHINE.batches(speaker, 32, 4, seed=3, shard=(1, 2))))
    assert torch.equal(second.tokens, one[1])
    assert not second.content[:, 0].any()
    assert sum(1 for _ in MACHINE.batches(speaker, 32, 4, 300)) == 3


def test_the_tokenizer_writes_and_reads_digits(speaker: wb.model.LanguageModel) -> None:
    tokens = MACHINE.write(torch.tensor([[5, 11, 0]]))
    assert speaker.to_text(tokens) == "112300"
    assert torch.equal(speaker.to_tokens("112300"), tokens)


class Knows:
    """A model that knows the machine, or always goes on with a state."""

    def __init__(self, always: int | None = None):
        self.always = always

    def __call__(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, MACHINE.n_vocab)
        for row, said in enumerate(tokens.tolist()):
            for place in range(len(said)):
                whole, begun = divmod(place, 2)
                if whole == 0:
                    continue
                last = said[2 * whole - 1] * 4 + said[2 * whole]
                state = min(last, 11)
                following = MACHINE.successors[state, 1] if self.always is None else self.always
                logits[row, place, int(following) // 4 if not begun else int(following) % 4] = 1.0
        return logits


def test_transition_accuracy_of_models_that_are_known() -> None:
    assert MACHINE.transition_accuracy(Knows(), walks=40, context=32) == 1.0
    right = MACHINE.transitions(Knows(always=7), walks=40, context=32)
    shares = float(MACHINE.follows[:, 7].double().mean())
    assert abs(float(right.double().mean()) - shares) < 0.25
    assert MACHINE.transition_accuracy(Knows(always=15), walks=40, context=32) == 0.0  # 15 is no state


def test_next_states_by_brute_force(speaker: wb.model.LanguageModel) -> None:
    walks = MACHINE.walk(3, 5, 0)
    found = next_states(speaker, MACHINE, walks)
    assert found.shape == (3, 12)
    for row in range(3):
        tokens = MACHINE.write(walks)[row].tolist()
        for state in range(12):
            first, second = divmod(state, 4)
            one = speaker(torch.tensor([tokens]))[0, -1].softmax(-1)[first]
            two = speaker(torch.tensor([[*tokens, first]]))[0, -1].softmax(-1)[second]
            assert float(found[row, state]) == pytest.approx(float(one * two), rel=1e-4)


def test_plain_fine_tuning_equals_a_loop_written_here(speaker: wb.model.LanguageModel) -> None:
    before = speaker.hash, speaker(torch.tensor([[4, 1, 2]]))
    tuned = wb.training.fine_tune(speaker, MACHINE, warmup=0.0, clip=None, **HOW)
    import copy

    module: Any = copy.deepcopy(speaker.network.module)
    optimiser = torch.optim.Adam(module.requires_grad_(True).parameters(), lr=HOW["lr"])
    for batch, _ in zip(MACHINE.batches(speaker, 32, 8), range(13), strict=False):
        logits = module(input_ids=batch.tokens).logits[:, 1:-1]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 2:].flatten()).backward()
        optimiser.step()
    tokens = MACHINE.write(MACHINE.walk(4, 10, 9))
    torch.testing.assert_close(tuned(tokens), module(input_ids=tokens).logits, rtol=1e-3, atol=1e-4)
    assert tuned.hash != speaker.hash
    assert speaker.hash == before[0]
    assert torch.equal(speaker(torch.tensor([[4, 1, 2]])), before[1])
    assert not any(parameter.requires_grad for parameter in tuned.network.module.parameters())


def test_the_dictionaries_loss_moves_the_dictionaries_alone(speaker: wb.model.LanguageModel) -> None:
    frozen = wb.training.fine_tune(speaker, MACHINE, books(), frozen=True, **HOW)
    for (name, one), two in zip(
        speaker.network.module.named_parameters(), frozen.network.module.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    lines: list[Any] = []
    how = HOW | {"tokens": 8 * 32 * 50, "frozen": True, "fresh": False, "weight": 100.0, "lr": 0.1}
    wb.training.fine_tune(speaker, MACHINE, books(), log=lines.append, **how)
    assert lines[-1]["error"] < 0.9 * lines[0]["error"]


@pytest.mark.parametrize("similarity", ["cosine", "inner", "euclidean"])
def test_it_learns_by_every_similarity(speaker: wb.model.LanguageModel, similarity: Any) -> None:
    lines: list[Any] = []
    wb.training.fine_tune(speaker, MACHINE, books(similarity=similarity), log=lines.append, **HOW)
    assert lines[-1]["ce"] < lines[0]["ce"]


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_it_goes_on_where_it_was_stopped(speaker: wb.model.LanguageModel, tmp_path: Path, stop_after: int) -> None:
    def stops() -> Any:
        asked = iter(range(10**6))
        return lambda: next(asked) > stop_after

    how = HOW | {"dead_after": 600, "first_k": 4}
    whole = wb.training.fine_tune(speaker, MACHINE, books(), folder=tmp_path / "whole", **how)
    wb.training.fine_tune(speaker, MACHINE, books(), folder=tmp_path / "parts", cancel=stops(), **how)
    parts = wb.training.fine_tune(speaker, MACHINE, books(), folder=tmp_path / "parts", **how)
    assert parts.hash == whole.hash
    assert [line["step"] for line in read_history(tmp_path / "parts")] == list(range(1, 14))
    how |= {"folder": tmp_path / "parts"}
    again = wb.training.fine_tune(speaker, MACHINE, books(), cancel=lambda: pytest.fail("works"), **how)
    tokens = MACHINE.write(MACHINE.walk(4, 10, 9))
    assert torch.equal(again(tokens), whole(tokens))
    with pytest.raises(wb.training.TrainingError, match="another training: its lr is"):
        wb.training.fine_tune(speaker, MACHINE, books(), **how | {"lr": 0.1})
    assert all(one.provenance["tokens"] == 8 * 31 * 13 for one in again.splices.values())  # type: ignore[attr-defined]
    assert again.about["trained"] == whole.about["trained"]
    wider = books()
    wider[HEADS].k = 2
    with pytest.raises(wb.training.TrainingError, match="another training"):
        wb.training.fine_tune(speaker, MACHINE, wider, **how)
    with pytest.raises(wb.training.TrainingError, match="began with other weights"):
        wb.training.fine_tune(speaker, MACHINE, books(seed=9), **how)


def test_going_on_with_its_own_dictionaries_leaves_the_model_as_it_is(speaker: wb.model.LanguageModel) -> None:
    tuned = wb.training.fine_tune(speaker, MACHINE, books(), **HOW)
    tokens = MACHINE.write(MACHINE.walk(4, 10, 9))
    before, hashes = tuned(tokens), [one.hash for one in tuned.splices.values()]  # type: ignore[attr-defined]
    lines: list[Any] = []
    further = wb.training.fine_tune(tuned, MACHINE, log=lines.append, **HOW)
    assert torch.equal(tuned(tokens), before)
    assert [one.hash for one in tuned.splices.values()] == hashes  # type: ignore[attr-defined]
    assert [one.hash for one in further.splices.values()] != hashes  # type: ignore[attr-defined]
    assert lines[0]["error"] == pytest.approx(wb_error(tuned), rel=0.5)  # not set from a sample again


def wb_error(model: wb.model.LanguageModel) -> float:
    """What the model's dictionaries leave over, token mean of the sum over dimensions, on the first batch."""
    batch = next(iter(MACHINE.batches(model, 32, 8)))
    found = model.capture(batch.tokens, [HEADS, MLP])
    total = 0.0
    for name, book in model.splices.items():
        x = found[name].flatten(2)[batch.content]
        total += float((book.reconstruct(x) - x).square().sum(-1).mean())  # type: ignore[attr-defined]
    return total


def test_saved_and_opened_it_gives_equal_logits(speaker: wb.model.LanguageModel, tmp_path: Path) -> None:
    tuned = wb.training.fine_tune(speaker, MACHINE, books(), **HOW)
    wb.interventions.save_model(tuned, tmp_path / "model")
    opened = wb.load_model(tmp_path / "model")
    tokens = MACHINE.write(MACHINE.walk(4, 10, 9))
    assert torch.equal(opened(tokens), tuned(tokens))
    assert opened.hash == tuned.hash
    assert list(opened.splices) == [HEADS, MLP]
    assert opened.generate(tokens[0], 6).tokens == tuned.generate(tokens[0], 6).tokens
    note = json.loads((tmp_path / "model" / "spliced.json").read_text())
    (tmp_path / "model" / "spliced.json").write_text(json.dumps(note | {"format": 99}))
    with pytest.raises(wb.model.ModelError, match="format 99"):
        wb.load_model(tmp_path / "model")
    (tmp_path / "model" / "spliced.json").write_text("{")
    with pytest.raises(wb.model.ModelError, match="is no JSON"):
        wb.load_model(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(wb.model.ModelError, match="is no model that was saved"):
        wb.interventions.save_model(tuned, tmp_path / "other")


@pytest.mark.real
def test_codebooks_of_the_default_model_are_saved_without_it(model: wb.model.LanguageModel, tmp_path: Path) -> None:
    point = "blocks.3.attn.hook_z"
    how: dict[str, Any] = {"tokens": 2 * 16, "batch": 2, "context": 16, "frozen": True}
    texts = wb.Corpus(["The dog ran to the river, and the cat ran to the house."] * 4)
    tuned = wb.training.fine_tune(model, texts, {point: wb.Codebook(576, 12, k=2, groups=9)}, **how)
    wb.interventions.save_model(tuned, tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "model").exists()
    opened = wb.load_model(tmp_path / "tuned")
    tokens = model.to_tokens("The dog ran to the house.")
    assert torch.equal(opened(tokens), tuned(tokens))
    assert not torch.equal(opened(tokens), model(tokens))
    assert (opened.hash, opened.plain_hash) == (tuned.hash, model.hash)


def test_what_its_own_codebooks_read_is_what_capture_shows(speaker: wb.model.LanguageModel) -> None:
    tuned = wb.training.fine_tune(speaker, MACHINE, books(), **HOW)
    tokens = MACHINE.write(MACHINE.walk(2, 6, 1))
    seen: list[Tensor] = []

    class Monitor:
        def bind(self, model: wb.model.LanguageModel, plan: Any) -> list[Any]:
            def look(codes: Any) -> Any:
                seen.append(codes.indices)
                return codes

            for changes in plan.spliced(tuned.splices[MLP]):
                changes.append(Rewrite(look))
            return []

    with tuned.intervening([Monitor()]):
        seen.clear()
        tuned(tokens)
    x = tuned.capture(tokens, [MLP])[MLP]
    assert torch.equal(tuned.splices[MLP].encode(x).indices, seen[0])  # type: ignore[attr-defined]


def test_codes_are_counted_and_forced_by_state(speaker: wb.model.LanguageModel) -> None:
    tuned = wb.training.fine_tune(speaker, MACHINE, {HEADS: wb.Codebook(16, 20, groups=2)}, **HOW)
    counted = count_codes(tuned, MACHINE, walks=70)
    counts = counted.counts[HEADS]
    assert counts.shape == (40, 12)
    assert int(counted.seen.sum()) == 70 * 15
    assert torch.equal(counts.view(2, 20, 12).sum(1), counted.seen.expand(2, -1))  # k = 1: one code of each head
    features = state_codes(tuned, counted, 4)
    assert [feature.index // 20 for feature in features] == [0, 1]
    for feature in features:
        group = counts.view(2, 20, 12)[feature.index // 20, :, 4]
        assert int(counts[feature.index, 4]) == int(group.max())
    walks = MACHINE.walk(5, 6, 3)
    plain = next_states(tuned, MACHINE, walks)
    edits = [wb.Force(feature, "all", positions=[12]) for feature in features]
    forced = next_states(tuned, MACHINE, walks, edits)
    assert bool((forced >= 0).all())
    assert bool((forced.sum(1) <= 1.0001).all())
    assert not torch.equal(plain, forced)


def test_codes_behind_a_state_are_counted_and_forced_digit_by_digit(speaker: wb.model.LanguageModel) -> None:
    model = wb.training.fine_tune(speaker, MACHINE, books(), **HOW)
    counted = [count_codes(model, MACHINE, walks=70, written=written) for written in range(2)]
    walks = MACHINE.walk(70, 15, [MACHINE.seed, 19, 2])
    book: Any = model.splices[MLP]
    counts = torch.zeros_like(counted[1].counts[MLP])
    for row in walks:
        x = model.capture(MACHINE.write(row[None]), [MLP])[MLP][0]
        for step in range(14):
            column = int(row[step]) * 4 + int(row[step + 1]) // 4
            for code in book.encode(x[2 * (step + 1) + 1]).indices.tolist():
                counts[code, column] += 1
    assert torch.equal(counted[1].counts[MLP], counts)
    assert torch.equal(counted[1].seen * 2, counts.sum(0))  # k = 2

    target, walk = 7, MACHINE.walk(1, 6, 3)
    found = next_states(model, MACHINE, walk, force_state(model, MACHINE, counted, target, 6))[0]
    tokens = MACHINE.write(walk)[0].tolist()
    edits = [wb.Force(code, "all", positions=[12]) for code in state_codes(model, counted[0], target)]
    for state in range(12):
        first, second = divmod(state, 4)
        column = state_column(MACHINE, target, [first])
        assert column == target * 4 + first
        more = [wb.Force(code, "all", positions=[13]) for code in state_codes(model, counted[1], column)]
        with model.intervening(edits):
            one = model(torch.tensor([tokens]))[0, -1].softmax(-1)[first]
        with model.intervening([*edits, *(more if int(counted[1].seen[column]) else [])]):
            two = model(torch.tensor([[*tokens, first]]))[0, -1].softmax(-1)[second]
        assert float(found[state]) == pytest.approx(float(one * two), rel=1e-4)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"tokens": 0}, "tokens is a whole number"),
        ({"batch": 2.5}, "batch is a whole number"),
        ({"lr": float("inf")}, "lr is a number above 0"),
        ({"weight": float("nan")}, "weight is a number from 0"),
        ({"decay": 2.0}, "decay is a number from 0 to 1"),
        ({"first_k": 0}, "first_k is a whole number"),
        ({"spliced": {}, "frozen": True}, "There is nothing to train"),
        ({"spliced": {"blocks.7.attn.hook_z": wb.Codebook(16, 4)}}, "no hook point"),
        ({"spliced": {MLP: wb.Codebook(8, 4)}}, "width 8, but .* is 16 wide"),
        ({"spliced": {MLP: wb.Codebook(16, 4, hook_point=HEADS)}}, "can't be spliced in at"),
        ({"spliced": {MLP: 3}}, "spliced is a mapping of texts"),
    ],
)
def test_bad_settings(speaker: wb.model.LanguageModel, how: dict[str, Any], words: str) -> None:
    with pytest.raises(
        (wb.training.TrainingError, wb.model.HookPointError, wb.dictionaries.DictionaryError), match=words
    ):
        wb.training.fine_tune(speaker, MACHINE, **({"spliced": None} | HOW | how))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"states": 0}, "states is a whole number"),
        ({"edges": 101}, "can't have 101 edges"),
        ({"digits": 1}, "can't be written with 1 digits"),
    ],
)
def test_bad_machines(how: dict[str, int], words: str) -> None:
    with pytest.raises(CorpusError, match=words):
        wb.synthetic.TokFSM(**how)


def test_a_corpus_of_walks_is_read_back_as_walks_along_edges() -> None:
    corpus = MACHINE.corpus(texts=5, length=9)
    tokens = torch.tensor(MACHINE.tokenizer()(list(corpus.texts))["input_ids"])
    visited = MACHINE.read(tokens)
    assert visited.shape == (5, 9)
    assert bool(MACHINE.follows[visited[:, :-1], visited[:, 1:]].all())
    assert corpus.texts == MACHINE.corpus(texts=5, length=9).texts != MACHINE.corpus(texts=5, length=9, seed=4).texts
