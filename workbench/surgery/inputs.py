"""The inputs of operations: a model or a child, and texts to calibrate on."""

from __future__ import annotations

from workbench.core.checks import checked
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel
from workbench.model.placing import parted
from workbench.surgery.certificate.certificate import HELD_OUT
from workbench.surgery.child import Child
from workbench.surgery.child_building import SurgeryError

STORIES = "stories"
"""The bundled texts; a tenth of them is kept for certificates."""


@checked(SurgeryError)
def as_model(model: LanguageModel | Child) -> LanguageModel:
    """The model that an operation changes: that of a child, or the model itself.

    Raises:
        SurgeryError: there are edits beside it, which the operation would lose, or it is spread over several devices or
            processes.
    """
    plain = model.model if isinstance(model, Child) else model
    if apart := parted(plain.network.module):
        raise SurgeryError(
            f'{plain.name} {apart}, and surgery makes a model on one device: open its folder with device="cpu", or on '
            "a card that holds it whole."
        )
    if has_beside(plain):
        raise SurgeryError(
            f"{plain.name} has edits beside its weights, which another operation would lose; operate first, and keep "
            "them beside the model in the last step."
        )
    return plain


def has_beside(model: LanguageModel) -> bool:
    """Whether the last step left edits beside the model's weights."""
    steps = model.about.get("surgery") or [{}]
    return bool(steps[-1].get("beside"))


def calibration(corpus: Corpus | None) -> Corpus:
    """Texts to calibrate on: the corpus, or by default the bundled stories without the tenth of certificates."""
    return stories() if corpus is None else corpus


def load_calibration(corpus: str) -> Corpus:
    """The texts of this name to calibrate on; of the bundled stories, all but the tenth of certificates.

    Raises:
        CorpusError: there is no corpus of this name.
    """
    return stories() if corpus == STORIES else Corpus.load(corpus)


def stories() -> Corpus:
    """The bundled stories, without the tenth that certificates measure on."""
    return Corpus.load(STORIES).split(HELD_OUT)[0]
