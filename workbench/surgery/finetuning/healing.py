"""A small fine-tune: for what surgery needs healed, and for the fine-tuned siblings that DARE merges.

All weights learn, or some, or a low-rank addition to every matrix (Hu et al., "LoRA", 2021, arXiv 2106.09685), which is
added into the matrices at the end. Weights that are zero in a matrix stay zero, so that what was cut stays cut. A mask
can also come slowly: Kao et al., "Training Recipe for N:M Structured Sparsity with Decaying Pruning Mask" (2022), arXiv
2209.07617, multiply the weights that will go by a number that falls from 1 to 0 while the model learns.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.core.progress import Progress
from workbench.corpus import Corpus, TokenBatch, as_corpus
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.surgery.child import CUSTOM, Child, SurgeryError, layers_path, make_child
from workbench.surgery.finetuning.learned_weights import AdaptedWeight
from workbench.surgery.inputs import as_model, load_calibration
from workbench.surgery.operations.custom import make_custom_from
from workbench.surgery.operations.matrices import matrices
from workbench.surgery.operations.pruning import check_pattern, check_sparsity, kept
from workbench.surgery.registry import Argument, Operation, register
from workbench.training.checkpoints import RunFolder, TrainingError
from workbench.training.model_learner import WEIGHTS, ModelLearner
from workbench.training.processes import Processes
from workbench.training.reading import Monitor
from workbench.training.steps import Training
from workbench.training.tuning import Texts

CUT = 0.01
"""Share of zeros in a matrix from which on they are there on purpose."""
UNLABELLED = -100
"""Label of a token that has none."""


@dataclass(frozen=True)
class LabelBatch(TokenBatch):
    """Tokens that are to be labelled: at each of them the model says its label, not the next token."""

    labels: Tensor
    """`[batch, pos]` int64: the token that stands for the label, or `UNLABELLED`."""


@dataclass(frozen=True)
class Decay:
    """A mask that comes slowly.

    Weights that matter least, by magnitude, are chosen anew in every step, and multiplied by a number that falls from 1
    to 0 in a line.
    """

    sparsity: float = 0.5
    """Share of each matrix that goes; an N:M pattern has its own."""
    pattern: str = "2:4"
    """See `pruning.kept`."""
    until: float = 0.5
    """Share of the steps after which the number is 0."""


def heal(
    model: LanguageModel | Child,
    texts: Texts | Corpus,
    *,
    tokens: int,
    lr: float = 1e-4,
    batch: int = 8,
    context: int = 128,
    rank: int | None = None,
    only: str | None = None,
    keep_zeros: bool = True,
    sparsify: Decay | None = None,
    warmup: float = 0.05,
    decay: float = 0.5,
    clip: float | None = 1.0,
    seed: int = 0,
    folder: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> Child:
    """Let a model, such as a child of surgery, learn from text.

    It is the training of `fine_tune`, with choices that surgery needs. Full training holds gradients and two moments of
    every weight, five times the model; with `rank` it is little more than the model and its child.

    Args:
        model: left as it is.
        texts: a `Corpus`, a `TokFSM`, or texts whose batches are `LabelBatch`es.
        tokens, lr, batch, context, warmup, decay, clip, seed, folder, checkpoint_every, progress, log: as in
            `fine_tune`.
        rank: add to each matrix of the layers a product of two thin ones, `rank` wide, and train these alone.
        only: train only parameters in whose names this regular expression is found, such as `act`.
        keep_zeros: hold at zero what is zero in the layers' matrices at the beginning, where that is at least 1% of a
            matrix; fewer are zero by chance.
        sparsify: set weights to zero slowly, while the model learns.
        cancel: asked before each step; the child is then what was learned until there.

    Raises:
        SurgeryError: nothing to train, or settings that don't go together.
        TrainingError, CorpusError: as `fine_tune`.
    """
    start = as_model(model)
    if not hasattr(texts, "batches"):
        as_corpus(texts)  # complains
    if start.splices:
        raise SurgeryError(f"{start.name} runs through dictionaries; fine_tune trains such models.")
    _check(start, rank, only, sparsify)
    _check_recipe({"tokens": tokens, "batch": batch, "context": context}, {"warmup": warmup, "decay": decay}, lr, clip)
    twin = LanguageModel(start.network.module, start.tokenizer, f"{start.name} (healed)", start.hash)
    masks = _prepare(twin, rank, keep_zeros, sparsify, seed)
    processes = Processes(twin.network.unembedding().device)

    def batches() -> Iterator[TokenBatch]:
        shard = (processes.rank, processes.count)
        how: dict[str, Any] = {"seed": seed, "repeat": True, "shard": shard}
        return texts.batches(twin, context, max(batch // processes.count, 1), **how)

    wanted = re.compile(r"\.shaped\.(up|down)$" if rank else only or "")
    layers: Any = twin.network.module.get_submodule(layers_path(twin))
    for layer in layers if rank else ():  # what happens inside is computed once more on the way back, not kept
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    learner = Healer(twin, batches, wanted, masks=masks, sparsify=sparsify, processes=processes)
    settings: dict[str, Any] = {"tokens": tokens, "batch": batch, "context": context, "lr": lr, "warmup": warmup}
    settings |= {"decay": decay, "clip": clip, "seed": seed, "rank": rank, "only": only, "keep_zeros": keep_zeros}
    settings |= {"sparsify": asdict(sparsify) if sparsify else None}
    recipe = {"batch_size": batch * context, "dead_after": 1, "sparsity_warmup": 0.0, "fresh": False}
    source = {"model": start.name, "model_hash": start.hash, "corpus_hash": texts.hash}
    run = RunFolder(folder, settings | recipe | {"source": source}) if folder is not None else None
    training = Training(learner, settings | recipe | {"source": source}, processes, run)
    if run and run.note:
        run.restore(learner)
    if not (run and run.finished):
        training.go(Monitor(tokens, progress if processes.rank == 0 else None, cancel), checkpoint_every, log)
    processes.wait()
    learner.finish()
    for layer in layers if rank else ():
        del layer.forward
    done = int(learner.provenance.get("tokens", 0))
    step = {"operation": "heal", **settings, "done": done, "corpus_hash": texts.hash}
    if CUSTOM in start.about:
        return make_custom_from(start, twin, step, seed)
    return make_child(start, parameters_of(twin.network.module), step, seed=seed)


class Healer(ModelLearner):
    """See `Learner`: trains some parameters of a model, under masks.

    Args:
        model: whose parameters are trained in place; those that are not may be shared.
        batches: makes the endless batches anew.
        wanted: what is found in the names of the parameters that are trained.
        masks: matrices, and their modules, that weights go from slowly.
        sparsify: how.
        processes: those that learn together.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: Callable[[], Iterator[TokenBatch]],
        wanted: re.Pattern[str],
        *,
        masks: Sequence[tuple[AdaptedWeight, nn.Module]],
        sparsify: Decay | None,
        processes: Processes,
    ):
        super().__init__(model, [], batches, weight=1.0, frozen=False, first_k=None, processes=processes)
        self.masks, self.sparsify = masks, sparsify
        self.trained = [one for name, one in self.module.named_parameters() if wanted.search(name)]
        if not self.trained:
            raise SurgeryError(f"There is nothing to train: no parameter's name has {wanted.pattern!r} in it.")
        for one in self.trained:
            one.data = one.data.clone()
            one.requires_grad_(True)

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `Learner`."""
        return iter(self.trained)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """All at one learning rate."""
        return [{"params": self.trained, "lr": lr, "name": "model"}]

    def step(
        self, batch: TokenBatch, dead: Tensor | None, done: float, sparsity: float
    ) -> tuple[dict[str, float], Tensor]:
        """Cross-entropy of the next token, or of labels."""
        self._mask(done)
        for parameter in self.trained:
            parameter.grad = None
        count = sum(len(target) for _, _, target in map(_wanted, _rows(batch)))
        total = right = 0.0
        for row in _rows(batch):  # one at a time, since activations and logits of all would be more than the model
            tokens, at, target = _wanted(row)
            with torch.enable_grad():
                logits = self.model.network.run(tokens)[at]  # [predictions, vocab]
                loss = nn.functional.cross_entropy(logits, target, reduction="sum") / count
                loss.backward()
            total += loss.item()
            right += int((logits.argmax(-1) == target).sum())
        total = total if count else math.nan
        measured = {"loss": total, "ce": total, "accuracy": right / max(count, 1)}
        return measured, torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def _mask(self, done: float) -> None:
        """Choose anew which weights go, and how much is left of them after this share of the steps."""
        if self.sparsify is None:
            return
        share = max(0.0, 1 - done / self.sparsify.until) if self.sparsify.until else 0.0
        for shaped, module in self.masks:
            shaped.kept = None  # so that the weights show before they are multiplied
            weight: Any = module.weight
            score = shaped.made(weight.detach()).abs()
            keep = kept(score.T if shaped.turned else score, self.sparsify.sparsity, self.sparsify.pattern)
            shaped.kept, shaped.share = (keep.T if shaped.turned else keep), share

    def save(self, folder: Path, *, final: bool) -> None:
        """What is trained; all else is the parent's."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {str(number): one.detach() for number, one in enumerate(self.trained)}
        save_file(tensors, folder / WEIGHTS)

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """See `Learner`."""
        try:
            tensors = load_file(folder / WEIGHTS)
            with torch.no_grad():
                for number, one in enumerate(self.trained):
                    one.copy_(tensors[str(number)])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise TrainingError(f"The training can't be continued ({error}); delete {folder}.") from error
        self.provenance.update(note.get("provenance", {}))

    @torch.no_grad()
    def finish(self) -> None:
        """Leave plain parameters: what was added and what was masked is in them."""
        self._mask(1.0)
        inner: list[Any] = list(self.module.modules())
        for module in inner:
            if isinstance(getattr(module, "shaped", None), AdaptedWeight):
                module.shaped.leave(module)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None


def _rows(batch: TokenBatch) -> Iterator[TokenBatch]:
    """The rows of a batch that have something to predict, each alone and without its padding, which is on the right."""
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        parts: dict[str, Tensor] = {
            one.name: getattr(batch, one.name)[row : row + 1] for one in fields(batch) if one.name != "texts"
        }
        alone = type(batch)(texts=batch.texts[row : row + 1], **{n: part[:, :length] for n, part in parts.items()})
        if len(_wanted(alone)[2]):
            yield alone


def _wanted(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, where they are to be predicted at (bool, `[batch, pos]`), and what is to be predicted there."""
    if isinstance(batch, LabelBatch):
        at = batch.labels != UNLABELLED
        return batch.tokens, at, batch.labels[at]
    at = torch.zeros_like(batch.content)
    at[:, :-1] = batch.content[:, :-1] & batch.content[:, 1:]
    return batch.tokens, at, batch.tokens[:, 1:][at[:, :-1]]


def _prepare(
    twin: LanguageModel, rank: int | None, keep_zeros: bool, sparsify: Decay | None, seed: int
) -> list[tuple[AdaptedWeight, nn.Module]]:
    """Put low-rank additions and masks on the matrices; those whose masks come slowly."""
    chance = torch.Generator().manual_seed(seed)
    slow = []
    for path in matrices(twin):
        module: Any = twin.network.module.get_submodule(path)
        weight = module.weight.detach()
        zeros = weight == 0
        zeros = zeros if keep_zeros and float(zeros.float().mean()) >= CUT else None
        if rank or zeros is not None or sparsify:
            shaped = AdaptedWeight(module, rank, zeros, chance)
            slow += [(shaped, module)] if sparsify else []
    return slow


def _check(model: LanguageModel, rank: int | None, only: str | None, sparsify: Decay | None) -> None:
    """Refuse settings that can't be used."""
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise SurgeryError(f"rank is a whole number from 1, or None to train all weights, not {rank!r}.")
    if rank is not None and only is not None:
        raise SurgeryError("With a rank the low-rank additions are trained and nothing else; leave out `only`.")
    if only is not None:
        if not isinstance(only, str):
            raise SurgeryError(f"only is a regular expression, not {only!r}.")
        try:
            re.compile(only)
        except re.error as error:
            raise SurgeryError(f"{only!r} is no regular expression ({error}).") from error
    if not isinstance(sparsify, Decay | None):
        raise SurgeryError(f"sparsify is a Decay, such as wb.surgery.Decay(0.5), not {sparsify!r:.60}.")
    if sparsify is not None:
        check_sparsity(sparsify.sparsity)
        check_pattern(model, sparsify.pattern)
        if not isinstance(sparsify.until, int | float) or not 0 <= sparsify.until <= 1:
            raise SurgeryError(f"until is a share of the steps, from 0 to 1, not {sparsify.until!r}.")


def _check_recipe(counts: Mapping[str, int], shares: Mapping[str, float], lr: float, clip: float | None) -> None:
    """Refuse a training that there is none of."""
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise SurgeryError(f"{name} is a whole number from 1, not {number!r}.")
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise SurgeryError(f"{name} is a share of the steps, from 0 to 1, not {share!r}.")
    for name, size in {"lr": lr, "clip": 1.0 if clip is None else clip}.items():
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
            raise SurgeryError(f"{name} is a number above 0, not {size!r}.")


def _run(model: LanguageModel, *, corpus: str, rank: int, **how: Any) -> Child:
    return heal(model, load_calibration(corpus), rank=rank or None, **how)


register(
    Operation(
        "heal",
        "Fine-tune",
        "Lets the model learn from text for a short while; what was cut stays cut.",
        (
            Argument("corpus", "Texts to learn from", "stories", "text"),
            Argument("tokens", "Tokens", 20_000, "whole", low=1),
            Argument("rank", "Rank of what is learned", 8, "whole", low=0, help="0 trains all weights."),
            Argument("lr", "Learning rate", 1e-4, low=0.0),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
    )
)
