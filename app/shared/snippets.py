"""Parts of the scripts of several pages; the script of one page is in `script.py` of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import streamlit as st
from shared import placement
from shared.session import DEFAULT

import workbench as wb
from workbench.core.shipped import folders
from workbench.dictionaries import Dictionary
from workbench.dictionaries.hub_names import repository_of
from workbench.interventions.protocol import feature_of, features_of

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind


def show(code: str) -> None:
    """Draw the script in an expander."""
    with st.expander("Copy as Python", icon=":material/code:"):
        st.code(code, language="python")


def opening(source: str) -> str:
    """The lines that every script starts with."""
    return f"import workbench as wb\n\nmodel = {loaded(source)}\n"


def loaded(source: str) -> str:
    """The call that opens a model as this session does."""
    arguments = [*([] if source == DEFAULT else [repr(source)]), *filter(None, [placement.arguments()])]
    return f"wb.load_model({', '.join(arguments)})"


def loading(interventions: Sequence[InterventionKind]) -> tuple[str, dict[str, str]]:
    """The lines that load the dictionaries that interventions need, and the variable of each by its name."""
    lines, names = "", {}
    for one in interventions:
        for source in (feature.source for feature in features_of(one)):
            if isinstance(source, Dictionary) and source.name not in names:
                names[source.name] = f"dictionary{len(names) + 1}" if names else "dictionary"
                lines += f"{names[source.name]} = {_opened(source)}\n"
    return lines, names


def _opened(dictionary: Any) -> str:
    """The expression of a dictionary: from the model that runs through it, or from its folder."""
    folder = Path(dictionary.folder or dictionary.name)
    if (folder.parent.parent / "spliced.json").exists():
        return f"next(one for one in model.splices.values() if one.name == {dictionary.name!r})"
    return f"wb.load_dictionary({place(str(folder))!r})"


def place(folder: str) -> str:
    """A dictionary's folder for a script: a name that comes with Workbench or is of the hub, or the absolute path."""
    path = Path(folder).absolute()
    if source := repository_of(path):
        return f"hf:{source.address}"
    return path.name if path.parent in folders("dictionaries") else str(path)


def intervention(one: InterventionKind, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """An intervention as a Python expression; `names` maps dictionaries' names to their variables."""
    feature, name = feature_of(one), type(one).__name__
    first = _loaded_feature(feature, names)
    read = _loaded_feature(one.when.feature, names) if one.when is not None else []
    call = one.to_python(*first, when=f"wb.interventions.{one.when.to_python(*read)}" if one.when is not None else "")
    if name in wb.__all__:
        return f"wb.{call}"
    if hasattr(wb.interventions, name):
        return f"wb.interventions.{call}"
    return f"wb.interventions.INTERVENTIONS[{name.lower()!r}]{call.removeprefix(name)}"


def _loaded_feature(feature: object, names: Mapping[str, str]) -> list[str]:
    """The expression of a feature of a dictionary that is loaded in a variable; none of others."""
    known = isinstance(feature, wb.Feature) and feature.dictionary in names
    return [f"{names[feature.dictionary]}.feature({feature.index})"] if known else []  # type: ignore[union-attr]


def edit_list(interventions: Sequence[InterventionKind]) -> str:
    """Interventions as the value of a variable `edits`."""
    if not interventions:
        return "edits = []\n"
    lines, names = loading(interventions)
    return lines + "edits = [\n" + "".join(f"    {intervention(one, names)},\n" for one in interventions) + "]\n"
