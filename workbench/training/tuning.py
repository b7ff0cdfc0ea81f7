"""`fine_tune`: a model learns from text, alone or running through dictionaries that learn with it.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from workbench.core.hashing import fingerprint
from workbench.core.progress import Progress
from workbench.corpus import TokenBatch
from workbench.dictionaries.protocol import Dictionary
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.training.checkpoints import RunFolder, TrainingError
from workbench.training.dictionary_learner import described
from workbench.training.model_learner import ModelLearner, dictionary_in_place
from workbench.training.processes import Processes
from workbench.training.reading import Monitor
from workbench.training.steps import Training


class Texts(Protocol):
    """What a model learns from: a `Corpus`, or a language that makes its texts, such as `TokFSM`."""

    @property
    def hash(self) -> str:
        """SHA-256 of what it holds."""
        ...

    def batches(self, model: Any, context: int = 256, batch: int = 16, **how: Any) -> Iterator[TokenBatch]:
        """Token batches; see `Corpus.batches` for the settings `seed`, `repeat` and `shard`."""
        ...


def fine_tune(
    model: LanguageModel,
    texts: Texts,
    spliced: Mapping[str, Dictionary] | None = None,
    *,
    tokens: int,
    lr: float = 5e-4,
    batch: int = 16,
    context: int = 128,
    frozen: bool = False,
    weight: float = 1.0,
    first_k: int | None = None,
    k_decay: float = 0.5,
    warmup: float = 0.02,
    decay: float = 0.0,
    clip: float | None = 1.0,
    dead_after: int = 250_000,
    seed: int = 0,
    fresh: bool | None = None,
    folder: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> LanguageModel:
    """Train a copy of a model on texts, running through dictionaries where it has or gets some.

    What is minimised is the cross-entropy of the next token, plus `weight` times, for each dictionary, the squared
    distance between what it makes and what it was given (token mean of the sum over dimensions), which moves the
    dictionary alone. The same call gives the same weights, also after interruptions if it has a `folder`.

    Args:
        model: left as it is.
        texts: a `Corpus` or a `TokFSM`; used again, in another order, when `tokens` are more than they have.
        spliced: dictionaries by the hook point where they write, trained in place; None for copies of those that the
            model runs through already.
        tokens: positions to learn from, rounded up to whole batches.
        lr: learning rate of the model's weights; a dictionary's is set from it as in `train`.
        batch: windows per step, over all processes.
        context: positions of a window.
        frozen: train the dictionaries only.
        weight: of the dictionaries' loss; λ in the paper.
        first_k: k that codebooks begin with, which comes down to their own in a line.
        k_decay: share of the steps during which it does.
        warmup: share of the steps during which the learning rate rises in a line.
        decay: share of the steps during which it falls to 0 in a line, at the end.
        clip: longest gradient over all parameters; longer ones are shortened to it. None lets them be.
        dead_after: a code that no token has had for more than so many tokens takes over an activation.
        seed: of the order of the texts, and of resampling.
        fresh: whether to set the dictionaries from a sample first; None for dictionaries not trained before.
        folder: for checkpoints and history.
        checkpoint_every: seconds between checkpoints.
        progress, cancel: as in `train`.
        log: given each line of history: `loss`, `ce`, `error`, `accuracy`, and what is said of time, as in `train`.

    Returns:
        A new model with the trained weights, whose `splices` are the dictionaries.

    Raises:
        TrainingError: a setting that can't be used; a folder with another training; a loss that is not finite.
        HookPointError, DictionaryError: a dictionary that does not fit the model.
        CorpusError: texts that can't be read.
    """
    given = copy.deepcopy(dict(model.splices)) if spliced is None else dict(spliced)
    shares = {"warmup": warmup, "decay": decay, "k_decay": k_decay}
    counts = {"tokens": tokens, "batch": batch, "context": context, "dead_after": dead_after}
    _check(counts, shares, {"lr": lr, "clip": 1.0 if clip is None else clip}, weight, first_k)
    if frozen and not given:
        raise TrainingError("There is nothing to train: the model is frozen and runs through no dictionary.")
    order = list(model.hook_points)
    points = sorted(given, key=lambda name: order.index(model.hook_points[name].key))
    dictionaries = [dictionary_in_place(name, given[name]) for name in points]  # type: ignore[arg-type]
    twin = LanguageModel(copy.deepcopy(model.network.module), model.tokenizer, f"{model.name} (tuned)", model.hash)
    processes = Processes(twin.network.unembedding().device)
    if batch % processes.count:
        raise TrainingError(f"batch {batch:,} can't be divided among {processes.count} processes.")

    def batches() -> Iterator[TokenBatch]:
        shard = (processes.rank, processes.count)
        how: dict[str, Any] = {"seed": seed, "repeat": True, "shard": shard}
        return texts.batches(twin, context, batch // processes.count, **how)

    learner = ModelLearner(
        twin,
        dictionaries,
        batches,
        weight=weight,
        frozen=frozen,
        first_k=None if first_k is None else (first_k, max(k_decay, 1e-9)),
        processes=processes,
    )
    if fresh is None:
        fresh = not any("tokens" in one.provenance for one in dictionaries)
    settings: dict[str, Any] = counts | shares | {"lr": lr, "clip": clip, "seed": seed, "fresh": fresh}
    settings |= {"batch_size": batch * context, "sparsity_warmup": 0.0, "frozen": frozen, "weight": weight}
    settings |= {"first_k": first_k, "hook_points": points, "processes": processes.count}
    settings["dictionaries"] = [described(one) for one in dictionaries]
    settings["source"] = {"model": model.name, "model_hash": model.hash, "corpus_hash": texts.hash}
    run = RunFolder(folder, settings) if folder is not None else None
    training = Training(learner, settings, processes, run)
    if run and run.note:
        run.restore(learner)
    if not (run and run.finished):
        training.go(Monitor(tokens, progress if processes.rank == 0 else None, cancel), checkpoint_every, log)
    processes.wait()
    for parameter in learner.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for one in dictionaries:
        one.widen(0, 0.0)
        one.provenance = one.provenance | learner.provenance
    twin.splices = dict(zip(points, dictionaries, strict=True))
    twin.hash, twin.about = learner.hash, model.about | {"trained": learner.provenance}
    twin.plain_hash = model.plain_hash if frozen else fingerprint(parameters_of(twin.network.module))
    return twin


def _check(
    counts: Mapping[str, int], shares: Mapping[str, float], sizes: Mapping[str, float], weight: float, first_k: object
) -> None:
    """Refuse settings that can't be used."""
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise TrainingError(f"{name} is a whole number from 1, not {number!r}.")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise TrainingError(f"{name} is a share of the steps, from 0 to 1, not {share!r}.")
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise TrainingError(f"{name} is a number above 0, not {size!r}.")
    if not 0 <= weight < math.inf:
        raise TrainingError(f"weight is a number from 0, not {weight!r}.")
    if first_k is not None and (isinstance(first_k, bool) or not isinstance(first_k, int) or first_k < 1):
        raise TrainingError(f"first_k is a whole number from 1, or None, not {first_k!r}.")
