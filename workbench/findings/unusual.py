"""Latents that are active on a text and rare elsewhere: on the tokens of an index, or of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.corpus import Corpus
from workbench.dictionaries.codes import Codes
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import flattened, gather, sites
from workbench.findings.results import Finding
from workbench.findings.subject import Subject
from workbench.index import FeatureIndex
from workbench.interventions.kinds import Ablate
from workbench.lens.tokens import texts_of
from workbench.model.weights import ModelError

STRONG = 0.25
"""A latent counts where its value is at least this share of the largest on that token."""
RARE = 0.01
"""A latent is rare where at most this share of the tokens has it."""
CONTEXT, BATCH = 64, 8
"""Windows of a corpus."""


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """How often each latent of a dictionary is active elsewhere."""

    density: Tensor
    """`[n_features]`, shares of the tokens."""
    where: str
    tokens: int


def of_index(index: FeatureIndex) -> Elsewhere:
    """The densities that an index holds."""
    return Elsewhere(torch.tensor(index.statistics["density"]).float(), "the index", index.n_tokens)


def of_corpus(subject: Subject, dictionary: Dictionary, corpus: Corpus, tokens: int) -> Elsewhere:
    """The densities over texts."""
    model = subject.model
    active, count = torch.zeros(dictionary.n_features), 0
    for window in corpus.batches(model, context=CONTEXT, batch=BATCH, tokens=tokens, seed=subject.seed):
        codes = _codes(subject, dictionary, window.tokens)
        own = (codes.values != 0) & window.content[..., None].to(codes.values.device)
        active += torch.bincount(codes.indices[own].cpu(), minlength=dictionary.n_features)
        count += int(window.content.sum())
    return Elsewhere(active / max(1, count), "the corpus", count)


def unusual_latents(
    subject: Subject, dictionary: Dictionary, elsewhere: Elsewhere, top: int, notes: list[str]
) -> list[Finding]:
    """The latents of a dictionary that are active on the text and rarest elsewhere, `top` at most.

    The first position of the text does not count, where an attention sink stands.
    """
    try:
        codes = _codes(subject, dictionary, subject.tokens)
        values, indices = codes.values[0].float().cpu(), codes.indices[0].cpu()  # [pos, k]
        rare = elsewhere.density[indices]
        counts = (values > 0) & (values >= STRONG * values.amax(1, keepdim=True)) & (rare <= RARE)
        counts[0] = False
        best: dict[int, tuple[float, float, int]] = {}
        for place, column in counts.nonzero().tolist():
            index, value = int(indices[place, column]), float(values[place, column])
            if index not in best or value > -best[index][1]:
                best[index] = (float(rare[place, column]), -value, place)
        chosen = sorted(best, key=lambda index: best[index])[:top]
        return [_finding(subject, dictionary, elsewhere, codes, (index, *best[index])) for index in chosen]
    except (WorkbenchError, ModelError) as error:
        notes.append(f"Nothing of {dictionary.name} is compared with {elsewhere.where}: {error}")
        return []


def _finding(
    subject: Subject, dictionary: Dictionary, elsewhere: Elsewhere, codes: Codes, one: tuple[int, float, float, int]
) -> Finding:
    index, density, value, place = one
    active = sorted({*codes.indices[0, place][codes.values[0, place] > 0].tolist()} - {index})
    drawn = subject.chance("unusual", dictionary.name, index).sample(active, min(subject.controls, len(active)))
    test = subject.tested(
        Ablate(dictionary.feature(index)),
        [Ablate(dictionary.feature(other)) for other in drawn],
        kind=f"latents of {dictionary.name} that are active there",
        code=f"wb.Ablate(dictionary.feature({index}))",
        sign=0,
    )
    text = texts_of(subject.model, subject.tokens[0, place : place + 1])[0]
    sentence = (
        f"The latent {dictionary.feature(index)} is active on “{text}” (position {place}, {-value:.3g}) and on "
        f"{density:.3%} of the {elsewhere.tokens:,} tokens of {elsewhere.where}."
    )
    read = " + ".join(dictionary.read_points)
    call = f'dictionary.encode(model.capture({subject.text_code}, ["{read}"])["{read}"])'
    return Finding("unusual", f"{sentence} {test.sentence}", density, call, test)


def _codes(subject: Subject, dictionary: Dictionary, tokens: Tensor) -> Codes:
    """The codes of tokens `[batch, pos]`: `[batch, pos, k]`."""
    points = sites(dictionary, subject.model).reads
    with torch.no_grad():
        seen = subject.model.capture(tokens, [point.name for point in points])
        read = {point.name: flattened(seen[point.name], point).float() for point in points}
        return dictionary.encode(gather(read, list(read)))


def matched(dictionaries: Sequence[Dictionary], index: FeatureIndex) -> Dictionary | None:
    """The dictionary that an index is of; None where none of them is, nor the index brings one."""
    about = index.about["dictionary"]
    for one in dictionaries:
        if one.is_named(about["hash"]) and one.reads == about["reads"]:
            return one
    return index.dictionary
