"""`fine_tune`: a model learns from text, alone or running through dictionaries that learn with it.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from annotated_types import Ge

from workbench.core.checks import Natural, Number, Positive, PositiveNumber, Rate, Share, checked
from workbench.core.progress import Progress
from workbench.corpus import TokenBatch
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.trainable import Trainable
from workbench.model.grad_mode import lasting
from workbench.model.language_model import LanguageModel
from workbench.model.weights import identity
from workbench.model.widened import is_exact, narrowed, widen
from workbench.training.checkpoints import TrainingError
from workbench.training.dictionary_learner import described
from workbench.training.model_learner import ModelLearner, ModelSettings, dictionary_in_place
from workbench.training.processes import Processes, check_whole
from workbench.training.reading import Monitor
from workbench.training.settings import RunOptions, Seconds
from workbench.training.steps import Training
from workbench.training.text_batches import TextBatches


@runtime_checkable
class Texts(Protocol):
    """What a model learns from: a `Corpus`, or a language that makes its texts, such as `TokFSM`."""

    @property
    def hash(self) -> str:
        """SHA-256 of what it holds."""
        ...

    def batches(self, model: Any, context: int = 256, batch: int = 16, **how: Any) -> Iterator[TokenBatch]:
        """Token batches; see `Corpus.batches` for the settings `seed`, `repeat` and `shard`."""
        ...


@checked(TrainingError)
@lasting
def fine_tune(
    model: LanguageModel,
    texts: Texts,
    spliced: Mapping[str, Dictionary] | None = None,
    *,
    tokens: Positive,
    lr: Rate = 5e-4,
    batch: Positive = 16,
    context: Positive = 128,
    frozen: bool = False,
    weight: Annotated[Number, Ge(0)] = 1.0,
    first_k: Positive | None = None,
    k_decay: Share = 0.5,
    warmup: Share = 0.02,
    decay: Share = 0.0,
    clip: PositiveNumber | None = 1.0,
    dead_after: Positive = 250_000,
    seed: Natural = 0,
    fresh: bool | None = None,
    folder: str | Path | None = None,
    checkpoint_every: Seconds = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> LanguageModel:
    """Train a copy of a model on texts, running through dictionaries where it has or gets some.

    The loss is the cross-entropy of the next token plus, for each dictionary, `weight` times the squared distance
    between its reconstruction and its target (token mean of the sum over dimensions), which trains the dictionary
    alone. The same call gives the same weights, also after interruptions if it has a `folder`. A model in 16 bits
    learns in float32, since its weights would round small steps away, and is rounded once, at the end.

    Args:
        model: left as it is.
        texts: a `Corpus` or a `TokFSM`; used again, in another order, when `tokens` are more than they have.
        spliced: dictionaries by the hook point where they write, trained in place; None for copies of those that the
            model runs through already.
        tokens: tokens to learn from, rounded up to whole batches; padding, special tokens, first positions and texts
            with nothing to predict do not count.
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
        fresh: whether to set the dictionaries from a sample first; None for those of them that are not initialised.
        folder: for checkpoints and history.
        checkpoint_every: seconds between checkpoints.
        progress, cancel: as in `train`.
        log: called with each line of history: `loss`, `ce`, `error`, `accuracy`, and the counts and times of `train`.

    Returns:
        A new model with the trained weights, whose `splices` are the dictionaries.

    Raises:
        TrainingError: a setting that can't be used; texts with nothing to predict; a folder with another training; a
            loss that is not finite.
        HookPointError, DictionaryError: a dictionary that does not fit the model.
        CorpusError: texts that can't be read.
    """
    check_whole(model)
    own = copy.deepcopy(model.splices) if spliced is None else spliced
    if frozen and not own:
        raise TrainingError("There is nothing to train: the model is frozen and runs through no dictionary.")
    order = list(model.hook_points)
    points = sorted(own, key=lambda name: order.index(model.hook_points[name].key))
    dictionaries = [dictionary_in_place(name, own[name]) for name in points]
    processes = Processes(model.device)
    if batch % processes.count:
        raise TrainingError(f"batch {batch:,} can't be divided among {processes.count} processes.")
    untrained = not any("tokens" in one.provenance for one in dictionaries)
    settings = ModelSettings(
        tokens=tokens,
        batch_size=batch * context,
        lr=lr,
        warmup=warmup,
        decay=decay,
        clip=clip,
        dead_after=dead_after,
        seed=seed,
        fresh=untrained if fresh is None else fresh,  # for the record; the learner looks at each dictionary
        source={
            "model": model.name,
            "model_hash": model.hash,
            "former_hash": model.former_hash,
            "corpus_hash": texts.hash,
        },
        batch=batch,
        context=context,
        frozen=frozen,
        weight=weight,
        first_k=first_k,
        k_decay=k_decay,
        hook_points=points,
        processes=processes.count,
        dictionaries=[described(one) for one in dictionaries],
    )
    learner = _learner(model, texts, dictionaries, settings, processes)
    learner.fresh = fresh
    training = Training(learner, settings, processes, RunOptions(folder, checkpoint_every, progress, cancel, log))
    training.finish(Monitor(tokens, progress if processes.rank == 0 else None, cancel))
    learner.release()
    twin = learner.model if is_exact(model) else narrowed(learner.model, model)
    twin.splices = dict(zip(points, dictionaries, strict=True))
    twin.about = model.about | {"trained": learner.provenance}
    twin.take_hash(model.held_hash if frozen else identity(twin.network.module), model)
    twin.former_hash = learner.hash
    return twin


def _learner(
    model: LanguageModel,
    texts: Texts,
    dictionaries: Sequence[Trainable],
    settings: ModelSettings,
    processes: Processes,
) -> ModelLearner:
    """A copy of the model that learns from the texts, in float32."""
    module, name = model.network.module, f"{model.name} (tuned)"
    if is_exact(model):
        module = copy.deepcopy(module)
    twin = LanguageModel(module, model.tokenizer, name, model.weights_hash)
    if not is_exact(model):
        widen(twin.network.module)
        for one in () if settings.frozen else twin.network.module.parameters():
            one.data = one.data.float()
    how: dict[str, Any] = {"context": settings.context, "batch": settings.batch, "seed": settings.seed}
    batches = TextBatches(texts, twin, settings.tokens, **how, processes=processes)
    return ModelLearner(twin, dictionaries, batches, settings, processes)
