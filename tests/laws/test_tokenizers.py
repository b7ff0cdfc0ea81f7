"""Every kind of tokenizer: a text goes on where its prompt ends, ids are those of the tokenizer and its template, and
docs/models.md says what is refused."""

from __future__ import annotations

import functools
from pathlib import Path

import models_page
import pytest
import tiny
import tokenizers_zoo
from outcomes import outcome
from tokenizer_capabilities import CAPABILITIES, PROMPTS, Reader

import workbench as wb

reader = functools.cache(Reader)


def test_the_page_has_every_kind_of_tokenizer() -> None:
    cells = models_page.tables()["tokenizer"]
    assert list(cells) == list(tokenizers_zoo.KINDS)
    assert len(cells) >= 8
    assert all(list(row) == list(CAPABILITIES) for row in cells.values())


@pytest.mark.parametrize("capability", list(CAPABILITIES))
@pytest.mark.parametrize("name", list(tokenizers_zoo.KINDS))
def test_a_tokenizer_does_what_the_page_says(name: str, capability: str, tiny_cache: Path) -> None:
    result, sentence = outcome(CAPABILITIES[capability], reader(name))
    assert result != "wrong", sentence
    models_page.check(models_page.tables()["tokenizer"][name][capability], result, sentence)


def test_a_stream_that_ends_inside_a_character_joins_to_the_text(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the turn is the token that the model writes where its text so far is half a character."""
    tried = 0
    for name in tokenizers_zoo.KINDS:
        if name == "bytes-larger":
            continue
        model, tokenizer = reader(name).model, reader(name).tokenizer
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


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_where_they_occur(
    tiny_cache: Path,
) -> None:
    model = Reader("bytes-larger").model
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
