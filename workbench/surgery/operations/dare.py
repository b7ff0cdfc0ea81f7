"""DARE: the deltas of fine-tuned models, dropped at random and rescaled, added to their base.

Yu et al., "Language Models are Super Mario" (2023), arXiv 2311.03099: delta = fine-tuned - base; each number is dropped
with probability p, and the others are divided by 1 - p, so that the expectation over draws is the whole delta. The
paper drops 90% and more at almost no loss, and merges several fine-tuned models by adding up their dropped deltas.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Number, checked
from workbench.core.forms import read_json
from workbench.core.hashing import combined, values_digest
from workbench.core.progress import Progress
from workbench.interventions.opening import NOTE as SPLICED
from workbench.model.language_model import LanguageModel
from workbench.model.weights import buffers_of, parameters_of, state_of
from workbench.surgery.child import CUSTOM, Child, make_child
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.inputs import as_model, has_beside
from workbench.surgery.notes import NOTE, Step, read_note
from workbench.surgery.operations.tuned_folder import (
    FolderTensors,
    configuration_of,
    is_second_name,
    model_folder,
    tensors_of_folder,
)
from workbench.surgery.registry import Argument, Cancelled, Operation, register

UNIMPORTANT = re.compile("token_id|dtype|version|architectures|use_cache|dropout|initializer|task|gradient|label")
"""In names of values of a configuration that do not change what a model computes."""
Tuned = LanguageModel | Child | str | Path
"""A fine-tuned model, or its folder; the tensors of a folder are read one at a time and never all held, where its files
name them as the model does."""


Weight = Annotated[Number, Ge(-1e6), Le(1e6)]
"""The factor of a delta."""


@checked(SurgeryError)
def dare(
    base: LanguageModel | Child,
    tuned: Tuned | Sequence[Tuned],
    p: Annotated[Number, Ge(0), Lt(1)] = 0.9,
    *,
    rescale: bool = True,
    weights: Weight | Sequence[Weight] = 1.0,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Child:
    """A child with one or several deltas, mostly dropped: `base + Σ weight · dropped(tuned - base)`.

    Args:
        base: the common parent; it stays as it is.
        tuned: its fine-tuned descendants.
        p: share of each delta that is dropped, from 0 to below 1; 0 for plain delta arithmetic.
        rescale: divide the numbers that stay by 1 - p.
        weights: of each delta, or of all; negative ones subtract.
        seed: of the draws, which differ from tensor to tensor and from model to model.
        progress, cancel: as for every operation.

    Raises:
        SurgeryError: an argument out of range; models of another shape or parent; notes that are damaged.
        Cancelled: `cancel` returned True.
    """
    base = as_model(base)
    many = [tuned] if isinstance(tuned, Tuned) else list(tuned)
    if not many:
        raise SurgeryError("Give at least one fine-tuned model, or its folder.")
    shares = [float(one) for one in (weights if isinstance(weights, Sequence) else [weights] * len(many))]
    if len(shares) != len(many):
        raise SurgeryError(f"Give one weight for each fine-tuned model: models: {len(many)}, weights: {len(shares)}.")
    sources = [_Source(base, one) for one in many]
    old, tensors = parameters_of(base.network.module), {}
    for done, (name, tensor) in enumerate(old.items()):
        if progress:
            progress(done / len(old), name)
        if cancel is not None and cancel():
            raise Cancelled("Merging was stopped; nothing has changed.")
        total = torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
            delta = source.delta(name, tensor)
            if p:
                delta.mul_(_kept(tensor.shape, p, f"{seed} {number} {name}").to(delta))
            total.add_(delta, alpha=share / (1 - p) if rescale else share)
        if bool(total.any()):
            tensors[name] = total.add_(tensor).to(tensor.dtype)
    for source in sources:
        source.check()
    step = {"operation": "dare", "p": float(p), "rescale": rescale, "weights": shares, "of": [s.about for s in sources]}
    return make_child(base, tensors, step, seed=seed)


def _kept(shape: torch.Size, p: float, key: str) -> Tensor:
    """The numbers of a delta that stay: bool of this shape, the same for the same key on every machine."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6])
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= p


class _Source:
    """A fine-tuned model whose deltas are read one tensor at a time.

    Args:
        base: the model before fine-tuning.
        tuned: the fine-tuned model or its folder.

    Raises:
        SurgeryError: the model was made from another parent, or has other tensors.
    """

    def __init__(self, base: LanguageModel, tuned: Tuned):
        self._tensors: dict[str, Tensor] | FolderTensors
        self._stated, self._digests = "", dict[str, bytes]()
        if isinstance(tuned, str | Path):
            recorded, hash, self._stated, self.name = _recorded(Path(tuned))
            self._tensors = tensors_of_folder(base, Path(tuned))
        else:
            model = tuned.model if isinstance(tuned, Child) else tuned
            if model.splices:
                raise SurgeryError(f"{model.name} runs through dictionaries and has no plain delta.")
            self._tensors, self.name, hash = state_of(model.network.module), model.name, model.hash
            recorded = _parents(model.about)
            if has_beside(model):
                raise SurgeryError(f"{model.name} has edits beside its weights, which are in no delta.")
            if CUSTOM in model.about:
                raise SurgeryError(f"{model.about[CUSTOM].rstrip('.')}; it has no plain delta.")
        if recorded and not any(map(base.is_named, recorded)):
            raise SurgeryError(
                f"{self.name} was made from another parent ({', '.join(one[:12] for one in recorded)}), not from "
                f"{base.name} ({base.hash[:12]}); only deltas of one parent can be added."
            )
        self._base, self._squares = base, [0.0, 0.0]
        self._check_tensors(base)
        self._check_config(base, tuned)
        self.about = {"name": self.name, "hash": hash}

    def _check_tensors(self, base: LanguageModel) -> None:
        """Refuse tensors of other names or shapes, and other buffers."""
        old = parameters_of(base.network.module)
        shapes = {name: tuple(tensor.shape) for name, tensor in old.items()}
        others = self._tensors.shapes() if isinstance(self._tensors, FolderTensors) else _shapes(self._tensors)
        buffers = buffers_of(base.network.module)
        for name in sorted({*shapes} ^ {*others}):
            if name in buffers and name in others:
                if not torch.equal(self._tensors[name].to(buffers[name]), buffers[name]):
                    raise SurgeryError(f"{self.name} and {base.name} don't compute alike: they differ in {name}.")
            elif name in shapes or not is_second_name(base, self._tensors, name):
                raise SurgeryError(f"{self.name} and {base.name} are not alike: only one of them has a tensor {name}.")
        for name, shape in shapes.items():
            if others[name] != shape:
                raise SurgeryError(
                    f"{name} is {list(shape)} in {base.name} but {list(others[name])} in {self.name}; "
                    "only models of equal shapes have a delta."
                )

    def _check_config(self, base: LanguageModel, tuned: Tuned) -> None:
        """Refuse a configuration under which the same weights compute something else, such as another activation."""
        if isinstance(tuned, str | Path):
            folder = model_folder(Path(tuned))
            if not (folder / "config.json").exists():  # weights alone are enough
                return
            other = configuration_of(folder)
        else:
            other = (tuned.model if isinstance(tuned, Child) else tuned).network.config.to_dict()
        own = base.network.config.to_dict()
        for key in sorted({*other} & {*own}):
            if other[key] != own[key] and not key.startswith("_") and not UNIMPORTANT.search(key):
                raise SurgeryError(
                    f"{self.name} and {base.name} don't compute alike: {key} is {other[key]!r} and {own[key]!r}."
                )

    def delta(self, name: str, tensor: Tensor) -> Tensor:
        """tuned - base of one tensor, in float32 and in memory of its own."""
        tuned = self._tensors[name]
        if self._stated:
            self._digests[name] = values_digest(name, tuned)
        delta = tuned.to(tensor.device, torch.promote_types(tensor.dtype, torch.float32)) - tensor
        self._squares[0] += float(delta.norm()) ** 2
        self._squares[1] += float(tensor.norm()) ** 2
        return delta

    def check(self) -> None:
        """Refuse a folder whose weights are not those on record, and a delta as large as the weights, which no
        fine-tuning leaves."""
        if self._stated:
            buffers = {name: values_digest(name, self._tensors[name]) for name in buffers_of(self._base.network.module)}
            # records of earlier versions leave buffers out
            if self._stated not in (combined(self._digests | buffers), combined(self._digests)):
                raise SurgeryError(
                    f"The weights of {self.name} are not those that were saved in its folder; copy it again."
                )
        if self._squares[0] >= self._squares[1]:
            raise SurgeryError(
                f"{self.name} differs from {self._base.name} by more than the size of its weights, so it is not "
                "fine-tuned from it; only deltas of one parent can be added."
            )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _parents(about: Mapping[str, Any]) -> list[str]:
    """Hashes of the recorded models that one was made from."""
    trained = [about["trained"].get("model_hash")] if "trained" in about else []
    operated = [step["parent"]["hash"] for step in about.get("surgery", [])]
    return [hash for hash in (*trained, *operated) if hash]


class _Training(TypedDict):
    model_hash: NotRequired[str | None]


class _About(TypedDict):
    trained: NotRequired[_Training]
    surgery: NotRequired[list[Step]]


class _SplicedNote(TypedDict):
    name: str
    hash: str
    about: NotRequired[_About | None]


def _recorded(folder: Path) -> tuple[list[str], str, str, str]:
    """Hashes of the parents, of the model, of its weights alone where a child states them, and its name, from the note
    in a folder."""
    if (folder / NOTE).exists():
        note = read_note(folder)
        stated = note.get("weights_hash", note["hash"])
        return _parents({"surgery": note["history"]}), note["hash"], stated, note["name"]
    if (folder / SPLICED).exists():
        spliced = read_json(folder / SPLICED, _SplicedNote, SurgeryError, "a note of a saved model")
        return _parents(spliced.get("about") or {}), spliced["hash"], "", spliced["name"]
    return [], "", "", folder.name


def _run(model: LanguageModel, *, tuned: str, p: float, weight: float, **how: Any) -> Child:
    """Folders are separated by line breaks or semicolons."""
    folders = [one.strip() for one in tuned.replace("\n", ";").split(";") if one.strip()]
    if not folders:
        raise SurgeryError("Name the folder of at least one model that was fine-tuned from this one.")
    missing = [one for one in folders if not Path(one).is_dir()]
    if missing:
        raise SurgeryError(f"There is no folder {missing[0]!r}.")
    return dare(model, folders, p, weights=weight, **how)


register(
    Operation(
        "dare",
        "Add fine-tuned models (DARE)",
        "Adds what fine-tuning changed, most of it dropped at random and the rest made larger.",
        (
            Argument("tuned", "Folders of fine-tuned models", "", "text", help="Several are separated by semicolons."),
            Argument("p", "Share that is dropped", 0.9, low=0.0, high=0.999),
            Argument("rescale", "Divide what stays by 1 - p", True, "yes"),
            Argument("weight", "Weight of each", 1.0),
            Argument("seed", "Seed", 0, "whole", low=0),
        ),
        _run,
        neutral="where nothing is dropped it makes the tuned model, which is another one",
    )
)
