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
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.corpus import Corpus, as_corpus
from workbench.evaluation.losses import kl_divergence, perplexity, predictions, token_losses
from workbench.model.edits import Group, Run
from workbench.model.language_model import LanguageModel, uninterrupted
from workbench.model.weights import ModelError
from workbench.surgery.certificate.record import Certificate

HELD_OUT = 0.1
"""Share of the bundled stories that nothing is calibrated on where no texts are named."""
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
    before, after, kl, same = sums[1:] / count
    known = [one for one in differences if one is not None]
    return Certificate(
        parent={"name": start.name, "hash": start.hash},
        child={"name": end.name, "hash": end.hash},
        steps=list(child.history),
        max_logit_difference=max(known) if known else None,
        differences=differences,
        perplexity_before=perplexity(before),
        perplexity_after=perplexity(after),
        kl=float(kl),
        same_top=float(same),
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
    pairs = predictions(content)  # [batch, pos - 1]
    kl = kl_divergence(before[:, :-1], after[:, :-1], pairs)
    same = (before.argmax(-1) == after.argmax(-1))[:, :-1] & pairs
    columns = [pairs, token_losses(before, tokens, pairs), token_losses(after, tokens, pairs), kl, same]
    return torch.stack([column.double().sum() for column in columns])
