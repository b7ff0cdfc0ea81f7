"""Measures of a model under the interventions in force: what steering does, and what it costs.

A measure is any function from a model to a value for each of its texts, called inside `model.intervening(...)`. Those
of this file are dataclasses, so that a checkpoint of a search can say which of them it holds values of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor

from workbench.core.checks import Positive, checked
from workbench.core.patterns import SafePattern
from workbench.evaluation import cross_entropy, kl_divergence, repetition, token_losses
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.steering.errors import SteeringError

Measure = Callable[[LanguageModel], Sequence[float]]
"""From a model, under the interventions in force, to a value for each text."""
Prompts = Annotated[Sequence[Prompt], MinLen(1)]


@checked(SteeringError)
@dataclass(frozen=True)
class WordProbability:
    """The probability with which each prompt goes on with a word, or with the answer to a question.

    Of several tokens it is the product of their probabilities, each behind those before.

    Raises:
        SteeringError: another number of words than of prompts, or an empty word.
    """

    prompts: Prompts
    words: str | Sequence[str]
    """One for all prompts, such as " happy", or one for each; the space belongs to the word."""

    def __post_init__(self) -> None:
        if not isinstance(self.words, str) and len(self.words) != len(self.prompts):
            raise SteeringError(f"There are {len(self.prompts)} prompts but {len(self.words)} words; give one each.")
        if not all(self.words if not isinstance(self.words, str) else [self.words]):
            raise SteeringError("A word is empty; give the text that a prompt should go on with.")

    def __call__(self, model: LanguageModel) -> list[float]:
        words = [self.words] * len(self.prompts) if isinstance(self.words, str) else self.words
        found = []
        for prompt, word in zip(self.prompts, words, strict=True):
            start, end = as_row(model, prompt), model.to_tokens(word, start=False)[0]
            row = torch.cat([start, end[:-1]])[None]
            with torch.inference_mode():
                logits = model.run(row, model.bind(()), prompt_length=len(start), last=len(end))[0]
            found.append(float((-cross_entropy(logits, end.to(logits.device)).sum()).exp()))
        return found


@checked(SteeringError)
@dataclass(frozen=True)
class Projection:
    """The projection of each prompt's last token onto a vector, as a probe reads it: `x @ v / |v|`.

    Raises:
        SteeringError: a vector that is zero.
    """

    prompts: Prompts
    hook_point: str
    vector: Sequence[float] | Tensor = field(repr=False)
    """`[d]`, as wide as the hook point."""

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.vector, dtype=torch.float32).flatten().tolist()
        if not any(values):
            raise SteeringError("The vector of a projection is zero; give one that points somewhere.")
        object.__setattr__(self, "vector", tuple(values))

    def __call__(self, model: LanguageModel) -> list[float]:
        vector = torch.tensor(self.vector, device=model.device)
        width = model.hook_points[self.hook_point].width
        if width != len(vector):
            raise SteeringError(f"The vector has {len(vector):,} values, but {self.hook_point} is {width:,} wide.")
        found = []
        for prompt in self.prompts:
            with torch.inference_mode():
                x = model.capture(as_row(model, prompt)[None], [self.hook_point])[self.hook_point]
            found.append(float(x[0, -1].flatten().float() @ vector / vector.norm()))
        return found


@checked(SteeringError)
@dataclass(frozen=True)
class PatternShare:
    """Whether the continuation of each prompt has a match of a regular expression: 1 or 0."""

    prompts: Prompts
    pattern: str
    max_new_tokens: Positive = 24

    def __post_init__(self) -> None:
        SafePattern(self.pattern, SteeringError)  # raises here

    def __call__(self, model: LanguageModel) -> list[float]:
        pattern = SafePattern(self.pattern, SteeringError)
        written = model.generate_batch(list(self.prompts), self.max_new_tokens)
        return [float(pattern.is_in(one.text)) for one in written]


@checked(SteeringError)
@dataclass(frozen=True)
class Divergence:
    """KL(plain ‖ steered) of the predictions behind each token of held-out texts, in nats, the mean of each text."""

    texts: Prompts

    def __call__(self, model: LanguageModel) -> list[float]:
        found = []
        for text in self.texts:
            row = as_row(model, text)[None]
            with torch.inference_mode():
                with uninterrupted():
                    plain = model.run(row, model.bind(()))
                found.append(float(kl_divergence(plain, model.run(row, model.bind(()))).mean().clamp(min=0)))
        return found


@checked(SteeringError)
@dataclass(frozen=True)
class Perplexity:
    """The cross-entropy of each held-out text in nats a token, whose exponential is the perplexity.

    Raises:
        SteeringError: at the measurement, a text of one token.
    """

    texts: Prompts

    def __call__(self, model: LanguageModel) -> list[float]:
        found = []
        for text in self.texts:
            row = as_row(model, text)[None]
            if row.shape[1] < 2:
                raise SteeringError("A held-out text has one token, so nothing in it is predicted; give longer ones.")
            with torch.inference_mode():
                found.append(float(token_losses(model.run(row, model.bind(())), row).mean()))
        return found


@checked(SteeringError)
@dataclass(frozen=True)
class Repetition:
    """The share of repeated triples of tokens in the continuation of each prompt."""

    prompts: Prompts
    max_new_tokens: Positive = 32

    def __call__(self, model: LanguageModel) -> list[float]:
        written = model.generate_batch(list(self.prompts), self.max_new_tokens)
        return [repetition(one.tokens) for one in written]


OWN = (WordProbability, Projection, PatternShare, Divergence, Perplexity, Repetition)
"""The measures of this file."""


def plain_prompts(prompts: Sequence[Prompt]) -> list[str | list[int]]:
    """Prompts as plain data: texts, and token ids as lists."""
    return [one if isinstance(one, str) else torch.as_tensor(one).flatten().tolist() for one in prompts]


def as_row(model: LanguageModel, text: Prompt) -> Tensor:
    """The token ids of one text, `[pos]`; raises `SteeringError` for several rows."""
    rows = model.as_tokens(text)
    if len(rows) != 1:
        raise SteeringError(f"A text is one row of tokens, not {len(rows)}; give several texts as a list.")
    return rows[0]
