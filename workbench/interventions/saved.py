"""Interventions as JSON, with the model and the trained dictionaries that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import MaxLen
from pydantic import AfterValidator
from typing_extensions import TypedDict

from workbench.core.checks import checked
from workbench.core.files import replacing
from workbench.core.forms import parse_json, read_text
from workbench.core.type_words import reason_of, shown
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.protocol import (
    INTERVENTIONS,
    FeatureIntervention,
    InterventionKind,
    feature_of,
    features_of,
)
from workbench.interventions.when import When, check_form
from workbench.model.edits import EditError
from workbench.model.language_model import LanguageModel

FORMAT = 1


class Named(TypedDict):
    """What a file says of the model or of a dictionary."""

    name: Annotated[str, MaxLen(4096)]
    hash: str


class File(TypedDict):
    """A file of interventions."""

    format: int
    model: Named
    dictionaries: NotRequired[list[Named]]
    interventions: list[dict[str, Any]]


def _kind_of(data: dict[str, Any]) -> type[InterventionKind]:
    """The kind that plain data names, of which it holds nothing but settings; raises `ValueError` for other data."""
    kind = INTERVENTIONS.get(str(data.get("kind", "")).lower())
    if kind is None:
        kinds = ", ".join(one.__name__ for one in INTERVENTIONS.values())
        raise ValueError(f"its kind should be one of {kinds}, not {shown(data.get('kind', 'missing'))}")
    known = [field.name for field in fields(kind)]
    for name in data:
        if name not in ("kind", *known):
            raise ValueError(f"{kind.__name__} has no setting {shown(name)}, only {', '.join(known) or 'none'}")
    if "when" in data:
        check_form(data["when"], ValueError)
    return kind


def _of_ours(data: dict[str, Any]) -> dict[str, Any]:
    _kind_of(data)
    return data


class OwnFile(TypedDict):
    """A file of interventions with nothing in it that another save would lose."""

    format: int
    model: Named
    dictionaries: NotRequired[list[Named]]
    interventions: list[Annotated[dict[str, Any], AfterValidator(_of_ours)]]


def to_dict(intervention: InterventionKind) -> dict[str, Any]:
    """One intervention as plain data: kind, settings, and feature and positions where it has some."""
    kind, settings = {"kind": type(intervention).__name__}, intervention.settings()
    settings |= {} if intervention.when is None else {"when": intervention.when.to_dict()}
    if not isinstance(intervention, FeatureIntervention):
        return kind | settings
    feature, positions = intervention.feature, intervention.positions
    named = {} if feature is None else {"feature": str(feature)}
    return kind | named | settings | {"positions": positions if isinstance(positions, str) else list(positions)}


def from_dict(data: dict[str, Any]) -> InterventionKind:
    """The inverse of `to_dict`; raises `EditError` for anything else."""
    try:
        kind = _kind_of(data)
    except (ValueError, TypeError, AttributeError) as error:
        raise EditError(f"This is not an intervention: {reason_of(error)}.") from error
    try:
        given = {key: value for key, value in data.items() if key != "kind"}
        return kind.from_settings(given | ({"when": When.from_dict(data["when"])} if "when" in data else {}))
    except (KeyError, TypeError, AttributeError) as error:
        needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
        missing = [name for name in needed if name not in data]
        if missing:
            raise EditError(
                f"The {kind.__name__} among these interventions has no {' and no '.join(missing)}."
            ) from error
        known = ", ".join(field.name for field in fields(kind))
        raise EditError(
            f"This is not an intervention ({reason_of(error)}); {kind.__name__} needs its settings, which are {known}."
        ) from error


@checked(EditError)
def to_json(model: LanguageModel, interventions: Sequence[InterventionKind]) -> str:
    """Interventions as JSON text, with the model and the trained dictionaries that they belong to.

    Raises:
        DictionaryError: two dictionaries of the same name and other weights, which the text could not tell apart.
    """
    used = _trained(feature.source for one in interventions for feature in features_of(one))
    content: File = {
        "format": FORMAT,
        "model": {"name": model.name, "hash": model.hash},
        "dictionaries": [{"name": name, "hash": hash} for name, hash in used.items()],
        "interventions": [to_dict(one) for one in interventions],
    }
    return json.dumps(content, indent=2, allow_nan=False)


@checked(EditError)
def from_json(model: LanguageModel, text: str, dictionaries: Sequence[Dictionary] = ()) -> list[InterventionKind]:
    """The interventions of a text of `to_json`, checked against the model.

    Args:
        model: the model that they belong to.
        text: the JSON.
        dictionaries: the trained dictionaries whose features it names; others may be among them.

    Raises:
        EditError: the text has another form, or belongs to another model.
        FeatureError: a feature that the model lacks.
        DictionaryError: a trained dictionary is not among `dictionaries`, or has other weights.
    """
    content = parse_json(text, File, EditError, "This is not a file of interventions")
    version, name, hash = content["format"], content["model"]["name"], content["model"]["hash"]
    if version != FORMAT:
        raise EditError(f"These interventions are in format {version}, and this version reads format {FORMAT}.")
    if not model.is_named(hash):
        raise EditError(
            f"These interventions were made for {name} ({hash[:12]}), not for {model.name} ({model.hash[:12]}); "
            "open that model, or make them anew for this one."
        )
    used = {one["name"]: one["hash"] for one in content.get("dictionaries", ())}
    loaded = _loaded(used, dictionaries)
    interventions: list[InterventionKind] = []
    for data in content["interventions"]:
        one = from_dict(data)
        for name in one.settings().keys() - data.keys():  # a default would stand for what the file held
            raise EditError(f"The {type(one).__name__} among these interventions has no {name}; save them again.")
        interventions.append(_with_sources(one, loaded))
    model.bind(interventions)
    return interventions


@checked(EditError)
def save_interventions(path: str | Path, model: LanguageModel, interventions: Sequence[InterventionKind]) -> None:
    """Write interventions to a JSON file, whole or not at all.

    Raises:
        EditError: the file can't be written, or something else than interventions is there.
        DictionaryError: as in `to_json`.
    """
    former = [File.__annotations__.keys() - {"dictionaries"}]
    with replacing(Path(path), EditError, form=OwnFile, former=former) as temporary:
        temporary.write_text(to_json(model, interventions))


@checked(EditError)
def load_interventions(
    path: str | Path, model: LanguageModel, dictionaries: Sequence[Dictionary] = ()
) -> list[InterventionKind]:
    """Read a JSON file of interventions; `dictionaries` and errors as in `from_json`, `EditError` if there is none."""
    return from_json(model, read_text(path, EditError, "a file of interventions"), dictionaries)


def _with_sources(one: InterventionKind, loaded: Mapping[str, Dictionary]) -> InterventionKind:
    """The intervention with the loaded dictionaries as the sources of its features."""
    feature, when = feature_of(one), one.when
    if feature is not None and feature.dictionary in loaded:
        one = replace(one, feature=loaded[feature.dictionary].feature(feature.index))  # type: ignore[call-arg]
    if when is not None and isinstance(when.feature, Feature) and when.feature.dictionary in loaded:
        read = loaded[when.feature.dictionary].feature(when.feature.index)
        one = replace(one, when=replace(when, feature=read))
    return one


def _trained(sources: Iterable[object]) -> dict[str, str]:
    """Hashes of the dictionaries among these that are not `of_model`, by name."""
    hashes: dict[str, str] = {}
    for source in {id(one): one for one in sources}.values():
        if isinstance(source, Dictionary) and not source.of_model:
            hash = source.hash
            if hashes.setdefault(source.name, hash) != hash:
                raise DictionaryError(
                    f"Two different dictionaries are called {source.name}; give one of them another .name."
                )
    return hashes


def _loaded(used: Mapping[str, str], dictionaries: Sequence[Dictionary]) -> dict[str, Dictionary]:
    """Those of the dictionaries that have these names and hashes, by name."""
    loaded: dict[str, Dictionary] = {}
    for name, hash in used.items():
        called = [one for one in dictionaries if one.name == name]
        if not called:
            raise DictionaryError(
                f"These interventions need the dictionary {name} ({hash[:12]}); load_dictionary() it and pass it in "
                "dictionaries=."
            )
        same = [one for one in called if one.is_named(hash)]
        if not same:
            raise DictionaryError(
                f"These interventions were made with {name} of the hash {hash[:12]}, but the {name} that is loaded has "
                f"{called[0].hash[:12]}; load the one that they were made with."
            )
        loaded[name] = same[0]
    return loaded
