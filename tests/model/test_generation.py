"""Generation: greedy as Hugging Face generates, sampling as the softmax says, text without broken characters."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import tiny
import torch
from reference import greedy, logits_under
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import workbench as wb
from workbench.model.edits import Edit
from workbench.model.prompts import ChatPrompt
from workbench.model.sampling import FIRST_LOOK

PROMPTS = [
    "The dog ran to",
    "What is your favourite animal? My favourite",
    "a",
    "Once upon a time there was a small green",
]
TRICKY = "Grüße 🐶🐱 aus Zürich — дом, 犬, ❤️‍🔥 a\u0301 \u200d, \tx\n\n  end 👩‍👩‍👧"


def hugging_face(module: torch.nn.Module, rows: list[list[int]], count: int, **how) -> list[list[int]]:
    """What Hugging Face's own `generate` adds to each row, left-padded as one batch."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    module.generation_config.eos_token_id = how.pop("eos", None)
    out = module.generate(
        tokens, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0, use_cache=True, **how
    )
    return out[:, longest:].tolist()


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_greedy_equals_hugging_face(zoo, name: str) -> None:
    for prompt in PROMPTS:
        (expected,) = hugging_face(tiny.build(name), [tiny.tokenizer()(prompt).input_ids], 16)
        found = zoo[name].generate(prompt, 16, stop=False)
        assert found.tokens == expected
        assert found.text == tiny.tokenizer().decode(expected, skip_special_tokens=True)
        assert (found.prompt, found.stopped) == (prompt, "length")


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_padded_batch_writes_what_each_row_writes_alone(zoo, name: str) -> None:
    batch = zoo[name].generate_batch(PROMPTS, 12, stop=False)
    alone = [zoo[name].generate(prompt, 12, stop=False) for prompt in PROMPTS]
    assert [row.tokens for row in batch] == [row.tokens for row in alone]
    assert [row.prompt for row in batch] == PROMPTS
    for one, other in zip(batch, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    rows = [tiny.tokenizer()(prompt).input_ids for prompt in PROMPTS]
    assert [row.tokens for row in batch] == hugging_face(tiny.build(name), rows, 12)


@pytest.mark.parametrize("rule", ["all", "prompt", "generated", (1, 4)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_padded_batch_is_edited_as_each_row_alone(zoo, name: str, rule) -> None:
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    edits = [wb.Clamp("neurons.1.post:7", 4.0, positions=rule), wb.Steer("neurons.0.up:3", -2.0)]
    batch = zoo[name].generate_batch(prompts, 12, interventions=edits, stop=False)
    alone = [zoo[name].generate(prompt, 12, interventions=edits, stop=False) for prompt in prompts]
    assert [row.tokens for row in batch] == [row.tokens for row in alone]
    assert [row.tokens for row in alone] != [row.tokens for row in zoo[name].generate_batch(prompts, 12, stop=False)]


@pytest.mark.parametrize("rule", ["all", "prompt", "generated", (1, 4)], ids=str)
@pytest.mark.parametrize(
    ("name", "hook"), [("llama", "attn.hook_rot_q"), ("gpt2", "attn.hook_q"), ("mistral", "attn.hook_rot_q")]
)
def test_a_padded_batch_is_edited_alike_where_only_the_bridge_can(zoo, name: str, hook: str, rule) -> None:
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    edits = [wb.Steer.along(f"blocks.1.{hook}", torch.linspace(-2, 2, 32), positions=rule)]
    batch = zoo[name].generate_batch(prompts, 12, interventions=edits, stop=False)
    alone = [zoo[name].generate(prompt, 12, interventions=edits, stop=False) for prompt in prompts]
    assert [row.tokens for row in batch] == [row.tokens for row in alone]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_cached_tokens_and_logprobs_equal_full_passes(zoo, name: str) -> None:
    tokens = torch.tensor(tiny.tokenizer()([PROMPTS[0]]).input_ids)
    expected, logprobs = greedy(tiny.build(name), tokens, 12)
    found = zoo[name].generate(tokens, 12, stop=False)
    assert found.tokens == expected
    assert found.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_logprobs_are_of_the_model_as_it_ran_and_before_temperature(llama) -> None:
    edits = [wb.Clamp("neurons.1.gate:7", 9.0)]
    found = llama.generate(PROMPTS[0], 12, temperature=1.7, top_k=40, seed=3, interventions=edits, stop=False)
    prompt = llama.to_tokens(PROMPTS[0])
    whole = torch.cat([prompt, torch.tensor([found.tokens])], 1)
    with llama.intervening(edits):
        scores = llama(whole, prompt_length=prompt.shape[1])[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
    expected = scores.gather(-1, torch.tensor(found.tokens)[:, None])[:, 0].tolist()
    assert found.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.real
def test_default_model_writes_what_hugging_face_writes(model, plain_default) -> None:
    prompts = ["The dog ran to", "In 1969 two astronauts walked on the Moon, while"]
    rows = [model.to_tokens(prompt)[0].tolist() for prompt in prompts]
    together = [row.tokens for row in model.generate_batch(prompts, 8, stop=False)]
    assert together == hugging_face(plain_default, rows, 8)
    assert model.generate(prompts[0], 8, stop=False).tokens == together[0]


@pytest.mark.real
def test_chat_answers_and_stops_at_the_end_of_its_turn(model, plain_default) -> None:
    message = "What is the capital of France?"
    found = model.chat(message, 40)
    prompt = model.chat_prompt(message)
    assert prompt == model.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith(f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n")
    assert "Paris" in found.text
    assert found.stopped == "end"
    (expected,) = hugging_face(plain_default, [model.to_tokens(prompt)[0].tolist()], 40, eos=2)
    assert [*found.tokens, 2] == expected
    assert len(found.logprobs) == len(found.tokens)
    assert "<|im_end|>" not in found.text


@pytest.mark.real
@pytest.mark.parametrize("text", ["The dog ran to", TRICKY, "1,234.5 + 67", "<b>&amp;</b> <script>", "   "])
def test_default_tokenizer_gives_back_every_text(model, text: str) -> None:
    tokens = model.to_tokens(text)
    assert model.to_text(tokens) == text
    assert model.to_text(tokens[0].tolist()) == text
    assert all(len(word) <= 1 for word in model.token_texts(tokens) if word.strip().isdigit()), "digits stand alone"


def test_stops_at_the_end_of_a_turn_and_each_row_on_its_own(tiny_cache) -> None:
    free = [row.tokens for row in wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer()).generate_batch(
        PROMPTS, 25, stop=False)]  # fmt: skip
    end = free[0][9]
    model = wb.load_model(tiny.build("llama", eos_token_id=end), tokenizer=tiny.tokenizer())
    assert end in model.stop_tokens
    found = model.generate_batch(PROMPTS, 25)
    for row, whole in zip(found, free, strict=True):
        stops = [place for place, token in enumerate(whole) if token in model.stop_tokens]
        assert row.tokens == whole[: stops[0] if stops else None]
        assert row.stopped == ("end" if stops else "length")
        assert len(row.logprobs) == len(row.tokens)
    assert [row.tokens for row in model.generate_batch(PROMPTS, 25, stop=False)] == free
    assert [token.id for token in model.stream(PROMPTS[0], 25)] == found[0].tokens
    assert len(found[0].tokens) <= 9


# --- sampling


def test_the_same_seed_writes_the_same_and_another_does_not(llama) -> None:
    how = {"temperature": 1.0, "stop": False}
    once = llama.generate(PROMPTS[0], 20, seed=5, **how)
    assert llama.generate(PROMPTS[0], 20, seed=5, **how) == once
    assert llama.generate(PROMPTS[0], 20, sampling=wb.model.Sampling(1.0, seed=5), stop=False) == once
    assert llama.generate(PROMPTS[0], 20, seed=6, **how).tokens != once.tokens
    torch.manual_seed(123)
    torch.rand(7)
    assert llama.generate(PROMPTS[0], 20, seed=5, **how) == once, "the global random state was used"


def test_sampling_leaves_the_global_random_state_alone(llama) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    llama.generate(PROMPTS[0], 5, temperature=1.0)
    wb.compare(llama, PROMPTS[0], [wb.Clamp("neurons.1.gate:7", 3.0)], 5, sampling=wb.model.Sampling(1.0), control=True)
    assert torch.equal(torch.rand(3), expected)


def test_row_i_of_a_batch_draws_with_seed_plus_i(llama) -> None:
    batch = llama.generate_batch([PROMPTS[0]] * 4, 15, temperature=1.3, seed=20, stop=False)
    for row, found in enumerate(batch):
        assert found.tokens == llama.generate(PROMPTS[0], 15, temperature=1.3, seed=20 + row, stop=False).tokens


LOGITS = torch.tensor([2.0, 1.0, 1.5, -1.0, 0.0, -3.0, 1.2, 0.3])


def draw(sampling: wb.model.Sampling, logits: Tensor = LOGITS, count: int = 1500) -> Tensor:
    """Shares of the tokens among many draws."""
    drawn = sampling.choose(logits.expand(count, -1), sampling.generators(count))
    return torch.bincount(drawn, minlength=len(logits)) / count


def by_hand(temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The distribution that the settings name, token by token."""
    shares = [math.exp(logit / temperature) for logit in LOGITS.tolist()]
    order = sorted(range(len(shares)), key=lambda token: -shares[token])
    order = order[:top_k]
    total = sum(shares[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        if top_p is not None and mass >= top_p:
            break
        kept.append(token)
        mass += shares[token] / total
    rest = sum(shares[token] for token in kept)
    return torch.tensor([shares[token] / rest if token in kept else 0.0 for token in range(len(shares))])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.8, 1.0])
def test_draws_follow_the_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    expected = by_hand(temperature, top_k, top_p)
    found = draw(wb.model.Sampling(temperature, top_k, top_p))
    assert (found[expected == 0] == 0).all()
    allowed = 5 * (expected * (1 - expected) / 1500).sqrt() + 1e-9
    assert ((found - expected).abs() <= allowed).all(), (found, expected)


def test_top_p_of_a_flat_distribution_looks_beyond_the_likeliest() -> None:
    size = 4 * FIRST_LOOK
    logits = torch.linspace(0, 1e-3, size)
    found = draw(wb.model.Sampling(1.0, top_p=0.75), logits, 2000)
    drawn = found.nonzero().flatten()
    assert size // 4 - 3 <= int(drawn.min()) <= size // 4 + 20
    assert len(drawn) > FIRST_LOOK


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_a_row_draws_the_same_alone_and_beside_a_flat_one(top_p: float) -> None:
    size = 4 * FIRST_LOOK
    chance = torch.Generator().manual_seed(0)
    peaked = 6 * torch.randn(3, size, generator=chance)
    flat = torch.linspace(0, 1e-3, size)[None]
    rows = torch.cat([peaked[:2], flat, peaked[2:]])
    for seed in range(20):
        sampling = wb.model.Sampling(1.0, top_p=top_p, seed=seed)
        together = sampling.choose(rows, sampling.generators(4))
        alone = [sampling.choose(rows[row : row + 1], sampling.generators(4)[row : row + 1]) for row in range(4)]
        assert together.tolist() == torch.cat(alone).tolist()


# --- settings of Hugging Face's generate


@pytest.mark.parametrize("penalty", [1.3, 0.7, 5.0])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_repetition_penalty_equals_hugging_face(zoo, name: str, penalty: float) -> None:
    sampling = wb.model.Sampling(repetition_penalty=penalty)
    for prompt in PROMPTS:
        (expected,) = hugging_face(
            tiny.build(name), [tiny.tokenizer()(prompt).input_ids], 16, repetition_penalty=penalty
        )
        assert zoo[name].generate(prompt, 16, sampling=sampling, stop=False).tokens == expected
    alone = [zoo[name].generate(prompt, 16, sampling=sampling, stop=False).tokens for prompt in PROMPTS]
    batch = zoo[name].generate_batch(PROMPTS, 16, sampling=sampling, stop=False)
    assert [row.tokens for row in batch] == alone, "padding counts as a token of the prompt"


def test_min_new_tokens_equals_hugging_face(llama) -> None:
    model = copy.copy(llama)
    free = model.generate(PROMPTS[0], 20, stop=False).tokens
    model.stop_tokens = frozenset({free[4]})
    assert len(model.generate(PROMPTS[0], 20).tokens) <= 4
    for least in (3, 9, 20):
        found = model.generate(PROMPTS[0], 20, sampling=wb.model.Sampling(min_new_tokens=least))
        rows = [tiny.tokenizer()(PROMPTS[0]).input_ids]
        (expected,) = hugging_face(tiny.build("llama"), rows, 20, eos=free[4], min_new_tokens=least)
        assert found.tokens == [token for token in expected if token != free[4]]


def test_stop_strings_equal_hugging_face(llama) -> None:
    seen = 0
    for prompt in PROMPTS:
        free = llama.generate(prompt, 20, stop=False)
        pieces = llama.text_pieces(free.tokens, llama.to_tokens(prompt))
        middle = next(piece for piece in pieces[5:] if piece.strip() and piece.isascii())
        for strings in ([middle], ["zzz", middle[-1:]], [prompt[-1] + pieces[0]]):
            rows = [tiny.tokenizer()(prompt).input_ids]
            how = {"stop_strings": strings, "tokenizer": tiny.tokenizer()}
            (expected,) = hugging_face(tiny.build("llama"), rows, 20, **how)
            found = llama.generate(prompt, 20, sampling=wb.model.Sampling(stop=strings), stop=False)
            assert found.tokens == expected
            assert (found.stopped == "end") == (len(found.tokens) < 20 or any(one in found.text for one in strings))
            streamed = list(llama.stream(prompt, 20, sampling=wb.model.Sampling(stop=strings), stop=False))
            assert [token.id for token in streamed] == found.tokens
            both = wb.compare(llama, prompt, [], 20, sampling=wb.model.Sampling(stop=strings), stop=False)
            assert both.baseline.tokens == both.edited.tokens == found.tokens
            seen += found.stopped == "end"
    assert seen >= 4


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-38, 1e-6, 1e-3])
def test_a_cold_temperature_is_greedy(temperature: float) -> None:
    assert draw(wb.model.Sampling(temperature), count=50)[0] == 1
    assert draw(wb.model.Sampling(temperature, top_k=3, top_p=0.9), count=50)[0] == 1


def test_generated_tokens_stay_within_top_k(llama) -> None:
    tokens = llama.generate(PROMPTS[0], 30, temperature=3.0, top_k=4, seed=1, stop=False).tokens
    prompt = llama.to_tokens(PROMPTS[0])
    scores = logits_under(tiny.build("llama"), torch.cat([prompt, torch.tensor([tokens])], 1))[0]
    ranks = [
        int((scores[prompt.shape[1] - 1 + n] > scores[prompt.shape[1] - 1 + n, token]).sum())
        for n, token in enumerate(tokens)
    ]
    assert max(ranks) == 3
    assert min(ranks) == 0


# --- text as it comes


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_streamed_pieces_join_to_the_text(zoo, name: str) -> None:
    """Random models write many broken characters, also at the very end."""
    for seed in range(6):
        sampling = wb.model.Sampling(1.5, seed=seed)
        whole = zoo[name].generate(PROMPTS[0], 18, sampling=sampling, stop=False)
        streamed = list(zoo[name].stream(PROMPTS[0], 18, sampling=sampling, stop=False))
        assert [token.id for token in streamed] == whole.tokens
        assert [token.logprob for token in streamed] == whole.logprobs
        assert "".join(token.text for token in streamed) == whole.text


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind: bytes for what it lacks, and a text's first space is dropped."""
    words = ["<unk>", "▁the", "▁dog", "s", "▁", "ü", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    strip = decoders.Strip(" ", 1, 0)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<unk>", clean_up_tokenization_spaces=False)


def pieces_of(model: wb.model.LanguageModel, tokens: list[int]) -> list[str]:
    return model.text_pieces(tokens)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_no_piece_holds_a_broken_character(llama, kind: str) -> None:
    model = copy.copy(llama)
    if kind == "sentencepiece":
        model.tokenizer = metaspace()
        tokens = [1, 2, 3, 1, 5, 2, 6 + 0xF0, 6 + 0x9F, 6 + 0x90, 6 + 0xB6, 2, 6 + 0xC3, 6 + 0xA9, 3, 4, 1]
        text = "the dogs theü dog🐶 dogés  the"
    else:
        text = TRICKY
        tokens = model.to_tokens(text)[0].tolist()
    pieces = pieces_of(model, tokens)
    assert "".join(pieces) == model.to_text(tokens) == text
    assert not any("�" in piece for piece in pieces)
    assert sum(not piece for piece in pieces) >= 4, "this text has characters of several tokens"


@pytest.mark.real
def test_default_model_streams_several_byte_characters_whole(model) -> None:
    pieces = pieces_of(model, model.to_tokens(TRICKY)[0].tolist())
    assert "".join(pieces) == TRICKY
    assert not any("�" in piece for piece in pieces)


@pytest.mark.real
def test_default_model_streams_what_it_generates(model) -> None:
    whole = model.generate("Three animals:", 12)
    streamed = list(model.stream("Three animals:", 12))
    assert [token.id for token in streamed] == whole.tokens
    assert "".join(token.text for token in streamed) == whole.text


def test_a_stream_comes_token_by_token(llama) -> None:
    """Nothing is computed ahead: an edit that counts passes has seen one pass per token taken.

    Only behind a token inside a character there is one more, which says whether the text ends there.
    """
    passes = []

    class Count:
        def bind(self, model, plan):
            return [Edit("blocks.0.hook_out", lambda x: passes.append(len(x)) or x)]

    seen = 0
    for prompt in PROMPTS:
        passes.clear()
        for taken, token in enumerate(llama.stream(prompt, 10, interventions=[Count()], stop=False), 1):
            assert taken <= len(passes) <= taken + (token.text == "")
            seen += token.text != ""
        assert len(passes) == taken == 10
    assert seen > 10


# --- prompts


def test_chat_template_of_messages(llama) -> None:
    assert llama.chat_prompt("hi") == "<|user|>hi<|end|><|assistant|>"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert llama.chat_prompt(turns) == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>"
    assert llama.chat("hi", 6) == llama.generate("<|user|>hi<|end|><|assistant|>", 6)


def with_start(template: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, but it puts `<|user|>` in front of every text."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.bos_token, tokenizer.chat_template = "<|user|>", template
    number = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", number)]
    )
    return tokenizer


def test_a_start_token_comes_once_whoever_writes_it(llama) -> None:
    model = copy.copy(llama)
    model.tokenizer = with_start("<|user|>{{ messages[0]['content'] }}")
    first = model.tokenizer.bos_token_id
    assert model.to_tokens("The dog")[0, 0] == first
    for text in ("The dog", model.chat_prompt("The dog")):
        assert model.to_tokens(text)[0].tolist().count(first) == 1
    assert torch.equal(model.to_tokens("The dog"), model.to_tokens(model.chat_prompt("The dog")))


def test_a_start_token_that_is_written_twice_stays(llama) -> None:
    model = copy.copy(llama)
    model.tokenizer = copy.deepcopy(tiny.tokenizer())
    model.tokenizer.bos_token = "<|user|>"
    text = "<|user|><|user|>The dog"
    assert model.to_tokens(text)[0].tolist() == tiny.tokenizer()(text).input_ids


def test_a_word_to_follow_gets_no_start_token(llama) -> None:
    """The word's own token is meant, not the one that this tokenizer begins texts with."""
    model = copy.copy(llama)
    model.tokenizer = with_start("{{ messages[0]['content'] }}")
    dog = tiny.tokenizer()(" dog").input_ids
    assert model.to_tokens(" dog", start=False)[0].tolist() == dog
    prompt = model.to_tokens("The")
    measured = wb.measures.dose_response(model, "The", " dog", [], lambda value: [])
    whole = torch.cat([prompt, torch.tensor([dog])], 1)
    scores = logits_under(tiny.build("llama"), whole)[0].log_softmax(-1)
    expected = sum(float(scores[prompt.shape[1] - 1 + n, token]) for n, token in enumerate(dog))
    assert measured.plain == pytest.approx(expected, abs=1e-4)
    written = wb.neurons.neurons_writing(model, " dog", top=1)[0][1]
    assert written == pytest.approx(wb.neurons.neurons_writing(llama, " dog", top=1)[0][1])


def test_a_chat_prompt_with_the_beginning_of_an_answer_is_still_one() -> None:
    prompt = ChatPrompt("[user]hi[assistant]")
    assert isinstance(prompt + "Sure", ChatPrompt)
    assert isinstance("\n" + prompt, ChatPrompt)
    assert prompt + "Sure" == "[user]hi[assistant]Sure"


def test_prompts_of_one_length_may_be_one_tensor_of_any_whole_type(llama: wb.model.LanguageModel) -> None:
    rows = torch.tensor([[3, 4, 5], [6, 7, 8]])
    listed = [one.tokens for one in llama.generate_batch(list(rows), 3)]
    assert [one.tokens for one in llama.generate_batch(rows, 3)] == listed
    assert [one.tokens for one in llama.generate_batch(rows.to(torch.uint8), 3)] == listed
    assert torch.equal(llama(rows.to(torch.int16)), llama(rows))


def test_prompts_as_tokens_or_text_are_the_same(llama) -> None:
    tokens = llama.to_tokens(PROMPTS[0])
    found = [llama.generate(prompt, 6).tokens for prompt in (PROMPTS[0], tokens, tokens[0], tokens[0].tolist())]
    assert found[0] == found[1] == found[2] == found[3]
    assert llama.generate(tokens, 6).prompt == PROMPTS[0]


def test_a_model_without_tokenizer_works_on_tokens(tiny_cache, llama) -> None:
    bare = wb.load_model(tiny.build("llama"))
    tokens = llama.to_tokens(PROMPTS[0])
    found = bare.generate(tokens, 6)
    assert found.tokens == llama.generate(tokens, 6).tokens
    assert (found.prompt, found.text) == ("", "")
    assert [token.id for token in bare.stream(tokens, 6)] == found.tokens


def test_the_context_can_be_filled_to_the_last_position(llama) -> None:
    tokens = torch.full((tiny.CONTEXT - 5,), 50)
    assert len(llama.generate(tokens, 5, stop=False).tokens) == 5
    with pytest.raises(wb.model.PromptError):
        llama.generate(tokens, 6)


def test_sampling_settings_as_one_or_apart(llama) -> None:
    apart = llama.generate(PROMPTS[0], 8, temperature=0.9, top_k=20, top_p=0.9, seed=4)
    assert apart == llama.generate(PROMPTS[0], 8, sampling=wb.model.Sampling(0.9, 20, 0.9, 4))


@pytest.mark.parametrize("word", ["cache", "past_key_values"])
def test_a_cache_is_handed_over_under_the_name_that_the_model_has_for_it(word: str, llama, tiny_cache) -> None:
    """Versions of transformers differ in it."""
    plain = tiny.build("llama")
    seen: list[Any] = []
    own = type(plain).forward

    def forward(self: Any, input_ids: Any = None, cache: Any = None, **how: Any) -> Any:
        assert "past_key_values" not in how
        seen.append(cache)
        return own(self, input_ids, past_key_values=cache, **how)

    if word == "cache":
        plain.__class__ = type(type(plain).__name__, (type(plain),), {"forward": forward})
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    seen.clear()
    assert model.generate(PROMPTS[0], 8, stop=False) == llama.generate(PROMPTS[0], 8, stop=False)
    assert len([one for one in seen if one is not None]) == (8 if word == "cache" else 0)
