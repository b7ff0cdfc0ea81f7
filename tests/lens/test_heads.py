"""Cards of heads against plain transformers' patterns and products of weights made by hand; heads set by hand."""

from __future__ import annotations

import pytest
import tiny
import torch
import zoo

import workbench as wb
from workbench.lens import LensError, find_heads, head_card, score_heads

CORPUS = wb.Corpus(tiny.TEXT.strip().split("\n"))


def opened(name: str):
    return zoo.build(name), wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_what_a_head_writes_is_the_product_of_the_weights(name):
    module, model = opened(name)
    layer, head, ids = 1, 3, [5, 77, 200]
    card = head_card(model, layer, head, CORPUS, sources=ids, promoted=tiny.VOCAB, top=2)
    with torch.no_grad():
        if name == "gpt2":
            block, final, unembed = module.transformer.h[layer], module.transformer.ln_f, module.lm_head.weight
            own = slice(64 + head * 8, 72 + head * 8)
            value, bias = block.attn.c_attn.weight[:, own], block.attn.c_attn.bias[own]
            stream, out = module.transformer.wte.weight[ids], block.attn.c_proj.weight[head * 8 :][:8]
            written = (block.ln_1(stream) @ value + bias) @ out
            written = written - written.mean(-1, keepdim=True)
            gain = final.weight
        else:
            block, final, unembed = module.model.layers[layer], module.model.norm, module.lm_head.weight
            attention, group = block.self_attn, head // 2
            value, out = attention.v_proj.weight[group * 8 :][:8].T, attention.o_proj.weight[:, head * 8 :][:, :8].T
            stream = module.model.embed_tokens.weight[ids] * 32**0.5
            written = block.input_layernorm(stream) @ value @ out * (1 + block.post_attention_layernorm.weight)
            gain = 1 + final.weight
        scores = written * gain @ unembed.T  # [n, vocab]
    for row, one in enumerate(card.writes):
        best, order = scores[row].sort(descending=True)
        torch.testing.assert_close(torch.tensor(one.scores), best[: len(one.scores)], rtol=1e-3, atol=1e-4)
        assert one.promoted[0] == model.token_texts(order[:1])[0]
        assert one.source == model.token_texts([ids[row]])[0]
    assert card.copying_chance == 5 / tiny.VOCAB


@pytest.mark.parametrize("weighted", ["pattern", "written"])
def test_the_pairs_are_the_largest_of_all_windows(weighted):
    module, model = opened("llama")
    layer, head = 2, 1
    card = head_card(model, layer, head, CORPUS, weighted=weighted, top=5, tokens=10_000)
    best: dict[tuple[int, int], float] = {}
    first = []
    for window in CORPUS.batches(model, context=64, batch=1):
        ids = window.tokens
        with torch.no_grad():
            pattern = module(input_ids=ids, output_attentions=True).attentions[layer][0, head]
        if weighted == "written":
            pattern = wb.lens.read_attention(model, ids[0], weighted="written").head(layer, head)
        else:
            first += pattern[1:, 0].tolist()
        for query in range(1, ids.shape[1]):
            for key in range(1, query + 1):
                pair = int(ids[0, query]), int(ids[0, key])
                best[pair] = max(best.get(pair, 0.0), float(pattern[query, key]))
    expected = sorted(best.values(), reverse=True)[:5]
    torch.testing.assert_close(
        torch.tensor([one.weight for one in card.pairs]), torch.tensor(expected), rtol=1e-3, atol=1e-5
    )
    for one in card.pairs:
        assert (one.text[one.query_position], one.text[one.key_position]) == (one.query, one.key)
    if first:
        assert abs(card.at_first - sum(first) / len(first)) < 1e-5
        assert card.tokens == len(first)


def test_the_copying_score_counts_by_hand():
    module, model = opened("llama")
    block = module.model.layers[0]
    ids = sorted({int(one) for b in CORPUS.batches(model, context=64) for one in b.tokens[b.content]})
    with torch.no_grad():
        value, out = block.self_attn.v_proj.weight[8:16].T, block.self_attn.o_proj.weight[:, 16:24].T
        written = block.input_layernorm(module.model.embed_tokens.weight[ids]) @ value @ out
        scores = written * module.model.norm.weight @ module.lm_head.weight.T
    ranks = (scores > scores[range(len(ids)), ids][:, None]).sum(1)
    card = head_card(model, 0, 2, CORPUS, top=1)
    assert len(ids) <= 128
    assert abs(card.copying - float((ranks < 5).float().mean())) < 1e-6
    assert [hit.score for hit in find_heads(model, "copying", layers=[0])]


def test_heads_set_by_hand_are_found():
    truth = wb.circuits.induction_model(seed=3)
    before, induct = map(tuple, truth.heads.nonzero().tolist())
    for behaviour, place in [("previous token", before), ("induction", induct)]:
        hit = find_heads(truth.model, behaviour)[0]
        assert (hit.layer, hit.head) == place
    assert find_heads(truth.model, "previous token")[0].score > 0.999
    task = truth.task(8)
    effects = wb.circuits.patch_components(truth.model, task).heads
    assert {(one.layer, one.head) for one in find_heads(truth.model, effects, top=2)} == {before, induct}
    names = {"Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Lee"}
    card = head_card(truth.model, *induct, wb.Corpus(list(task.positives)), promoted=1, top=8)
    assert card.pairs[0].weight > 0.999
    assert {one.key.strip() for one in card.pairs if one.weight > 0.999} <= names
    for one in card.writes:
        if one.source.strip() in names:
            assert one.promoted == [one.source]  # it writes the token that it attends to
    assert card.copying > 0.4
    assert head_card(truth.model, *before, wb.Corpus(list(task.positives))).previous > 0.999


def test_a_score_is_that_of_score_heads():
    _, model = opened("gpt2")
    scores = score_heads(model)
    card = head_card(model, 1, 2, CORPUS, tokens=40)
    for name in ("previous", "duplicate", "induction"):
        assert abs(getattr(card, name) - float(getattr(scores, name)[1, 2])) < 1e-6
    assert find_heads(model, "first token", layers=[1], top=1)[0].score == pytest.approx(float(scores.first[1].max()))


def test_wrong_requests_are_one_sentence():
    _, model = opened("llama")
    for call, words in [
        (lambda: head_card(model, 9, 0, CORPUS), "layers 0 to 2"),
        (lambda: head_card(model, 0, 9, CORPUS), r"no head 0\.9"),
        (lambda: head_card(model, 0, 0, CORPUS, sources=["The dog ran"]), "tokens for this model"),
        (lambda: find_heads(model, "smart"), "behaviour"),
        (lambda: find_heads(model, torch.zeros(2, 2)), r"\[layer, head\]"),
        (lambda: find_heads(model, torch.full((3, 4), torch.nan)), "not finite"),
        (lambda: head_card(model, 0, 0, wb.Corpus(["a"])), "no token that counts"),
    ]:
        with pytest.raises(LensError, match=words):
            call()


def test_a_head_that_writes_nothing_copies_nothing():
    module = tiny.build("gpt2")
    with torch.no_grad():
        module.transformer.h[1].attn.c_proj.weight[:8] = 0
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    assert {(one.layer, one.head): one.score for one in find_heads(model, "copying")}[1, 0] == 0
    assert head_card(model, 1, 0, CORPUS, top=1).copying == 0


def test_pairs_that_stand_often_hide_no_others():
    _, model = opened("llama")
    corpus = wb.Corpus(["dog the " * 40] * 20 + ["My cat is here"])
    pairs = head_card(model, 1, 0, corpus, top=20, context=64).pairs
    every = head_card(model, 1, 0, corpus, top=999, context=64).pairs
    assert [one.weight for one in pairs] == [one.weight for one in every][:20]
    assert len(pairs) == min(20, len(every)) > 12
