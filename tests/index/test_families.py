"""Families of features that were planted as groups, the map of them, and features of two dictionaries matched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from index_models import HOW, World, make_sae

import workbench as wb
from workbench.corpus import Corpus
from workbench.index import group_features, match_features
from workbench.index.lists import Lists


def test_cosines_of_lists_are_those_of_dense_vectors() -> None:
    chance = np.random.default_rng(0)
    dense = [chance.random((n, 40)) * (chance.random((n, 40)) < 0.2) for n in (7, 9)]
    lists = [Lists(*np.nonzero(one), one[np.nonzero(one)], len(one)) for one in dense]
    norms = [np.maximum(np.linalg.norm(one, axis=1), 1e-12) for one in dense]
    wanted = dense[0] @ dense[1].T / norms[0][:, None] / norms[1]
    assert lists[0].cosines(lists[1], slice(2, 7)) == pytest.approx(wanted[2:7])


def test_planted_groups_are_families(llama, corpus: Corpus, tmp_path: Path) -> None:
    """Twelve latents of each of two directions, with a little noise: two families, apart on the map."""
    sae = make_sae()
    chance = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 32, generator=chance)
    rows = centres.repeat_interleave(12, 0) + 0.05 * torch.randn(24, 32, generator=chance)
    with torch.no_grad():
        sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc_T.copy_(sae.W_dec)
    index = wb.build_index(llama, sae, corpus, tmp_path / "i", **HOW)
    live = index.statistics["active"] > 0
    found = group_features(index, sae, least=0.3)
    truth = np.repeat([0, 1], 12)
    for one in range(len(found)):
        assert len({*truth[found.members(one)]}) == 1
    assert (found.family[~live] == -1).all()
    assert np.isnan(found.places[~live]).all()
    assert np.isfinite(found.places[live]).all()
    sizes = [len(found.members(one)) for one in range(len(found))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1


def test_matches_find_the_same_features_again(sae_world: World, tmp_path: Path) -> None:
    model, sae = sae_world.model, sae_world.dictionary
    mixed = make_sae()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name in ("W_dec", "W_enc_T", "b_enc"):
            getattr(mixed, name).copy_(getattr(sae, name)[order])
    one, two = (
        wb.build_index(model, each, sae_world.corpus, tmp_path / str(number), **HOW)
        for number, each in enumerate((sae, mixed))
    )
    found = match_features(two, one)
    live = found.live
    assert np.array_equal(found.other[live], order.numpy()[live])
    assert found.likeness[live] == pytest.approx(1, abs=1e-3)
    assert found.lacking == []
    apart = wb.build_index(model, make_sae(7), sae_world.corpus, tmp_path / "x", **HOW)
    assert len(match_features(one, apart).lacking) > 12
    short = wb.build_index(model, mixed, sae_world.corpus, tmp_path / "s", tokens=200, **HOW)
    for wrong in (short, wb.open_index(tmp_path / "1")):
        with pytest.raises(wb.index.FeatureIndexError):
            match_features(one, wrong)
    with pytest.raises(wb.index.FeatureIndexError, match="not of"):
        group_features(one, make_sae(3))


def test_families_are_of_the_neurons_of_the_index(sae_world: World, tmp_path: Path) -> None:
    index = wb.build_index(sae_world.model, "neurons.1.up", sae_world.corpus, tmp_path / "i", **HOW)
    assert index.dictionary is not None
    width = index.n_features
    other = wb.dictionaries.neurons.Neurons("neurons.0.up", "blocks.0.mlp.hook_up", width)
    for wrong in (other, make_sae()):
        with pytest.raises(wb.index.FeatureIndexError, match="not of"):
            group_features(index, wrong)
    assert len(group_features(index, index.dictionary).family) == width
