"""Texts of tokens as parts of a text, for every kind of tokenizer: the whole is decoded by the tokenizer itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers_zoo
import torch
from tokenizers_zoo import KINDS

import workbench as wb
from workbench.core.vocabulary import special_tokens
from workbench.model.prompts import chat_text, encode
from workbench.model.token_texts import TextStreamer, added_text, part_tokens, token_texts

TEXTS = ["The dog", "The dog ran to the", "a cat and", "What is your"]
CHAT = [{"role": "user", "content": "What is your favourite animal?"}]


def with_tokenizer(model: wb.model.LanguageModel, tokenizer: Any) -> wb.model.LanguageModel:
    """The same model with another tokenizer."""
    twin = copy.copy(model)
    twin.tokenizer = tokenizer
    return twin


@pytest.mark.parametrize("name", KINDS)
def test_what_is_shown_of_a_growing_text_is_never_taken_back(name: str) -> None:
    tokenizer = tokenizers_zoo.build(name)
    chance = random.Random(0)
    for number in range(60):
        before = tokenizer(TEXTS[number % len(TEXTS)], add_special_tokens=number % 2 == 0).input_ids
        ids = [chance.randrange(tiny.VOCAB) for _ in range(chance.randrange(1, 16))]
        streamer, shown = TextStreamer(tokenizer, before), tokenizer.decode(before, skip_special_tokens=True)
        for place, token in enumerate(ids, 1):
            shown += streamer.add(token)
            for end in range(place, len(ids) + 1):
                assert tokenizer.decode([*before, *ids[:end]], skip_special_tokens=True).startswith(shown)
        whole = tokenizer.decode([*before, *ids], skip_special_tokens=True)
        assert shown + streamer.rest() == whole
        assert not streamer.holds
        assert tokenizer.decode(before, skip_special_tokens=True) + added_text(tokenizer, ids, before) == whole


@pytest.mark.parametrize("name", KINDS)
def test_a_word_inside_a_text_has_its_space(name: str) -> None:
    tokenizer = tokenizers_zoo.build(name)
    ids = tokenizer("a cat and the dog", add_special_tokens=False).input_ids
    assert "".join(token_texts(tokenizer, ids)).removeprefix(" ") == "a cat and the dog"
    for word in (" dog", " cat", " and", " your"):
        part = part_tokens(tokenizer, word)
        assert "".join(token_texts(tokenizer, part)) == word
        if KINDS[name].cuts != "fallback":  # whose tokens reach across spaces
            inside = tokenizer(f"a{word}", add_special_tokens=False).input_ids
            assert inside[-len(part) :] == part


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_and_ids_without_a_text(name: str) -> None:
    tokenizer = tokenizers_zoo.build(name)
    special = sorted(special_tokens(tokenizer))
    assert token_texts(tokenizer, special) == [tokenizers_zoo.BOS, tokenizers_zoo.EOS, *token_names(tokenizer)]
    assert token_texts(tokenizer, [len(tokenizer), len(tokenizer) + 7]) == ["", ""]
    assert added_text(tokenizer, [len(tokenizer), *special]) == ""


def token_names(tokenizer: Any) -> list[str]:
    return [tokenizer.pad_token, tokenizer.unk_token]


def test_a_text_that_begins_and_ends_with_a_written_end_keeps_its_own() -> None:
    """Only what the tokenizer adds is left out: an end that the text itself writes stays."""
    tokenizer = tokenizers_zoo.build("bytes-both-chat-bos")
    end, first = tokenizer.eos_token_id, tokenizer.bos_token_id
    for text in (tokenizers_zoo.EOS, f"a{tokenizers_zoo.EOS}", f"{tokenizers_zoo.EOS}a"):
        ids = encode(tokenizer, text, tiny.VOCAB, "model")
        assert ids == [first, *tokenizer(text, add_special_tokens=False).input_ids]
        assert ids.count(end) == 1


@pytest.mark.parametrize("adds", ["bytes", "bytes-bos", "bytes-eos-chat", "bytes-both-chat-bos"])
@pytest.mark.parametrize("writes", [False, True])
def test_a_chat_has_the_ids_of_its_template_whatever_the_tokenizer_adds(
    adds: str, writes: bool, llama: wb.model.LanguageModel
) -> None:
    tokenizer = copy.deepcopy(tokenizers_zoo.build(adds))
    tokenizer.chat_template = ("{{ bos_token }}" if writes else "") + tokenizers_zoo.PLAIN
    wanted = tokenizer.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode(tokenizer, chat_text(tokenizer, CHAT, "model"), tiny.VOCAB, "model") == wanted
    model = with_tokenizer(llama, tokenizer)
    prompt = model.chat_prompt(CHAT)
    assert model.to_tokens(prompt)[0].tolist() == wanted
    assert copy.deepcopy(prompt) == prompt and model.to_tokens(copy.deepcopy(prompt))[0].tolist() == wanted  # noqa: PT018
    plain = model.generate(torch.tensor(wanted), 4, stop=False).tokens
    assert model.chat(CHAT, 4, stop=False).tokens == plain
    assert wb.compare(model, prompt, [wb.Clamp("neurons.0.post:0", 0.0)], 4, stop=False).baseline.tokens == plain


@pytest.mark.parametrize("name", ["bytes", "fallback-bos", "metaspace"])
def test_a_text_that_ends_inside_a_character_is_shown_whole(name: str, llama: wb.model.LanguageModel) -> None:
    """The model ends its turn while bytes are held back, in a stream and beside an edited text."""
    model = with_tokenizer(llama, tokenizers_zoo.build(name))
    held = 0
    for prompt in TEXTS:
        free = model.generate(prompt, 12, stop=False).tokens
        after = model.to_tokens(prompt)[0]
        for place, piece in enumerate(model.text_pieces([*free, 0], after)[:-2]):
            if piece or free[place + 1] in free[: place + 1]:
                continue
            held += 1
            model.stop_tokens = frozenset({free[place + 1]})
            written = model.generate(prompt, 12)
            assert written.tokens == free[: place + 1]
            assert written.stopped == "end"
            pieces = list(model.stream(prompt, 12))
            assert [piece.id for piece in pieces] == written.tokens
            assert "".join(piece.text for piece in pieces) == written.text
            assert "".join(model.text_pieces(written.tokens, after)) == written.text
            steps = wb.measures.compare_steps(model, prompt, [wb.Clamp("neurons.0.post:0", 0.0)], 12)
            joined = ["", ""]
            while True:
                try:
                    joined = [one + piece for one, piece in zip(joined, next(steps).pieces, strict=True)]
                except StopIteration as ended:
                    both = ended.value
                    break
            assert joined == [both.baseline.text, both.edited.text]
            assert joined[0] == written.text
            break
    assert held or name == "metaspace"


def test_a_word_of_a_target_is_the_token_inside_a_text(tiny_cache: Path, llama: wb.model.LanguageModel) -> None:
    """A tokenizer that puts a space in front of every text would make two tokens of " and"."""
    tokenizer = tokenizers_zoo.build("fallback-bos")
    model = with_tokenizer(llama, tokenizer)
    word = tokenizer("a and", add_special_tokens=False).input_ids[-1:]
    assert tokenizer(" and", add_special_tokens=False).input_ids != word
    assert model.to_tokens(" and", start=False)[0].tolist() == word
    head, row = tiny.build("llama").get_output_embeddings().weight, word[0]
    scores = torch.cat([tiny.weights(tiny.build("llama"), layer)["down"] @ head[row].detach() for layer in range(3)])
    feature, score = wb.neurons.neurons_writing(model, " and", top=1)[0]
    assert score == pytest.approx(float(scores.max()), abs=1e-5)
    assert str(feature) == f"neurons.{int(scores.argmax()) // 48}.post:{int(scores.argmax()) % 48}"


def test_an_index_finds_words_with_their_space(tmp_path: Path, llama: wb.model.LanguageModel) -> None:
    model = with_tokenizer(llama, tokenizers_zoo.build("metaspace"))
    corpus = wb.Corpus(tiny.TEXT.split("\n"))
    index = wb.build_index(model, "neurons.1.post", corpus, tmp_path / "index")
    (dog,) = model.to_tokens(" dog", start=False)[0].tolist()
    assert index.search(token=" dog")
    assert [hit.index for hit in index.search(token=" dog")] == [hit.index for hit in index.search(token=dog)]
    activity = wb.sparsity.neuron_activity(model, 0.0, corpus, tokens=40)
    ids = model.tokenizer(corpus.texts[0], add_special_tokens=False).input_ids[:40]
    begun = sum(model.tokenizer.convert_ids_to_tokens(token).startswith("▁") for token in ids)
    shares = dict(zip(activity.kinds, activity.kind_shares.tolist(), strict=True))
    assert shares["word"] + shares.get("Capital", 0) == pytest.approx(begun / len(ids), abs=0.1)


# --- a tokenizer larger or smaller than the model


def beyond() -> tuple[wb.model.LanguageModel, str, int]:
    """A model, and a text with a token of its tokenizer that the model lacks."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_tokens(["zebra"])
    model = wb.load_model(tiny.build("llama"), tokenizer=tokenizer)
    return model, "The zebra ran", tokenizer.convert_tokens_to_ids("zebra")


def test_tokens_that_the_model_lacks_are_refused_by_name(tmp_path: Path, tiny_cache: Path) -> None:
    model, text, token = beyond()
    corpus = wb.Corpus([f"{text} {number}" for number in range(4)])
    places = {"reads": "blocks.1.mlp.hook_in", "writes": "blocks.1.hook_mlp_out"}
    transcoder = wb.dictionaries.TopKTranscoder(32, 8, 2, **places)
    raw = torch.tensor([[1, token]])
    calls: list[Callable[[], object]] = [
        lambda: model.generate(text, 2),
        lambda: model.generate(raw, 2),
        lambda: model.chat(text, 2),
        lambda: list(model.stream(text, 2)),
        lambda: model(text),
        lambda: model.run(raw),
        lambda: model.capture(text, ["blocks.0.hook_out"]),
        lambda: wb.compare(model, text, [], 2),
        lambda: wb.measures.dose_response(model, "The", " zebra", [], lambda value: []),
        lambda: wb.attribute(model, [transcoder], text),
        lambda: wb.attribute(model, [transcoder], "The", "zebra"),
        lambda: wb.neurons.neurons_writing(model, "zebra"),
        lambda: list(wb.harvest.Harvest(model, corpus, ["blocks.0.hook_out"])),
        lambda: wb.build_index(model, "neurons.1.post", corpus, tmp_path / "index"),
        lambda: wb.measure_sparsity(model, corpus, tokens=8),
    ]
    for call in calls:
        with pytest.raises(wb.WorkbenchError, match=f"{token}.*'?zebra'?.*vocabulary"):
            call()


def test_a_model_with_more_tokens_than_its_tokenizer(tiny_cache: Path, llama: wb.model.LanguageModel) -> None:
    tokenizer = tokenizers_zoo.build("bytes-smaller")
    model = with_tokenizer(llama, tokenizer)
    extra = list(range(len(tokenizer), tiny.VOCAB))
    assert len(extra) > 20
    assert model.token_texts(extra) == [""] * len(extra)
    assert model.to_text([*model.to_tokens("The dog")[0].tolist(), *extra]) == "The dog"
    table = wb.decode_neurons(model, "down", 5)
    assert len(table.vocabulary) == tiny.VOCAB
    for match in ("any", "contains"):
        for hit in table.search("dog", match=match, limit=3):
            assert "dog" in hit.tokens[hit.rank]
    assert all(hit.tokens[hit.rank] == "" for hit in table.search(extra[0], limit=3))


def test_special_tokens_of_a_long_text_take_no_time() -> None:
    """They add no text, and what adds none is not decoded again with every further token."""
    tokenizer = tiny.tokenizer()
    counted = Counting(tokenizer)
    streamer = TextStreamer(counted, [0] * 1000)
    pieces = [streamer.add(0) for _ in range(1000)]
    assert "".join(pieces) == ""
    assert counted.decoded < 10_000


class Counting:
    """A tokenizer that counts the tokens which it decodes."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def decode(self, tokens: list[int], **how: Any) -> str:
        self.decoded += len(tokens)
        return self._tokenizer.decode(tokens, **how)
