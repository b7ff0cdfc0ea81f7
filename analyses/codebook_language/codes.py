"""Codes of topics: which are active on a topic's words, and which raise the probability of these words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
import torch
from torch import Tensor

import workbench as wb
from analyses.codebook_language.plan import Plan
from workbench.corpus import TokenBatch
from workbench.index import text_ends
from workbench.model.edits import Edit


@dataclass(frozen=True)
class Counts:
    """Counts of code activations over all tokens, and over the words of each topic."""

    active: Tensor
    """Activations of each code, `[codes of all layers]`."""
    hits: Mapping[str, Tensor]
    """Activations on a topic's words, by topic, `[codes of all layers]`."""
    matches: Mapping[str, int]
    """Tokens in which a topic's word begins, by topic."""


@torch.inference_mode()
def count_codes(model: wb.model.LanguageModel, corpus: wb.Corpus, topics: Mapping[str, str], plan: Plan) -> Counts:
    """Counts over one pass of the texts; a match counts at the token in which it begins."""
    patterns = {topic: regex.compile(pattern, regex.IGNORECASE) for topic, pattern in topics.items()}
    points = list(model.splices)
    books: list[Any] = [model.splices[point] for point in points]
    offsets = np.cumsum([0, *(book.n_features for book in books)])
    active = torch.zeros(int(offsets[-1]), dtype=torch.long)
    hits = {topic: torch.zeros_like(active) for topic in topics}
    matches = dict.fromkeys(topics, 0)
    for batch in corpus.batches(model, 256, 16, plan.searched, seed=plan.seed):
        marked = dict(zip(topics, topic_masks(model, corpus, batch, patterns.values()), strict=True))
        activations = model.capture(batch.tokens, points, mask=batch.mask)
        codes = torch.cat(
            [
                book.encode(activations[point][batch.content].flatten(1)).indices + int(offset)
                for point, book, offset in zip(points, books, offsets[:-1], strict=True)
            ],
            1,
        )  # [tokens, codes that are active]
        active += torch.bincount(codes.flatten(), minlength=len(active))
        for topic, mask in marked.items():
            hits[topic] += torch.bincount(codes[mask].flatten(), minlength=len(active))
            matches[topic] += int(mask.sum())
    return Counts(active, hits, matches)


def topic_masks(
    model: wb.model.LanguageModel, corpus: wb.Corpus, batch: TokenBatch, patterns: Iterable[regex.Pattern[str]]
) -> Iterator[Tensor]:
    """For each pattern the content tokens of a batch in which a match begins: bool `[tokens]`."""
    ends = text_ends(model, [corpus.texts[int(text)] for text in batch.texts])
    for pattern in patterns:
        mask = torch.zeros_like(batch.content)
        for row, (text, of_text) in enumerate(zip(batch.texts.tolist(), ends, strict=True)):
            starts = [match.start(1) for match in pattern.finditer(corpus.texts[text])]
            places = torch.from_numpy(np.searchsorted(of_text, np.array(starts, np.int64), "right"))
            mask[row] = torch.isin(batch.positions[row], places)
        yield mask[batch.content]


def codes_of_topic(model: wb.model.LanguageModel, counts: Counts, topic: str, plan: Plan) -> list[dict[str, Any]]:
    """The codes that mark a topic's words best, by F1 of precision and recall, the best first."""
    hits, active = counts.hits[topic].double(), counts.active.double()
    f1 = 2 * hits / (active + counts.matches[topic])
    f1[counts.active < plan.least] = 0
    return [code_row(model, counts, topic, place) for place in f1.topk(plan.shown).indices.tolist()]


def code_row(model: wb.model.LanguageModel, counts: Counts, topic: str, place: int) -> dict[str, Any]:
    """A code's feature, precision and recall on a topic; `place` counts the codes of all layers."""
    books: list[Any] = list(model.splices.values())
    book, index = books[place // books[0].n_features], place % books[0].n_features
    hits, active = int(counts.hits[topic][place]), int(counts.active[place])
    precision, recall = hits / max(active, 1), hits / max(counts.matches[topic], 1)
    return {"feature": str(book.feature(index)), "precision": precision, "recall": recall}


class Nudge:
    """An edit that adds a vector to every activation at a hook point, to take a gradient by this vector."""

    def __init__(self, hook_point: str, added: Tensor):
        self.hook_point, self.added = hook_point, added

    def bind(self, model: wb.model.LanguageModel, plan: object) -> list[Edit]:
        """See `Intervention`."""
        shape = model.hook_points[self.hook_point].shape
        return [Edit(self.hook_point, lambda x: x + self.added.view(shape))]


def effects(
    model: wb.model.LanguageModel, corpus: wb.Corpus, patterns: Mapping[str, str], plan: Plan
) -> dict[str, Tensor]:
    """The effect of each code on the log probability of a topic's words, by topic, `[codes of all layers]`.

    The effect is of first order and relative to the mean code of the head: the code's product with the gradient at its
    hook point, in the mean over the positions of one batch of texts.
    """
    vocabulary = model.token_texts(list(range(model.network.vocab_size)))
    batch = next(iter(corpus.batches(model, 64, 16, seed=plan.seed)))
    points = list(model.splices)
    by_topic = {}
    for topic, pattern in patterns.items():
        compiled = regex.compile(pattern, regex.IGNORECASE)
        ids = [number for number, text in enumerate(vocabulary) if compiled.fullmatch(text.strip())]
        added = [torch.zeros(model.hook_points[point].width, requires_grad=True) for point in points]
        edits = model.bind([Nudge(point, one) for point, one in zip(points, added, strict=True)])
        with torch.enable_grad():
            logits = model.run(batch.tokens, edits, mask=batch.mask)[batch.content]
            gained = (logits[:, ids].logsumexp(1) - logits.logsumexp(1)).mean()
            slopes = torch.autograd.grad(gained, added)
        parts = []
        for point, slope in zip(points, slopes, strict=True):
            book: Any = model.splices[point]
            gain = torch.einsum("gnd,gd->gn", book.codes, slope.view(book.groups, -1))  # [groups, n_codes]
            parts.append((gain - gain.mean(1, keepdim=True)).flatten())
        by_topic[topic] = torch.cat(parts)
    return by_topic


def strongest(effect: Tensor, plan: Plan) -> list[int]:
    """Places, among the codes of all layers, of those that raise a topic's words most, at most k of each head."""
    of_head: dict[int, int] = {}
    chosen: list[int] = []
    for place in effect.argsort(descending=True).tolist():
        head = place // plan.codes
        if of_head.get(head, 0) < plan.k and len(chosen) < plan.forced:
            of_head[head] = of_head.get(head, 0) + 1
            chosen.append(place)
    return chosen
