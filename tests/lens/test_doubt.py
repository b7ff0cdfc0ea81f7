"""Doubt, early exit and words of a text, against loops on plain transformers."""

from __future__ import annotations

import pytest
import tiny
import torch
import zoo
from test_read_lens import IDS, plain_logits

import workbench as wb
from workbench.lens import LensError, measure_early_exit, read_doubt, read_words


@pytest.fixture(scope="module")
def model():
    return wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def logs():
    return plain_logits(zoo.build("llama"), "llama").log_softmax(-1)  # [layers, pos, vocab]


def test_doubt_of_each_token(model, logs):
    doubt = read_doubt(model, IDS)
    assert doubt.surprise[0].isnan()
    for place in range(len(IDS)):
        final = logs[-1, place]
        if place:
            assert torch.isclose(doubt.surprise[place], -logs[-1, place - 1, IDS[place]], atol=1e-4)
        best = final.exp().topk(2).values
        assert torch.isclose(doubt.margin[place], best[0] - best[1], atol=1e-5)
        same = [int(row.argmax()) == int(final.argmax()) for row in logs[:, place]]
        first = next(layer for layer in range(len(same)) if all(same[layer:]))
        assert int(doubt.settled[place]) == first


def test_doubt_is_of_the_model_as_it_predicts(model):
    direction = torch.randn(model.network.d_model, generator=torch.Generator().manual_seed(1)).tolist()
    edit = wb.Steer.along("blocks.0.hook_resid_post", direction, 3.0)
    with model.intervening([edit]):
        logs = model(torch.as_tensor(IDS)[None])[0].log_softmax(-1)
    wanted = -logs[:-1].gather(1, torch.as_tensor(IDS)[1:, None])[:, 0]
    torch.testing.assert_close(read_doubt(model, IDS, interventions=[edit]).surprise[1:], wanted, atol=1e-4, rtol=0)
    for behind in ("ln_final.hook_in", "ln_final.hook_out"):
        with pytest.raises(LensError, match="predicts otherwise than its last layer's stream"):
            read_doubt(model, IDS, interventions=[wb.Steer.along(behind, direction, 3.0)])
        with (
            model.intervening([wb.Steer.along(behind, direction, 3.0)]),
            pytest.raises(LensError, match=f"acts behind it, at {behind}"),
        ):
            wb.read_lens(model, IDS)


def test_spans_are_the_stretches_of_low_surprise(model):
    doubt = read_doubt(model, IDS)
    bound = float(doubt.surprise[1:].median())
    found = doubt.spans(at_most=bound, least=1)
    covered = {place for first, last in found for place in range(first, last + 1)}
    assert covered == {place for place in range(1, len(IDS)) if float(doubt.surprise[place]) <= bound}
    assert all(last - first >= 1 for first, last in doubt.spans(at_most=bound, least=2))
    assert doubt.spans(at_most=1e9, least=1) == [(1, len(IDS) - 1)]


def test_early_exit_is_a_loop_over_tokens(model):
    corpus = wb.Corpus(tiny.TEXT.strip().split("\n"))
    confidences = (0.0, 0.02, 1.0)
    found = measure_early_exit(model, corpus, confidences=confidences, tokens=10_000, context=24, resamples=20)
    left, agreed, total = torch.zeros(3, zoo.LAYERS), torch.zeros(3), 0
    for batch in corpus.batches(model, tokens=10_000, context=24, batch=1):
        grid = wb.read_lens(model, batch.tokens[0], top_k=1)
        for place in batch.content[0].nonzero()[:, 0].tolist():
            total += 1
            for number, confidence in enumerate(confidences):
                rows = [layer for layer in range(zoo.LAYERS - 1) if grid.probabilities[layer, place, 0] >= confidence]
                exit = min(rows, default=zoo.LAYERS - 1)
                left[number, exit:] += 1
                agreed[number] += int(grid.ids[exit, place, 0] == grid.ids[-1, place, 0])
    for number, result in enumerate(found):
        assert result.tokens == total
        torch.testing.assert_close(torch.tensor(result.left), left[number] / total)
        assert float(result.agreement.value) == pytest.approx(float(agreed[number] / total))
    assert found[0].left[0] == 1
    assert float(found[2].agreement.value) == 1
    assert float(found[2].layers.value) == pytest.approx(1)


def test_words_are_the_saturated_maximum_over_positions(model):
    with torch.no_grad():
        logits = zoo.build("llama")(input_ids=IDS[None]).logits[0]
    expected = logits.clamp(min=0).log1p().amax(0)
    words = read_words(model, IDS, top=12)
    torch.testing.assert_close(words.weights, expected.topk(12).values, rtol=1e-4, atol=1e-5)
    assert torch.equal(words.ids, expected.topk(12).indices)
    assert words.words == model.token_texts(words.ids)
    assert words.similarity(words) == pytest.approx(1)
    other = read_words(model, IDS.flip(0), top=12)
    vectors = [torch.zeros(len(expected)).index_put((one.ids,), one.weights) for one in (words, other)]
    assert words.similarity(other) == pytest.approx(float(torch.cosine_similarity(*vectors, dim=0)), abs=1e-5)


def test_wrong_requests_are_one_sentence(model):
    one_token = read_doubt(model, IDS[:1])
    assert one_token.surprise.isnan().all()
    assert one_token.spans() == []
    with pytest.raises(LensError, match="confidences"):
        measure_early_exit(model, wb.Corpus(["The dog ran."]), confidences=[1.5])
    with pytest.raises(wb.WorkbenchError):
        read_words(model, "")
