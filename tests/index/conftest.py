"""Indexes that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from index_models import HOW, TEXTS, World, make_sae

import workbench as wb
from workbench.corpus import Corpus
from workbench.interventions.features import dictionary_of


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Files are compared byte by byte, and sums are added in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(TEXTS, "forty")


@pytest.fixture(scope="module")
def sae_world(llama, corpus: Corpus, tmp_path_factory) -> World:
    sae = make_sae()
    return World(wb.build_index(llama, sae, corpus, tmp_path_factory.mktemp("i") / "sae", **HOW), llama, sae, corpus)


@pytest.fixture(scope="module")
def neuron_world(llama, corpus: Corpus, tmp_path_factory) -> World:
    path = tmp_path_factory.mktemp("i") / "neurons"
    index = wb.build_index(llama, "neurons.1.gate", corpus, path, keep=90, **HOW)
    return World(index, llama, dictionary_of(llama, "neurons.1.gate:0"), corpus)


@pytest.fixture(scope="module")
def unbroken(llama, corpus: Corpus, tmp_path_factory) -> Path:
    """An SAE and neurons indexed in one pass."""
    path = tmp_path_factory.mktemp("unbroken")
    wb.index.build_indexes(llama, {path / "sae": make_sae(), path / "neurons": "neurons.0.post"}, corpus, **HOW)
    return path
