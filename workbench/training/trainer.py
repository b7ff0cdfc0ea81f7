"""`train`: a dictionary learns from a model's activations.

The dictionary computes its loss and gradients (`dictionaries.trainable`); schedules and steps are in `steps.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from workbench.core.checks import Natural, Positive, PositiveNumber, Rate, Share, checked
from workbench.core.progress import Progress
from workbench.core.type_words import shown
from workbench.corpus import Corpus
from workbench.dictionaries.origin import tell_origin
from workbench.dictionaries.protocol import JOIN
from workbench.dictionaries.sites import check_count, follow
from workbench.dictionaries.trainable import Trainable
from workbench.harvest import Buffer, Harvest, Source
from workbench.model.grad_mode import lasting
from workbench.model.language_model import LanguageModel
from workbench.training.checkpoints import TrainingError
from workbench.training.dictionary_learner import DictionaryLearner, DictionarySettings, described
from workbench.training.processes import Processes, check_whole
from workbench.training.reading import Monitor, Reader
from workbench.training.settings import RunOptions, Seconds
from workbench.training.steps import Training

D = TypeVar("D", bound=Trainable)


@checked(TrainingError)
@lasting
def train(
    dictionary: D,
    model: LanguageModel | None = None,
    hook_point: str = "",
    corpus: Corpus | None = None,
    *,
    tokens: Positive,
    target: str = "",
    source: Source | None = None,
    lr: Rate = 1e-3,
    batch_size: Positive = 4096,
    warmup: Share = 0.05,
    decay: Share = 0.2,
    sparsity_warmup: Share = 0.1,
    clip: PositiveNumber | None = 1.0,
    dead_after: Positive = 250_000,
    context: Positive = 256,
    block: Positive = 65_536,
    seed: Natural = 0,
    fresh: bool | None = None,
    folder: str | Path | None = None,
    checkpoint_every: Seconds = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> D:
    """Train a dictionary on a model's activations at a hook point.

    The same call gives the same weights. With a `folder`, the same call continues where an earlier one was stopped,
    killed or cancelled, and ends with the same weights, to the bit, as an uninterrupted one; after the end it returns
    them at once. Under `torchrun` the processes share the work: each reads its part of the corpus, and gradients are
    averaged.

    Args:
        dictionary: trained in place, on the model's device. Its `reads`, `writes` and `provenance` are set.
        model: whose activations.
        hook_point: where the dictionary reads; may be left out if the dictionary says it.
        corpus: the texts; they are used again, in another order, when `tokens` are more than they have.
        tokens: how many activations to learn from, over all processes; rounded up to whole batches of `batch_size`. No
            more are read, save for the rest of the last texts that run together.
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
        block: activations that are mixed together, over all processes, at most; they are kept in memory.
        seed: of the order of the texts and activations, and of resampling.
        fresh: whether to set the dictionary's biases and sizes from a sample first; None for a dictionary that neither
            a training nor a file has set. One that is continued stays the same function: its decoder rows get norm 1,
            and their norms move into the encoder.
        folder: for checkpoints, history and the trained dictionary.
        checkpoint_every: seconds between checkpoints, which bounds what a killed process loses.
        progress: called with the share done, and in words the speed and an estimate of the time left;
            None: a bar; False: nothing.
        cancel: called at each step and while activations are read; once it returns True, a checkpoint is written and
            the dictionary returned as it is.
        log: called with each line of history: `step`, `tokens`, `seconds`, `tokens_per_second`, `loss`, `error`,
            `penalty`, `auxiliary`, `fvu`, `l0` as in `Step`, `massive` (share of the step's activations that are
            massive beside the others, see `model.massive`), `dead` (share of the latents, before any is
            revived), `gradient` (its length, before clipping) and `lr`.

    Returns:
        The dictionary.

    Raises:
        TrainingError: a setting that can't be used; a folder with another training; a loss that is not finite.
        HookPointError: the model has no such hook point.
        DictionaryError: activations that the dictionary can't learn from.
        CorpusError, HarvestError: texts, or a source, that can't be read.
    """
    if not isinstance(dictionary, Trainable):
        raise TrainingError(f"{shown(dictionary)} can't be trained; wb.TopKSAE(...) makes a dictionary that can.")
    reads, writes = _hook_points(dictionary, hook_point, target)
    if model is not None:
        check_whole(model)
        follow(dictionary, model)
    processes = Processes(next(itertools.chain(dictionary.parameters(), dictionary.buffers())).device)
    if batch_size % processes.count:
        raise TrainingError(f"batch_size {batch_size:,} can't be divided among {processes.count} processes.")
    if source is None:
        shard = (processes.rank, processes.count)
        source = _harvest(dictionary, model, corpus, (reads, writes), context=context, seed=seed, shard=shard)
    elif model is not None or corpus is not None:
        raise TrainingError("Give a model and a corpus, or a source, not both.")
    settings = DictionarySettings(
        tokens=tokens,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        decay=decay,
        sparsity_warmup=sparsity_warmup,
        clip=clip,
        dead_after=dead_after,
        seed=seed,
        fresh=fresh,
        source={name: value for name, value in source.settings().items() if name != "shard"},
        context=context,
        block=block,
        reads=reads,
        writes=writes,
        processes=processes.count,
        dictionary=described(dictionary),
    )
    _learn(dictionary, source, settings, processes, RunOptions(folder, checkpoint_every, progress, cancel, log))
    return dictionary


def _learn(
    dictionary: Trainable, source: Source, settings: DictionarySettings, processes: Processes, options: RunOptions
) -> None:
    """Train a dictionary in place on a source."""
    monitor = Monitor(settings.tokens, options.progress if processes.rank == 0 else None, options.cancel)
    reader = Reader(source, (processes.rank, processes.count), monitor)
    rows, block = (-(-size // processes.count) for size in (settings.batch_size, settings.block))
    buffer = Buffer(reader, rows, block, settings.seed, settings.steps)
    learner = DictionaryLearner(dictionary, buffer, settings, monitor, processes)
    training = Training(learner, settings, processes, options)
    dictionary.reads, dictionary.writes = settings.reads, settings.writes
    training.finish(monitor)


def _hook_points(dictionary: Trainable, hook_point: str, target: str) -> tuple[str, str]:
    """The hook points where a dictionary reads and writes: the arguments, else the dictionary's own."""
    for asked, own, verb in ((hook_point, dictionary.reads, "reads"), (target, dictionary.writes, "writes")):
        if asked and own and asked != own:
            raise TrainingError(f"{dictionary.name} {verb} {own}, so it can't be trained at {asked}.")
    reads = hook_point or dictionary.reads
    writes = target or dictionary.writes or reads
    for points, verb, count in ((reads, "reads", dictionary.n_reads), (writes, "writes", dictionary.n_writes)):
        if points:
            check_count(dictionary.name, verb, points.split(JOIN), count)
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
    reads, writes = (points.split(JOIN) for points in hook_points)
    each = [(name, dictionary.d_in // len(reads), "reads") for name in reads]
    each += [(name, dictionary.d_out // len(writes), "writes") for name in writes]
    for name, wanted, verb in each:
        width = model.hook_points[name].width
        if width != wanted:
            raise TrainingError(f"{name} is {width:,} wide, and {dictionary.name} {verb} activations of {wanted:,}.")
    tell_origin(dictionary, model)
    if not corpus.count_tokens(model, 1, context):
        raise TrainingError(f"{corpus.name} holds no token to learn from, only special ones and first ones of windows.")
    points = list(dict.fromkeys([*reads, *writes]))
    return Harvest(model, corpus, points, context=context, seed=seed, repeat=True, shard=shard)
