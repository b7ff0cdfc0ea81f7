"""What a scan returns: findings, and the test of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from workbench.core.display import Shown, Tabular

LEAST = 1e-3
"""An effect below so many nats counts as none."""
RARE = 0.1
"""A finding stands out where at most this share of random ones do as much."""


@dataclass(frozen=True)
class Ablation(Shown):
    """What happens when something is taken out of the model, in real runs, beside random ones of its kind."""

    effect: float
    """By how much the score of the target falls, in nats: its log-probability, or the difference of two logits."""
    random: list[float]
    """The same for each of the random ones."""
    kind: str
    """What these are, such as "heads of layer 23"."""
    score: str
    """What falls, for people."""
    call: str
    """Python that takes it out."""
    sign: int = 1
    """-1 where the finding speaks against the target, so that its score is to rise; 0 where it says neither."""

    def _size(self, effect: float) -> float:
        """An effect in the direction that the finding says."""
        return effect * self.sign if self.sign else abs(effect)

    @property
    def as_much(self) -> int:
        """How many of the random ones have an effect as large, in the same direction where the finding says one."""
        return sum(self._size(one) >= self._size(self.effect) for one in self.random)

    @property
    def share(self) -> float:
        """The share of the random ones that do as much; NaN without any."""
        return self.as_much / len(self.random) if self.random else float("nan")

    @property
    def stands_out(self) -> bool:
        """Whether it has an effect in the direction that the finding says, as few random ones have."""
        return self._size(self.effect) > LEAST and bool(self.random) and self.share <= RARE

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        moves = "falls" if self.effect > 0 else "rises"
        without = f"Without it {self.score} {moves} by {abs(self.effect):.2g} nats"
        if not self.random:
            return f"{without}; there are no {self.kind} to compare with."
        if self._size(self.effect) <= LEAST:
            wanted = {1: "does not fall as the finding would have it", -1: "does not rise as the finding would have it"}
            return f"{without}, so it {wanted.get(self.sign, 'is not needed here')}."
        count = len(self.random)
        if self.stands_out:
            number = "none" if not self.as_much else f"{self.as_much} of {count}"
            of = f"of {count} random {self.kind}" if not self.as_much else f"random {self.kind}"
            return f"{without}, and {number} {of} does as much."
        verb = "do" if self.as_much > 1 else "does"
        many = self.as_much > count / 2
        verdict = "this is no more than random ones show" if many else "it does not stand out"
        return f"{without}, but {self.as_much} of {count} random {self.kind} {verb} as much, so {verdict}."

    def to_dict(self) -> dict[str, Any]:
        """The test as plain data."""
        return asdict(self) | {"share": self.share if self.random else None, "stands_out": self.stands_out}


@dataclass(frozen=True)
class Finding(Shown):
    """One thing that a scan found."""

    kind: str
    """ "head", "neuron", "latent", "layer", "token" or "unusual"."""
    sentence: str
    """What was found, with its number, and what the test says of it."""
    number: float
    """The number of the finding, before the test."""
    call: str
    """Python that shows it, where `model` is the model and `wb` the package."""
    test: Ablation

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain data."""
        return asdict(self) | {"test": self.test.to_dict()}

    def __repr__(self) -> str:
        return f"<Finding: {self.sentence}>"


@dataclass(frozen=True, eq=False, repr=False)
class Scan(Tabular):
    """What is interesting on a text; `wb.scan` returns one. A sequence of findings.

    Those that stand out come first, the largest effects first among them.
    """

    prompt: list[str]
    """The text of each token."""
    target: str
    """The token whose prediction is looked at, or the two tokens whose logits are compared."""
    score: float
    """Its log-probability behind the text, in nats, or the difference of the two logits."""
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    """What could not be looked at on this model, a sentence each."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each finding."""
        for one in self.findings:
            test = {"effect": one.test.effect, "share": one.test.share, "stands_out": one.test.stands_out}
            yield {"kind": one.kind, "sentence": one.sentence, "number": one.number, **test, "call": one.call}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, place: int) -> Finding:
        return self.findings[place]

    def to_dict(self) -> dict[str, Any]:
        """The scan as plain data."""
        return {
            "prompt": self.prompt,
            "target": self.target,
            "score": self.score,
            "findings": [one.to_dict() for one in self.findings],
            "notes": self.notes,
        }

    def __repr__(self) -> str:
        out = sum(one.test.stands_out for one in self.findings)
        return f"<Scan of {self.target!r}: {len(self.findings)} findings, {out} of which stand out>"
