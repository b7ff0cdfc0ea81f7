"""Files of labels, notes and stars: JSON, and CSV for spreadsheets.

A CSV file has the columns `feature`, `label`, `note`, `starred` and `dictionary`, the hash of the features' dictionary.
Only `feature` has to be there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from workbench.core.delimited import ENDINGS, Table, read_table
from workbench.core.display import Shown
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.type_words import shortened, shown
from workbench.index.layout import FeatureIndexError, save_json

COLUMNS = ("feature", "label", "note", "starred", "dictionary")
"""Of a CSV file."""
_STARS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
"""How spreadsheets write a star, in small letters."""


@dataclass(frozen=True)
class Remark(Shown):
    """Label, note and star of a feature."""

    label: str = ""
    note: str = ""
    starred: bool = False


class SavedRemark(TypedDict):
    """A remark in a file of labels; what lacks is empty."""

    label: NotRequired[str]
    note: NotRequired[str]
    starred: NotRequired[bool]


class SavedLabels(TypedDict):
    """A JSON file of labels."""

    format: NotRequired[Literal[1]]
    name: NotRequired[str]
    dictionary: str
    features: dict[Annotated[str, Field(pattern="^[0-9]{1,10}$")], SavedRemark]


def write_labels(path: Path, name: str, dictionary: str, remarks: Mapping[int, Remark]) -> None:
    """Write remarks to a file; its ending says whether as a table.

    Raises:
        FeatureIndexError: another ending, or the file can't be written or holds something else.
    """
    if path.suffix.lower() not in (".json", *ENDINGS):
        raise FeatureIndexError(f"Labels are saved as .json, {' or '.join(ENDINGS)}, not as {shown(path.name)}.")
    if path.suffix.lower() in ENDINGS:
        _write_table(path, dictionary, remarks)
        return
    features = {str(feature): asdict(remark) for feature, remark in remarks.items()}
    content = {"format": 1, "name": name, "dictionary": dictionary, "features": features}
    save_json(path, content, form=SavedLabels)


def read_labels(path: Path, known: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The fields of `Remark` that a file sets, by feature; a JSON file sets all of them, a table those it has.

    Args:
        path: the file.
        known: the hashes that may stand for the dictionary in it, the present one first.

    Raises:
        FeatureIndexError: a file that can't be read, of another form or another dictionary.
    """
    if path.suffix.lower() in ENDINGS:
        return _from_table(path, read_table(path, FeatureIndexError), known)
    saved = read_json(path, SavedLabels, FeatureIndexError, "a file of labels")
    _compare(path, saved["dictionary"], known)
    return {int(feature): asdict(Remark(**fields)) for feature, fields in saved["features"].items()}


def _write_table(path: Path, dictionary: str, remarks: Mapping[int, Remark]) -> None:
    text = io.StringIO(newline="")
    rows = csv.writer(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", lineterminator="\r\n")
    rows.writerow(COLUMNS)
    for feature, one in remarks.items():
        rows.writerow([feature, one.label, one.note, str(one.starred).lower(), dictionary])
    with replacing(path, FeatureIndexError) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _from_table(path: Path, table: Table, known: Sequence[str]) -> dict[int, dict[str, Any]]:
    names = [name.lower() for name in table.names]
    odd = [name for name, lower in zip(table.names, names, strict=True) if name and lower not in COLUMNS]
    if odd or "feature" not in names or len(set(names)) < len(names):
        trouble = f"a column {shown(odd[0])}" if odd else f"the columns {shortened(', '.join(table.names)) or 'none'}"
        raise FeatureIndexError(
            f"{path} is not a file of labels: it has {trouble}, and its columns are feature and any of "
            f"{', '.join(COLUMNS[1:])}, each once."
        )
    new: dict[int, dict[str, Any]] = {}
    for line, row in zip(table.lines, table.rows, strict=True):
        fields = dict(zip(names, row, strict=True))
        fields.pop("", None)  # the numbers of rows, as pandas writes them
        where = f"{path} is not a file of labels: line {line:,} has"
        feature = fields.pop("feature").strip()
        if not (feature.isascii() and feature.isdigit() and len(feature) <= 10):
            raise FeatureIndexError(f"{where} {shown(feature)} where the number of a feature should be.")
        if int(feature) in new:
            raise FeatureIndexError(f"{where} feature {feature} again; leave one line for each.")
        if owner := fields.pop("dictionary", "").strip():
            _compare(path, owner, known)
        new[int(feature)] = fields
        if "starred" in fields:
            if (word := fields["starred"].strip().lower()) not in _STARS:
                raise FeatureIndexError(f"{where} {shown(fields['starred'])} where true or false should be.")
            new[int(feature)] = fields | {"starred": _STARS[word]}
    return new


def _compare(path: Path, recorded: str, known: Sequence[str]) -> None:
    """Raise `FeatureIndexError` where a file has the hash of another dictionary."""
    if recorded not in known:
        raise FeatureIndexError(f"{path} holds labels for another dictionary ({recorded[:12]}, not {known[0][:12]}).")
