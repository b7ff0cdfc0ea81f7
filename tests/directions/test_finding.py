"""Directions and probes that are found: against scikit-learn, closed forms, and a concept that was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from sklearn.covariance import ledoit_wolf as sk_ledoit_wolf
from sklearn.decomposition import TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import roc_auc_score

import workbench as wb
from workbench.directions import DirectionError, find_direction, find_directions, probe
from workbench.directions.linear import logistic, ridge
from workbench.directions.methods import METHODS, lda, ledoit_wolf, pca
from workbench.directions.samples import gather
from workbench.directions.separation import auc, auc_interval

D = 16
PLACE = "blocks.1.hook_resid_post"


def classes(n: int = 40, m: int = 50, d: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.2, 3, d)
    both = (torch.randn(n + m, d, generator=source) * spread).double()
    both[:n] += torch.linspace(1, 0, d).double()
    return both[:n], both[n:]


def cosine(one: torch.Tensor, other: torch.Tensor | np.ndarray) -> float:
    other = torch.as_tensor(other).double().flatten()
    return float(one.double() @ other / one.double().norm() / other.norm())


def planted(n: int = 80, length: int = 6) -> tuple[wb.model.LanguageModel, list, list, torch.Tensor]:
    """A model, token rows whose last tokens are of two sets, and the direction of the embedding that parts the sets."""
    source = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 90, (2 * n, length), generator=source)
    rows[:n, -1], rows[n:, -1] = torch.arange(100 + n, 100 + 2 * n), torch.arange(100, 100 + n)
    vector = torch.randn(D, generator=source)
    vector /= vector.norm()
    module = tiny.build("llama", hidden_size=D)
    weight = module.get_input_embeddings().weight
    with torch.no_grad():
        weight[100 + n : 100 + 2 * n] += 8 * weight.std() * vector
    return wb.load_model(module, tokenizer=tiny.tokenizer()), list(rows[:n]), list(rows[n:]), vector


# ---- linear models


def test_ridge_is_scikit_learns() -> None:
    positives, negatives = classes()
    x = torch.cat([positives, negatives])
    y = torch.cat([torch.ones(40), -torch.ones(50)]).double()
    found = ridge(x, y[:, None], 3.7)
    theirs = Ridge(3.7).fit(x, y)
    torch.testing.assert_close(found.weights[:, 0], torch.as_tensor(theirs.coef_))
    assert float(found.bias) == pytest.approx(theirs.intercept_)
    unit = float(torch.linalg.svdvals(x - x.mean(0)).square().mean())
    penalties = [unit * 10.0**power for power in range(-6, 4)]
    assert ridge(x, y[:, None]).penalty == pytest.approx(RidgeCV(penalties).fit(x, y).alpha_)


@pytest.mark.parametrize("wide", [False, True])
def test_logistic_is_scikit_learns(wide: bool) -> None:
    positives, negatives = classes(d=120 if wide else 12)
    x, y = torch.cat([positives, negatives]), torch.cat([torch.ones(40), -torch.ones(50)]).double()
    theirs = LogisticRegression(C=1 / 2.5, tol=1e-10, max_iter=10_000).fit(x, y).coef_[0]
    torch.testing.assert_close(logistic(x, y, 2.5), torch.as_tensor(theirs), rtol=1e-4, atol=1e-5)


def test_lda_and_its_shrinkage_are_scikit_learns() -> None:
    positives, negatives = classes()
    within = torch.cat([positives - positives.mean(0), negatives - negatives.mean(0)])
    share = ledoit_wolf(within)
    assert share == pytest.approx(sk_ledoit_wolf(within.numpy(), assume_centered=True)[1])
    x, y = torch.cat([positives, negatives]), [1] * 40 + [0] * 50
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(x, y).coef_[0]
    assert cosine(lda(positives, negatives), theirs) == pytest.approx(1, abs=1e-9)


def test_pca_is_scikit_learns() -> None:
    positives, negatives = classes(40, 40)
    theirs = TruncatedSVD(1, algorithm="arpack").fit((positives - negatives).numpy()).components_[0]
    assert abs(cosine(pca(positives, negatives), theirs)) == pytest.approx(1, abs=1e-9)
    assert float((positives - negatives).mean(0) @ pca(positives, negatives)) > 0
    with pytest.raises(DirectionError, match="takes pairs"):
        pca(positives, negatives[:-1])


def test_the_area_under_the_curve_is_scikit_learns() -> None:
    source = torch.Generator().manual_seed(2)
    positives = torch.randint(0, 9, (30,), generator=source).double() + 1
    negatives = torch.randint(0, 9, (25,), generator=source).double()
    labels = [1] * 30 + [0] * 25
    assert auc(positives, negatives) == pytest.approx(roc_auc_score(labels, torch.cat([positives, negatives])))
    low, high = auc_interval(positives, negatives, (torch.arange(30), torch.arange(25)))
    assert low < auc(positives, negatives) < high
    whole = auc_interval(positives, negatives, (torch.zeros(30), torch.arange(25)))
    assert all(math.isnan(one) for one in whole)  # one text says nothing of others


# ---- in a model


def test_samples_are_those_of_each_text_alone(llama: wb.model.LanguageModel) -> None:
    rows = [torch.arange(2, 2 + n) for n in (5, 9, 3, 7)]
    for position in ("last", "mean", "all"):
        samples = gather(llama, rows, [PLACE], position)
        alone = [llama.capture(row, [PLACE])[PLACE][0] for row in rows]
        wanted = {"last": [x[-1:] for x in alone], "mean": [x.mean(0, keepdim=True) for x in alone], "all": alone}
        torch.testing.assert_close(samples.values[PLACE], torch.cat(wanted[position]), rtol=1e-4, atol=1e-5)
        assert samples.texts.tolist() == [n for n, of in enumerate(wanted[position]) for _ in of]


@pytest.mark.parametrize("method", list(METHODS))
def test_a_planted_direction_is_found(method: str) -> None:
    model, positives, negatives, vector = planted()
    found = find_directions(model, positives, negatives, at=["hook_embed", PLACE], method=method)
    # classes that can be told apart without an error leave a logistic regression with those at the margin
    assert cosine(found["hook_embed"].vectors["hook_embed"], vector) > (0.85 if method == "logistic" else 0.95)
    assert found["hook_embed"].separation["hook_embed"].auc == 1.0
    assert all(float(one.vectors[name].norm()) == pytest.approx(1) for name, one in found.items())
    again = find_directions(model, positives, negatives, at="hook_embed", method=method)["hook_embed"]
    torch.testing.assert_close(again.vectors["hook_embed"], found["hook_embed"].vectors["hook_embed"])


def test_the_strength_moves_one_mean_to_the_other() -> None:
    model, positives, negatives, _ = planted()
    found = find_direction(model, positives, negatives, at=["hook_embed", PLACE])
    assert set(found.separation) == {"hook_embed", PLACE}
    (place,) = found.hook_points
    edit = wb.Steer.along(found, found.strength)
    with model.intervening([edit]):
        moved = gather(model, negatives, [place]).values[place] @ found.vectors[place]
    plain = gather(model, negatives, [place]).values[place] @ found.vectors[place]
    torch.testing.assert_close(moved - plain, torch.full_like(plain, found.strength), rtol=1e-4, atol=1e-4)


def test_random_classes_are_not_separated(llama: wb.model.LanguageModel) -> None:
    source = torch.Generator().manual_seed(3)
    rows = list(torch.randint(2, 90, (120, 5), generator=source))
    found = find_directions(llama, rows[:60], rows[60:], at=PLACE, method="logistic")[PLACE].separation[PLACE]
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.texts == (20, 20)


def test_what_can_not_be_found_is_said(llama: wb.model.LanguageModel) -> None:
    rows = [torch.tensor([3 + n, 5, 7]) for n in range(6)]
    for positives, negatives, how, words in (
        (rows[:2], rows[3:], {}, "2 positive texts"),
        (rows[:3], [], {}, "0 negative texts"),
        (rows[:3], rows[2:], {}, "1 text is positive and negative"),
        (rows[:3], rows[3:], {"method": "guess"}, "no method 'guess'"),
        (rows[:3], rows[3:], {"at": []}, "no hook point"),
        (rows[:3], rows[3:], {"at": "blocks.0.attn.hook_pattern"}, "no vector for each token"),
    ):
        with pytest.raises(DirectionError, match=words):
            find_direction(llama, positives, negatives, **how)


def test_a_probe_reads_what_is_there_and_its_controls_do_not() -> None:
    model, positives, negatives, vector = planted()
    read = probe(model, [*positives, *negatives], ["yes"] * 80 + ["no"] * 80, ["hook_embed", PLACE])
    first = read.scores[0]
    assert first.score == 1.0
    assert first.shuffled < 0.75
    assert read.chance == 0.5
    assert cosine(read.direction("hook_embed", "yes").vectors["hook_embed"], vector) > 0.95
    assert read.direction("hook_embed", "no").vectors["hook_embed"].tolist() == pytest.approx(
        (-read.direction("hook_embed", "yes").vectors["hook_embed"]).tolist(), abs=1e-6
    )
    rows = [*positives, *negatives]
    values = gather(model, rows, ["hook_embed"]).values["hook_embed"] @ vector
    numbers = probe(model, rows, values.tolist(), ["hook_embed"])
    assert numbers.labels == []
    assert numbers.scores[0].score > 0.98
    assert numbers.scores[0].shuffled < 0.5
    assert read.to_dict()["scores"][0]["selectivity"] == first.selectivity


def test_a_probe_of_nothing_is_at_chance(llama: wb.model.LanguageModel) -> None:
    source = torch.Generator().manual_seed(4)
    rows = list(torch.randint(2, 90, (60, 5), generator=source))
    labels = (torch.rand(60, generator=source) > 0.5).tolist()
    read = probe(llama, rows, labels, PLACE)
    assert read.scores[0].interval[0] < 0.6
    with pytest.raises(DirectionError, match="All labels are the same"):
        probe(llama, rows, [True] * 60)
    with pytest.raises(DirectionError, match="59 labels"):
        probe(llama, rows, labels[1:])


# ---- what would make a test look better than it is


def test_pairs_are_of_texts_and_of_as_many_of_both() -> None:
    model, positives, negatives, _ = planted(8)
    for how in ({"negatives": negatives[:6], "positives": positives[:5]}, {"position": "all"}):
        given = {"positives": positives, "negatives": negatives, "method": "pca", "at": PLACE} | how
        with pytest.raises(DirectionError, match="takes pairs"):
            find_direction(model, **given)  # after every third is left out 4 are left of 5 and of 6


def test_copies_of_a_text_stay_on_one_side() -> None:
    model = wb.load_model(tiny.build("llama", hidden_size=64), tokenizer=tiny.tokenizer())
    rows = list(torch.randint(2, 300, (24, 6), generator=torch.Generator().manual_seed(3)))
    copied = find_direction(model, rows[:12] * 4, rows[12:] * 4, method="ridge", at=PLACE).separation[PLACE]
    assert copied.texts == (16, 16)
    often = probe(model, rows * 4, [0, 1, 1] * 32, PLACE).scores[0]
    assert max(copied.auc, copied.folds, often.score) < 0.9  # nothing is there to be found but the texts themselves
    with pytest.raises(DirectionError, match="different texts"):
        find_direction(model, rows[:2] * 4, rows[12:14] * 4, at=PLACE)
    with pytest.raises(DirectionError, match="different texts"):
        probe(model, rows[:5] * 4, [0, 1] * 10, PLACE)


def test_a_control_that_is_the_same_for_all_is_none() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    rows = torch.randint(2, 300, (20, 5), generator=torch.Generator().manual_seed(3))
    rows[:, -1] = 7
    for labels in ([0, 1] * 10, [0.5 * one for one in range(20)]):
        read = probe(model, list(rows), labels, PLACE).scores[0]
        assert math.isnan(read.control)
        assert math.isnan(read.selectivity)
    assert probe(model, list(rows), labels, PLACE).to_dict()["scores"][0]["selectivity"] is None


def test_the_chance_of_tokens_counts_tokens() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    rows = torch.randint(2, 300, (20, 9), generator=torch.Generator().manual_seed(3))
    texts = [row[: 1 if number % 2 else 9] for number, row in enumerate(rows)]
    assert probe(model, texts, [0, 1] * 10, PLACE, position="all").chance == pytest.approx(0.9)
