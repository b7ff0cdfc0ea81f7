"""The measurement of a certificate: how exactly a changed model computes its interventions, and its costs.

Both are measured in the models' own type, on text that no choice should depend on. *Exactness*: the largest difference
of a logit between the changed model and its parent under the baked interventions, for each step that has interventions.
*Cost*: the perplexity of the changed model beside that of the model at the start, and the KL from the one's predictions
to the other's. In 16 bits the *rounding* is measured too: how far the changed model's logits are from what its weights
compute in float32.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge
from torch import Tensor

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.precision import in_float64
from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.corpus import Corpus, as_corpus
from workbench.evaluation.losses import kl_divergence, perplexity, predictions, token_losses
from workbench.evaluation.runs import windows_at_once
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError
from workbench.model.widened import in_float32, is_exact
from workbench.surgery.certificate.record import Certificate

HELD_OUT = 0.1
"""Share of the bundled stories that no default calibration uses."""
Task = Callable[[LanguageModel], float]
"""Scores a model, such as its accuracy on a task."""


class Changed(Protocol):
    """A `Child`, as far as certificates read it."""

    model: LanguageModel
    parent: LanguageModel
    history: list[dict[str, Any]]
    reference: tuple[Any, ...]
    beside: tuple[Any, ...]

    @property
    def before(self) -> Any:
        """The child whose model is the parent; None if there is none."""
        ...


@checked(ModelError)
def certify(
    child: Changed,
    corpus: Corpus | None = None,
    tokens: Positive = 2048,
    *,
    tasks: Mapping[str, Task] | None = None,
    context: Annotated[Integer, Ge(2)] = 128,
    batch: Positive = 2,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Certificate:
    """The certificate of a change, against the model at the start of all steps.

    Interventions and splices in force around the call are set aside; those beside the child run with it.

    Args:
        child: the changed model.
        corpus: text that no choice depended on; by default the held-out tenth of the bundled stories, and random tokens
            for a model without a tokenizer.
        tokens: number of tokens to measure on.
        tasks: functions that score a model, by name.
        context: positions of a window.
        batch: windows that run at once, at most; fewer where the vocabulary is large.
        seed: of the choice of the texts.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: asked after each batch; when it returns True, the measurement ends with the tokens so far.

    Raises:
        CorpusError: texts that can't be used.
    """
    chain = _chain(child)
    start, end = chain[0].parent, child.model
    text = held_out(start) if corpus is None else as_corpus(corpus)
    batch = windows_at_once(start, context, batch)
    differences: list[float | None] = [0.0 if one.reference else None for one in chain]
    wide = None if is_exact(end) else in_float32(end)
    sums, done, rounding = torch.zeros(5).double(), 0, 0.0
    with uninterrupted(), torch.inference_mode():
        if isinstance(text, Corpus):
            reader = next((one.model for one in chain if not one.model.network.causal), start)
            windows = text.batches(reader, context, batch, tokens, seed)
            batches = ((one.tokens, one.mask, one.content) for one in windows)
        else:
            batches = _random_windows(start, tokens, (batch, context), seed)
        for ids, mask, content in batches:
            after = logits_with(end, ids, child.beside)
            sums += _cost(logits_with(start, ids, ()), after, ids, content).cpu()
            for number, one in enumerate(chain):
                largest = differences[number]
                if largest is not None:
                    off = logits_with(one.parent, ids, one.reference)
                    off -= after if one is child else logits_with(one.model, ids, one.beside)
                    differences[number] = max(largest, _largest(off[mask]))
            if wide is not None:
                rounding = max(rounding, _largest((after - logits_with(wide, ids, child.beside))[mask]))
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
        dtype=str(end.dtype).removeprefix("torch."),
        rounding=None if wide is None else rounding,
    )


def held_out(model: LanguageModel) -> Corpus | str:
    """The default text of certificates: a tenth of the bundled stories."""
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
    """Random tokens `[batch, pos]`, with a mask and a content mask that are True everywhere."""
    chance, shape = torch.Generator().manual_seed(seed), (shape[0], min(shape[1], model.network.n_ctx))
    for _ in range(math.ceil(tokens / (shape[0] * shape[1]))):
        everywhere = torch.ones(shape, dtype=torch.bool, device=model.device)
        drawn = torch.randint(model.network.vocab_size, shape, generator=chance)
        yield drawn.to(model.device), everywhere, everywhere


def logits_with(model: LanguageModel, tokens: Tensor, interventions: Sequence[Any]) -> Tensor:
    """Logits under interventions, `[batch, pos, vocab]`.

    There is no mask, since `Corpus.batches` pads for causal models only. For interventions on the prompt or on
    generated tokens, the second half of a window counts as generated.
    """
    edits = model.bind(interventions)
    return model.run(tokens, edits, prompt_length=max(tokens.shape[1] // 2, 1)).float()


def _largest(off: Tensor) -> float:
    """The largest of differences, infinite where one is no number."""
    return float(off.abs().nan_to_num(nan=math.inf).max())


def _cost(before: Tensor, after: Tensor, tokens: Tensor, content: Tensor) -> Tensor:
    """Sums over predictions of text by text: their number, cross-entropies, KL, how often the likeliest is the same."""
    pairs = predictions(content)  # [batch, pos - 1]
    kl = kl_divergence(before[:, :-1], after[:, :-1], pairs)
    same = (before.argmax(-1) == after.argmax(-1))[:, :-1] & pairs
    columns = [pairs, token_losses(before, tokens, pairs), token_losses(after, tokens, pairs), kl, same]
    return torch.stack([in_float64(column).sum() for column in columns])
