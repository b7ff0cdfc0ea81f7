"""The model and dictionary that an index belongs to, by their hashes."""

from __future__ import annotations

from pathlib import Path

from workbench.dictionaries.protocol import Dictionary
from workbench.index.layout import FeatureIndexError, IndexNote
from workbench.model.language_model import LanguageModel


def identity(model: LanguageModel | None, dictionary: Dictionary) -> str:
    """The hash that an index records for its dictionary: its own, or that of the model if it is `of_model`."""
    return model.hash if dictionary.of_model and model is not None else dictionary.hash


def former_identity(model: LanguageModel | None, dictionary: Dictionary) -> str:
    """The hash that older versions recorded for the dictionary."""
    return model.former_hash if dictionary.of_model and model is not None else dictionary.tensors_hash


def identities(model: LanguageModel | None, dictionary: Dictionary) -> list[str]:
    """The hashes by which records mean the dictionary, as far as they are known here."""
    if dictionary.of_model and model is None:
        return []
    return [identity(model, dictionary), former_identity(model, dictionary)]


def check_same(path: Path, note: IndexNote, model: LanguageModel | None, dictionary: Dictionary | None) -> None:
    """Check that an index belongs to a model and a dictionary; None is not checked.

    Raises:
        FeatureIndexError: the index was built on another model, or for another dictionary.
    """
    harvest, about = note["harvest"], note["dictionary"]
    if "export" in note and not (model is None and dictionary is None):
        raise FeatureIndexError(
            f"{path} was made from an export, which does not say the weights of its model and dictionary; open it "
            "without these."
        )
    if model is not None and not model.is_named(harvest["model_hash"]):
        alike = harvest.get("former_hash") == model.former_hash
        raise FeatureIndexError(
            f"{path} was built on {harvest['model']} ({harvest['model_hash'][:12]}), not on {model.name} "
            f"({model.hash[:12]}){', whose weights are the same and whose settings or tokenizer differ' * alike}; open "
            "that model, or build the index anew."
        )
    if dictionary is None or (dictionary.of_model and model is None):
        return
    named = model.is_named if dictionary.of_model and model is not None else dictionary.is_named
    places = dictionary.reads == about["reads"] and dictionary.n_features == about["n_features"]
    if not named(about["hash"]) or not places:
        alike = about.get("former_hash") == former_identity(model, dictionary)
        raise FeatureIndexError(
            f"{path} is the index of {about['name']} ({about['hash'][:12]}), not of {dictionary.name} "
            f"({identity(model, dictionary)[:12]}){', whose weights are the same and whose settings differ' * alike}; "
            "load that dictionary, or build the index anew."
        )
