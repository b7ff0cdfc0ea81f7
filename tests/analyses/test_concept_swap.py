"""The study of swapped concepts on a tiny model: its pairs, its control, its shares and its page."""

from __future__ import annotations

import pytest
import torch

import workbench as wb
from analyses.concept_swap import page, pairs, rows, study, swaps


def test_pairs_are_fixed_and_many():
    found = pairs.read_pairs()
    assert len(found) >= 40
    assert len({(one.prompt, one.concepts) for one in found}) == len(found)
    assert all(one.concepts[0].strip() in one.prompt and len({*one.concepts, *one.answers}) > 2 for one in found)


def test_random_directions_have_the_lengths_and_the_angle():
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    drawn = swaps.like(vectors, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn @ drawn.T, vectors @ vectors.T, rtol=1e-4, atol=1e-4)


def test_the_whole_study(llama: wb.model.LanguageModel, tmp_path):
    texts = ["The dog ran to the river and the cat ran to the house."] * 2
    lens = wb.lens.fit_jacobian_lens(llama, texts, skip=2, context=8)
    words = ["a", "b", "c", "d"]
    asked = [pairs.Pair("any", "The dog ran", (words[0], words[1]), (words[2], words[3]))]
    asked += [pairs.Pair("any", "A cat sat", (words[0], words[1]), (words[3], words[2]))]
    plan = swaps.Plan(layers=(0, 1), amounts=(1.0,), draws=2)
    results = study.experiment(llama, lens, asked, plan, tmp_path)
    assert (results["pairs"], results["asked"]) == (2, 2)
    row = results["rows"][0]
    one = next(swap for swap in row["swaps"] if swap["by"] == "jacobian" and swap["layer"] == 1)
    ids = [swaps.single(llama, word) for word in words]
    with llama.intervening(lens.swap(llama, ids[0], ids[1], [1])):
        logits = llama("The dog ran")[0, -1]
    assert one["difference"] == pytest.approx(float(logits[ids[3]] - logits[ids[2]]), abs=1e-4)
    again = study.experiment(llama, lens, asked, plan, tmp_path)
    assert again["by_layer"] == results["by_layer"]
    assert "random directions" in page.write_page(tmp_path, results).read_text()
    assert rows.published_rows(results)[0].here
