"""The text that is scanned, what is predicted behind it, and how that changes when something is taken out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.evaluation.losses import cross_entropy
from workbench.findings.results import Ablation
from workbench.lens.tokens import one_row, token_id
from workbench.model.edits import Edit, Group, Intervention, Run
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import ChatPrompt, Prompt

Token = str | int
TOKENS = 1024
"""Tokens in a pass."""


@dataclass(frozen=True, eq=False)
class Variant:
    """The model, or the text, with something taken out."""

    interventions: Sequence[Intervention] = ()
    tokens: Tensor | None = None
    """`[pos]`, in place of the text's own."""
    edits: Sequence[Edit] = ()
    """Behind those of the interventions."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What a scan looks at."""

    model: LanguageModel
    tokens: Tensor
    """`[1, pos]`."""
    targets: list[int]
    """One token, or two whose logits are compared."""
    controls: int
    """Random ones of its kind beside each finding, at most."""
    seed: int
    text_code: str
    """Python for the text."""
    plain: float
    """The score of the target."""
    logits: Tensor = field(repr=False)
    """Behind the text, `[vocab]`."""

    @classmethod
    def of(
        cls, model: LanguageModel, text: Prompt, target: Token | tuple[Token, Token] | None, controls: int, seed: int
    ) -> Subject:
        """The subject of a text.

        Raises:
            LensError: a target of several tokens, or several rows of tokens.
            PromptError: an empty text, or one longer than the context.
        """
        tokens = one_row(model, text, "A scan reads")
        with torch.no_grad():
            logits = model.run(tokens, model.bind(()), last=1)[0, -1].float()
        named: Any = () if target is None else (target if isinstance(target, tuple) else (target,))
        targets = [token_id(model, one) for one in named] or [int(logits.argmax())]
        plain_text = isinstance(text, str) and not isinstance(text, ChatPrompt)
        code = repr(text) if plain_text else repr(tokens[0].tolist())
        return cls(model, tokens, targets, controls, seed, code, score_of(logits, targets), logits)

    @property
    def name(self) -> str:
        """The target, for people."""
        return " − ".join(f"“{one}”" for one in self.model.token_labels(torch.tensor(self.targets)))

    @property
    def score(self) -> str:
        """What falls, for people."""
        return f"the log-probability of {self.name}" if len(self.targets) == 1 else f"the logit difference {self.name}"

    @property
    def target_code(self) -> str:
        """Python for the target."""
        return repr(self.targets[0] if len(self.targets) == 1 else tuple(self.targets))

    def chance(self, *what: object) -> random.Random:
        """Random numbers of the seed, others for each thing."""
        return random.Random(repr((self.seed, *what)))

    def losses(self, variants: Sequence[Variant]) -> list[float]:
        """By how much the score falls under each variant, in nats, many of them in a pass.

        Raises:
            EditError: an intervention that can't act on this model.
        """
        model, length = self.model, self.tokens.shape[1]
        found: list[float] = []
        at_once = max(1, TOKENS // length)
        # in 16 bits another shape of a batch rounds otherwise, so that the plain text is computed beside the others
        beside = [] if model.dtype == torch.float32 else [Variant()]
        for start in range(0, len(variants), at_once):
            some = [*beside, *variants[start : start + at_once]]
            rows = torch.cat([self.tokens if one.tokens is None else one.tokens[None] for one in some])
            groups = [
                Group([*model.bind(one.interventions), *model.network.prepare(one.edits)], slice(place, place + 1))
                for place, one in enumerate(some)
            ]
            with torch.no_grad():
                logits = model.network.run(rows, Run(groups), last=1)[:, -1].float()
            scores = [score_of(one, self.targets) for one in logits]
            plain = scores.pop(0) if beside else self.plain
            found += [plain - one for one in scores]
        return found

    def tested(
        self, taken: Intervention, others: Sequence[Intervention], *, kind: str, code: str, sign: int = 1
    ) -> Ablation:
        """The test of one intervention beside others.

        Args:
            taken: takes the finding out.
            others: take random ones of its kind out.
            kind: what these are.
            code: Python for the intervention.
            sign: as in `Ablation`.
        """
        effect, *random_ones = self.losses([Variant([one]) for one in (taken, *others)])
        call = f"with model.intervening([{code}]):\n    logits = model({self.text_code})"
        return Ablation(effect, random_ones, kind, self.score, call, sign)


def score_of(logits: Tensor, targets: Sequence[int]) -> float:
    """The log-probability of a token from logits `[vocab]`, or the difference of two logits, in nats."""
    if len(targets) == 2:
        return float(logits[targets[0]] - logits[targets[1]])
    return -float(cross_entropy(logits[None], torch.tensor([targets[0]], device=logits.device)))
