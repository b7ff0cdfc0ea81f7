"""`train`: a dictionary learns from a model's activations.

What is minimised, and how its gradients are found, is the dictionary's own affair (`dictionaries.trainable`); the
recipe around it is in `steps.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.dictionaries.trainable import Trainable
from workbench.harvest import Buffer, Harvest, Source
from workbench.model.language_model import LanguageModel
from workbench.training.checkpoints import RunFolder, TrainingError
from workbench.training.dictionary_learner import DictionaryLearner, described
from workbench.training.processes import Processes
from workbench.training.reading import Monitor, Reader
from workbench.training.steps import Training

D = TypeVar("D", bound=Trainable)


def train(
    dictionary: D,
    model: LanguageModel | None = None,
    hook_point: str = "",
    corpus: Corpus | None = None,
    *,
    tokens: int,
    target: str = "",
    source: Source | None = None,
    lr: float = 1e-3,
    batch_size: int = 4096,
    warmup: float = 0.05,
    decay: float = 0.2,
    sparsity_warmup: float = 0.1,
    clip: float | None = 1.0,
    dead_after: int = 250_000,
    context: int = 256,
    block: int = 65_536,
    seed: int = 0,
    fresh: bool | None = None,
    folder: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> D:
    """Train a dictionary on a model's activations at a hook point.

    The same call gives the same weights. With a `folder`, the same call also goes on where an earlier one was stopped,
    killed or cancelled, to the very weights that it would have had without that; after the end it returns them at once.
    Under `torchrun` the processes share the work: each reads its part of the corpus, and gradients are averaged.

    Args:
        dictionary: what to train; it is changed in place. Its `reads`, `writes` and `provenance` are set.
        model: whose activations.
        hook_point: where the dictionary reads; may be left out if the dictionary says it.
        corpus: the texts; they are used again, in another order, when `tokens` are more than they have.
        tokens: how many activations to learn from, over all processes; rounded up to whole batches.
        target: where a transcoder writes; may be left out if the dictionary says it, or writes where it reads.
        source: a `Store`, which is read again and again, or any other source that lasts, in place of model and corpus.
        lr: learning rate; means the same at any size of the activations.
        batch_size: activations per step, over all processes.
        warmup: share of the steps during which the learning rate rises in a line.
        decay: share of the steps during which it falls to 0 in a line, at the end.
        sparsity_warmup: share of the steps during which the penalty on density rises in a line.
        clip: longest gradient of the loss per coordinate, over all parameters in units of the activations' size; longer
            ones are shortened to it. None lets them be.
        dead_after: a latent that has been silent for more than so many tokens is dead: it is helped by the kind's
            auxiliary loss, or resampled.
        context: positions of a window of text, with BOS.
        block: activations that are mixed together, over all processes; they are kept in memory.
        seed: of the order of the texts and activations, and of resampling.
        fresh: whether to set the dictionary's biases and sizes from a sample first; None for a dictionary that has not
            been trained before.
        folder: for checkpoints, history and the trained dictionary.
        checkpoint_every: seconds between checkpoints, which bounds what a killed process loses.
        progress: told the share done, and in words the speed and an estimate of the time left.
        cancel: asked at each step and while activations are read; once it says True, a checkpoint is written and the
            dictionary returned as it is.
        log: given each line of history: `step`, `tokens`, `seconds`, `tokens_per_second`, `loss`, `error`, `penalty`,
            `auxiliary`, `fvu`, `l0` as in `Step`, `dead` (share of the latents), `gradient` (its length, before
            clipping) and `lr`.

    Returns:
        The dictionary.

    Raises:
        TrainingError: a setting that can't be used; a folder with another training; a loss that is not finite.
        HookPointError: the model has no such hook point.
        DictionaryError: activations that the dictionary can't learn from.
        CorpusError, HarvestError: texts, or a source, that can't be read.
    """
    shares = {"warmup": warmup, "decay": decay, "sparsity_warmup": sparsity_warmup}
    counts = {"tokens": tokens, "batch_size": batch_size, "dead_after": dead_after, "context": context, "block": block}
    _check(dictionary, counts, shares, {"lr": lr, "clip": 1.0 if clip is None else clip}, seed)
    if not 0 <= checkpoint_every < math.inf:
        raise TrainingError(f"checkpoint_every is a number of seconds, not {checkpoint_every!r}.")
    reads, writes = _hook_points(dictionary, hook_point, target)
    device = next(itertools.chain(dictionary.parameters(), dictionary.buffers())).device
    processes = Processes(device)
    if batch_size % processes.count:
        raise TrainingError(f"batch_size {batch_size:,} can't be divided among {processes.count} processes.")
    if source is None:
        shard = (processes.rank, processes.count)
        source = _harvest(dictionary, model, corpus, (reads, writes), context=context, seed=seed, shard=shard)
    elif model is not None or corpus is not None:
        raise TrainingError("Give a model and a corpus, or a source, not both.")
    settings = counts | shares | {"lr": lr, "clip": clip, "seed": seed, "fresh": fresh}
    settings |= {"reads": reads, "writes": writes, "processes": processes.count}
    of_source = {name: value for name, value in source.settings().items() if name != "shard"}
    settings |= {"dictionary": described(dictionary), "source": of_source}
    run = RunFolder(folder, settings) if folder is not None else None
    watch = Monitor(tokens, progress if processes.rank == 0 else None, cancel)
    reader = Reader(source, (processes.rank, processes.count), watch)
    buffer = Buffer(reader, batch_size // processes.count, -(-block // processes.count), seed)
    steps = -(-tokens // batch_size)
    learner = DictionaryLearner(dictionary, buffer, reads, writes, steps=steps, watch=watch, processes=processes)
    training = Training(learner, settings, processes, run)
    if run and run.note:
        run.restore(learner)
    dictionary.reads, dictionary.writes = reads, writes
    if not (run and run.finished):
        training.go(watch, checkpoint_every, log)
    processes.wait()
    return dictionary


def _check(
    dictionary: object,
    counts: Mapping[str, int],
    shares: Mapping[str, float],
    sizes: Mapping[str, float],
    seed: int,
) -> None:
    """Refuse settings that can't be used."""
    if not isinstance(dictionary, Trainable):
        raise TrainingError(f"{dictionary!r} can't be trained; wb.TopKSAE(...) makes a dictionary that can.")
    for name, number in [*counts.items(), ("seed", seed)]:
        least = 0 if name == "seed" else 1
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise TrainingError(f"{name} is a whole number from {least}, not {number!r}.")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise TrainingError(f"{name} is a share of the steps, from 0 to 1, not {share!r}.")
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise TrainingError(f"{name} is a number above 0, not {size!r}.")


def _hook_points(dictionary: Trainable, hook_point: str, target: str) -> tuple[str, str]:
    """Where a dictionary reads and writes: as it was said here, else as the dictionary says."""
    for said, own, verb in ((hook_point, dictionary.reads, "reads"), (target, dictionary.writes, "writes")):
        if said and own and said != own:
            raise TrainingError(f"{dictionary.name} {verb} {own}, so it can't be trained at {said}.")
    reads = hook_point or dictionary.reads
    writes = target or dictionary.writes or reads
    if not reads:
        raise TrainingError("Name the hook point to read from, such as 'blocks.3.hook_resid_post'.")
    if reads == writes and (dictionary.d_in != dictionary.d_out or dictionary.transcodes):
        raise TrainingError(f"A {dictionary.kind} writes elsewhere than it reads; name that hook point with target=.")
    return reads, writes


def _harvest(
    dictionary: Trainable,
    model: LanguageModel | None,
    corpus: Corpus | None,
    hook_points: tuple[str, str],
    *,
    context: int,
    seed: int,
    shard: tuple[int, int],
) -> Harvest:
    """The endless source of a model's activations."""
    if model is None or corpus is None:
        raise TrainingError("Give a model, a hook point and a corpus, or a source of activations.")
    if not isinstance(corpus, Corpus):
        raise TrainingError(f"corpus is a wb.Corpus, such as wb.Corpus.load('stories'), not {corpus!r:.80}.")
    for name, wanted, verb in zip(hook_points, (dictionary.d_in, dictionary.d_out), ("reads", "writes"), strict=True):
        width = model.hook_points[name].width
        if width != wanted:
            raise TrainingError(f"{name} is {width:,} wide, and {dictionary.name} {verb} activations of {wanted:,}.")
    if not corpus.count_tokens(model, 1):
        raise TrainingError(f"{corpus.name} holds no token to learn from, only special ones.")
    points = list(dict.fromkeys(hook_points))
    return Harvest(model, corpus, points, context=context, seed=seed, repeat=True, shard=shard)
