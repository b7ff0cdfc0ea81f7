"""What Workbench does with a kind of tokenizer, held against the tokenizer itself: the second table of docs/models.md.

A check takes a `Reader` and returns when all is right. A refusal raises a `WorkbenchError`; `NotHere` means that the
tokenizer has nothing to check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import tokenizers_zoo
import torch
from outcomes import NotHere

import workbench as wb

PROMPTS = ["The dog", "The dog ran to the", "What is your", "a cat"]
CHAT = [{"role": "user", "content": "What is your favourite animal?"}]
WORDS = [" dog", " cat", " the", " to", " is"]


@dataclass
class Reader:
    """A tokenizer of the zoo, alone and under Workbench with a tiny model."""

    name: str

    @functools.cached_property
    def kind(self) -> tokenizers_zoo.Kind:
        return tokenizers_zoo.KINDS[self.name]

    @functools.cached_property
    def tokenizer(self) -> Any:
        return tokenizers_zoo.build(self.name)

    @functools.cached_property
    def model(self) -> Any:
        return wb.load_model(tiny.build("llama"), tokenizer=tokenizers_zoo.build(self.name))


def text(reader: Reader) -> None:
    """A prompt and the text written behind it are the text of all tokens."""
    model, tokenizer = reader.model, reader.tokenizer
    for prompt in PROMPTS:
        ids = model.to_tokens(prompt)
        written = model.generate(ids[0], max_new_tokens=9, stop=False)
        whole = tokenizer.decode([*ids[0].tolist(), *written.tokens], skip_special_tokens=True)
        alone = tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
        assert whole.startswith(alone)
        assert alone + written.text == whole
        assert model.generate(prompt, max_new_tokens=9, stop=False).text == written.text


def stream(reader: Reader) -> None:
    """The pieces of a stream join to the text."""
    for prompt in PROMPTS:
        for stop in (True, False):
            pieces = list(reader.model.stream(prompt, 12, stop=stop))
            written = reader.model.generate(prompt, 12, stop=stop)
            assert [piece.id for piece in pieces] == list(written.tokens)
            assert "".join(piece.text for piece in pieces) == written.text


def prompt(reader: Reader) -> None:
    """A prompt begins with BOS where the tokenizer adds it, once, and has no end."""
    tokenizer = reader.tokenizer
    for words in PROMPTS:
        ids = reader.model.to_tokens(words)[0].tolist()
        assert tokenizer.eos_token_id not in ids
        if not reader.kind.first:
            continue
        assert (ids[0] == tokenizer.bos_token_id) == reader.kind.bos
        assert ids.count(tokenizer.bos_token_id) == reader.kind.bos


def chat(reader: Reader) -> None:
    """A chat has the ids of `apply_chat_template`."""
    how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
    if reader.kind.chat:
        wanted = reader.tokenizer.apply_chat_template(CHAT, tokenize=True, **how)
        plain = reader.model.generate(torch.tensor(wanted), max_new_tokens=3, stop=False)
    answer = reader.model.chat(CHAT, max_new_tokens=3, stop=False)
    assert reader.kind.chat, "there is no template"
    assert answer.tokens == plain.tokens
    assert answer.logprobs == pytest.approx(plain.logprobs, abs=1e-5)


def words(reader: Reader) -> None:
    """The token that a word inside a text becomes is found by the word with its space, among decoded neurons too."""
    model = reader.model
    before = model.to_tokens("a", start=False)[0].tolist()
    found = 0
    table = wb.decode_neurons(model, weights="down", top_k=tiny.VOCAB // 2)
    for word in WORDS:
        inside = model.to_tokens(f"a{word}", start=False)[0].tolist()
        if inside[: len(before)] == before and len(inside) == len(before) + 1:
            assert model.token_texts(inside[-1:]) == [word]
            assert table.search(word, match="exact", limit=1)
            found += 1
    if not found:
        raise NotHere("no word is a single token")


def corpus(reader: Reader) -> None:
    """The windows of a corpus hold the tokens of its texts, each behind BOS where the tokenizer has such a token."""
    texts = tiny.TEXT.strip().splitlines()[:6]
    rows: dict[int, list[int]] = {}
    for batch in wb.Corpus(texts, "lines").batches(reader.model, 512, 2):
        for number, ids, mask in zip(batch.texts.tolist(), batch.tokens, batch.mask, strict=True):
            rows[number] = ids[mask].tolist()
    bos = reader.tokenizer.bos_token_id
    for number, ids in rows.items():
        plain = reader.tokenizer(texts[number], add_special_tokens=False).input_ids
        assert ids == (plain if bos is None else [bos, *plain])
    assert len(rows) == len(texts)


CAPABILITIES: dict[str, Callable[[Reader], None]] = {
    "text": text,
    "stream": stream,
    "prompt": prompt,
    "chat": chat,
    "words": words,
    "corpus": corpus,
}
"""By the name of their column."""
