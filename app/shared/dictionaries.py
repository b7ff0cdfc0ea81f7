"""The dictionaries that the app knows: those in `data/dictionaries`, in `runs`, and in folders that users typed.

Listing a folder reads its `cfg.json` only; the weights are loaded when a user chooses it, once for all sessions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import caching

from workbench import Feature
from workbench.core import shipped
from workbench.core.cache import cache_folder
from workbench.core.forms import parse_json
from workbench.core.hashing import hash_of
from workbench.core.text import plain
from workbench.core.type_words import shortened
from workbench.dictionaries import Dictionary, DictionaryError
from workbench.dictionaries.folder import CONFIG, WEIGHTS
from workbench.dictionaries.hub_names import repository_of
from workbench.dictionaries.origin import foreign_sentence, is_of_another
from workbench.dictionaries.protocol import JOIN
from workbench.index import FeatureIndexError
from workbench.interventions.features import dictionary_of

if TYPE_CHECKING:
    from workbench.dictionaries.loading import Place
    from workbench.index import FeatureIndex, FeatureLabel
    from workbench.model import LanguageModel


@dataclass(frozen=True)
class Known:
    """The description of a folder that holds a dictionary, from its `cfg.json`."""

    folder: str
    name: str
    """The name in its features' ids; unique among the known dictionaries."""
    kind: str
    reads: str
    writes: str
    n_features: int | None
    model_hash: str
    """Hash of the model it was trained on; empty if the folder does not state it."""
    made_for: str = ""
    """Name of the model it was made for; empty if the folder does not state it."""
    complaint: str = ""
    """Why it can't be offered, in a sentence; empty if it can."""
    exported: bool = False
    """Whether it is an export of features, whose dictionary is not there; the folder is then that of its index."""

    @property
    def title(self) -> str:
        """Its name without the folders in front; of a dictionary of the hub, with its repository."""
        source = repository_of(Path(self.folder))
        if source is not None and self.name == source.name:
            return source.name.partition("/")[2]
        return Path(self.name).name

    @property
    def family(self) -> type[Dictionary]:
        """The class of its kind; `Dictionary` for an unknown word."""
        return Dictionary.kinds.get(self.kind, Dictionary)

    @property
    def points(self) -> list[str]:
        """Every hook point at which it reads or writes, each once."""
        return list(dict.fromkeys([*self.reads.split(JOIN), *self.writes.split(JOIN)]))

    @property
    def where(self) -> str:
        """Where it reads and writes, in a line."""
        reads, writes = several(self.reads), several(self.writes)
        return reads if self.reads == self.writes else f"{reads} → {writes}"

    @property
    def noun(self) -> str:
        """The word for one of its features."""
        return self.family.noun

    @property
    def index_folder(self) -> Path:
        """The folder of its feature index, which may not exist: in its own, or in the cache for one that has none."""
        path = Path(self.folder)
        if self.exported:
            return path
        if path.is_dir() and repository_of(path) is None:
            return path / "index"
        return cache_folder() / "indexes" / hash_of(str(place(self)))[:32]

    @property
    def indexed(self) -> bool:
        """Whether it has a finished index."""
        return (self.index_folder / "data" / "index.json").is_file()

    @property
    def stamp(self) -> tuple[int, ...]:
        """Times and sizes of the dictionary's files, which change when the files do."""
        return _stamp(*_files(Path(self.folder)))


def runs_folder() -> Path:
    """The folder of trained dictionaries."""
    return Path(os.environ.get("WORKBENCH_RUNS", "runs"))


def known() -> list[Known]:
    """All dictionaries, those that come with Workbench first."""
    more = [Path(one) for one in os.environ.get("WORKBENCH_DICTIONARIES", "").split(os.pathsep) if one]
    folders = []
    for place in (*shipped.folders("dictionaries"), *more, runs_folder()):
        folders += sorted((file.parent for file in place.glob(f"*/{CONFIG}")), key=lambda folder: folder.name)
    folders += map(Path, caching.typed_folders())
    by_name: dict[str, Known] = {}
    for folder in dict.fromkeys(folders):
        one = _described(folder)
        if one.name in by_name:  # a copy, for example: its folder tells them apart
            one = replace(one, name=one.folder)
        by_name[one.name] = one
    return list(by_name.values())


def own(model: LanguageModel) -> list[Known]:
    """The dictionaries that the model itself runs through."""
    spliced = []
    for one in model.splices.values():
        assert isinstance(one, Dictionary)
        spliced.append(replace(_described(Path(one.folder)), name=one.name, model_hash=""))
    return spliced


def fitting(model: LanguageModel) -> list[Known]:
    """The dictionaries that the model runs through, and the known ones that fit it."""
    return [*own(model), *(one for one in known() if not trouble(model, one))]


def trouble(model: LanguageModel, one: Known) -> str:
    """Why a dictionary does not fit the model, in a sentence; empty if it does."""
    if one.complaint:
        return one.complaint
    if one.model_hash and not model.is_named(one.model_hash):
        return f"{one.name} was trained on another model than {model.name}."
    missing = [point for point in one.points if point not in model.hook_points]
    if missing:
        made_for = f"was made for {one.made_for} and " if one.made_for else ""
        return (
            f"{one.name} {made_for}needs the hook point {missing[0] or '(none is named)'}, which {model.name} does not "
            "have."
        )
    return ""


def load(model: LanguageModel, one: Known) -> Dictionary:
    """The loaded dictionary, checked against the model; raises `DictionaryError` if it can't be used."""
    for mine in model.splices.values():
        if isinstance(mine, Dictionary) and Path(mine.folder).absolute() == place(one):
            return mine
    if complaint := trouble(model, one):
        raise DictionaryError(complaint)
    loaded = caching.dictionary(one.folder, one.name, one.stamp, str(model.device))
    each = [(point, loaded.d_in // loaded.n_reads) for point in loaded.read_points]
    each += [(point, loaded.d_out // loaded.n_writes) for point in loaded.write_points]
    for point, width in each:
        if model.hook_points[point].width != width:
            raise DictionaryError(
                f"{one.name} is {width:,} wide and {point} of {model.name} is {model.hook_points[point].width:,} wide."
            )
    return loaded


def open_index(model: LanguageModel, one: Known) -> FeatureIndex | None:
    """The dictionary's feature index, None without one; raises `FeatureIndexError` for one that can't be used."""
    if not one.indexed:
        return None
    load(model, one)
    return caching.feature_index(
        str(one.index_folder),
        one.folder,
        one.name,
        (_stamp(one.index_folder / "data" / "index.json"), one.stamp),
        model,
    )


def usable_index(model: LanguageModel, one: Known) -> FeatureIndex | None:
    """The dictionary's feature index; None without one and for one that can't be used."""
    try:
        return open_index(model, one)
    except (FeatureIndexError, DictionaryError):
        return None


def called(model: LanguageModel, name: str) -> Known:
    """The dictionary of this name, folder or title; raises `DictionaryError` if none is known or it does not fit."""
    for one in [*own(model), *known()]:
        if name in (one.name, one.folder, one.title):
            if complaint := trouble(model, one):
                raise DictionaryError(complaint)
            return one
    raise DictionaryError(
        f"{shortened(name)} is not loaded: the app knows no dictionary of this name; type its folder on Browse."
    )


def feature(model: LanguageModel, text: str) -> Feature:
    """The feature of this id, of the model's neurons or a dictionary; raises `FeatureError` if there is none."""
    parsed = Feature.parse(text)
    if is_neuron(parsed):
        dictionary_of(model, parsed)
        return parsed
    return load(model, called(model, parsed.dictionary)).feature(parsed.index)


def is_neuron(one: Feature) -> bool:
    """Whether a feature is a neuron of the model itself."""
    return one.dictionary.split(".")[0] == "neurons"


def add(model: LanguageModel, place_of: Place) -> Known:
    """Add the dictionary that a user asked for; raises an error if it can't be used."""
    path, typed = place_of.path, str(place_of.path.absolute())
    one = next((one for one in known() if place(one) == path.absolute()), None)
    if one is None:
        caching.typed_folders()[typed] = place_of
        try:
            one = next(one for one in known() if place(one) == path.absolute())
            load(model, one)
        except Exception:
            del caching.typed_folders()[typed]
            raise
    load(model, one)
    return one


def path_of(typed: str) -> str:
    """What a user typed, with the home folder in place of "~"."""
    return str(Path(typed).expanduser()) if typed.startswith("~") else typed


def foreign(model: LanguageModel, one: Known) -> str:
    """That a dictionary was made for another model than this, in a sentence; empty where it was not."""
    record = {"model_name": one.made_for}
    if one.model_hash or not is_of_another(record, model):
        return ""
    return foreign_sentence(one.title, record, model)


def place(one: Known) -> Path:
    """The absolute path of its folder."""
    return Path(one.folder).absolute()


def latent_tokens(index: FeatureIndex, latent: int, count: int = 4) -> tuple[list[str], list[str]]:
    """The tokens that a latent is most active on, each once, and the tokens that it promotes."""
    peaks = dict.fromkeys(index.statistics["peaks"][latent].tolist())
    promoted = dict.fromkeys(index.statistics["promoted"][latent].tolist())
    active, best = ([text for text in index.tokens.strings(list(ids)) if text] for ids in (peaks, promoted))
    return active[:count], best[:count]


def label_words(label: FeatureLabel) -> str:
    """A label, and the score of one that was found, as plain text."""
    return label.text if label.score is None else f"{label.text} ({label.score:.2f})"


def label_score(label: FeatureLabel) -> str:
    """Who found a label, and its score, as plain text."""
    return f"by {label.source}" if label.score is None else f"by {label.source}, score {label.score:.2f}"


def about(one: Known) -> str:
    """A dictionary's kind, size and hook points in a line of Markdown."""
    size = f"{one.n_features:,} {one.noun}s" if one.n_features else f"{one.noun}s"
    return f"{plain(one.kind.replace('_', ' '))}, {size}, at {plain(one.where)}"


def counted(one: Known) -> str:
    """The number of its features, with their word."""
    return f"{one.n_features:,} {one.noun}{'s' * (one.n_features != 1)}"


def several(points: str) -> str:
    """The names of hook points, the first and the last where they are many."""
    names = points.split(JOIN)
    return points if len(names) < 3 else f"{names[0]} … {names[-1]} ({len(names)})"


def _described(folder: Path) -> Known:
    """The description in the folder's `cfg.json`, or that of the opened dictionary where another tool wrote it."""
    relative = folder.is_absolute() and folder.is_relative_to(Path.cwd())
    shown = os.path.relpath(folder) if relative else str(folder)
    if str(folder.absolute()) in caching.typed_folders() or not (folder / CONFIG).is_file():
        return _of_another_tool(folder, shown)
    try:
        config = parse_json((folder / CONFIG).read_text(), dict[str, Any], DictionaryError, "it is no configuration")
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
            str(provenance.get("model_name") or metadata.get("model_name") or config.get("model_name") or ""),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        complaint = f"{folder / CONFIG} is damaged: {str(error).rstrip('.')}."
    return Known(shown, shown, "", "", "", None, "", complaint=complaint)


def _of_another_tool(path: Path, shown: str) -> Known:
    """The description of a folder or file that has to be read for it."""
    try:
        one = caching.dictionary(str(path), "", _stamp(*_files(path)))
    except DictionaryError as error:
        return Known(shown, shown, "", "", "", None, "", complaint=str(error))
    source = repository_of(path)
    given = one.name if one.name != one.folder else ""
    name = source.name if source is not None else given or shown
    record = one.provenance
    hash, made_for = str(record.get("model_hash") or ""), str(record.get("model_name") or "")
    return Known(shown, name, one.kind, one.reads, one.writes, one.n_features, hash, made_for)


def _files(path: Path) -> list[Path]:
    """The files that a dictionary is read from: its `cfg.json` and weights, or all in the folder of another tool."""
    if (path / CONFIG).exists() and (path / WEIGHTS).exists():
        return [path / CONFIG, path / WEIGHTS]
    if not path.is_dir():
        return [path]
    return sorted(file for file in (*path.glob("*"), *path.glob("*/*")) if file.is_file())


def _stamp(*files: Path) -> tuple[int, ...]:
    try:
        return tuple(number for file in files for number in (file.stat().st_mtime_ns, file.stat().st_size))
    except OSError as error:
        raise DictionaryError(f"{files[0].parent} can't be read: {error}.") from error
