"""A model that learns to run through dictionaries, or plainly from text.

Tamkin, Taufeeque, Goodman, "Codebook Features" (2023), arXiv 2310.17230: cross-entropy, and for each dictionary the
squared distance between its reconstruction and its target, which trains the dictionary alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench.core.hashing import fingerprint
from workbench.core.type_words import reason_of, shown
from workbench.corpus import TokenBatch
from workbench.dictionaries.acting import acting
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.sites import places
from workbench.dictionaries.trainable import Trainable
from workbench.evaluation.losses import predictions
from workbench.evaluation.runs import windows_at_once
from workbench.model.edits import Edit
from workbench.model.grad_mode import taking_gradients
from workbench.model.language_model import LanguageModel
from workbench.model.weights import parameters_of
from workbench.training.checkpoints import TrainingError
from workbench.training.processes import Processes
from workbench.training.settings import TEXT_TOKENS, TrainingSettings
from workbench.training.text_batches import TextBatches

WEIGHTS = "model.safetensors"
SAMPLE = 4096
"""Activations from which a fresh dictionary is set."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings(TrainingSettings):
    """What decides about the result of training a model."""

    batch: int
    """Windows in a step, over all processes."""
    context: int
    """Positions of a window."""
    frozen: bool
    """Whether the model's own weights stay as they are."""
    weight: float
    """Factor of the dictionaries' own loss."""
    first_k: int | None
    """Codes that codebooks choose at first; None for as many as in the end."""
    k_decay: float
    """Share of the steps during which these become fewer."""
    hook_points: Sequence[str]
    """Where dictionaries are spliced in, in the order of the model."""
    processes: int
    """Processes that learn together."""
    dictionaries: Sequence[Mapping[str, Any]]
    """Kind, sizes and settings of each dictionary, as plain data."""
    counts: str = TEXT_TOKENS
    """What `tokens` counts."""


class ModelLearner:
    """See `Learner`.

    Args:
        model: whose weights are trained in place; nobody else may use them.
        dictionaries: what it runs through, in the order of the model.
        batches: the endless token batches.
        settings: of the training.
        processes: those that learn together.

    Attributes:
        fresh: whether a sample initialises the dictionaries; None for those of them that are not initialised.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Sequence[Trainable],
        batches: TextBatches,
        settings: ModelSettings,
        processes: Processes,
    ):
        self.model, self.dictionaries, self._batches = model, list(dictionaries), batches
        self.settings, self.processes = settings, processes
        self.module: nn.Module = model.network.module
        self.places = [places(one, model) for one in self.dictionaries]
        self.device, self.n_features = processes.device, sum(one.n_features for one in self.dictionaries)
        self.resamples = any(one.resamples for one in self.dictionaries)
        self.provenance: dict[str, Any] = {}
        self.fresh: bool | None = None
        self._read: list[list[Tensor]] = []

    @property
    def steps(self) -> int:
        """See `Learner`."""
        return self._batches.steps

    def tokens_after(self, step: int) -> int:
        """See `Learner`."""
        return self._batches.tokens_after(step)

    @property
    def hash(self) -> str:
        """Of the model's weights and all dictionaries'."""
        return fingerprint(self._tensors())

    def parameters(self) -> Iterator[nn.Parameter]:
        """See `Learner`."""
        own = iter(()) if self.settings.frozen else self.module.parameters()
        return itertools.chain(own, *(one.parameters() for one in self.dictionaries))

    def shared(self) -> Iterator[Tensor]:
        """The dictionaries' buffers."""
        return itertools.chain(*(one.buffers() for one in self.dictionaries))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The model at this learning rate; dictionaries at theirs, as they would have alone."""
        groups = [] if self.settings.frozen else [{"params": list(self.module.parameters()), "lr": lr, "name": "model"}]
        for number, one in enumerate(self.dictionaries):
            groups += [group | {"name": f"{number}.{group['name']}"} for group in one.parameter_groups(lr)]
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        return groups

    def unit(self, lr: float) -> float:
        """The model's gradient counts as it is."""
        return lr

    def batches(self, done: int, begins: bool) -> Iterator[TokenBatch] | None:
        """See `Learner`; the first texts initialise dictionaries, or prepare those that are initialised already."""
        if begins and self.dictionaries:
            self._prepare()
        return itertools.islice(self._batches, done, None)

    @torch.no_grad()
    def _prepare(self) -> None:
        """Each dictionary reads activations of the plain model."""
        points = [one.reads for one in self.dictionaries] + [one.writes for one in self.dictionaries]
        captured: dict[str, list[Tensor]] = {name: [] for name in points}
        enough = 0
        for batch in self._batches:
            seen = self.model.capture(batch.tokens, list(captured), mask=batch.mask)
            for name, value in seen.items():
                captured[name].append(value[batch.content].flatten(1))
            enough += int(batch.content.sum())
            if enough >= SAMPLE:
                break
        for one in self.dictionaries:
            x = torch.cat(captured[one.reads])
            target = None if one.reads == one.writes else torch.cat(captured[one.writes])
            one.begin(x, target, fresh=self.fresh)
            units = torch.tensor([one.unit_in, one.unit_out], dtype=torch.float64, device=self.device)
            self.processes.copy_first([*one.state_dict().values(), units])
            one.unit_in, one.unit_out = units.tolist()

    def step(
        self, batch: TokenBatch, dead: Tensor | None, done: float, sparsity: float
    ) -> tuple[dict[str, float], Tensor]:
        """Cross-entropy of the run through the dictionaries, and what these leave over.

        Where the logits of all rows would be large, the rows run some at a time, to the same gradients.
        """
        self._lower_k(done)
        for parameter in self.parameters():
            parameter.grad = None
        self._read = [[] for _ in self.dictionaries]
        fired = [torch.zeros(one.n_features, dtype=torch.long, device=self.device) for one in self.dictionaries]
        sums = torch.zeros(3, device=self.device)  # cross-entropy, error, right predictions
        pairs, tokens = int(predictions(batch.content).sum()), int(batch.content.sum())
        at_once = windows_at_once(self.model, self.settings.context, len(batch.tokens))
        for rows in torch.arange(len(batch.tokens)).chunk(-(-len(batch.tokens) // at_once)):
            part = TokenBatch(**{one.name: getattr(batch, one.name)[rows] for one in fields(TokenBatch)})
            sums += self._add_gradients(part, pairs, tokens, fired)
        ce, error, right = sums.tolist()
        loss = ce + self.settings.weight * error
        measured = {"loss": loss, "ce": ce, "error": error, "accuracy": right / pairs}
        silent = torch.zeros(0, dtype=torch.long, device=self.device)
        return measured, torch.cat([silent, *fired])

    def _add_gradients(self, part: TokenBatch, pairs: int, tokens: int, fired: list[Tensor]) -> Tensor:
        """Add the gradients of some rows of a batch.

        Args:
            part: the rows.
            pairs: predictions of the whole batch.
            tokens: its tokens that count.
            fired: at how many tokens each feature of each dictionary is active; those of the rows are added.

        Returns:
            The rows' shares of cross-entropy and error, and their right predictions: `[3]`.
        """
        errors: list[Tensor] = []
        mask = None if bool(part.mask.all()) else part.mask
        content = part.content if mask is None else part.content[mask]  # edits see no padding
        chosen = predictions(part.content)
        with taking_gradients():
            edits = [edit for place in range(len(self.places)) for edit in self._through(place, content, errors, fired)]
            logits = self.model.run(part.tokens, edits, mask=mask)
            target = part.tokens[:, 1:][chosen]
            wanted = logits[:, :-1][chosen]  # [predictions, vocab]
            ce = nn.functional.cross_entropy(wanted.float(), target, reduction="sum") / pairs
            error = torch.stack(errors).sum() / tokens if errors else ce.new_zeros(())
            (ce + self.settings.weight * error).backward()
        return torch.stack([ce, error, (wanted.argmax(-1) == target).sum()]).detach()

    def _through(self, place: int, content: Tensor, errors: list[Tensor], fired: list[Tensor]) -> list[Edit]:
        """Edits that put a dictionary in its place, and note what it leaves over and which features are active, at the
        positions where `content` is true."""
        dictionary, (reads, writes) = self.dictionaries[place], self.places[place]

        def act(read: Tensor, written: Tensor) -> Tensor:
            codes = dictionary.encode(read)
            indices = codes.indices[content][codes.values[content] != 0]
            fired[place] += torch.bincount(indices, minlength=dictionary.n_features)
            self._read[place].append(read[content].detach())
            terms = dictionary.splice_terms(read, written, codes)
            errors.append((terms.reconstruction - terms.target.detach())[content].square().sum())
            return terms.output

        return acting(reads, writes, act, device=self.model.device, source=f"the splice at {writes.name}")

    def _lower_k(self, done: float) -> None:
        """k comes down in a line from what it begins with."""
        if self.settings.first_k is None:
            return
        during = max(self.settings.k_decay, 1e-9)
        for one in self.dictionaries:
            one.widen(self.settings.first_k, max(1 - done / during, 0.0))

    @torch.no_grad()
    def constrain(self) -> None:
        """The dictionaries' own."""
        for one in self.dictionaries:
            one.constrain()

    @torch.no_grad()
    def resample(
        self, batch: TokenBatch, dead: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        """Each dictionary's dead features, from what it read last."""
        parts = dead.split([one.n_features for one in self.dictionaries])
        for one, lost, x in zip(self.dictionaries, parts, self._read, strict=True):
            if one.resamples and one.reads == one.writes and bool(lost.any()):
                one.resample(self.processes.join_ragged(torch.cat(x)), lost, optimiser=optimiser, generator=generator)

    def settle(self, batch: TokenBatch) -> None:
        """Each dictionary, from what it read last."""
        for one, x in zip(self.dictionaries, self._read, strict=True):
            one.calibrate(self.processes.join_ragged(torch.cat(x)))

    def save(self, folder: Path, *, final: bool) -> None:
        """Weights and dictionaries; `fine_tune` says what becomes of them in the end."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(parameters_of(self.module), folder / WEIGHTS)
        for number, one in enumerate(self.dictionaries):
            one.provenance = one.provenance | self.provenance
            one.write(folder / str(number))

    def restore(self, folder: Path, note: Mapping[str, Any], *, final: bool) -> None:
        """See `Learner`."""
        if self.hash != note["start"]:
            raise TrainingError(
                f"{folder if final else folder.parent} holds a training that began with other weights; "
                "start from the same model and dictionaries, or choose another folder."
            )
        try:
            tensors = load_file(folder / WEIGHTS)
            saved = [load_dictionary(folder / str(number)) for number in range(len(self.dictionaries))]
            with torch.no_grad():
                for name, tensor in parameters_of(self.module).items():
                    tensor.copy_(tensors[name])
            for one, other in zip(self.dictionaries, saved, strict=True):
                one.load_state_dict(other.state_dict())
        except (OSError, SafetensorError, DictionaryError, KeyError, RuntimeError) as error:
            reason = reason_of(error)
            raise TrainingError(f"The training can't be continued ({reason}); delete {folder}.") from error
        self.provenance.update(note.get("provenance", {}))
        for one, other in zip(self.dictionaries, saved, strict=True):
            assert isinstance(other, Trainable)
            one.take_origin(other.origin())
            one.provenance = other.provenance

    def release(self) -> None:
        """Leave plain weights: no gradients, and in each codebook its own k."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for one in self.dictionaries:
            one.widen(0, 0.0)
            one.provenance = one.provenance | self.provenance

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that is trained, by name."""
        own = {f"model.{name}": tensor for name, tensor in parameters_of(self.module).items()}
        of_dictionaries = {
            f"{number}.{name}": tensor
            for number, one in enumerate(self.dictionaries)
            for name, tensor in one.tensors().items()
        }
        return own | of_dictionaries


def dictionary_in_place(hook_point: str, dictionary: object) -> Trainable:
    """A dictionary with the hook point where it is spliced in.

    Raises:
        TrainingError: it can't be trained, or acts elsewhere.
    """
    if not isinstance(dictionary, Trainable):
        raise TrainingError(f"{shown(dictionary)} can't be trained; wb.Codebook(...) makes a dictionary that can.")
    dictionary.reads = dictionary.reads or hook_point
    dictionary.writes = dictionary.writes or hook_point
    if dictionary.writes != hook_point:
        raise TrainingError(f"{dictionary.name} writes at {dictionary.writes} and can't be spliced in at {hook_point}.")
    return dictionary
