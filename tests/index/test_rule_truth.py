"""Labels by rule where the truth is known: autoencoders trained on superposition and on a state machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from index_models import make_sae
from speaker import MACHINE, speaker_model  # noqa: F401 (a fixture)
from torch.nn.functional import normalize

import workbench as wb
from workbench.corpus import Corpus
from workbench.index.entries import Entries, EntriesWriter
from workbench.index.rules.explaining import Explainer
from workbench.index.rules.rule import Rule
from workbench.index.tokens import TokenTable

WIDTH = 16
CLASSES = {"word .": "class the end of a sentence", "before .": "class after the end of a sentence"}
"""Other names of the same trigger."""


def trained(x: torch.Tensor, latents: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `[n, latents]` and unit directions of a TopK autoencoder, by Adam on the squared error."""
    torch.manual_seed(0)
    decoder = normalize(torch.randn(latents, x.shape[1]), dim=1).requires_grad_()
    encoder = decoder.detach().clone().requires_grad_()
    adam = torch.optim.Adam([decoder, encoder], 1e-2)

    def encode(rows: torch.Tensor) -> torch.Tensor:
        best = (rows @ encoder.T).relu().topk(k)
        return torch.zeros(len(rows), latents).scatter(1, best.indices, best.values)

    for _ in range(600):
        rows = x[torch.randint(len(x), (512,))]
        loss = (rows - encode(rows) @ decoder).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            decoder.copy_(normalize(decoder, dim=1))
    with torch.no_grad():
        return encode(x), decoder.detach()


def labelled(table: TokenTable, folder: Path, codes: np.ndarray) -> list[set[str]]:
    """The words that the label of each latent names; empty without a label."""
    with EntriesWriter(folder, table, None, signed=False) as writer:
        for column in codes.T:
            rows = np.flatnonzero(column)
            rows = rows[np.argsort(-column[rows], kind="stable")]
            writer.add(rows, column[rows].astype(np.float16))
    counts = np.count_nonzero(codes, axis=0)
    found = Explainer(table, Entries(folder, len(table), counts, None, signed=False), np.full((len(counts), 1), -1), 0)
    labels = [found.of(number)[1] for number in range(len(counts))]
    rules = [None if label is None else Rule.from_json(label.rule) for label in labels]
    return [
        {f"{one.slot} {value.strip().lower()}" for one in (rule.conditions if rule else ()) for value in one.values}
        for rule in rules
    ]


def test_latents_of_features_in_superposition_are_named(llama, tmp_path: Path) -> None:
    """A feature for each word and one for each word before, 20 in 16 dimensions."""
    chance = np.random.default_rng(3)
    words = ["dog", "cat", "boat", "and", "the", "water", "green", ".", "are", "your"]
    texts = [" " + " ".join(chance.choice(words, 60).tolist()) for _ in range(60)]
    table = wb.build_index(llama, make_sae(), Corpus(texts), tmp_path / "i", context=128, batch=8).tokens
    pieces = [piece.strip().lower() for piece in table.strings(table.ids)]
    known = [one for one, count in zip(*np.unique(pieces, return_counts=True), strict=True) if one and count > 100]
    place = {piece: number for number, piece in enumerate(known)}
    truth = np.zeros((len(table), 2 * len(known)), np.float32)
    first = {*table.runs[:, 0].tolist()}
    for row, piece in enumerate(pieces):
        if piece in place:
            truth[row, place[piece]] = 1
        if row not in first and pieces[row - 1] in place:
            truth[row, len(known) + place[pieces[row - 1]]] = 1
    directions = normalize(torch.randn(truth.shape[1], WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    values = torch.from_numpy(truth * chance.uniform(0.7, 1.3, truth.shape).astype(np.float32))
    codes, decoder = trained(values @ directions, truth.shape[1], 2)
    cosines, meant = (decoder @ directions.T).max(1)
    names = labelled(table, tmp_path, codes.numpy())
    wanted = [*(f"word {piece}" for piece in known), *(f"before {piece}" for piece in known)]
    named = [{one.replace("token ", "word ") for one in every} for every in names]
    recovered = [one for one in range(len(names)) if cosines[one] > 0.9]
    right = [wanted[meant[one]] in named[one] or CLASSES.get(wanted[meant[one]], "") in named[one] for one in recovered]
    assert len(recovered) > 0.5 * len(names)
    assert np.mean(right) >= 0.95


def test_states_of_a_machine_are_named(speaker: wb.model.LanguageModel, tmp_path: Path) -> None:
    """A feature for each state, where its last digit stands, in fewer dimensions than states."""
    corpus = MACHINE.corpus(texts=120, length=30)
    sae = wb.TopKSAE(16, 8, 2, hook_point="blocks.1.hook_resid_post", name="sae")
    table = wb.build_index(speaker, sae, corpus, tmp_path / "i", context=32, batch=8).tokens
    numbers, positions = table.places(np.arange(len(table)))
    states = []
    for number, position in zip(numbers.tolist(), positions.tolist(), strict=True):
        whole = (position + 1) % MACHINE.digits == 0
        states.append(corpus.texts[number][position + 1 - MACHINE.digits : position + 1] if whole else "")
    known = sorted({*states} - {""})
    truth = np.array([[state == one for one in known] for state in states], np.float32)
    directions = normalize(torch.randn(len(known), WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    codes, decoder = trained(torch.from_numpy(truth) @ directions, len(known), 1)
    cosines, meant = (decoder @ directions.T).max(1)
    names = labelled(table, tmp_path, codes.numpy())
    right = []
    for one in np.flatnonzero(cosines.numpy() > 0.9).tolist():
        before, last = known[meant[one]]
        right.append({f"before {before}", f"word {last}"} <= {name.replace("token ", "word ") for name in names[one]})
    assert len(right) > 0.5 * len(known)
    assert np.mean(right) >= 0.95
