"""The dictionaries that the app knows: those in `data/dictionaries`, in `runs`, and in folders that people typed.

What a folder holds is first read from its `cfg.json` only; the weights are loaded when somebody chooses it, once for
all sessions.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching
from shared.tokens import plain

from workbench import Feature
from workbench.dictionaries import Dictionary, DictionaryError
from workbench.dictionaries.folder import CONFIG, WEIGHTS
from workbench.index import FeatureIndexError
from workbench.interventions.features import dictionary_of

if TYPE_CHECKING:
    from workbench.index import FeatureIndex
    from workbench.model import LanguageModel

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "dictionaries"


@dataclass(frozen=True)
class Known:
    """A folder that says it holds a dictionary."""

    folder: str
    name: str
    """What its features are called by in the app; no two known ones share it."""
    kind: str
    reads: str
    writes: str
    n_features: int | None
    model_hash: str
    """Of the model it was trained on; empty if that is not said."""
    complaint: str = ""
    """Why it can't be offered at all."""

    @property
    def title(self) -> str:
        """Its name without the folders in front."""
        return Path(self.name).name

    @property
    def noun(self) -> str:
        """What one of its features is called."""
        return {"codebook": "code", "key_value": "pair"}.get(self.kind, "latent")

    @property
    def index_folder(self) -> Path:
        """Where its feature index is, or would be."""
        return Path(self.folder) / "index"

    @property
    def indexed(self) -> bool:
        """Whether there is a finished index."""
        return (self.index_folder / "data" / "index.json").is_file()

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes when the dictionary's files do."""
        return _stamp(Path(self.folder) / CONFIG, Path(self.folder) / WEIGHTS)


def runs_folder() -> Path:
    """Where trained dictionaries go."""
    return Path(os.environ.get("WORKBENCH_RUNS", "runs"))


def known() -> list[Known]:
    """All dictionaries, those that come with Workbench first."""
    more = [Path(one) for one in os.environ.get("WORKBENCH_DICTIONARIES", "").split(os.pathsep) if one]
    folders = []
    for place in (SHIPPED, *more, runs_folder()):
        folders += sorted((file.parent for file in place.glob(f"*/{CONFIG}")), key=lambda folder: folder.name)
    folders += map(Path, caching.typed_folders())
    found: dict[str, Known] = {}
    for folder in dict.fromkeys(folders):
        one = _described(folder)
        if one.name in found:  # a copy, say: then its place tells them apart
            one = Known(**vars(one) | {"name": one.folder})
        found[one.name] = one
    return list(found.values())


def own(model: LanguageModel) -> list[Known]:
    """The dictionaries that the model itself runs through."""
    found = []
    for one in model.splices.values():
        assert isinstance(one, Dictionary)
        found.append(replace(_described(Path(one._folder)), name=one.name, model_hash=""))
    return found


def fitting(model: LanguageModel) -> list[Known]:
    """Those that the model runs through, were made for it, or could have been."""
    return [*own(model), *(one for one in known() if not trouble(model, one))]


def trouble(model: LanguageModel, one: Known) -> str:
    """Why a dictionary does not fit a model, in a sentence; empty if it does."""
    if one.complaint:
        return one.complaint
    if one.model_hash and one.model_hash != model.hash:
        return f"{one.name} was trained on another model than {model.name}."
    missing = [point for point in (one.reads, one.writes) if point not in model.hook_points]
    if missing:
        return f"{one.name} needs the hook point {missing[0] or '(none is named)'}, which {model.name} does not have."
    return ""


def load(model: LanguageModel, one: Known) -> Dictionary:
    """The dictionary itself, checked against the model; raises `DictionaryError` if it can't be used."""
    for mine in model.splices.values():
        if isinstance(mine, Dictionary) and Path(mine._folder).absolute() == place(one):
            return mine
    if complaint := trouble(model, one):
        raise DictionaryError(complaint)
    made = caching.dictionary(one.folder, one.name, one.stamp)
    for point, width in ((made.reads, made.d_in), (made.writes, made.d_out)):
        if model.hook_points[point].width != width:
            raise DictionaryError(
                f"{one.name} is {width:,} wide and {point} of {model.name} is {model.hook_points[point].width:,} wide."
            )
    return made


def open_index(model: LanguageModel, one: Known) -> FeatureIndex | None:
    """Its feature index, or None without one; raises `FeatureIndexError` for one that can't be used."""
    if not one.indexed:
        return None
    load(model, one)
    return caching.feature_index(
        one.folder, one.name, _stamp(one.index_folder / "data" / "index.json"), one.stamp, model
    )


def usable_index(model: LanguageModel, one: Known) -> FeatureIndex | None:
    """The same where an index is welcome and not needed: None for one that can't be used."""
    try:
        return open_index(model, one)
    except (FeatureIndexError, DictionaryError):
        return None


def called(model: LanguageModel, name: str) -> Known:
    """The dictionary of this name; raises `DictionaryError` if it is not known or does not fit the model."""
    for one in [*own(model), *known()]:
        if name in (one.name, one.folder, one.title):
            if complaint := trouble(model, one):
                raise DictionaryError(complaint)
            return one
    raise DictionaryError(f"{name} is not loaded: the app knows no dictionary of this name; type its folder on Browse.")


def feature(model: LanguageModel, text: str) -> Feature:
    """The feature of this id, of a model's neurons or of a dictionary, checked; raises `FeatureError` if it is none."""
    said = Feature.parse(text)
    if is_neuron(said):
        dictionary_of(model, said)
        return said
    return load(model, called(model, said.dictionary)).feature(said.index)


def is_neuron(one: Feature) -> bool:
    """Whether a feature is a neuron of the model itself."""
    return one.dictionary.split(".")[0] == "neurons"


def add_folder(model: LanguageModel, typed: str) -> Known:
    """Know the dictionary in a folder that somebody typed; raises `DictionaryError` if it can't be used."""
    folder = str(Path(typed.strip()).expanduser())
    one = next((one for one in known() if place(one) == Path(folder).absolute()), None)
    if one is None:
        one = _described(Path(folder))
        load(model, one)
        caching.typed_folders().append(folder)
        one = next(known_one for known_one in known() if known_one.folder == folder)
    load(model, one)
    return one


def place(one: Known) -> Path:
    """Its folder, however it is written."""
    return Path(one.folder).absolute()


def latent_tokens(index: FeatureIndex, latent: int, count: int = 4) -> tuple[list[str], list[str]]:
    """The tokens that a latent is most active on, each once, and those that it promotes."""
    peaks = dict.fromkeys(index.statistics["peaks"][latent].tolist())
    promoted = dict.fromkeys(index.statistics["promoted"][latent].tolist())
    active, best = ([text for text in index.tokens.strings(list(ids)) if text] for ids in (peaks, promoted))
    return active[:count], best[:count]


def about(one: Known) -> str:
    """A dictionary in a line of plain Markdown."""
    size = f"{one.n_features:,} {one.noun}s" if one.n_features else f"{one.noun}s"
    where = plain(one.reads) if one.reads == one.writes else f"{plain(one.reads)} → {plain(one.writes)}"
    return f"{plain(one.kind.replace('_', ' '))}, {size}, at {where}"


def _described(folder: Path) -> Known:
    """What the folder's `cfg.json` says."""
    shown = os.path.relpath(folder) if folder.is_absolute() and folder.is_relative_to(Path.cwd()) else str(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        own, metadata = config.get("workbench") or {}, config.get("metadata") or {}
        provenance: dict[str, Any] = own.get("provenance") or {}
        reads = own.get("reads") or metadata.get("hook_name") or config.get("hook_name") or ""
        return Known(
            shown,
            str(own.get("name") or shown),
            str(own.get("kind") or config.get("architecture") or "dictionary"),
            str(reads),
            str(own.get("writes") or metadata.get("hook_name_out") or reads),
            int(config["d_sae"]) if "d_sae" in config else None,
            str(provenance.get("model_hash") or ""),
        )
    except FileNotFoundError:
        complaint = f"{folder} is not a dictionary: it has no {CONFIG}; type the folder that save() or SAELens wrote."
    except (OSError, ValueError, TypeError, AttributeError) as error:
        complaint = f"{folder / CONFIG} is damaged: {error}."
    return Known(shown, shown, "", "", "", None, "", complaint)


def _stamp(*files: Path) -> tuple[int, ...]:
    try:
        return tuple(number for file in files for number in (file.stat().st_mtime_ns, file.stat().st_size))
    except OSError as error:
        raise DictionaryError(f"{files[0].parent} can't be read: {error}.") from error
