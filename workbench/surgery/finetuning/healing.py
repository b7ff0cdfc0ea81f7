"""A small fine-tune, to heal a model after surgery or to make the fine-tuned siblings that DARE merges.

It trains all weights, some, or a low-rank addition to every matrix (Hu et al., "LoRA", 2021, arXiv 2106.09685), which
is added into the matrices at the end. Weights that are zero in a matrix stay zero, so that a pruned matrix stays
pruned. A mask can also come slowly: Kao et al., "Training Recipe for N:M Structured Sparsity with Decaying Pruning
Mask" (2022), arXiv 2209.07617, multiply the masked weights by a factor that falls from 1 to 0 while the model learns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from workbench.core.checks import Natural, Positive, PositiveNumber, Rate, Share, checked
from workbench.core.patterns import SafePattern
from workbench.core.progress import Progress
from workbench.corpus import Corpus, as_corpus
from workbench.model.grad_mode import lasting
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.model.widened import is_exact, narrowed, widen
from workbench.surgery.child import CUSTOM, Child, make_child
from workbench.surgery.child_building import SurgeryError, layers_path
from workbench.surgery.finetuning.batches import learned_tokens
from workbench.surgery.finetuning.healer import Decay, Healer, SlowMasks
from workbench.surgery.finetuning.learned_weights import AdaptedWeight
from workbench.surgery.inputs import as_model
from workbench.surgery.operations.custom import make_custom_from
from workbench.surgery.operations.masks import Sparsity, check_pattern
from workbench.surgery.operations.matrices import matrices
from workbench.surgery.operations.weights import all_matrices
from workbench.training.processes import Processes
from workbench.training.reading import Monitor
from workbench.training.settings import TEXT_TOKENS, RunOptions, TrainingSettings
from workbench.training.steps import Training
from workbench.training.text_batches import TextBatches
from workbench.training.tuning import Texts

CUT = 0.01
"""Share of zeros in a matrix from which on they count as pruned."""


@dataclass(frozen=True, kw_only=True)
class HealingSettings(TrainingSettings):
    """What decides about the result of healing; see `heal`."""

    batch: int
    context: int
    rank: int | None
    only: str | None
    keep_zeros: bool
    sparsify: Mapping[str, Any] | None
    counts: str = TEXT_TOKENS


@checked(SurgeryError)
@lasting
def heal(
    model: LanguageModel | Child,
    texts: Texts | Corpus,
    *,
    tokens: Positive,
    lr: Rate = 1e-4,
    batch: Positive = 8,
    context: Positive = 128,
    rank: Positive | None = None,
    only: str | None = None,
    keep_zeros: bool = True,
    sparsify: Decay | None = None,
    warmup: Share = 0.05,
    decay: Share = 0.5,
    clip: PositiveNumber | None = 1.0,
    seed: Natural = 0,
    folder: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> Child:
    """A child that learned from text.

    It is the training of `fine_tune`, with choices that surgery needs. A model in 16 bits learns in float32. Full
    training holds gradients and two moments of every weight, five times the model; with `rank` it holds little more
    than the model and its child.

    Args:
        model: a model or a child; it stays as it is.
        texts: a `Corpus`, a `TokFSM`, or texts whose batches are `LabelBatch`es.
        tokens, lr, batch, context, warmup, decay, clip, seed, folder, checkpoint_every, progress, log: as in
            `fine_tune`.
        rank: width of a product of two thin matrices that is added to each matrix of the layers and trained alone;
            None trains the weights themselves.
        only: a regular expression; only parameters in whose names it is found are trained, such as `act`.
        keep_zeros: keep the zeros of the layers' matrices, where they are at least 1% of a matrix; fewer are zero by
            chance.
        sparsify: a mask that comes slowly while the model learns.
        cancel: asked before each step; when it returns True, the child holds what was learned until then.

    Raises:
        SurgeryError: nothing to train, or settings that don't go together.
        TrainingError, CorpusError: as `fine_tune`.
    """
    start = as_model(model)
    if not hasattr(texts, "batches"):
        as_corpus(texts)  # raises CorpusError
    if start.splices:
        raise SurgeryError(f"{start.name} runs through dictionaries; fine_tune trains such models.")
    _check_rank(start, rank)
    pattern = _trained_names(rank, only)
    if sparsify is not None:
        _check_decay(start, **asdict(sparsify))
    twin = LanguageModel(start.network.module, start.tokenizer, f"{start.name} (healed)", start.weights_hash)
    if not is_exact(start):
        widen(twin.network.module)
    slow = _adapt(twin, rank, keep_zeros, sparsify, seed)
    trained = [one for name, one in twin.network.module.named_parameters() if pattern.is_in(name)]
    if not trained:
        raise SurgeryError(f"There is nothing to train: no parameter's name has {pattern.pattern!r} in it.")
    processes = Processes(twin.device)
    how: dict[str, Any] = {"context": context, "batch": batch, "seed": seed}
    batches = TextBatches(texts, twin, tokens, **how, processes=processes, counted=learned_tokens)
    layers: Any = twin.network.module.get_submodule(layers_path(twin))
    for layer in layers if rank else ():  # the backward pass computes a layer's activations again
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    masks = SlowMasks(slow, sparsify) if sparsify else None
    learner = Healer(twin, trained, batches, masks=masks, processes=processes)
    settings: dict[str, Any] = {"tokens": tokens, "batch": batch, "context": context, "lr": lr, "warmup": warmup}
    settings |= {"decay": decay, "clip": clip, "seed": seed, "rank": rank, "only": only, "keep_zeros": keep_zeros}
    settings |= {"sparsify": asdict(sparsify) if sparsify else None}
    source = {"model": start.name, "model_hash": start.hash, "former_hash": start.former_hash}
    source["corpus_hash"] = texts.hash
    recipe = HealingSettings(**settings, batch_size=batch * context, fresh=False, source=source)
    training = Training(learner, recipe, processes, RunOptions(folder, checkpoint_every, progress, cancel, log))
    training.finish(Monitor(tokens, progress if processes.rank == 0 else None, cancel))
    learner.finish()
    for layer in layers if rank else ():
        del layer.forward
    step = {"operation": "heal", **settings, "done": int(learner.provenance.get("tokens", 0))}
    step |= {"corpus_hash": texts.hash}
    if CUSTOM in start.about:
        return make_custom_from(start, twin if is_exact(start) else narrowed(twin, start), step, seed)
    return make_child(start, parameters_of(twin.network.module), step, seed=seed)


def _adapt(
    twin: LanguageModel, rank: int | None, keep_zeros: bool, sparsify: Decay | None, seed: int
) -> list[tuple[AdaptedWeight, nn.Module]]:
    """Put low-rank additions and masks on the matrices; returns those whose masks come slowly."""
    parameters = parameters_of(twin.network.module)
    for path, one in all_matrices(twin).items():
        if not one.linear and (
            sparsify or (keep_zeros and not rank and float((one.of(parameters) == 0).float().mean()) >= CUT)
        ):
            raise SurgeryError(f"{path} is not in a linear module, so its zeros can't be kept; heal with a rank.")
    chance = torch.Generator().manual_seed(seed)
    slow = []
    for path in matrices(twin):
        module: Any = twin.network.module.get_submodule(path)
        weight = module.weight.detach()
        zeros = weight == 0
        zeros = zeros if keep_zeros and float(zeros.float().mean()) >= CUT else None
        if rank or zeros is not None or sparsify:
            adapted = AdaptedWeight(module, rank, zeros, chance)
            slow += [(adapted, module)] if sparsify else []
    return slow


def _check_rank(model: LanguageModel, rank: int | None) -> None:
    """Refuse a rank above that of the largest matrix, which no addition can have."""
    if rank is None:
        return
    parameters = parameters_of(model.network.module)
    most = max(min(parameters[f"{path}.weight"].shape) for path in matrices(model))
    if rank > most:
        raise SurgeryError(f"rank is a whole number from 1 to {most:,}, that of the largest matrix, not {rank:,}.")


def _trained_names(rank: int | None, only: str | None) -> SafePattern:
    """What is found in the names of the parameters to train."""
    if rank is not None and only is not None:
        raise SurgeryError("With a rank the low-rank additions are trained and nothing else; leave out `only`.")
    return SafePattern(r"\.adapted_weight\.(up|down)$" if rank else only or "", SurgeryError)


@checked(SurgeryError)
def _check_decay(model: LanguageModel, *, sparsity: Sparsity, pattern: str, until: Share) -> None:
    """Refuse a mask that does not fit the model's matrices."""
    check_pattern(model, pattern)
