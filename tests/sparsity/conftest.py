"""A tiny model that has learned a grammar, and what is measured on it: trained and measured once for all files."""

from __future__ import annotations

import pytest
from grammar import sentences

import workbench as wb
from workbench.corpus import Corpus


@pytest.fixture(scope="session")
def learned(zoo) -> wb.model.LanguageModel:
    """A tiny Llama that has learned the grammar."""
    return wb.training.fine_tune(zoo["llama"], Corpus(sentences(200, 0)), tokens=60_000, lr=3e-3, batch=16, context=64)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Texts that it has not seen."""
    return Corpus(sentences(120, 1), "sentences")


@pytest.fixture(scope="session")
def found(learned: wb.model.LanguageModel, corpus: Corpus) -> list[wb.sparsity.Sparsity]:
    """One measurement for three p."""
    return wb.sparsity.measure_sparsities(
        learned, corpus, [0.05, 0.005, 0.01], 4096, context=64, batch=16, resamples=200
    )
