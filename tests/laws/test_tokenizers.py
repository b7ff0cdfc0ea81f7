"""Every kind of tokenizer: a text goes on where its prompt ends; ids are those of the tokenizer and its template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tokenizers_zoo
import torch
from tokenizers_zoo import KINDS

import workbench as wb

PROMPTS = ["The dog", "The dog ran to the", "What is your", "a cat"]
CHAT = [{"role": "user", "content": "What is your favourite animal?"}]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], wb.model.LanguageModel]:
    models: dict[str, wb.model.LanguageModel] = {}

    def opening(name: str) -> wb.model.LanguageModel:
        if name not in models:
            models[name] = wb.load_model(tiny.build("llama"), tokenizer=tokenizers_zoo.build(name))
        return models[name]

    return opening


USABLE = [name for name in KINDS if name != "bytes-larger"]


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_text_are_the_text_of_all_tokens(
    name: str, prompt: str, opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path
) -> None:
    model, tokenizer = opened(name), tokenizers_zoo.build(name)
    ids = model.to_tokens(prompt)
    written = model.generate(ids[0], max_new_tokens=9, stop=False)
    whole = tokenizer.decode([*ids[0].tolist(), *written.tokens], skip_special_tokens=True)
    alone = tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
    assert whole.startswith(alone)
    assert alone + written.text == whole
    assert model.generate(prompt, max_new_tokens=9, stop=False).text == written.text


@pytest.mark.parametrize("name", USABLE)
def test_a_stream_joins_to_the_text(
    name: str, opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path
) -> None:
    model = opened(name)
    for prompt in PROMPTS:
        for stop in (True, False):
            pieces = list(model.stream(prompt, 12, stop=stop))
            written = model.generate(prompt, 12, stop=stop)
            assert [piece.id for piece in pieces] == list(written.tokens)
            assert "".join(piece.text for piece in pieces) == written.text


def test_a_stream_that_ends_inside_a_character_joins_to_the_text(
    opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the turn is the token that the model writes where its text so far is half a character."""
    tried = 0
    for name in USABLE:
        model, tokenizer = opened(name), tokenizers_zoo.build(name)
        for prompt in PROMPTS:
            ids = model.to_tokens(prompt)[0].tolist()
            free = list(model.generate(prompt, 12, stop=False).tokens)
            texts = [tokenizer.decode([*ids, *free[:k]], skip_special_tokens=True) for k in range(12)]
            inside = [k for k in range(1, 12) if texts[k].endswith("\ufffd") and free[k] not in free[:k]]
            if not inside:
                continue
            with monkeypatch.context() as patch:
                patch.setattr(model, "stop_tokens", frozenset({free[inside[0]]}))
                written = model.generate(prompt, 12)
                assert list(written.tokens) == free[: inside[0]]
                assert "".join(piece.text for piece in model.stream(prompt, 12)) == written.text
            tried += 1
    assert tried > 5


@pytest.mark.parametrize("name", USABLE)
def test_a_prompt_has_no_token_of_the_end(
    name: str, opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path
) -> None:
    tokenizer = tokenizers_zoo.build(name)
    for prompt in PROMPTS:
        ids = opened(name).to_tokens(prompt)[0].tolist()
        assert tokenizer.eos_token_id not in ids, "a text that goes on has not ended"
        assert (ids[0] == tokenizer.bos_token_id) == KINDS[name].bos
        assert ids.count(tokenizer.bos_token_id) == KINDS[name].bos


@pytest.mark.parametrize("name", [name for name in USABLE if KINDS[name].chat])
def test_a_chat_has_the_ids_of_its_template(
    name: str, opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path
) -> None:
    model, tokenizer = opened(name), tokenizers_zoo.build(name)
    wanted = tokenizer.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=True, return_dict=False)
    plain = model.generate(torch.tensor(wanted), max_new_tokens=3, stop=False)
    assert model.chat(CHAT, max_new_tokens=3, stop=False).tokens == plain.tokens
    assert model.chat(CHAT, max_new_tokens=3, stop=False).logprobs == pytest.approx(plain.logprobs, abs=1e-5)


@pytest.mark.parametrize("name", USABLE)
def test_a_word_is_found_among_decoded_neurons(
    name: str, opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path
) -> None:
    """The token that a word inside a text becomes is found by the word with its space."""
    model = opened(name)
    inside = model.to_tokens("a dog", start=False)[0].tolist()
    before = model.to_tokens("a", start=False)[0].tolist()
    added = list(inside[len(before) :])
    if len(added) != 1 or inside[: len(before)] != before:
        pytest.skip("the word is no single token of this tokenizer")
    texts = model.token_texts(added)
    assert texts == [" dog"]
    table = wb.decode_neurons(model, weights="down", top_k=tiny.VOCAB // 2)
    assert table.search(" dog", match="exact", limit=1)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_where_they_occur(
    opened: Callable[[str], wb.model.LanguageModel], tiny_cache: Path
) -> None:
    model = opened("bytes-larger")
    tokenizer = tokenizers_zoo.build("bytes-larger")
    beyond = list(range(tiny.VOCAB, len(tokenizer)))
    text = tokenizer.decode(beyond[:1])
    prompt = next(p for p in (text, f"a{text}", *tiny.TEXT.split("\n")) if max(tokenizer(p).input_ids) >= tiny.VOCAB)
    corpus = wb.Corpus([f"{prompt} {number}" for number in range(4)], "beyond")
    calls = {
        "generate": lambda: model.generate(prompt, 3),
        "call": lambda: model(prompt),
        "compare": lambda: wb.compare(model, prompt, [wb.Clamp("neurons.0.post:0", 1.0)]),
        "fidelity": lambda: wb.measure_fidelity(model, sae(), corpus, tokens=8),
        "sparsity": lambda: wb.measure_sparsity(model, corpus, tokens=8),
    }
    for name, call in calls.items():
        with pytest.raises(wb.WorkbenchError, match="vocabulary"):
            call()
        assert name


def sae() -> wb.dictionaries.Dictionary:
    made = wb.TopKSAE(32, 64, 4)
    made.reads = made.writes = "blocks.1.hook_resid_post"
    return made
