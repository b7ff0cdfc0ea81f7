"""Harvesting: the activations are those of the plain model, in whatever way they are taken, stopped and resumed."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import workbench as wb
from workbench.corpus import Corpus, CorpusError
from workbench.harvest import Activations, Buffer, Harvest, HarvestError, Store, process_shard

TEXTS = [f"Story {number}. " + "The dog ran to the river. " * (number % 7 + 1) for number in range(60)]
POINT = "blocks.1.hook_resid_post"


@pytest.fixture
def corpus() -> Corpus:
    return Corpus(TEXTS, "sixty")


@pytest.fixture
def with_bos(llama: wb.model.LanguageModel) -> wb.model.LanguageModel:
    """The tiny model with a tokenizer that has a BOS token."""
    model = copy.copy(llama)
    model.tokenizer = copy.deepcopy(tiny.tokenizer())
    model.tokenizer.bos_token = "<|user|>"
    return model


def equal(one: Activations, other: Activations) -> bool:
    """Whether two are the same to the last bit."""
    pairs = [(one.tokens, other.tokens), (one.texts, other.texts), (one.positions, other.positions)]
    pairs += [(value, other.values[name]) for name, value in one.values.items()]
    return list(one.values) == list(other.values) and all(torch.equal(a, b) for a, b in pairs)


def alone(model: wb.model.LanguageModel, found: Activations, corpus: Corpus, layer: int, context: int) -> Tensor:
    """The residual stream after `layer` at the tokens found, by a plain model that reads each window alone."""
    plain = tiny.build("llama")
    bos = model.tokenizer.bos_token_id
    prefix = [] if bos is None else [bos]
    wanted = torch.zeros(len(found), model.network.d_model)
    for text in found.texts.unique().tolist():
        ids = model.tokenizer(corpus.texts[text]).input_ids
        parts = -(-len(ids) // (context - len(prefix)))
        for part in range(parts):
            begin, end = part * len(ids) // parts, (part + 1) * len(ids) // parts
            with torch.no_grad():
                out = plain(torch.tensor([prefix + ids[begin:end]]), output_hidden_states=True)
            states = out.hidden_states[layer + 1][0, len(prefix) :]  # [pos, d_model]
            here = (found.texts == text) & (found.positions >= begin) & (found.positions < end)
            wanted[here] = states[found.positions[here] - begin]
    return wanted


@pytest.mark.parametrize("bos", [False, True])
def test_activations_are_those_of_the_plain_model(
    llama: wb.model.LanguageModel, with_bos: wb.model.LanguageModel, corpus: Corpus, bos: bool
) -> None:
    model = with_bos if bos else llama
    found = Harvest(model, corpus, POINT, context=20, batch=5).collect()
    assert len(found) == corpus.count_tokens(model, context=20)
    assert found.values[POINT].dtype == torch.float32
    torch.testing.assert_close(found.values[POINT], alone(model, found, corpus, 1, 20), rtol=1e-4, atol=1e-4)
    for row in range(0, len(found), 97):
        ids = model.tokenizer(corpus.texts[int(found.texts[row])]).input_ids
        assert ids[int(found.positions[row])] == int(found.tokens[row])


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_several_hook_points_in_one_pass(zoo, corpus: Corpus, name: str) -> None:
    model = zoo[name]
    points = ["blocks.0.attn.hook_z", "blocks.0.mlp.hook_post", POINT]
    found = Harvest(model, corpus, points, tokens=150, context=32, batch=4).collect()
    assert list(found.values) == points
    row = 0
    for batch in corpus.batches(model, context=32, batch=4, tokens=150):
        expected = model.capture(batch.tokens, points, mask=batch.mask)
        n = int(batch.content.sum())
        for point in points:
            wanted = expected[point].flatten(2)[batch.content]
            assert found.values[point].shape[1] == model.hook_points[point].width
            torch.testing.assert_close(found.values[point][row : row + n], wanted, rtol=1e-4, atol=1e-4)
        row += n
    assert row == 150


def test_special_tokens_are_left_out(llama: wb.model.LanguageModel) -> None:
    found = Harvest(llama, Corpus(["<|user|>The dog<|end|><|assistant|>ran<|end|>"]), POINT).collect()
    assert "".join(llama.token_texts(found.tokens)) == "The dogran"


def test_an_intervention_in_force_is_seen(llama: wb.model.LanguageModel, corpus: Corpus) -> None:
    harvest = Harvest(llama, corpus, "blocks.0.mlp.hook_post", tokens=40)
    feature = wb.Feature.parse("neurons.0.post:7")
    with llama.intervening([wb.Clamp(feature, 3.0)]):
        steered = harvest.collect()
    plain = harvest.collect()
    assert (steered.values["blocks.0.mlp.hook_post"][:, 7] == 3.0).all()
    assert not (plain.values["blocks.0.mlp.hook_post"][:, 7] == 3.0).any()


@pytest.mark.parametrize("skip", [0, 1, 30, 64, 65, 299, 300, 1000])
def test_skipping_leaves_the_rest_as_it_is(llama: wb.model.LanguageModel, corpus: Corpus, skip: int) -> None:
    harvest = Harvest(llama, corpus, POINT, tokens=300, context=16, batch=4)
    whole = harvest.collect()
    parts = list(harvest.run(skip=skip))
    assert sum(map(len, parts)) == max(300 - skip, 0)
    if parts:
        assert equal(Activations.cat(parts), whole[skip:])


def test_shards_together_are_the_whole(llama: wb.model.LanguageModel, corpus: Corpus) -> None:
    whole = list(Harvest(llama, corpus, POINT, tokens=400, batch=4))
    shards = [list(Harvest(llama, corpus, POINT, tokens=400, batch=4, shard=(rank, 2))) for rank in range(2)]
    assert sum(map(len, shards)) == len(whole)
    assert all(equal(part, shards[number % 2][number // 2]) for number, part in enumerate(whole))


def test_shard_of_a_torchrun_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_shard() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process_shard() == (2, 4)


def test_progress_and_cancel(llama: wb.model.LanguageModel, corpus: Corpus) -> None:
    told: list[tuple[float, str]] = []
    harvest = Harvest(llama, corpus, POINT, tokens=400, batch=4)
    harvest.collect(progress=lambda share, words: told.append((share, words)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert "400 of about 400 tokens" in told[-1][1]
    assert "left" in told[0][1]
    seen = list(harvest.run(cancel=lambda: True))
    assert seen == []


def test_bad_harvests_are_refused(llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(wb.model.HookPointError, match="did you mean"):
        Harvest(llama, corpus, "blocks.99.hook_resid_post")
    with pytest.raises(HarvestError, match="no value per token"):
        Harvest(llama, corpus, "blocks.0.attn.hook_pattern")
    with pytest.raises(HarvestError, match="at least one hook point"):
        Harvest(llama, corpus, [])
    with pytest.raises(CorpusError, match="tokens"):
        Harvest(llama, corpus, POINT, tokens=0)
    endless = Harvest(llama, corpus, POINT, repeat=True)
    with pytest.raises(HarvestError, match="give tokens"):
        endless.collect()
    with pytest.raises(HarvestError, match="give tokens"):
        Store.write(endless, tmp_path)
    with pytest.raises(HarvestError, match="batch_size"):
        Buffer(endless, batch_size=0)
    with pytest.raises(HarvestError, match="dtype"):
        Store.write(Harvest(llama, corpus, POINT), tmp_path, dtype="int8")


def test_buffer_hands_out_every_token_once_and_mixed(llama: wb.model.LanguageModel, corpus: Corpus) -> None:
    harvest = Harvest(llama, corpus, POINT, tokens=1000, batch=4)
    batches = list(Buffer(harvest, batch_size=64, block=256))
    assert [len(batch) for batch in batches] == [64] * 15 + [40]
    whole, mixed = harvest.collect(), Activations.cat(batches)

    def order(found: Activations) -> Tensor:
        return (found.texts * 1000 + found.positions).argsort()

    assert equal(whole[order(whole)], mixed[order(mixed)])
    assert not torch.equal(whole.texts, mixed.texts)
    assert all(len(batch.texts.unique()) > 1 for batch in batches)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(batches, Buffer(harvest, 64, 256), strict=True))
    assert any(not torch.equal(a.tokens, b.tokens) for a, b in zip(batches, Buffer(harvest, 64, 256, 1), strict=True))


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 5, 11, 16])
def test_a_resumed_buffer_gives_equal_batches(llama: wb.model.LanguageModel, corpus: Corpus, taken: int) -> None:
    def fresh() -> Buffer:
        return Buffer(Harvest(llama, corpus, POINT, tokens=1000, batch=4), batch_size=64, block=256)

    whole = list(fresh())
    stopped = fresh()
    for _ in range(taken):
        next(stopped)
    state = json.loads(json.dumps(stopped.state()))
    resumed = fresh()
    resumed.restore(state)
    rest = list(resumed)
    assert len(rest) == len(whole) - taken
    assert all(equal(a, b) for a, b in zip(whole[taken:], rest, strict=True))


def test_a_buffer_repeats_without_end(llama: wb.model.LanguageModel, corpus: Corpus) -> None:
    buffer = Buffer(Harvest(llama, corpus, POINT, repeat=True), batch_size=512, block=1024)
    once = corpus.count_tokens(llama)
    seen = Activations.cat([next(buffer) for _ in range(3 * once // 512 + 1)])
    assert len(seen) > 3 * once - 512
    assert seen.texts.bincount(minlength=60).min() > 0


def test_a_buffer_state_of_something_else_is_refused(llama: wb.model.LanguageModel, corpus: Corpus) -> None:
    state = Buffer(Harvest(llama, corpus, POINT, seed=1)).state()
    with pytest.raises(HarvestError, match=r"its source\.seed is 1, not 2"):
        Buffer(Harvest(llama, corpus, POINT, seed=2)).restore(state)
    with pytest.raises(HarvestError, match=r"source\.corpus"):
        Buffer(Harvest(llama, corpus.take(5), POINT, seed=1)).restore(state)
    with pytest.raises(HarvestError, match="batch_size"):
        Buffer(Harvest(llama, corpus, POINT, seed=1), batch_size=8).restore(state)


def test_store_holds_the_harvest_in_half_precision(
    llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    points = ["blocks.0.attn.hook_z", POINT]
    harvest = Harvest(llama, corpus, points, tokens=500, batch=4)
    whole = harvest.collect()
    store = Store.write(harvest, tmp_path / "store")
    assert store.complete
    assert len(store) == 500
    assert store.values[POINT].dtype == np.float16
    rows = torch.tensor([499, 0, 7, 7])
    found = Store(tmp_path / "store")[rows]
    assert torch.equal(found.values[POINT], whole.values[POINT][rows].half().float())
    assert torch.equal(found.tokens, whole.tokens[rows])
    exact = Store.write(harvest, tmp_path / "exact", dtype="float32")
    assert equal(exact[:], whole)
    assert equal(Activations.cat(list(exact.run(skip=100))), whole[100:])
    mixed = list(Buffer(harvest, 64, 256))
    assert all(equal(a, b) for a, b in zip(mixed, Buffer(exact, 64, 256), strict=True))
    note = json.loads((tmp_path / "store" / "progress.json").read_text())
    assert note["harvest"]["model_hash"] == llama.hash
    assert note["harvest"]["corpus_hash"] == corpus.hash
    assert {"versions", "command"} <= set(note)


def test_a_store_reads_only_the_hook_points_asked_for(
    llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    points = [POINT, "blocks.0.mlp.hook_post"]
    whole = Store.write(Harvest(llama, corpus, points, tokens=60), tmp_path / "both")
    one = Store(tmp_path / "both", [POINT])
    assert list(one[:5].values) == [POINT]
    assert len(one) == 60
    assert torch.equal(one[:].values[POINT], whole[:].values[POINT])
    assert one.settings()["hook_points"] == [POINT]
    assert whole.settings()["hook_points"] == points
    with pytest.raises(HarvestError, match=r"no activations at blocks\.0\.hook_in; it holds blocks\.1"):
        Store(tmp_path / "both", ["blocks.0.hook_in"])


def test_a_cancelled_store_is_continued(llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    harvest = Harvest(llama, corpus, POINT, tokens=500, context=24, batch=4)
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    part = Store.write(harvest, tmp_path / "store", cancel=cancel)
    assert not part.complete
    assert 0 < len(part) < 500
    with open(tmp_path / "store" / f"{POINT}.bin", "ab") as file:
        file.write(b"half a batch that was never committed")
    again = Store.write(harvest, tmp_path / "store")
    assert again.complete
    assert equal(again[:], Store.write(harvest, tmp_path / "other")[:])
    before = (tmp_path / "store" / f"{POINT}.bin").stat().st_mtime_ns
    assert len(Store.write(harvest, tmp_path / "store")) == 500
    assert (tmp_path / "store" / f"{POINT}.bin").stat().st_mtime_ns == before


KILLED = """
import os, signal, sys, threading
sys.path.insert(0, {tests!r})
import tiny, workbench as wb
from workbench.corpus import Corpus
from workbench.harvest import Harvest, Store

def told(share, words):
    if share > 0.05 and threading.active_count() == 1:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()

model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
harvest = Harvest(model, Corpus.load({corpus!r}), {point!r}, tokens=10_000, repeat=True, context=24, batch=4)
Store.write(harvest, {folder!r}, progress=told, commit_every=0.0)
"""


def test_a_killed_writer_is_resumed_with_equal_results(
    llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path, tiny_cache: Path
) -> None:
    corpus.save(tmp_path / "texts.jsonl")
    folder = tmp_path / "store"
    said = {"tests": str(Path(__file__).parents[1]), "corpus": str(tmp_path / "texts.jsonl"), "point": POINT}
    script = KILLED.format(**said, folder=str(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    stopped = Store(folder)
    assert not stopped.complete
    texts = Corpus.load(tmp_path / "texts.jsonl")
    harvest = Harvest(llama, texts, POINT, tokens=10_000, repeat=True, context=24, batch=4)
    resumed = Store.write(harvest, folder)
    assert resumed.complete
    assert 500 < len(stopped) < len(resumed) == 10_000
    Store.write(harvest, tmp_path / "whole")
    for name in [POINT, "tokens", "texts", "positions"]:
        assert (folder / f"{name}.bin").read_bytes() == (tmp_path / "whole" / f"{name}.bin").read_bytes()


def test_a_store_of_something_else_or_damaged_is_refused(
    llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    Store.write(Harvest(llama, corpus, POINT, tokens=100), folder)
    with pytest.raises(HarvestError, match="its tokens is 100, not 200"):
        Store.write(Harvest(llama, corpus, POINT, tokens=200), folder)
    with pytest.raises(HarvestError, match="dtype"):
        Store.write(Harvest(llama, corpus, POINT, tokens=100), folder, dtype="float32")
    with pytest.raises(HarvestError, match="holds no activations"):
        Store(tmp_path)
    file = folder / f"{POINT}.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(HarvestError, match="missing or cut short"):
        Store(folder)
    (folder / "progress.json").write_text("{")
    with pytest.raises(HarvestError, match="is not the note of a store"):
        Store(folder)


def test_a_value_too_large_for_half_precision_is_said(
    llama: wb.model.LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    harvest = Harvest(llama, corpus, "blocks.0.mlp.hook_post", tokens=50)
    with (
        llama.intervening([wb.Clamp(wb.Feature.parse("neurons.0.post:7"), 1e6)]),
        pytest.raises(HarvestError, match="does not fit into float16; use dtype='float32'"),
    ):
        Store.write(harvest, tmp_path)


@pytest.mark.real
def test_default_model_against_hugging_face(model: wb.model.LanguageModel, plain_default) -> None:
    """The residual stream of the default model, one text at a time through the plain model."""
    corpus = Corpus(["The dog ran to the river.", "Once upon a time there was a small green boat. It sailed away."])
    point = "blocks.15.hook_resid_post"
    found = Harvest(model, corpus, point).collect()
    for text in range(2):
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(corpus.texts[text]).input_ids]
        with torch.no_grad():
            states = plain_default(torch.tensor([ids]), output_hidden_states=True).hidden_states[16][0, 1:]
        torch.testing.assert_close(found.values[point][found.texts == text], states, rtol=1e-3, atol=1e-2)
    assert found.values[point].norm(dim=-1).max() < 2000  # the attention sink, in the tens of thousands, is on BOS
