"""The effect of interventions on a text: plain and edited model side by side, on the same prompt and in one batch.

The decoding rows go through the network together, so that a step reads the weights once. A second batch follows them
in chunks and scores each text under the other model, which gives the KL divergence on the same tokens and the
perplexity of the edited text under the plain model.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from workbench.core import markup
from workbench.core.checks import Natural, Positive, Raises, checked
from workbench.core.display import Rows, Shown, Tabular
from workbench.evaluation.losses import cross_entropy, kl_divergence, perplexity
from workbench.evaluation.repetition import repetition
from workbench.interventions.features import dictionary_of
from workbench.interventions.protocol import FeatureIntervention
from workbench.model.blame import NotFiniteError, blaming, first_not_finite
from workbench.model.decoding import NOT_FINITE, Decoder, DecodingStep, decode
from workbench.model.edits import EditError, Group, Intervention, check_edits
from workbench.model.generation import Generation
from workbench.model.in_force import acting_on
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt, require_tokenizer
from workbench.model.sampling import PromptError, Sampling
from workbench.model.token_texts import TextStreamer

if TYPE_CHECKING:
    from workbench.figures.common import Figure

CHUNK = 64
"""Tokens scored at once, at most: a chunk costs about as much as four decoding steps."""
VALUES = 1 << 22
"""Logits of a row of a chunk, at most."""


@dataclass(frozen=True)
class TokenChange(Shown):
    """The change that an intervention makes to the probability of one token."""

    token: int
    text: str
    before: float
    """Mean probability over the positions of the plain text, under the plain model."""
    after: float
    """The same under the edited model."""


@dataclass(frozen=True)
class Side(Shown):
    """One edited text beside the plain one."""

    generation: Generation
    kl: list[float]
    """KL(plain ‖ edited) in nats for each token of the *plain* text: both models predict it from the same tokens."""
    kl_own: list[float]
    """KL(plain ‖ edited) in nats for each token of *this* text."""
    perplexity: float
    """Of this text under the plain model; NaN for an empty one."""
    repetition: float
    """Share of this text's 3-grams of tokens that occurred before in it."""
    top_changes: list[TokenChange]
    """The tokens whose mean probability changes most, up or down, over the positions of the plain text."""

    def _facts(self) -> Mapping[str, object]:
        numbers = {"perplexity": self.perplexity, "repetition": self.repetition}
        return {"text": self.generation.text, "mean KL": sum(self.kl) / max(len(self.kl), 1), **numbers}


@dataclass(frozen=True)
class Comparison(Tabular):
    """Plain and edited text, and how far apart the two models are."""

    prompt: str
    baseline: Generation
    baseline_perplexity: float
    """Of the plain text under the plain model."""
    baseline_repetition: float
    sides: list[Side] = field(repr=False)
    """The edited side, and behind it the control's if there is one."""

    @property
    def edited(self) -> Generation:
        """The text of the edited model."""
        return self.sides[0].generation

    @property
    def kl(self) -> list[float]:
        """KL(plain ‖ edited) in nats at each generated position, on the tokens of the plain text."""
        return self.sides[0].kl

    @property
    def top_changes(self) -> Rows[TokenChange]:
        """The tokens whose probability changes most."""
        return Rows(self.sides[0].top_changes)

    @property
    def edited_perplexity(self) -> float:
        """Of the edited text under the plain model."""
        return self.sides[0].perplexity

    @property
    def control(self) -> Side | None:
        """The same for random features changed equally hard; None without `control=True`."""
        return self.sides[1] if len(self.sides) > 1 else None

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each side: its text, and how far it is from the plain one."""
        plain = {"perplexity": self.baseline_perplexity, "repetition": self.baseline_repetition}
        yield {"side": "plain", "text": self.baseline.text, "mean KL": 0.0, **plain}
        for name, side in zip(("edited", "control"), self.sides, strict=False):
            yield {"side": name, **side._facts()}

    def figure(self) -> Figure:
        """The tokens whose probability changes most."""
        from workbench.figures.tokens import token_changes

        return token_changes(self.top_changes)

    def _facts(self) -> Mapping[str, object]:
        return {"prompt": self.prompt, "mean KL": sum(self.kl) / max(len(self.kl), 1)}

    def _parts(self) -> Iterator[str]:
        for row in self.records():
            yield markup.box(row.pop("side"), markup.tokens([row.pop("text")]), markup.facts(row))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Step(Shown):
    """The text of one step of a comparison."""

    pieces: list[str]
    """New text of each row: plain, edited, control; empty behind the end of the row."""


@checked(EditError)
def compare(
    model: LanguageModel,
    prompt: Annotated[Prompt, Raises(PromptError)],
    interventions: Sequence[Intervention],
    max_new_tokens: Annotated[Positive, Raises(PromptError)] = 64,
    **how: Any,
) -> Comparison:
    """The texts with and without interventions, and how far they are apart; settings as in `compare_steps`."""
    steps = compare_steps(model, prompt, interventions, max_new_tokens, **how)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return ended.value


@checked(EditError)
def compare_steps(
    model: LanguageModel,
    prompt: Annotated[Prompt, Raises(PromptError)],
    interventions: Sequence[Intervention],
    max_new_tokens: Annotated[Positive, Raises(PromptError)] = 64,
    *,
    sampling: Sampling | None = None,
    stop: bool = True,
    control: bool = False,
    seed: Natural = 0,
    top: Positive = 20,
) -> Generator[Step, None, Comparison]:
    """A comparison step by step; the generator returns the `Comparison`.

    The call itself reads the prompt; each step is computed when it is asked for.

    Args:
        model: the model; interventions in force around the call apply to both sides.
        prompt: a text; for a chat, `model.chat_prompt(message)`.
        interventions: those of the edited side.
        max_new_tokens: length of the texts at most.
        sampling: how tokens are chosen, on every side with the same random numbers; greedy if None.
        stop: end a text where the model ends its turn.
        control: also change random features of the same dictionaries equally hard.
        seed: chooses the control's features.
        top: how many `top_changes`.

    Raises:
        EditError: an intervention that can't act, or a control asked for interventions that name no feature.
    """
    sampling = sampling or Sampling()
    tokens, _ = model.prompt_batch([prompt], max_new_tokens)
    length = tokens.shape[1]
    sides = [interventions, *([random_twins(model, interventions, seed)] if control else [])]
    plain, edits = model.bind(()), [model.bind(one) for one in sides]
    for bound in edits:
        check_edits(bound, length + max_new_tokens - 1, length)
    rows = len(edits) + 1
    writer = Decoder(
        model.network,
        [Group(bound, slice(row, row + 1)) for row, bound in enumerate([plain, *edits])],
        tokens.expand(rows, -1),
        None,
        max_new_tokens,
    )
    judge = _Judge(model, writer, sides)
    generators = [torch.Generator().manual_seed(sampling.seed) for _ in range(rows)]
    stop_tokens = model.stop_tokens if stop else frozenset()
    tokenizer = require_tokenizer(model.tokenizer, model.name)
    streamers = [TextStreamer(tokenizer, tokens[0].tolist()) for _ in range(rows)]
    steps = decode(writer, sampling, generators, max_new_tokens, stop_tokens=stop_tokens, streamers=streamers)
    text = prompt if isinstance(prompt, str) else model.to_text(prompt)
    around = acting_on(model)
    blame = blaming(model, [tokens[0].tolist()] * rows, [[*around, *one] for one in ((), *sides)])
    return _judged(steps, judge, blame, prompt=text, tokens=tokens[0], top=top)


def _judged(
    steps: Iterator[DecodingStep],
    judge: _Judge,
    blame: AbstractContextManager[None],
    *,
    prompt: str,
    tokens: Tensor,
    top: int,
) -> Generator[Step, None, Comparison]:
    """The steps of a comparison as they are decoded; the generator returns the comparison."""
    complete: Sequence[bool] = [False] * (judge.n_sides + 1)
    with blame:
        for step in steps:
            complete = step.complete
            judge.note(step)
            yield Step(step.pieces)
        return judge.verdict(prompt, tokens, complete, top)


def random_twins(
    model: LanguageModel, interventions: Sequence[Intervention], seed: int = 0
) -> list[FeatureIntervention]:
    """The same interventions on other features of the same dictionaries, drawn at random.

    Raises:
        EditError: an intervention names a direction and no feature, so that nothing can be drawn.
    """
    chance = random.Random(seed)
    twins = []
    for one in interventions:
        if not isinstance(one, FeatureIntervention) or one.feature is None:
            raise EditError(f"{one} names no feature, so there is no random feature to compare it with.")
        dictionary = dictionary_of(model, one.feature)
        if dictionary.n_features < 2:
            raise EditError(f"{dictionary.name} has one feature only, so there is no other to compare it with.")
        index = chance.randrange(dictionary.n_features - 1)
        index += index >= one.feature.index  # any feature but this one
        twins.append(replace(one, feature=replace(one.feature, index=index)))
    return twins


class _Judge:
    """Scores every text under the other model during the decoding.

    For each edited side two rows: the edited model on the plain text, and the plain model on the edited text. In 16
    bits, where a decoding step and a chunk round differently, each text also runs under its own model here, so that
    equal models get equal predictions.
    """

    def __init__(self, model: LanguageModel, writer: Decoder, sides: list[Sequence[Intervention]]):
        self.model = model
        self.n_sides = n = len(sides)
        pairs = [pair for side in range(1, n + 1) for pair in ((side, 0), (0, side))]  # model and text of each row
        self.twice = torch.finfo(writer.logits.dtype).bits < 32
        pairs += [(row, row) for row in range(n + 1)] if self.twice else []
        self.texts = [text for _, text in pairs]
        self.judges = [side for side, _ in pairs]
        edits = [model.bind(sides[side - 1] if side else ()) for side, _ in pairs]
        groups = [Group(bound, slice(row, row + 1)) for row, bound in enumerate(edits)]
        self.decoder = writer.fork([side for side, _ in pairs], groups)
        self.logits: list[Tensor] = []  # of the writer, [rows, vocab] each, not scored yet
        self.tokens: list[Tensor] = []  # [rows] each
        self.scored = 0
        self.lengths = [0] * (self.n_sides + 1)
        self.chosen: list[Tensor] = []
        self.own_logprob: list[Tensor] = []  # [rows, chunk]: of each token under the model that wrote it
        self.plain_logprob: list[Tensor] = []  # [sides, chunk]: of each token of a side under the plain model
        self.kl: list[Tensor] = []  # [sides, chunk], on the plain text
        self.kl_own: list[Tensor] = []  # [sides, chunk], on the side's text
        self.own_again: list[Tensor] = []  # [chunk]: of each token of the plain text under the plain model, as others
        vocab = model.network.vocab_size
        self.chunk = max(1, min(CHUNK, VALUES // vocab))
        self.before = torch.zeros(vocab, device=model.device)
        self.after = torch.zeros(self.n_sides, vocab, device=model.device)

    def note(self, step: DecodingStep) -> None:
        """Take in one step of the writer; after a chunk of them, score them."""
        self.lengths = [length + (not ended) for length, ended in zip(self.lengths, step.ended, strict=True)]
        self.logits.append(step.logits)
        self.tokens.append(step.chosen)
        if len(self.tokens) == self.chunk:
            self.score()

    def score(self) -> None:
        """Score the steps noted since the last call."""
        chunk = len(self.tokens)
        if not chunk:
            return
        with torch.inference_mode():
            tokens = torch.stack(self.tokens, 1)  # [rows, chunk]
            own = torch.stack(self.logits, 1)  # [rows, chunk, vocab]
            # the judge has read all tokens before this chunk, so that it has the logits of the first
            first = self.decoder.logits
            followed = self.decoder.feed(tokens[self.texts])
            judged = torch.cat([first[:, None], followed[:, :-1]], 1).float()  # [judge's rows, chunk, vocab]
            if (wrong := first_not_finite(judged)) is not None:
                written = torch.stack([*self.chosen, *self.tokens], 1)[self.texts[wrong]]
                raise NotFiniteError(NOT_FINITE, self.judges[wrong], written.expand(len(own), -1))

            steps = torch.arange(self.scored, self.scored + chunk, device=tokens.device)
            inside = (steps < self.lengths[0]).float()  # the plain text may have ended before
            self.own_logprob.append(-cross_entropy(own, tokens))
            edited_on_plain, plain_on_edited = (judged[start : 2 * self.n_sides : 2] for start in (0, 1))
            own = judged[2 * self.n_sides :] if self.twice else own
            self.own_again.append(-cross_entropy(own[0], tokens[0]))
            self.before += (own[0].softmax(-1) * inside[:, None]).sum(0)
            self.after += (edited_on_plain.softmax(-1) * inside[:, None]).sum(1)
            self.kl.append(kl_divergence(own[:1], edited_on_plain).clamp(min=0))
            self.kl_own.append(kl_divergence(plain_on_edited, own[1:]).clamp(min=0))
            self.plain_logprob.append(-cross_entropy(plain_on_edited, tokens[1:]))
        self.chosen.extend(self.tokens)
        self.scored += chunk
        self.logits, self.tokens = [], []

    def verdict(self, prompt: str, before: Tensor, complete: Sequence[bool], top: int) -> Comparison:
        """The comparison of everything noted behind the prompt's ids; `complete` tells which rows came to an end."""
        self.score()
        own = torch.cat(self.own_logprob, 1)
        tokens = torch.stack(self.chosen, 1).tolist()
        written = [ids[:length] for ids, length in zip(tokens, self.lengths, strict=True)]
        generations = [
            Generation(prompt, self.model.to_text(ids, before), ids, logprobs[: len(ids)], "end" if over else "length")
            for ids, logprobs, over in zip(written, own.tolist(), complete, strict=True)
        ]
        plain_logprob, kl, kl_own = (torch.cat(parts, 1) for parts in (self.plain_logprob, self.kl, self.kl_own))
        before = self.before / max(self.lengths[0], 1)
        sides = []
        for side in range(self.n_sides):
            length = self.lengths[side + 1]
            sides.append(
                Side(
                    generations[side + 1],
                    kl[side, : self.lengths[0]].tolist(),
                    kl_own[side, :length].tolist(),
                    perplexity(-plain_logprob[side, :length]),
                    repetition(written[side + 1]),
                    self._changes(before, self.after[side] / max(self.lengths[0], 1), top),
                )
            )
        baseline_perplexity = perplexity(-torch.cat(self.own_again)[: self.lengths[0]])
        return Comparison(prompt, generations[0], baseline_perplexity, repetition(written[0]), sides)

    def _changes(self, before: Tensor, after: Tensor, top: int) -> list[TokenChange]:
        moved = (after - before).abs().topk(min(top, len(before))).indices.tolist()
        texts = self.model.token_texts(moved)
        return [
            TokenChange(token, text, float(before[token]), float(after[token]))
            for token, text in zip(moved, texts, strict=True)
            if before[token] != after[token]
        ]
