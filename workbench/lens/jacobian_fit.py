"""`fit_jacobian_lens`: the mean Jacobian of each layer over texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from workbench.core.checks import Natural, Number, Positive, checked
from workbench.core.progress import Progress, remembering
from workbench.corpus import Corpus
from workbench.lens import jacobian_rows
from workbench.lens.errors import LensError
from workbench.lens.jacobian import JacobianLens
from workbench.lens.jacobian_blocks import Blocks
from workbench.lens.jacobian_reading import UnlikeError
from workbench.lens.jacobian_sums import Sums
from workbench.lens.transports import LensRecord
from workbench.model.grad_mode import lasting
from workbench.model.in_force import acting_on
from workbench.model.language_model import LanguageModel
from workbench.model.weights import ModelError
from workbench.model.widened import in_float32

Seconds = Annotated[Number, Field(ge=0)]


@checked(LensError)
@lasting
def fit_jacobian_lens(
    model: LanguageModel,
    texts: Corpus | Sequence[str],
    *,
    prompts: Positive = 100,
    context: Positive = 128,
    skip: Natural = 16,
    checkpoint: str | Path | None = None,
    checkpoint_every: Seconds = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> JacobianLens:
    """A Jacobian lens of a model: for each layer but the last, the mean effect of its stream on the end of the stream.

    Each text counts once, by its first tokens: the effects of each source position on all target positions behind it
    are summed, and sources and texts averaged. Sources and targets are the positions behind the first `skip`, without
    the last one. Gradients are exact and computed in float32, also for a model in 16 bits; nothing is drawn. With a
    `checkpoint` the same call goes on where an earlier one was stopped, to the same bits, and one for more prompts
    goes on where that for fewer ended.

    Args:
        model: left as it is.
        texts: read in their order; those without a position that counts are passed over.
        prompts: texts that count, at most.
        context: tokens of a text, at most.
        skip: first positions that count neither as sources nor as targets, where attention has its sink.
        checkpoint: a file for the sums over the texts that are done, in the form of safetensors.
        checkpoint_every: seconds between writing it; it is written at the end, too.
        progress: told the share that is done.
        cancel: asked at each layer or pass; the lens of the texts done so far is returned, which states fewer `prompts`
            in `about.fitted_on`.

    Raises:
        LensError: a model that sees ahead, has one layer, is sharded, or on which interventions act here; texts of
            which none counts, or none was done; or a checkpoint of another fit, or that can't be read or written.
        CorpusError: texts that can't be read.
        PromptError: a model without a tokenizer, or a text that it can't read.

    Source: Gurnee et al. 2026, transformer-circuits.pub/2026/workspace, with its numbers of positions.
    """
    _check(model)
    corpus = texts if isinstance(texts, Corpus) else Corpus(list(texts), "texts", {})
    context = min(context, model.network.n_ctx)
    settings = {"model_hash": model.hash, "corpus_hash": corpus.hash, "context": context, "skip": skip}
    shape = (model.network.n_layers - 1, model.network.d_model, model.network.d_model)
    sums = Sums.opened(None if checkpoint is None else Path(checkpoint), settings, shape)
    work = _Work(in_float32(model), skip, remembering(cancel))
    written = time.monotonic()
    try:
        while sums.done < prompts and sums.next < len(corpus):
            if progress:
                progress(sums.done / prompts, f"Text {sums.done + 1} of {prompts}")
            tokens = model.to_tokens(corpus.texts[sums.next])[:, :context]
            if tokens.shape[1] > skip + 1:
                sums.add(work.jacobians(tokens[:, :-1]), tokens.shape[1])
            sums.next += 1
            if time.monotonic() - written >= checkpoint_every:
                sums.save()
                written = time.monotonic()
    except _StoppedError:
        pass
    sums.save()
    if not sums.done:
        if work.stops():
            raise LensError("The fit of the lens was stopped before its first text was done.")
        raise LensError(f"No text of {corpus.name} has more than {skip + 1} tokens; give longer ones, or lower skip.")
    how = {"corpus": corpus.name, "corpus_hash": corpus.hash, "prompts": sums.done, "tokens": sums.tokens}
    record = LensRecord(model.name, model.hash, tuple(range(shape[0])), how | {"context": context, "skip": skip})
    return JacobianLens((sums.total / sums.done).to(model.device), record)


class _StoppedError(Exception):
    """`cancel` said so."""


class _Work:
    """The Jacobians of one text after another.

    Args:
        model: in float32.
        skip: first positions that do not count.
        stops: whether to stop.
    """

    def __init__(self, model: LanguageModel, skip: int, stops: Callable[[], bool]):
        self.model, self.skip, self.stops = model, skip, stops
        self._blocks: Blocks | None = None
        self._looked = False

    def jacobians(self, tokens: Tensor) -> Tensor:
        """The mean Jacobian of each layer on a text `[1, pos]`: `[layers - 1, d_model, d_model]`, on the processor."""
        self._each()
        if not self._looked:
            self._looked = True
            try:
                self._blocks = Blocks(self.model, tokens, self.skip)
            except UnlikeError:
                self._blocks = None
        if self._blocks is not None:
            try:
                return self._blocks.jacobians(tokens, self._each)
            except UnlikeError:  # this text meets a case that the first one did not
                pass
        return jacobian_rows.jacobians(self.model, tokens, self.skip, self._each)

    def _each(self) -> None:
        if self.stops():
            raise _StoppedError


def _check(model: LanguageModel) -> None:
    """Raise `LensError` for a model that has no Jacobian lens, or not here."""
    if acting_on(model):
        raise LensError("Interventions act on the model here; fit its lens outside of their block.")
    if model.network.processes is not None:
        raise LensError(f"{model.name} is sharded over processes, so no gradients can be taken; open it in one piece.")
    if model.network.n_layers < 2:
        raise LensError(f"{model.name} has one layer, whose stream is the end of the stream; there is nothing to fit.")
    try:
        causal = model.network.causal
    except ModelError as error:
        raise LensError(f"{model.name} has no Jacobian lens: {error}") from error
    if not causal:
        raise LensError(f"{model.name} sees ahead; a Jacobian lens sums effects on the positions behind a token.")
