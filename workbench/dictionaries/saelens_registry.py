"""SAELens's list of released dictionaries: by release and id, where each lies on the hub and what its files do not say.

The list is `sae_lens/pretrained_saes.yaml` of an installed `sae-lens`, which is read and not imported, or a file that
`WORKBENCH_SAELENS_REGISTRY` names. Its keys: `sae_lens/loading/pretrained_saes_directory.py` of SAELens 6.54.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workbench.core.type_words import reason_of
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.hub_names import Address
from workbench.dictionaries.recognition import in_words

VARIABLE = "WORKBENCH_SAELENS_REGISTRY"
"""Environment variable with the path of another list."""
FILE = "pretrained_saes.yaml"
LOADER: type[yaml.SafeLoader] = vars(yaml).get("CSafeLoader", yaml.SafeLoader)
"""The safe loader: it makes plain data, and refuses tags; in C where PyYAML has it, as the list has 40,000 lines."""
NOTES = frozenset({"dataset_path", "model_from_pretrained_kwargs", "model_name", "hook_name"})
"""Overrides of a release that do not change what a dictionary computes."""


@dataclass(frozen=True)
class Entry:
    """A dictionary of the hub, with what a list of releases says of it."""

    address: Address
    provenance: dict[str, Any] = field(default_factory=dict)
    """What a dictionary's record takes over: the name of its model, of the release and of Neuronpedia's page."""
    stated: dict[str, Any] = field(default_factory=dict)
    """Settings that stand for those of the dictionary's files, and `norm_scaling_factor`, which the files lack."""


def entry_called(name: str) -> Entry | None:
    """The dictionary of the name "release/id"; None where no list is installed or it has no such release.

    Raises:
        DictionaryError: the release has no such id, or the list can't be read.
    """
    release, _, id = name.partition("/")
    file = _file()
    if file is None or not release:
        return None
    try:
        known = _releases(file, os.stat(file).st_mtime_ns)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DictionaryError(f"{file} can't be read as SAELens's list of releases: {reason_of(error)}.") from error
    if release not in known:
        return None
    try:
        return _entry(known[release], release, id)
    except (KeyError, TypeError, AttributeError) as error:
        raise DictionaryError(f"{file} has another form at {release} than SAELens's list of releases.") from error


def _file() -> Path | None:
    if given := os.environ.get(VARIABLE):
        return Path(given)
    package = importlib.util.find_spec("sae_lens")
    places = [Path(one) / FILE for one in (package and package.submodule_search_locations) or ()]
    return next((one for one in places if one.is_file()), None)


@functools.lru_cache(maxsize=1)
def _releases(file: Path, changed: int) -> Mapping[str, Any]:
    """The list as it was at a time; SAELens keeps the releases by their names."""
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)
    if not isinstance(content, dict):
        raise yaml.YAMLError("it is no mapping of releases")
    return content


def _entry(release: Mapping[str, Any], name: str, id: str) -> Entry:
    there = {str(one["id"]): one for one in release["saes"]}
    if id not in there:
        ids = in_words(list(there))
        raise DictionaryError(f"SAELens's release {name} has no {id or 'dictionary without an id'}; it has {ids}.")
    chosen, overrides = there[id], release.get("config_overrides") or {}
    path = chosen["path"]
    if not isinstance(path, str):
        raise DictionaryError(
            f"{name}/{id} is a part of the dictionary in {release['repo_id']}; open that by its name on the hub."
        )
    provenance = {"model_name": overrides.get("model_name") or release["model"], "saelens": f"{name}/{id}"}
    if page := chosen.get("neuronpedia"):
        provenance["neuronpedia"] = page
    stated = {key: value for key, value in overrides.items() if key not in NOTES}
    if (factor := chosen.get("norm_scaling_factor")) is not None:
        stated["norm_scaling_factor"] = factor
    return Entry(Address(str(release["repo_id"]), path.strip("/"), ""), provenance, stated)
