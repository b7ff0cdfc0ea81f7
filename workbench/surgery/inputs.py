"""What operations are given: the model that they change, and texts to calibrate on."""

from __future__ import annotations

import torch

from workbench.corpus import Corpus, as_corpus
from workbench.model.language_model import LanguageModel
from workbench.surgery.certificate.certificate import HELD_OUT
from workbench.surgery.child import Child, SurgeryError

STORIES = "stories"
"""The bundled texts; a tenth of them is kept for certificates."""


def as_model(model: LanguageModel | Child) -> LanguageModel:
    """The model that an operation changes: that of a child, or the one given.

    A model knows the child that it is of only while somebody holds that, so an operation holds what it was given until
    the new child is made: `_given, model = model, operand(model)`.

    Raises:
        SurgeryError: it is neither; its weights are not in float32, without which nothing could be shown to 1e-4; or
            there are edits beside it, which the operation would lose.
    """
    found = model.model if isinstance(model, Child) else model
    if not isinstance(found, LanguageModel):
        raise SurgeryError(f"Operations change a model, such as wb.load_model(), or a child of one, not {model!r:.60}.")
    kind = found.network.module.dtype
    if kind != torch.float32:
        raise SurgeryError(
            f"{found.name} is in {str(kind).removeprefix('torch.')}, and surgery is exact in float32 only; open it by "
            "its name or folder, or give module.float()."
        )
    if has_beside(found):
        raise SurgeryError(
            f"{found.name} has edits beside its weights, which another operation would lose; operate first, and keep "
            "them beside the model in the last step."
        )
    return found


def has_beside(model: LanguageModel) -> bool:
    """Whether edits that weights can't hold belong to a model."""
    steps = model.about.get("surgery") or [{}]
    return bool(steps[-1].get("beside"))


def calibration(corpus: Corpus | None) -> Corpus:
    """Texts to calibrate on: those given, or the bundled stories but for the tenth that certificates measure on.

    Raises:
        CorpusError: something else is given.
    """
    return stories() if corpus is None else as_corpus(corpus)


def load_calibration(corpus: str) -> Corpus:
    """The same for a corpus by its name; raises `CorpusError` if there is none of it."""
    return stories() if corpus == STORIES else Corpus.load(corpus)


def stories() -> Corpus:
    """The bundled stories, but for the tenth that certificates measure on."""
    return Corpus.load(STORIES).split(HELD_OUT)[0]
