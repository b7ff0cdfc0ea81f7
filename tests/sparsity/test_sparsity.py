"""PPL-p% sparsity against loops over neurons, models whose answer is known, and an independent forward pass."""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from grammar import sentences
from reference import PlainEdit, logits_under
from torch import Tensor

import workbench as wb
from workbench.corpus import Corpus, CorpusError
from workbench.sparsity.curves import CettCurve, CurveMeter
from workbench.sparsity.evaluation import Sample
from workbench.sparsity.masking import above, cett, down_weights, strongest
from workbench.sparsity.outcome import PassSums
from workbench.sparsity.search import Search

TOKENS = torch.tensor([[61, 258, 12, 300, 77, 5, 190, 33, 261, 88, 7]])
NAN, INF = float("nan"), float("inf")


def zeroed_by_loop(module: Any, layer: int, threshold: float) -> PlainEdit:
    """Neuron by neuron: what contributes less than the threshold is set to zero."""
    place, side = tiny.mlp(module, layer)["post"]
    written = tiny.weights(module, layer)["down"]

    def change(vector: Tensor) -> Tensor:
        vector = vector.clone()
        for row in range(len(vector)):
            for neuron in range(vector.shape[1]):
                if float((vector[row, neuron] * written[neuron]).norm()) < threshold:
                    vector[row, neuron] = 0
        return vector

    return PlainEdit(place, side, change)


# ---- CETT


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_cett_by_a_loop_over_neurons(zoo, name: str) -> None:
    model, plain = zoo[name], tiny.build(name)
    point = model.network.neuron_hook_point(1, "post").name
    values = model.capture(TOKENS, [point])[point][0]
    written = tiny.weights(plain, 1)["down"]
    for threshold in (0.0, 0.02, 0.2, 1.0, 1e9):
        said = cett(values, down_weights(model)[1], above(threshold, written.norm(dim=1)))
        for token in range(len(values)):
            lost, whole = torch.zeros(32).double(), torch.zeros(32).double()
            for neuron in range(len(written)):
                contribution = (values[token, neuron] * written[neuron]).double()
                whole += contribution
                if float(contribution.norm()) < threshold:
                    lost += contribution
            assert float(said[token]) == pytest.approx(float(lost.norm() / whole.norm()), rel=1e-4, abs=1e-7)


def test_the_curve_has_the_cett_of_its_thresholds(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    sample = Sample.read(learned, corpus, lambda _: None, tokens=600, context=64, batch=4, seed=0)
    meter = CurveMeter(learned)
    with torch.inference_mode():
        sample.run_plain(meter.add)
    for layer, curve in enumerate(meter.curves()):
        assert curve.cett == sorted(set(curve.cett))
        assert curve.thresholds == sorted(set(curve.thresholds))
        point = learned.network.neuron_hook_point(layer, "post").name
        values = torch.cat([learned.capture(one.tokens, [point])[point][one.content] for one in sample.batches])
        weights = down_weights(learned)[layer]
        for threshold, value in zip(curve.thresholds, curve.cett, strict=True):
            exact = float(cett(values, weights, above(threshold, weights.norm(dim=1))).mean())
            assert exact == pytest.approx(value, rel=1e-3), "but for the neuron whose size is the threshold"
        for wanted in (0.03, 0.1, 0.3, 0.6):  # between the points
            read_off = above(curve.threshold(wanted), weights.norm(dim=1))
            assert float(cett(values, weights, read_off).mean()) == pytest.approx(wanted, rel=0.15)


def test_between_two_points_a_curve_is_a_power_law() -> None:
    curve = CettCurve([1e-30, 1.0, 4.0, 9.0], [0.0, 0.1, 0.2, 1.0])
    assert curve.threshold(0.0) == 1e-30
    assert curve.threshold(0.05) == pytest.approx(0.5)
    assert curve.threshold(0.1 * 2**0.5) == pytest.approx(2.0)
    assert curve.threshold(0.2) == pytest.approx(4.0)
    assert curve.threshold(7.0) == 9.0


# ---- Known answers


def three_quarters_idle() -> tuple[Any, Corpus]:
    """A GPT-2 of one layer, of whose 40 neurons 10 always write the same, which helps, and 30 contribute nothing."""
    plain = tiny.build("gpt2", n_layer=1)
    corpus = Corpus(sentences(40, 2), "sentences")
    part = plain.transformer.h[0].mlp
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    part.c_fc.weight.zero_()
    part.c_proj.weight.zero_()
    part.c_fc.bias.fill_(3.0)
    part.c_fc.bias[::8] = -1e4  # five neurons that GELU switches off
    help_ = part.c_proj.bias.zero_().requires_grad_()
    ids = torch.tensor([tiny.tokenizer()(text).input_ids[:60] for text in corpus.texts])
    step = torch.optim.Adam([help_], 0.3)
    for _ in range(60):  # what the neurons shall write together
        step.zero_grad()
        plain(input_ids=ids, labels=ids).loss.backward()
        step.step()
    help_.requires_grad_(False)
    useful = [neuron for neuron in range(40) if neuron % 8 in (1, 5)]
    value = torch.nn.functional.gelu(torch.tensor(3.0), approximate="tanh")
    for neuron in useful:
        part.c_proj.weight[neuron] = help_ / len(useful) / value
    for neuron in range(0, 40, 8):
        part.c_proj.weight[neuron] = 5.0  # would write much, if it were ever on
    help_.zero_()
    return plain, corpus


def test_where_three_quarters_contribute_nothing_sparsity_is_three_quarters(zoo) -> None:
    plain, corpus = three_quarters_idle()
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    found = wb.sparsity.measure_sparsities(model, corpus, [0.001, 0.01, 0.1], 2000, context=64, batch=16, resamples=50)
    for one in found:
        assert one.sparsity == 0.75
        assert one.by_layer == [0.75]
        assert one.reported.intervals["sparsity"] == (0.75, 0.75)
        assert one.ppl_increase == pytest.approx(0, abs=1e-6)
        assert {baseline.sparsity for baseline in one.baselines.values()} == {0.75}
    everything = wb.measure_sparsity(model, corpus, 1e6, 2000, context=64, batch=16, resamples=50)
    assert everything.sparsity == 1


def test_neurons_of_a_model_that_needs_none_are_all_left_out(zoo) -> None:
    plain = tiny.build("llama")
    for block in plain.model.layers:
        block.mlp.down_proj.weight.data.zero_()
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    found = wb.measure_sparsity(model, Corpus(sentences(20, 3)), 0.01, 600, context=64, batch=16, resamples=20)
    assert (found.sparsity, found.ppl_increase) == (1, 0)


# ---- Leaving out


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_sparse_model_is_the_model_with_zeros_put_in(zoo, name: str) -> None:
    model, plain = zoo[name], tiny.build(name)
    thresholds = [0.1 + 0.05 * layer for layer in range(model.network.n_layers)]
    expected = logits_under(
        plain, TOKENS, [zeroed_by_loop(plain, layer, threshold) for layer, threshold in enumerate(thresholds)]
    )
    sparse = wb.sparsity.with_sparsity(model, thresholds)
    assert torch.allclose(sparse(TOKENS), expected, atol=1e-4)
    assert not torch.allclose(sparse(TOKENS), model(TOKENS), atol=1e-2)
    assert torch.allclose(model(TOKENS), logits_under(plain, TOKENS), atol=1e-4)
    assert torch.equal(wb.sparsity.with_sparsity(model, 0)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("activation", ["relu", "gelu", "relu2", "tanh", "silu"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_activation_function(tiny_cache: Path, name: str, activation: str) -> None:
    changes = {"hidden_act" if name == "llama" else "activation_function": activation}
    plain = tiny.build(name, **changes)
    model = wb.load_model(tiny.build(name, **changes), tokenizer=tiny.tokenizer())
    sparse = wb.sparsity.with_sparsity(model, 0.2)
    edits = [zeroed_by_loop(plain, layer, 0.2) for layer in range(model.network.n_layers)]
    assert torch.allclose(sparse(TOKENS), logits_under(plain, TOKENS, edits), atol=1e-4)
    corpus = Corpus(sentences(16, 4))
    outcome, _ = wb.sparsity.measure_at_thresholds(model, 0.0, corpus, 200, context=64, batch=16, resamples=5)
    assert outcome.ppl_increase == pytest.approx(0, abs=1e-6)
    assert (outcome.sparsity > 0.3) == (activation in ("relu", "relu2"))


def test_the_sparse_model_writes_and_is_compared(
    learned: wb.model.LanguageModel, found: list[wb.sparsity.Sparsity]
) -> None:
    sparse = wb.sparsity.with_sparsity(learned, found[0])
    assert sparse.hash != learned.hash
    assert sparse.plain_hash == learned.plain_hash
    text = learned.to_tokens("The small dog")[0]
    written = sparse.generate(text, 6, stop=False).tokens
    for length in range(6):  # by full passes, without a cache
        row = torch.cat([text, torch.tensor(written[:length], dtype=torch.long)])[None]
        assert int(sparse(row)[0, -1].argmax()) == written[length]
    both = wb.compare(sparse, "The small dog", [wb.Clamp("neurons.1.gate:7", 9.0)], 5, stop=False)
    assert both.baseline.tokens == written[:5]
    again = wb.sparsity.measure_at_thresholds(
        sparse, found[0], Corpus(sentences(20, 8)), 400, context=64, batch=16, resamples=5
    )[0]
    assert again.sparsity > 0.1
    with pytest.raises(wb.sparsity.SparsityError, match="already"):
        wb.sparsity.with_sparsity(sparse, 0.5)
    with pytest.raises(wb.model.ModelError, match="thresholds"):
        wb.interventions.save_model(sparse, "nowhere")


def test_the_strongest_are_chosen_token_by_token() -> None:
    values = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    norms = torch.rand(12, generator=torch.Generator().manual_seed(1)) + 0.1
    for share, kept in ((0.0, 12), (0.25, 9), (0.5, 6), (1.0, 0)):
        mask = strongest(share, norms)(values)
        for token in range(7):
            sizes = [abs(float(values[token, neuron])) * float(norms[neuron]) for neuron in range(12)]
            best = sorted(range(12), key=lambda neuron: -sizes[neuron])[:kept]
            assert mask[token].nonzero()[:, 0].tolist() == sorted(best)
    assert not strongest(0.0, norms)(torch.zeros(1, 12)).any(), "what contributes nothing takes no part"


# ---- The search


def line(rises: Any, top: float = 1.0) -> tuple[Search, list[float]]:
    """A search over a known curve, and the settings that it has tried."""
    tried: list[float] = []

    def run(setting: float) -> PassSums:
        tried.append(setting)
        loss = 200.0 + math.log1p(rises(setting)) * 100
        tokens, predictions, plain, masked, left_out = torch.tensor([50.0, 100.0, 200.0, loss, 50 * setting]).double()
        return PassSums(tokens[None], predictions[None], plain[None], masked[None], left_out[None, None])

    return Search(run, top), tried


@pytest.mark.parametrize("guess", [0.001, 0.1, 0.9])
@pytest.mark.parametrize("power", [0.5, 1, 2, 4])
def test_a_power_law_takes_few_passes(power: float, guess: float) -> None:
    search, tried = line(lambda setting: 3 * setting**power)
    point = search.find(0.01, 0.0005, guess)
    assert point.ppl_increase == pytest.approx(0.01, abs=0.0005)
    assert point.setting == pytest.approx((0.01 / 3) ** (1 / power), rel=0.2)
    assert len(tried) <= 7
    assert search.find(0.01, 0.0005, 0.5) is point, "what is known costs nothing"


def test_a_jump_ends_below_it_and_plenty_at_the_top() -> None:
    search, _ = line(lambda setting: 0.0 if setting < 0.37 else 2.0)
    assert search.find(0.01, 0.0005, 0.2).ppl_increase == 0
    search, _ = line(lambda setting: 1e-5 * setting)
    assert search.find(0.01, 0.0005, 0.2).setting == 1.0
    search, _ = line(lambda setting: 5.0 if setting > 0 else 0.0)
    assert search.find(0.01, 0.0005, 0.2).setting == 0


# ---- The measurement


def test_perplexity_rises_by_what_was_asked(learned: wb.model.LanguageModel, corpus: Corpus, found: list) -> None:
    for p, one in zip([0.05, 0.005, 0.01], found, strict=True):
        assert one.asked == p
        assert one.ppl_increase == pytest.approx(p, abs=0.001)
        assert 0.02 < one.sparsity < 0.9
        assert one.sparsity == pytest.approx(sum(one.by_layer) / 3)
        independent = wb.sparsity.verify_sparsity(learned, one, corpus)
        assert independent[0] == pytest.approx(one.ppl_increase, abs=2e-5)
        assert independent[1] == pytest.approx(one.reported.ppl_increase, abs=2e-5)
        low, high = one.reported.intervals["ppl_increase"]
        assert low < one.reported.ppl_increase < high
        for layer, value in enumerate(one.cett_by_layer):
            assert value == pytest.approx(one.cett, rel=0.2), layer


def test_an_answer_says_where_it_is_not_what_was_asked(found: list[wb.sparsity.Sparsity]) -> None:
    assert not any(one.warnings for one in found)
    one = found[2]
    few = replace(one, reported=replace(one.reported, texts=1), calibrated=replace(one.calibrated, ppl_increase=0.004))
    missed, texts = few.warnings
    assert "by 0.40%" in missed
    assert "Only 1 text to report on" in texts


def test_larger_p_never_gives_less(
    learned: wb.model.LanguageModel, corpus: Corpus, found: list[wb.sparsity.Sparsity]
) -> None:
    by_p = sorted(found, key=lambda one: one.asked)
    for one, more in itertools.pairwise(by_p):
        assert all(low <= high for low, high in zip(one.thresholds, more.thresholds, strict=True))
        assert one.sparsity <= more.sparsity
        for name in one.baselines:
            assert one.baselines[name].sparsity <= more.baselines[name].sparsity
    alone = [
        wb.measure_sparsity(learned, corpus, p, 2048, baselines=(), context=64, batch=16, resamples=5).sparsity
        for p in (0.001, 0.003, 0.01, 0.1, 1.0)
    ]
    assert alone == sorted(alone)


def test_baselines_stand_at_the_same_rise(found: list[wb.sparsity.Sparsity]) -> None:
    for one in found:
        for baseline in one.baselines.values():
            assert baseline.calibrated.ppl_increase == pytest.approx(one.asked, abs=0.002)
        assert len(set(one.baselines["top_k"].calibrated.by_layer)) == 1
        for points in one.curves.values():
            settings, shares, _ = zip(*points, strict=True)
            assert list(settings) == sorted(settings)
            assert list(shares) == sorted(shares)


def test_found_on_some_texts_it_holds_on_others(
    learned: wb.model.LanguageModel, found: list[wb.sparsity.Sparsity]
) -> None:
    for one in found:
        assert one.calibrated.texts + one.reported.texts <= 120
        second, by_layer = wb.sparsity.measure_at_thresholds(
            learned, one, Corpus(sentences(80, 77)), 2048, context=64, batch=16, resamples=200
        )
        for name in ("sparsity", "ppl_increase"):
            (low, high), (lowest, highest) = one.reported.intervals[name], second.intervals[name]
            assert low <= highest, name
            assert lowest <= high, name
        assert by_layer == pytest.approx(one.cett_by_layer, rel=0.2)


def test_shares_by_a_loop(learned: wb.model.LanguageModel, found: list[wb.sparsity.Sparsity]) -> None:
    """The counted share, from what the sparse model itself has at its neurons."""
    text = sentences(1, 9)[0]
    outcome, _ = wb.sparsity.measure_at_thresholds(
        learned, found[0], Corpus([text]), 4096, context=64, batch=16, resamples=5
    )
    sparse = wb.sparsity.with_sparsity(learned, found[0])
    ids = learned.tokenizer(text, add_special_tokens=False).input_ids
    parts = -(-len(ids) // 64)
    idle, loss, count = 0, 0.0, 0  # a window's first token does not count
    for part in range(parts):
        row = torch.tensor([ids[part * len(ids) // parts : (part + 1) * len(ids) // parts]])
        points = [learned.network.neuron_hook_point(layer, "post").name for layer in range(3)]
        seen = sparse.capture(row, points)  # what comes in, before neurons are left out
        for layer, name in enumerate(points):
            sizes = seen[name][0].abs() * down_weights(learned)[layer].norm(dim=1)
            idle += int((sizes < found[0].thresholds[layer])[1:].sum())
        logits = sparse(row)[0].double().log_softmax(-1)
        for place in range(1, row.shape[1] - 1):
            loss -= float(logits[place, row[0, place + 1]])
            count += 1
    assert outcome.sparsity == pytest.approx(idle / ((len(ids) - parts) * 48 * 3))
    assert outcome.ce == pytest.approx(loss / count, rel=1e-5)
    assert (outcome.tokens, outcome.predictions) == (len(ids) - parts, count)


def test_intervals_are_a_bootstrap_over_texts(learned: wb.model.LanguageModel) -> None:
    texts = sentences(4, 10)
    whole, _ = wb.sparsity.measure_at_thresholds(
        learned, 0.1, Corpus(texts), 4096, context=64, batch=16, resamples=7, seed=5
    )
    drawn = torch.randint(4, (7, 4), generator=torch.Generator().manual_seed(5)).tolist()
    each = [
        wb.sparsity.measure_at_thresholds(learned, 0.1, Corpus([text]), 4096, context=64, batch=16, resamples=1)[0]
        for text in texts
    ]
    shares, rises = [], []
    for draw in drawn:
        some = [each[text] for text in draw]
        shares.append(sum(one.sparsity * one.tokens for one in some) / sum(one.tokens for one in some))
        more = sum((one.ce - one.ce_plain) * one.predictions for one in some) / sum(one.predictions for one in some)
        rises.append(math.expm1(more))
    for name, values in (("sparsity", shares), ("ppl_increase", rises)):
        ends = torch.tensor(values).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        assert whole.intervals[name] == pytest.approx(tuple(ends), rel=1e-3, abs=1e-5)


def test_passes_are_counted_as_they_are_run(
    learned: wb.model.LanguageModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = []
    run = learned.network.run

    @functools.wraps(run)
    def counted(tokens: Tensor, *rest: Any, **how: Any) -> Tensor:
        positions.append(tokens.numel())
        return run(tokens, *rest, **how)

    monkeypatch.setattr(learned.network, "run", counted)
    stages: list[wb.sparsity.Sparsity] = []
    shares: list[float] = []
    how: dict[str, Any] = {
        "context": 64,
        "batch": 16,
        "resamples": 5,
        "progress": lambda share, _: shares.append(share),
    }
    one = wb.measure_sparsity(learned, corpus, 0.01, 2048, on_update=stages.extend, **how)
    assert one.passes == pytest.approx(sum(positions) / one.provenance["positions"])
    assert one.passes < 14
    assert [stage.early for stage in stages] == [True, False, False, False]
    assert [len(stage.baselines) for stage in stages] == [0, 0, 1, 2]
    assert stages[-1] == one
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert stages[0].sparsity == pytest.approx(one.sparsity, rel=0.5)


def test_stopped_it_gives_what_there_is(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    stages: list[Any] = []
    how: dict[str, Any] = {"context": 64, "batch": 16, "resamples": 5, "on_update": stages.append}
    found = wb.measure_sparsity(learned, corpus, 0.01, 2048, cancel=lambda: bool(stages), **how)
    assert found.early
    assert found == stages[0][0]
    with pytest.raises(wb.sparsity.SparsityError, match="stopped before"):
        wb.measure_sparsity(learned, corpus, 0.01, 2048, cancel=lambda: True, **how)


def test_what_is_in_force_is_set_aside(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    how: dict[str, Any] = {"context": 64, "batch": 16, "resamples": 5, "baselines": ()}
    alone = wb.measure_sparsity(learned, corpus, 0.01, 512, **how)
    with learned.intervening([wb.Clamp("neurons.1.gate:7", 9.0)]):
        again = wb.measure_sparsity(learned, corpus, 0.01, 512, **how)
    assert again == alone


def test_texts_held_out_by_the_caller(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    other = Corpus(sentences(30, 5), "other")
    one = wb.measure_sparsity(
        learned, corpus, 0.01, 1024, held_out=other, baselines=(), context=64, batch=16, resamples=5
    )
    assert [said["name"] for said in one.provenance["corpora"]] == ["sentences", "other"]
    assert wb.sparsity.verify_sparsity(learned, one, corpus, other)[1] == pytest.approx(
        one.reported.ppl_increase, abs=2e-5
    )
    with pytest.raises(wb.sparsity.SparsityError, match="other texts"):
        wb.sparsity.verify_sparsity(learned, one, corpus)


def test_results_as_files(found: list[wb.sparsity.Sparsity], tmp_path: Path) -> None:
    wb.sparsity.save_sparsities(found, tmp_path / "found.json")
    said = json.loads((tmp_path / "found.json").read_text())
    assert [one["sparsity"] for one in said] == [one.sparsity for one in found]
    assert said[0]["thresholds"] == found[0].thresholds
    wb.sparsity.save_sparsities(found, tmp_path / "found.parquet")
    table = pq.read_table(tmp_path / "found.parquet").to_pandas()
    assert len(table) == 3 * 3 * 3
    mine = table[(table["asked"] == 0.01) & (table["measure"] == "cett")]
    assert mine["sparsity"].tolist() == found[2].by_layer
    assert mine["threshold"].tolist() == found[2].thresholds
    with pytest.raises(wb.sparsity.SparsityError, match="json or"):
        wb.sparsity.save_sparsities(found, tmp_path / "found.csv")


# ---- Refused in one sentence


@pytest.mark.parametrize("p", [0, -0.01, NAN, INF, "1%", None, True])
def test_a_bad_p(learned: wb.model.LanguageModel, corpus: Corpus, p: Any) -> None:
    with pytest.raises(wb.sparsity.SparsityError, match="above 0") as caught:
        wb.measure_sparsity(learned, corpus, p)
    assert "\n" not in str(caught.value)


def test_bad_texts(learned: wb.model.LanguageModel) -> None:
    with pytest.raises(wb.sparsity.SparsityError, match="corpus is a Corpus"):
        wb.measure_sparsity(learned, "stories")  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match="no text at all"):
        wb.measure_sparsity(learned, Corpus([" "]))
    for texts, words in ((["a", "b", "c"], "no two tokens"), (["The dog ran."], "one distinct text")):
        with pytest.raises(CorpusError, match=words):
            wb.measure_sparsity(learned, Corpus(texts))


def test_bad_settings(learned: wb.model.LanguageModel, corpus: Corpus) -> None:
    for how, words in (
        ({"tokens": 0}, "tokens is"),
        ({"tokens": 1}, "tokens is"),
        ({"tokens": 2.5}, "tokens is"),
        ({"context": 1}, "context is"),
        ({"batch": 0}, "batch is"),
        ({"resamples": 0}, "resamples is"),
        ({"baselines": ["top"]}, "baselines is a list of 'fixed' or 'top_k'"),
    ):
        with pytest.raises(wb.sparsity.SparsityError, match=words):
            wb.measure_sparsity(learned, corpus, 0.01, **how)
    with pytest.raises(wb.sparsity.SparsityError, match="list of shares"):
        wb.sparsity.measure_sparsities(learned, corpus, [])


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [([0.1], "1 threshold"), ([0.1, NAN, 0.1], "from 0"), (-1, "from 0"), ("high", "one for each"), (None, "number")],
)
def test_bad_thresholds(learned: wb.model.LanguageModel, thresholds: Any, words: str) -> None:
    with pytest.raises(wb.sparsity.SparsityError, match=words):
        wb.sparsity.with_sparsity(learned, thresholds)
