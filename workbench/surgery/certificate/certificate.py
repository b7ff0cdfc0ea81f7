"""The certificate of a changed model: what was done, that the weights do it, and what it costs.

Two things are measured, on text that nothing should have been chosen on. *Exactness*: the largest difference of a logit
between the changed model and its parent under the interventions that were baked, for each step that has such. *Cost*:
how much further from the text the changed model's predictions are than those of the model at the start (perplexity),
and how far from that model's own predictions (KL).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.corpus import Corpus, as_corpus
from workbench.model.edits import Group, Run
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.model.weights import ModelError

HELD_OUT = 0.1
"""Share of the bundled stories that nothing is calibrated on where no texts are named."""
AGREES = 1e-4
"""The largest difference of a logit at which two models agree."""
PREDICTIONS = 128
"""Predictions looked at together: bounds the `[predictions, vocab]` matrices of log-probabilities."""
JSON, MARKDOWN = "certificate.json", "certificate.md"
Task = Callable[[LanguageModel], float]
"""Scores a model, such as its accuracy on a task."""


class Changed(Protocol):
    """What is certified: a `Child`."""

    model: LanguageModel
    parent: LanguageModel
    history: list[dict[str, Any]]
    reference: tuple[Any, ...]
    beside: tuple[Any, ...]

    @property
    def before(self) -> Any:
        """The child that was changed, if the parent is one."""
        ...


@dataclass(frozen=True)
class Certificate:
    """What a changed model is, and what the change costs."""

    parent: dict[str, str]
    """Name and hash of the model at the start."""
    child: dict[str, str]
    """Name and hash of the changed model."""
    steps: list[dict[str, Any]] = field(repr=False)
    """What was done, with the hash of each edit."""
    max_logit_difference: float | None
    """The largest difference of a logit between a changed model and its parent under the interventions that it stands
    for; None where no step stands for interventions."""
    differences: list[float | None] = field(repr=False)
    """The same for each step that was taken in this session."""
    perplexity_before: float
    perplexity_after: float
    kl: float
    """KL(start ‖ changed) in nats, mean over predictions."""
    same_top: float
    """Share of the predictions whose likeliest token is the same before and after."""
    tasks: dict[str, tuple[float, float]]
    """Scores before and after, by task."""
    corpus: dict[str, str]
    """Name and hash of the text."""
    predictions: int
    """That perplexity and KL are means over."""
    made: dict[str, Any] = field(repr=False)
    """Versions, command and seed of the measurement."""

    @property
    def unmeasured(self) -> bool:
        """Whether a step stands for interventions that were not at hand, since the model was opened from a folder."""
        earlier = len(self.steps) - len(self.differences)
        known = [None] * earlier + list(self.differences)
        return any(step.get("edits") and one is None for step, one in zip(self.steps, known, strict=True))

    @property
    def exact(self) -> bool | None:
        """Whether the weights do what the interventions did, to 1e-4 in every logit; None where there are none, or
        where some of them were not measured."""
        if self.max_logit_difference is None or (self.unmeasured and self.max_logit_difference <= AGREES):
            return None
        return self.max_logit_difference <= AGREES

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"exact": self.exact, "tasks": {name: list(two) for name, two in self.tasks.items()}}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`; raises `ModelError` for anything else."""
        try:
            rest: dict[str, Any] = {key: value for key, value in said.items() if key != "exact"}
            rest["tasks"] = {name: tuple(two) for name, two in said["tasks"].items()}
            return cls(**rest)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ModelError(f"This is not a certificate ({error}).") from error

    def to_markdown(self) -> str:
        """The same for people."""
        lines = [f"# {_plain(self.child['name'])}", "", "| | |", "|---|---|"]
        lines += [f"| made from | {_plain(self.parent['name'])}, weights `{self.parent['hash']}` |"]
        lines += [f"| weights | `{self.child['hash']}` |", "", "## What was done", ""]
        for number, step in enumerate(self.steps, 1):
            said = "; ".join(_plain(one) for one in _said(step))
            lines.append(f"{number}. **{_plain(step['operation'])}**: {said} (edit `{step['edit_hash']}`)")
        lines += ["", "## What the weights do", "", self.exactness(), "", "## What it costs", ""]
        lines += ["| | before | after |", "|---|---|---|"]
        lines += [f"| perplexity | {self.perplexity_before:.4g} | {self.perplexity_after:.4g} |"]
        lines += [f"| {_plain(name)} | {a:.4g} | {b:.4g} |" for name, (a, b) in self.tasks.items()]
        lines += ["", f"KL from the predictions before to those after: {self.kl:.4g} nats. The likeliest next token is"]
        lines += [f"the same for {self.same_top:.1%} of the predictions."]
        lines += ["", f"Measured on {self.predictions:,} predictions in {_plain(self.corpus['name'])}"]
        command = str(self.made["command"]).replace("`", "'")
        lines += [f"(`{self.corpus['hash']}`), by `{command}`."]
        return "\n".join([*lines, ""])

    def exactness(self) -> str:
        """How exactly the weights do what the interventions did, in a sentence or two."""
        if self.unmeasured:
            far = self.max_logit_difference
            since = "" if far is None else f" In the steps since then no logit is further than {far:.2g} from it."
            return (
                "It was not measured how exactly the weights do what the interventions of earlier steps did: the model "
                f"was opened from its folder, without them.{since}"
            )
        if self.max_logit_difference is None:
            return "No step stands for interventions, so there is nothing that the weights should do exactly."
        earlier = len(self.steps) - len(self.differences)
        numbers = [earlier + at for at, one in enumerate(self.differences, 1) if one is not None]
        alone = len(self.steps) == 1
        of = "that of the parent under the interventions" if alone else "that of the model before under these"
        if self.max_logit_difference == 0:
            said = f"every logit is the same to the bit as {of}."
        else:
            said = (
                f"no logit is further than {self.max_logit_difference:.2g} from {of} "
                f"({'within' if self.exact else 'more than'} the {AGREES:g} that is wanted)."
            )
        if alone:
            return said[0].upper() + said[1:]
        others = [at for at in range(1, len(self.steps) + 1) if at not in numbers]
        rest = f" {_standing(others)} for none: only the costs say what came of that." if others else ""
        return f"{_standing(numbers)} for interventions: after {'each' if len(numbers) > 1 else 'it'} {said}{rest}"


def certify(
    child: Changed,
    corpus: Corpus | None = None,
    tokens: int = 2048,
    *,
    tasks: Mapping[str, Task] | None = None,
    context: int = 128,
    batch: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Certificate:
    """Measure what a change does and costs, against the model at the start of all steps.

    Interventions and splices in force around the call are set aside; those that belong beside the child are given to
    it.

    Args:
        child: what was changed.
        corpus: text that nothing was chosen on; the held-out tenth of the bundled stories without it, and random tokens
            for a model without a tokenizer.
        tokens: measure on so many.
        tasks: scores of a model, by name.
        context: positions of a window.
        batch: windows that run at once.
        seed: of the choice of the texts.
        progress: told the share done.
        cancel: asked after each batch; once it says True, the results are those of the tokens until then.

    Raises:
        CorpusError: texts that can't be used.
    """
    chain = _chain(child)
    start, end = chain[0].parent, child.model
    text = held_out(start) if corpus is None else as_corpus(corpus)
    differences: list[float | None] = [0.0 if one.reference else None for one in chain]
    sums, done = torch.zeros(5).double(), 0
    with uninterrupted(), torch.inference_mode():
        if isinstance(text, Corpus):
            batches = ((one.tokens, one.mask, one.content) for one in text.batches(start, context, batch, tokens, seed))
        else:
            batches = _random_windows(start, tokens, (batch, context), seed)
        for ids, mask, content in batches:
            after = logits_with(end, ids, child.beside)
            sums += _cost(logits_with(start, ids, ()), after, ids, content)
            for number, one in enumerate(chain):
                largest = differences[number]
                if largest is not None:
                    off = logits_with(one.parent, ids, one.reference)
                    off -= after if one is child else logits_with(one.model, ids, one.beside)
                    differences[number] = max(largest, float(off[mask].abs().nan_to_num(nan=math.inf).max()))
            done += int(content.sum())
            if progress:
                progress(min(done / tokens, 1.0), f"{min(done, tokens):,} of {tokens:,} tokens")
            if cancel is not None and cancel():
                break
    count = float(sums[0])
    if count == 0:
        raise ModelError("There is no prediction to measure on; give a longer text.")
    before, after, kl, same = (sums[1:] / count).tolist()
    known = [one for one in differences if one is not None]
    return Certificate(
        parent={"name": start.name, "hash": start.hash},
        child={"name": end.name, "hash": end.hash},
        steps=list(child.history),
        max_logit_difference=max(known) if known else None,
        differences=differences,
        perplexity_before=_exp(before),
        perplexity_after=_exp(after),
        kl=kl,
        same_top=same,
        tasks={name: (float(task(start)), float(task(end))) for name, task in (tasks or {}).items()},
        corpus={"name": text.name, "hash": text.hash} if isinstance(text, Corpus) else {"name": text, "hash": ""},
        predictions=int(count),
        made={
            "seed": seed,
            "tokens": tokens,
            "context": context,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("workbench-lm", "torch", "transformers")},
            "command": command_line(),
        },
    )


def held_out(model: LanguageModel) -> Corpus | str:
    """The text that certificates are measured on where no other is given: a tenth of the bundled stories."""
    return "random tokens" if model.tokenizer is None else Corpus.load("stories").split(HELD_OUT)[1]


def _chain(child: Any) -> list[Any]:
    """The children from the first one on, this one last."""
    chain = [child]
    while chain[0].before is not None:
        chain.insert(0, chain[0].before)
    return chain


def _random_windows(
    model: LanguageModel, tokens: int, shape: tuple[int, int], seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Random tokens `[batch, pos]`, and twice that all of them count."""
    chance, shape = torch.Generator().manual_seed(seed), (shape[0], min(shape[1], model.network.n_ctx))
    for _ in range(math.ceil(tokens / (shape[0] * shape[1]))):
        everywhere = torch.ones(shape, dtype=torch.bool)
        yield torch.randint(model.network.vocab_size, shape, generator=chance), everywhere, everywhere


def logits_with(model: LanguageModel, tokens: Tensor, interventions: Sequence[Any]) -> Tensor:
    """`[batch, pos, vocab]`; padding on the right needs no mask: no token of a causal model looks there.

    For interventions on the prompt or on generated tokens, the second half of a window is what was generated.
    """
    edits = model.bind(interventions)
    middle = torch.full((len(tokens),), max(tokens.shape[1] // 2, 1))
    return model.network.run(tokens, Run([Group(edits)], middle) if edits else None).float()


def _cost(before: Tensor, after: Tensor, tokens: Tensor, content: Tensor) -> Tensor:
    """Sums over predictions of text by text: their number, cross-entropies, KL, how often the likeliest is the same."""
    pairs = content[:, :-1] & content[:, 1:]  # [batch, pos - 1]
    total = torch.zeros(5).double()
    for row, counts in enumerate(pairs):
        for at in counts.nonzero()[:, 0].split(PREDICTIONS):
            target = tokens[row, at + 1][:, None]  # [n, 1]
            of, to = before[row, at].log_softmax(-1), after[row, at].log_softmax(-1)  # [n, vocab]
            kl = torch.where(of == -torch.inf, 0, of.exp() * (of - to)).sum(-1)
            same = of.argmax(-1) == to.argmax(-1)
            columns = [torch.ones(len(at)), -of.gather(1, target)[:, 0], -to.gather(1, target)[:, 0], kl, same]
            total += torch.stack([column.double().sum() for column in columns])
    return total


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _said(step: Mapping[str, Any]) -> list[str]:
    """What a step did, in words of its own settings."""
    ours = ("operation", "edit_hash", "parent", "hash", "own_tensors", "config", "seed", "versions", "command")
    said = []
    for key, value in step.items():
        if key == "edits":
            said += [_short(one) for one in value]
        elif key not in ours and value not in (None, [], {}, ""):
            said.append(f"{key} {_short(value)}")
    return said or ["nothing"]


def _standing(steps: Sequence[int]) -> str:
    """As in "Steps 1, 2 and 4 stand"."""
    *first, last = map(str, steps or ["?"])
    return f"Steps {', '.join(first)} and {last} stand" if first else f"Step {last} stands"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(
            _short(one) if key in ("kind", "feature") else f"{key} {_short(one)}" for key, one in value.items()
        )
    if isinstance(value, list):
        return f"{len(value)} values" if len(value) > 12 else ", ".join(map(_short, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(text: object) -> str:
    """A text that Markdown and HTML take as it is."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{sign}" if sign in "\\`*_[]|#$" else sign for sign in escaped).replace("\n", " ")
