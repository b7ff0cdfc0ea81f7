"""`fit_tuned_lens`: the affine maps of a tuned lens learn from texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from workbench.core.checks import Natural, Positive, PositiveNumber, Rate, Share, checked
from workbench.core.progress import Progress
from workbench.corpus import Corpus, TokenBatch
from workbench.lens.errors import LensError
from workbench.lens.tuned import TunedLens
from workbench.lens.tuned_learner import LensLearner, LensSettings
from workbench.model.grad_mode import lasting
from workbench.model.in_force import acting_on
from workbench.model.language_model import LanguageModel
from workbench.training.processes import Processes, check_whole
from workbench.training.reading import Monitor
from workbench.training.settings import RunOptions, Seconds
from workbench.training.steps import Training
from workbench.training.text_batches import TextBatches
from workbench.training.tuning import Texts


def counted(batch: TokenBatch) -> int:
    """The tokens of a batch behind which the model predicts and that count."""
    return int(batch.content.sum())


@checked(LensError)
@lasting
def fit_tuned_lens(
    model: LanguageModel,
    texts: Texts,
    *,
    tokens: Positive = 1_000_000,
    lr: Rate = 1.0,
    batch: Positive = 16,
    context: Positive = 128,
    warmup: Share = 0.0,
    decay: Share = 1.0,
    clip: PositiveNumber | None = 1.0,
    seed: Natural = 0,
    folder: str | Path | None = None,
    checkpoint_every: Seconds = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> TunedLens:
    """A tuned lens of a model: for each layer, and for the embedding, an affine map of the stream behind it.

    The maps begin as the logit lens. Each learns so that its prediction has the least KL divergence from the model's
    own, in float32 also for a model in 16 bits, by gradient descent with Nesterov's momentum of 0.9 and a weight decay
    of 1e-3. One run of the model serves all layers; logits are computed for a block of tokens of one layer at a time.
    The same call gives the same lens. With a `folder` it continues where an earlier one was stopped, to the same bits.

    Args:
        model: left as it is.
        texts: a `Corpus` or a `TokFSM`; used again, in another order, when `tokens` are more than they have.
        tokens: to learn from, rounded up to whole batches; special tokens and first positions do not count.
        lr: learning rate, of a mean gradient over its last steps.
        batch: windows of a step, over all processes.
        context: positions of a window.
        warmup: share of the steps during which the learning rate rises in a line.
        decay: share of the steps during which it falls to 0 in a line, at the end.
        clip: longest gradient over all maps; longer ones are shortened to it. None lets them be.
        seed: of the order of the texts.
        folder: for checkpoints, history and the lens, which `load_lens` opens there.
        checkpoint_every: seconds between checkpoints.
        progress, cancel: as in `wb.train`; a lens that was cancelled states fewer `tokens` in `about.fitted_on`.
        log: called with each line of history: `loss`, the KL in nats as the mean over tokens and layers, and the counts
            and times of `wb.train`.

    Raises:
        LensError: a model whose final norm or LM head can't be read alone, or on which interventions act here.
        TrainingError: texts with nothing to learn from; a folder with another training; a loss that is not finite.
        CorpusError: texts that can't be read.

    Source: Belrose et al. 2023, arXiv 2303.08112, with the settings of its program but for the sizes.
    """
    check_whole(model)
    if acting_on(model):
        raise LensError("Interventions act on the model here; fit its lens outside of their block.")
    processes = Processes(model.device)
    if batch % processes.count:
        raise LensError(f"batch {batch:,} can't be divided among {processes.count} processes.")
    source = {"model": model.name, "model_hash": model.hash, "corpus_hash": texts.hash}
    settings = LensSettings(
        tokens=tokens,
        batch_size=batch * context,
        lr=lr,
        warmup=warmup,
        decay=decay,
        clip=clip,
        seed=seed,
        fresh=None,
        source=source | ({"corpus": texts.name} if isinstance(texts, Corpus) else {}),
        batch=batch,
        context=context,
        processes=processes.count,
    )
    how = {"context": context, "batch": batch, "seed": seed}
    batches = TextBatches(texts, model, tokens, **how, processes=processes, counted=counted)
    learner = LensLearner(model, batches, processes)
    training = Training(learner, settings, processes, RunOptions(folder, checkpoint_every, progress, cancel, log))
    training.finish(Monitor(tokens, progress if processes.rank == 0 else None, cancel))
    return learner.lens()
