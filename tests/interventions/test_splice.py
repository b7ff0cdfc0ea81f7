"""Splices against plain PyTorch hooks on the plain model, with dictionaries written out as dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny
import torch
from reference import PlainEdit, at_index, chosen, logits_under
from torch import Tensor, nn

import workbench as wb
from workbench.dictionaries.relu import SkipTranscoder, StandardSAE
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder
from workbench.model.in_force import InForce, in_force, uninterrupted

TOKENS = torch.tensor([[61, 258, 12, 300, 77, 5, 190, 33, 261, 88], [9, 270, 15, 42, 42, 101, 6, 330, 27, 3]])
PROMPT = 6
RESID, Z, MLP_IN, MLP_OUT = (
    "blocks.1.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.1.ln2.hook_out",
    "blocks.1.hook_mlp_out",
)
Vector = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _no_splice_left() -> Iterator[None]:
    yield
    assert in_force() == InForce()


@pytest.fixture(scope="module")
def plain() -> Any:
    """The plain twin of the tiny Llama."""
    return tiny.build("llama")


def filled(dictionary: Any, seed: int = 0) -> Any:
    """The dictionary with random weights everywhere."""
    chance = torch.Generator().manual_seed(seed)
    for parameter in dictionary.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=chance)
    return dictionary


def sae(seed: int = 0, hook_point: str = RESID) -> Any:
    return filled(TopKSAE(32, 48, 5, hook_point=hook_point, name=f"sae-{seed}"), seed)


def transcoder(seed: int = 1) -> Any:
    return filled(SkipTranscoder(32, 48, reads=MLP_IN, writes=MLP_OUT, name="skip"), seed)


def codes_by_hand(dictionary: Any, x: Tensor) -> Tensor:
    """Dense codes `[batch, width]` of vectors `[batch, d_in]`."""
    pre = (x - dictionary.b_dec if dictionary.kind in ("topk", "standard") else x) @ dictionary.W_enc + dictionary.b_enc
    if dictionary.kind.startswith("topk"):
        lowest = pre.sort(dim=1, descending=True).values[:, 4:5]  # k is 5
        pre = torch.where(pre >= lowest, pre, 0)
    return pre.clamp(min=0)


def by_hand(dictionary: Any, x: Tensor, codes: Tensor | None = None) -> Tensor:
    """The reconstruction `[batch, d_out]`."""
    made = (codes_by_hand(dictionary, x) if codes is None else codes) @ dictionary.W_dec + dictionary.b_dec
    return made if dictionary.W_skip is None else made + x @ dictionary.W_skip.T


def place(plain: Any, hook_point: str) -> tuple[nn.Module, str]:
    """Module and side of the plain model that a hook point of layer 1 is."""
    block = plain.model.layers[1]
    return {
        RESID: (block, "out"),
        Z: (block.self_attn.o_proj, "in"),
        MLP_IN: (block.post_attention_layernorm, "out"),
        MLP_OUT: (block.mlp, "out"),
    }[hook_point]


def hooks(plain: Any, dictionary: Any, hook_point: str, edit: Callable[[int, Tensor], Tensor] | None = None) -> list:
    """Plain hooks that replace the activation; `edit` changes the codes of a position."""
    seen: list[Tensor] = []
    counter = [0]

    def remember(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    def write(x: Tensor) -> Tensor:
        position = counter[0] % length[0]
        counter[0] += 1
        read = x if dictionary.reads in ("", hook_point) else seen.pop(0)
        codes = codes_by_hand(dictionary, read)
        return by_hand(dictionary, read, codes if edit is None else edit(position, codes))

    length = [TOKENS.shape[1]]
    edits = [PlainEdit(*place(plain, hook_point), write)]
    if dictionary.reads not in ("", hook_point):
        edits.insert(0, PlainEdit(*place(plain, dictionary.reads), remember))
    return edits


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=2e-5)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "sae on the residual stream": (sae, RESID),
    "sae on heads": (lambda: sae(2, Z), Z),
    "sae without hook points": (lambda: sae(3, ""), Z),
    "relu sae": (lambda: filled(StandardSAE(32, 40, hook_point=MLP_OUT)), MLP_OUT),
    "transcoder": (lambda: filled(TopKTranscoder(32, 48, 5, reads=MLP_IN, writes=MLP_OUT)), MLP_OUT),
    "skip transcoder": (transcoder, MLP_OUT),
}


@pytest.mark.parametrize("case", CASES)
def test_a_splice_equals_a_plain_hook(llama, plain, case: str) -> None:
    make, hook_point = CASES[case]
    dictionary = make()
    expected = logits_under(plain, TOKENS, hooks(plain, dictionary, hook_point))
    with llama.spliced({hook_point: dictionary}):
        found = llama(TOKENS)
    assert close(found, expected)
    assert not close(found, llama(TOKENS))


@pytest.mark.parametrize("case", CASES)
def test_interventions_act_on_the_codes_that_a_splice_decodes(llama, plain, case: str) -> None:
    make, hook_point = CASES[case]
    dictionary = make()
    f, g = dictionary.feature(7), dictionary.feature(11)

    def edit(position: int, codes: Tensor) -> Tensor:
        codes = codes.clone()
        if chosen("prompt", position, PROMPT):
            codes[:, 7] = 2.0
        codes[:, 7] = 3 * codes[:, 7]  # sees what the clamp left
        if position in (0, 8):
            codes[:, 11] += 1.5
        return codes

    edits = [wb.Clamp(f, 2.0, positions="prompt"), wb.Scale(f, 3.0), wb.Steer(g, 1.5, positions=[0, 8])]
    expected = logits_under(plain, TOKENS, hooks(plain, dictionary, hook_point, edit))
    with llama.spliced({hook_point: dictionary}), llama.intervening(edits):
        inner = llama(TOKENS, prompt_length=PROMPT)
    assert close(inner, expected)
    if dictionary.reads:  # else there is nowhere to act outside the splice
        with llama.intervening(edits), llama.spliced({hook_point: dictionary}):
            outer = llama(TOKENS, prompt_length=PROMPT)
        assert torch.equal(inner, outer), "whichever block is the outer one, the splice comes first"
    with llama.spliced({hook_point: dictionary}):
        assert not close(inner, llama(TOKENS))


def test_other_interventions_act_behind_the_splice(llama, plain) -> None:
    dictionary = sae()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(4))
    block, side = place(plain, RESID)
    gate = tiny.mlp(plain, 2)["gate"]
    expected = logits_under(
        plain,
        TOKENS,
        [
            *hooks(plain, dictionary, RESID),
            PlainEdit(block, side, lambda x: x + 0.5 * direction),
            PlainEdit(*gate, at_index(3, lambda old: torch.full_like(old, 4.0))),
        ],
    )
    edits = [wb.Steer.along(RESID, direction, 0.5), wb.Clamp("neurons.2.gate:3", 4.0)]
    with llama.intervening(edits), llama.spliced({RESID: dictionary}):
        assert close(llama(TOKENS), expected)


def test_several_splices_at_once_and_nested(llama, plain) -> None:
    one, other, last = sae(0, RESID), transcoder(), sae(5, RESID)
    two = [*hooks(plain, other, MLP_OUT), *hooks(plain, one, RESID)]
    expected = logits_under(plain, TOKENS, two)
    with llama.spliced({RESID: one, MLP_OUT: other}):
        assert close(llama(TOKENS), expected)
        with llama.spliced({RESID: last}):  # reads what `one` wrote
            three = [*hooks(plain, other, MLP_OUT), *hooks(plain, one, RESID), *hooks(plain, last, RESID)]
            assert close(llama(TOKENS), logits_under(plain, TOKENS, three))
        assert close(llama(TOKENS), expected)
        with uninterrupted():
            assert close(llama(TOKENS), logits_under(plain, TOKENS))


def test_capture_sees_the_reconstruction(llama, plain) -> None:
    dictionary = sae(2, Z)
    before = llama.capture(TOKENS, [Z])[Z]
    with llama.spliced({Z: dictionary}):
        after = llama.capture(TOKENS, [Z])[Z]
    assert after.shape == before.shape == (2, 10, 4, 8)
    assert close(after.reshape(-1, 32), by_hand(dictionary, before.reshape(-1, 32)))


@pytest.mark.parametrize("case", CASES)
def test_cached_generation_equals_full_passes(llama, plain, case: str) -> None:
    make, hook_point = CASES[case]
    dictionary = make()
    edits = [wb.Clamp(dictionary.feature(7), 2.0, positions="generated")]
    with llama.spliced({hook_point: dictionary}):
        written = llama.generate(TOKENS[0, :PROMPT], 8, interventions=edits, stop=False).tokens
        whole = torch.cat([TOKENS[:1, :PROMPT], torch.tensor([written])], 1)
        with llama.intervening(edits):
            uncached = llama(whole, prompt_length=PROMPT)[0, PROMPT - 1 : -1]
        without = llama.generate(TOKENS[0, :PROMPT], 8, stop=False).tokens
    assert uncached.argmax(-1).tolist() == written

    tokens = TOKENS[:1, :PROMPT]
    for _ in range(8):  # hooks count positions, so that they are made anew for each length
        scores = logits_under(plain, tokens, hooks(plain, dictionary, hook_point))[0, -1]
        tokens = torch.cat([tokens, scores.argmax().view(1, 1)], 1)
    assert without == tokens[0, PROMPT:].tolist()


def test_padded_rows_get_what_they_get_alone(llama) -> None:
    short, long = TOKENS[0, :4], TOKENS[1, :9]
    dictionary = transcoder()
    edits = [wb.Clamp(dictionary.feature(3), 1.0, positions=[1, 2]), wb.Scale(dictionary.feature(3), 2.0)]
    with llama.spliced({MLP_OUT: dictionary, RESID: sae()}):
        both = llama.generate_batch([short, long], 5, interventions=edits, stop=False)
        alone = [llama.generate(one, 5, interventions=edits, stop=False) for one in (short, long)]
    assert [one.tokens for one in both] == [one.tokens for one in alone]
    for one, other in zip(both, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_comparison_inside_a_splice_compares_spliced_models(llama) -> None:
    dictionary = sae()
    with llama.spliced({RESID: dictionary}):
        both = wb.compare(llama, "The dog ran", [wb.Clamp(dictionary.feature(7), 9.0)], 6, stop=False)
        plain = llama.generate("The dog ran", 6, stop=False)
        edited = llama.generate("The dog ran", 6, interventions=[wb.Clamp(dictionary.feature(7), 9.0)], stop=False)
    assert both.baseline.tokens == plain.tokens
    assert both.edited.tokens == edited.tokens
    assert max(both.kl) > 0


def test_a_perfect_dictionary_changes_nothing_and_zero_is_ablation(llama, plain) -> None:
    perfect = StandardSAE(32, 64, hook_point=MLP_OUT)
    perfect.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], 1))
    perfect.W_dec.data = perfect.W_enc.T.clone()
    with llama.spliced({MLP_OUT: perfect}):
        assert close(llama(TOKENS), logits_under(plain, TOKENS))
    perfect.W_dec.data.zero_()
    with llama.spliced({MLP_OUT: perfect}):
        found = llama(TOKENS)
    assert close(found, logits_under(plain, TOKENS, [PlainEdit(*place(plain, MLP_OUT), torch.zeros_like)]))


def test_threads_do_not_see_each_others_splice(llama) -> None:
    makes = [lambda: {}, lambda: {RESID: sae()}, lambda: {Z: sae(2, Z)}, lambda: {MLP_OUT: transcoder()}] * 2

    def run(mapping: dict[str, Any]) -> list[int]:
        with llama.spliced(mapping):
            return llama.generate(TOKENS[0], 6, stop=False).tokens

    with llama.spliced({RESID: sae(9)}), ThreadPoolExecutor(len(makes)) as pool:  # a new thread begins without it
        at_once = list(pool.map(run, [make() for make in makes]))
    alone = [run(make()) for make in makes]
    assert at_once == alone
    assert len({tuple(tokens) for tokens in alone}) > 1


def test_a_splice_belongs_to_one_model(llama) -> None:
    other = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    before = other(TOKENS)
    with llama.spliced({RESID: sae()}):
        assert torch.equal(other(TOKENS), before)


def test_nothing_remains_after_an_exception(llama) -> None:
    before = llama(TOKENS)
    with pytest.raises(ZeroDivisionError), llama.spliced({RESID: sae()}):
        raise ZeroDivisionError
    assert torch.equal(llama(TOKENS), before)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "width": (lambda: {RESID: TopKSAE(16, 32, 4, name="narrow")}, wb.dictionaries.DictionaryError, "width 16"),
    "own width": (lambda: {RESID: TopKSAE(16, 32, 4, hook_point=RESID)}, wb.dictionaries.DictionaryError, "width 16"),
    "hook point": (lambda: {"blocks.9.hook_resid_post": sae()}, wb.model.HookPointError, "did you mean"),
    "its own place": (lambda: {"blocks.0.hook_resid_post": sae()}, wb.dictionaries.DictionaryError, "writes at"),
    "order": (
        lambda: {MLP_IN: TopKTranscoder(32, 48, 5, reads=MLP_OUT, writes=MLP_IN)},
        wb.dictionaries.DictionaryError,
        "before",
    ),
    "pattern": (lambda: {"blocks.0.attn.hook_pattern": sae(0, "")}, Exception, "blocks.0.attn.hook_pattern"),
    "no mapping": (lambda: [sae()], wb.model.EditError, "by hook point"),
    "no dictionary": (lambda: {RESID: "sae"}, wb.model.EditError, "by hook point"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_spliced_is_refused_in_one_sentence(llama, case: str) -> None:
    make, kind, words = REFUSED[case]
    before = llama(TOKENS)
    with pytest.raises(kind) as refused, llama.spliced(make()):
        pytest.fail("the block was entered")
    assert words in str(refused.value)
    assert str(refused.value).count("\n") == 0
    assert torch.equal(llama(TOKENS), before)


@pytest.mark.real
def test_default_model_through_a_transcoder(model, plain_default) -> None:
    dictionary = filled(TopKTranscoder(576, 1024, 5, reads="blocks.15.ln2.hook_out", writes="blocks.15.hook_mlp_out"))
    block = plain_default.model.layers[15]
    tokens = model.to_tokens("My favourite animal is a")
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    edits = [
        PlainEdit(block.post_attention_layernorm, "out", remember),
        PlainEdit(block.mlp, "out", lambda x: by_hand(dictionary, seen.pop(0))),
    ]
    with model.spliced({"blocks.15.hook_mlp_out": dictionary}):
        assert torch.allclose(model(tokens), logits_under(plain_default, tokens, edits), rtol=0, atol=1e-3)
