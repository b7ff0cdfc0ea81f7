"""The model and dictionary that an index belongs to, by their hashes."""

from __future__ import annotations

from pathlib import Path

from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.protocol import Dictionary
from workbench.index.layout import FeatureIndexError, IndexNote
from workbench.model.language_model import LanguageModel


def identity(model: LanguageModel | None, dictionary: Dictionary) -> str:
    """The hash that an index records for its dictionary: of its weights; for neurons, of the model."""
    return model.hash if isinstance(dictionary, Neurons) and model is not None else dictionary.hash


def check_same(path: Path, note: IndexNote, model: LanguageModel | None, dictionary: Dictionary | None) -> None:
    """Check that an index belongs to a model and a dictionary; None is not checked.

    Raises:
        FeatureIndexError: the index was built on another model, or for another dictionary.
    """
    harvest, about = note["harvest"], note["dictionary"]
    if model is not None and model.hash != harvest["model_hash"]:
        raise FeatureIndexError(
            f"{path} was built on {harvest['model']} ({harvest['model_hash'][:12]}), not on {model.name} "
            f"({model.hash[:12]}); open that model, or build the index anew."
        )
    if dictionary is None:
        return
    own = about["hash"] if isinstance(dictionary, Neurons) and model is None else identity(model, dictionary)
    if own != about["hash"] or dictionary.reads != about["reads"] or dictionary.n_features != about["n_features"]:
        raise FeatureIndexError(
            f"{path} is the index of {about['name']} ({about['hash'][:12]}), not of {dictionary.name} ({own[:12]}); "
            "load that dictionary, or build the index anew."
        )
