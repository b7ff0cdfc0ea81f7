"""Interventions as JSON: what they are, and the model and the trained dictionaries that they were made for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.core.files import replacing
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.kinds import FeatureIntervention
from workbench.model.edits import EditError
from workbench.model.language_model import LanguageModel

FORMAT = 1


def to_dict(intervention: FeatureIntervention) -> dict[str, Any]:
    """One intervention as plain data: kind, feature, positions and its settings."""
    positions = intervention.positions
    said: dict[str, Any] = {"kind": type(intervention).__name__}
    if intervention.feature is not None:
        said["feature"] = str(intervention.feature)
    return said | intervention.settings() | {"positions": positions if isinstance(positions, str) else list(positions)}


def from_dict(said: dict[str, Any]) -> FeatureIntervention:
    """The inverse of `to_dict`; raises `EditError` for anything else."""
    try:
        rest: dict[str, Any] = {key: value for key, value in said.items() if key != "kind"}
        kind = FeatureIntervention.kinds[str(said["kind"]).lower()]
        if "direction" in rest:
            rest.setdefault("feature", None)
        return kind(**rest)
    except (KeyError, TypeError, AttributeError) as error:
        kinds = ", ".join(kind.__name__ for kind in FeatureIntervention.kinds.values())
        raise EditError(
            f"This is not an intervention ({error}); a kind ({kinds}), its feature and settings are needed."
        ) from error


def to_json(model: LanguageModel, interventions: Sequence[FeatureIntervention]) -> str:
    """Interventions as JSON text, with the model and the trained dictionaries that they were made for.

    Raises:
        DictionaryError: two dictionaries of the same name and other weights, which the text could not tell apart.
    """
    made_for = {"name": model.name, "hash": model.hash}
    used = _trained(one.feature.source for one in interventions if one.feature is not None)
    said = {
        "format": FORMAT,
        "model": made_for,
        "dictionaries": [{"name": name, "hash": hash} for name, hash in used.items()],
        "interventions": [to_dict(one) for one in interventions],
    }
    return json.dumps(said, indent=2, allow_nan=False)


def from_json(model: LanguageModel, text: str, dictionaries: Sequence[Dictionary] = ()) -> list[FeatureIntervention]:
    """Read what `to_json` wrote, and check it against the model.

    Args:
        model: what the interventions are for.
        text: the JSON.
        dictionaries: the trained dictionaries whose features it names; others may be among them.

    Raises:
        EditError: not such a text, or made for another model.
        FeatureError: a feature that the model lacks.
        DictionaryError: a trained dictionary is not among those given, or has other weights.
    """
    try:
        said = json.loads(text)
        made_for, listed, version = said["model"], said["interventions"], said["format"]
        name, hash = made_for["name"], made_for["hash"]
        used = {str(one["name"]): str(one["hash"]) for one in said.get("dictionaries", ())}
    except (ValueError, KeyError, TypeError) as error:
        raise EditError(f"This is not a file of interventions: {error}.") from error
    if version != FORMAT:
        raise EditError(f"These interventions are in format {version}, and this version reads format {FORMAT}.")
    if hash != model.hash:
        raise EditError(
            f"These interventions were made for {name} ({str(hash)[:12]}), not for {model.name} ({model.hash[:12]}); "
            "open that model, or make them anew for this one."
        )
    if not isinstance(listed, list):
        raise EditError("This is not a file of interventions: what it lists is not a list.")
    loaded = _loaded(used, dictionaries)
    interventions = []
    for one in map(from_dict, listed):
        source = None if one.feature is None else loaded.get(one.feature.dictionary)
        interventions.append(one if source is None else replace(one, feature=source.feature(one.feature.index)))
    model.bind(interventions)
    return interventions


def save_interventions(path: str | Path, model: LanguageModel, interventions: Sequence[FeatureIntervention]) -> None:
    """Write interventions to a JSON file, whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(to_json(model, interventions))


def load_interventions(
    path: str | Path, model: LanguageModel, dictionaries: Sequence[Dictionary] = ()
) -> list[FeatureIntervention]:
    """Read a JSON file of interventions; `dictionaries` and errors as in `from_json`, `EditError` if there is none."""
    try:
        return from_json(model, Path(path).read_text(), dictionaries)
    except (OSError, UnicodeDecodeError) as error:
        raise EditError(f"{path} can't be read: {error}.") from error


def _trained(sources: Iterable[object]) -> dict[str, str]:
    """Hashes of the dictionaries among these that are not the model's own neurons, by name."""
    found: dict[str, str] = {}
    for source in {id(one): one for one in sources}.values():
        if isinstance(source, Dictionary) and not isinstance(source, Neurons):
            hash = source.hash
            if found.setdefault(source.name, hash) != hash:
                raise DictionaryError(
                    f"Two different dictionaries are called {source.name}; give one of them another .name."
                )
    return found


def _loaded(used: Mapping[str, str], dictionaries: Sequence[Dictionary]) -> dict[str, Dictionary]:
    """The dictionaries at hand with these names and hashes, by name."""
    found: dict[str, Dictionary] = {}
    for name, hash in used.items():
        called = {one.hash: one for one in dictionaries if one.name == name}
        if not called:
            raise DictionaryError(
                f"These interventions need the dictionary {name} ({hash[:12]}); load_dictionary() it and give it in "
                "dictionaries=."
            )
        if hash not in called:
            raise DictionaryError(
                f"These interventions were made with {name} of the hash {hash[:12]}, but the {name} at hand has "
                f"{next(iter(called))[:12]}; load the one that they were made with."
            )
        found[name] = called[hash]
    return found
