"""Tamkin, Taufeeque, Goodman, "Codebook Features" (2023, arXiv 2310.17230), sections 4 and 5: codebooks in a language
model, the meaning of their codes, and steering by forcing them.

SmolLM2-135M-Instruct runs through codebooks on every head of eight late layers. Its own weights stay unchanged, so that
only the codes ship. How much does it lose, which codes mark a topic's words, and does forcing them make it write about
the topic? Baselines: as many codes drawn at random, an SAE latent, and the addition of an activation (Turner et al.
2023, arXiv 2308.10248), each at the strength that leaves the text equally likely under the plain model.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from analyses.codebook_language.codes import code_row, codes_of_topic, count_codes, effects, strongest
from analyses.codebook_language.page import write_page
from analyses.codebook_language.plan import NAME, SMALLEST, TOPICS, TRIED, Plan, texts
from analyses.codebook_language.rows import published_rows
from analyses.codebook_language.steering import directions, steer
from analyses.codebook_language.training import train
from analyses.codebook_language.writing import write
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""


@torch.inference_mode()
def language(model: wb.model.LanguageModel, corpus: wb.Corpus, plan: Plan) -> dict[str, float]:
    """Loss in nats and accuracy of the next token."""
    loss = right = count = 0.0
    for batch in corpus.batches(model, 256, 16, plan.measured, seed=plan.seed):
        pairs = batch.content[:, :-1] & batch.content[:, 1:]
        logits = model(batch.tokens, mask=batch.mask)[:, :-1][pairs]
        target = batch.tokens[:, 1:][pairs]
        loss += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        right += float((logits.argmax(-1) == target).sum())
        count += len(target)
    return {"loss": loss / count, "accuracy": right / count, "tokens": count}


def sample_of(plan: Plan) -> Plan:
    """The plan of a small sample, which a test repeats."""
    return replace(plan, measured=1024)


def cost_of_codebooks(
    plain: wb.model.LanguageModel,
    model: wb.model.LanguageModel,
    corpora: Mapping[str, wb.Corpus],
    plan: Plan,
    notes: Notes,
) -> dict[str, dict[str, dict[str, float]]]:
    """Loss and accuracy of both models on each corpus that is not learned from."""
    cost = {
        where: {
            name: notes.get(f"{name} on {where}", lambda m=one, c=corpus: language(m, c, plan))
            for name, one in (("plain", plain), ("codebooks", model))
        }
        for where, corpus in corpora.items()
        if where != "learned"
    }
    for where, row in cost.items():
        say(f"{where}: accuracy {row['plain']['accuracy']:.4f}, with codebooks {row['codebooks']['accuracy']:.4f}")
    return cost


def codes_of_topics(
    model: wb.model.LanguageModel, corpus: wb.Corpus, patterns: Mapping[str, str], plan: Plan
) -> dict[str, Any]:
    """For each topic the codes that mark its words, and those that raise their probability most."""
    counts = count_codes(model, corpus, patterns, plan)
    raising = effects(model, corpus, patterns, plan)
    return {
        "dead": float((counts.active == 0).double().mean()),
        "matches": dict(counts.matches),
        "codes": {topic: codes_of_topic(model, counts, topic, plan) for topic in patterns},
        "forced": {
            topic: [code_row(model, counts, topic, place) for place in strongest(effect, plan)]
            for topic, effect in raising.items()
        },
    }


def unsteered_texts(
    plain: wb.model.LanguageModel, model: wb.model.LanguageModel, patterns: Mapping[str, str], plan: Plan
) -> dict[str, Any]:
    """Share of both models' own texts on each topic, their perplexity and their share of distinct pairs."""
    rows = {}
    for name, one in (("plain", plain), ("codebooks", model)):
        texts_written = write(one, plain, [], plan)
        on = {topic: texts_written.on_topic(pattern) for topic, pattern in patterns.items()}
        rows[name] = {"on_topic": on, "perplexity": texts_written.perplexity, "distinct": texts_written.distinct}
    return rows


def experiment(
    folder: Path, plan: Plan, real: str | None, steered: Mapping[str, str], tried: Mapping[str, str]
) -> dict[str, Any]:
    """All results, from the model that ships; an interrupted run resumes from its notes.

    Args:
        folder: of the report.
        plan: the settings.
        real: real text beside the bundled corpus, if any.
        steered: topics that are steered to, with patterns of their words.
        tried: topics whose codes are listed only.
    """
    plain, model = wb.load_model(), wb.load_model(NAME)
    corpora = texts(plan, real)
    stamp = [FORMAT, model.hash, asdict(plan), {name: corpus.hash for name, corpus in corpora.items()}]
    notes = Notes(folder / "work" / "notes.jsonl", stamp)
    cost = cost_of_codebooks(plain, model, corpora, plan, notes)
    own = corpora["the model's own stories"]
    sample = notes.get("sample", lambda: language(model, own, sample_of(plan)))
    learned = texts(plan, None)["learned"]
    topics = notes.get("topics", lambda: codes_of_topics(model, learned, {**steered, **tried}, plan))
    away = functools.cache(lambda: directions(plain, learned, steered, plan))
    unsteered = notes.get("unsteered", lambda: unsteered_texts(plain, model, steered, plan))
    steering = {
        topic: steer(
            topic,
            [row["feature"] for row in topics["forced"][topic]],
            (model, plain),
            lambda t=topic: away()[t],
            plan,
            notes=notes,
        )
        for topic in steered
    }
    return {
        "provenance": provenance(model, plan.seed, plan=asdict(plan)),
        "cost": cost,
        "sample": sample,
        "topics": topics,
        "unsteered": unsteered,
        "steering": steering,
    }


def run(settings: Namespace) -> Outcome:
    """Train if asked to, measure, and write the report."""
    plan, steered, tried = Plan(), TOPICS, TRIED
    if settings.smallest:
        plan, steered, tried = SMALLEST, {"sea": TOPICS["sea"]}, {}
    if settings.train:
        train(wb.load_model(), plan, texts(plan, settings.real)["learned"], settings.work)
    results = experiment(settings.out, plan, settings.real, steered, tried)
    return Outcome(results, results, write_page(settings.out, results))


STUDY = Study(run, published_rows, shared=("real", "train", "work"))
