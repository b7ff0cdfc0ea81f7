"""A corpus, dictionaries and indexes for the tests of the room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import workbench as wb
from workbench.corpus import Corpus
from workbench.dictionaries.topk import TopKSAE
from workbench.harvest import Activations, Harvest
from workbench.index.feature_index import FeatureIndex

POINT = "blocks.1.hook_resid_post"

ANIMALS = ("dog", "cat", "mouse", "boat 🚤", "bird", "naïve horse")

TEXTS = [
    f"Story {number}. The {ANIMALS[number % 6]} ran to the river. " * (number % 5 + 1) + f"End {number % 7}!"
    for number in range(40)
]

HOW = {"context": 48, "batch": 4}


def make_sae(seed: int = 0) -> TopKSAE:
    return TopKSAE(32, 24, 4, hook_point=POINT, name="tiny-sae", seed=seed)


class World:
    """An index, and the same codes as one dense array."""

    def __init__(self, index: FeatureIndex, model: wb.model.LanguageModel, dictionary, corpus: Corpus):
        self.index, self.model, self.dictionary, self.corpus = index, model, dictionary, corpus
        self.seen: Activations = Harvest(model, corpus, dictionary.reads, **HOW).collect()
        with torch.no_grad():
            dense = dictionary.encode(self.seen.values[dictionary.reads]).dense()
        self.codes = dense.numpy().astype(np.float16)  # [n_tokens, n_features]


def ordered(column: np.ndarray) -> np.ndarray:
    """Rows where a feature is active, highest value first, earlier tokens first among equals."""
    rows = np.flatnonzero(column)
    return np.array(sorted(rows.tolist(), key=lambda row: (-column[row], row)), int)


def contents(path: Path) -> dict[str, bytes]:
    """All files of an index but its note, whose command differs."""
    return {file.name: file.read_bytes() for file in (path / "data").iterdir() if file.name != "index.json"}
