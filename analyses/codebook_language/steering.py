"""Steering towards a topic: by codes, by random codes, by an SAE latent and by adding an activation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex
import torch
from torch import Tensor

import workbench as wb
from analyses.codebook_language.codes import topic_masks
from analyses.codebook_language.plan import SAE, TOPICS, TRIED, Plan
from analyses.codebook_language.writing import Edits, forced, matched, summarise_texts, write
from analyses.shared.report import Notes, say


@functools.cache
def baseline_sae() -> tuple[wb.dictionaries.Dictionary, wb.index.FeatureIndex]:
    """The residual-stream SAE that ships, and its index."""
    return wb.load_dictionary(SAE), wb.open_index(SAE / "index")


def sae_latent(topic: str, patterns: Mapping[str, str]) -> tuple[dict[str, Any], Callable[[float], Edits]]:
    """The latent that marks the topic's words best, and a function from a strength to the edit that clamps it.

    The strength is in units of the latent's highest activation.
    """
    sae, index = baseline_sae()
    hit = index.search(regex=f"(?i){patterns[topic]}", limit=1)[0]
    assert hit.score is not None
    latent = sae.feature(hit.feature.index)
    row = {"feature": str(latent), "precision": hit.score.precision, "recall": hit.score.recall}
    return row, lambda strength: [wb.Clamp(latent, strength * hit.highest, positions="generated")]


@torch.inference_mode()
def directions(
    plain: wb.model.LanguageModel, corpus: wb.Corpus, patterns: Mapping[str, str], plan: Plan
) -> dict[str, tuple[float, Tensor]]:
    """For each topic the usual distance of activations from their mean, and the unit vector of the topic.

    The vector points from the mean activation over all tokens to that on the topic's words, at the SAE's hook point.
    """
    point = baseline_sae()[0].reads
    compiled = {topic: regex.compile(pattern, regex.IGNORECASE) for topic, pattern in patterns.items()}
    parts: list[Tensor] = []
    marks: dict[str, list[Tensor]] = {topic: [] for topic in patterns}
    for batch in corpus.batches(plain, 256, 16, plan.searched // 2, seed=plan.seed):
        for topic, mask in zip(patterns, topic_masks(plain, corpus, batch, compiled.values()), strict=True):
            marks[topic].append(mask)
        parts.append(plain.capture(batch.tokens, [point], mask=batch.mask)[point][batch.content])
    x = torch.cat(parts)  # [tokens, d_model]
    size = float((x - x.mean(0)).norm(dim=1).mean())
    away = {topic: x[torch.cat(mask)].mean(0) - x.mean(0) for topic, mask in marks.items()}
    return {topic: (size, direction / direction.norm()) for topic, direction in away.items()}


def random_codes(model: wb.model.LanguageModel, codes: Sequence[str], seed: int) -> list[Any]:
    """As many codes drawn at random from the same heads."""
    books = {one.name: one for one in model.splices.values()}  # type: ignore[attr-defined]
    chance = torch.Generator().manual_seed(seed)
    named = (feature.rsplit(":", 1) for feature in codes)
    return [books[name].drawn_like(int(index), chance) for name, index in named]


def steer(
    topic: str,
    chosen: Sequence[str],
    models: tuple[wb.model.LanguageModel, wb.model.LanguageModel],
    direction: Callable[[], tuple[float, Tensor]],
    plan: Plan,
    *,
    notes: Notes,
) -> dict[str, Any]:
    """Texts steered to one topic by each method, summarised.

    Args:
        topic: its name.
        chosen: the codes that are forced, `{codebook}:{index}`.
        models: the model with codebooks, and the plain one.
        direction: gives the usual distance of activations from their mean, and the topic's unit vector.
        plan: the settings.
        notes: where results are kept.
    """
    model, plain = models
    books = {one.name: one for one in model.splices.values()}  # type: ignore[attr-defined]
    codes = [books[name].feature(int(index)) for name, index in (one.rsplit(":", 1) for one in chosen)]
    latent, clamped = sae_latent(topic, TOPICS | TRIED)

    def added(strength: float) -> Edits:
        size, unit = direction()
        return [wb.Steer.along(baseline_sae()[0].reads, unit, strength * size, positions="generated")]

    def by_codes(features: Sequence[Any]) -> dict[str, Any]:
        return summarise_texts(write(model, plain, forced(features), plan), topic)

    def by_baseline(baseline: Callable[[float], Edits]) -> dict[str, Any]:
        strength = matched(baseline, math.log(rows["codes"]["perplexity"]), plain, plan)
        return summarise_texts(write(plain, plain, baseline(strength), plan), topic) | {"strength": strength}

    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "codes": lambda: by_codes(codes),
        "random codes": lambda: by_codes(random_codes(model, chosen, plan.seed)),
        "SAE latent": lambda: by_baseline(clamped),
        "activation addition": lambda: by_baseline(added),
    }
    rows: dict[str, Any] = {"latent": latent}
    for name, way in ways.items():
        rows[name] = notes.get(f"steering {topic} by {name}", way)
    shares = ", ".join(
        f"{name} {rows[name]['on_topic']:.0%} (perplexity {rows[name]['perplexity']:.0f})" for name in ways
    )
    say(f"{topic}: {shares}")
    return rows
