"""Texts written under edits, how they read, and the strength at which a baseline costs as much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import regex
import torch
from torch import Tensor

import workbench as wb
from analyses.codebook_language.plan import PROMPTS, TOPICS, TRIED, Plan
from workbench.model.language_model import Generation

Edits = Sequence[Any]


@dataclass(frozen=True)
class Texts:
    """Texts written under edits, with measures of their fluency."""

    texts: list[str]
    perplexity: float
    """Perplexity of the texts under the plain model: exp of the mean over all tokens."""
    distinct: float
    """Share of distinct pairs of neighbouring tokens, mean over texts."""

    def on_topic(self, pattern: str) -> float:
        """Share of the texts that contain a word of a topic."""
        return sum(bool(regex.search(pattern, text, regex.IGNORECASE)) for text in self.texts) / len(self.texts)


def continuations(model: wb.model.LanguageModel, edits: Edits, plan: Plan) -> tuple[list[Tensor], list[Generation]]:
    """Tokens of every prompt, `plan.samples` times each, and the texts that continue them under edits."""
    bos = torch.tensor([model.tokenizer.bos_token_id])
    prompts = [torch.cat([bos, model.to_tokens(prompt)[0]]) for prompt in PROMPTS for _ in range(plan.samples)]
    settings: dict[str, Any] = {"temperature": 1.0, "seed": plan.seed, "interventions": edits, "stop": False}
    return prompts, model.generate_batch(prompts, plan.length, **settings)


@torch.inference_mode()
def write(model: wb.model.LanguageModel, judge: wb.model.LanguageModel, edits: Edits, plan: Plan) -> Texts:
    """Texts that continue every prompt under edits, with their perplexity under the model `judge`."""
    prompts, continued = continuations(model, edits, plan)
    nll, pairs = [], []
    for prompt, one in zip(prompts, continued, strict=True):
        tokens = torch.cat([prompt, torch.tensor(one.tokens)])
        logprobs = judge(tokens[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
        nll.append(-logprobs.gather(1, tokens[len(prompt) :, None]).mean())
        pairs.append(len(set(zip(one.tokens, one.tokens[1:], strict=False))) / (len(one.tokens) - 1))
    return Texts([one.text for one in continued], float(torch.stack(nll).mean().exp()), sum(pairs) / len(pairs))


def forced(features: Sequence[Any]) -> Edits:
    """Edits that force codes, in place of their groups' least similar ones, while text is written."""
    return [wb.Force(feature, positions="generated") for feature in features]


def matched(baseline: Callable[[float], Edits], wanted: float, plain: wb.model.LanguageModel, plan: Plan) -> float:
    """The strength at which a baseline's texts cost the plain model `wanted` nats per token.

    The cost at rising strengths is measured on a few texts until it exceeds `wanted`; between two strengths it is
    interpolated.
    """
    few = replace(plan, samples=plan.matching, seed=plan.seed + 1000)
    tried: list[tuple[float, float]] = []  # costs and strengths
    for strength in plan.strengths:
        cost = math.log(write(plain, plain, baseline(strength), few).perplexity)
        tried.append((max([cost, *(known for known, _ in tried)]), strength))
        if cost >= wanted:
            break
    return float(np.interp(wanted, *zip(*tried, strict=True)))


def summarise_texts(texts: Texts, topic: str) -> dict[str, Any]:
    """The measures of steered texts, with one of them, on topic if there is one."""
    pattern = (TOPICS | TRIED)[topic]
    on = [text for text in texts.texts if regex.search(pattern, text, regex.IGNORECASE)]
    sample = (on or texts.texts)[0]
    row = {"on_topic": texts.on_topic(pattern), "perplexity": texts.perplexity, "distinct": texts.distinct}
    return row | {"sample": sample}
