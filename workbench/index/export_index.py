"""An index made from an export, so that it is searched and browsed as every index; see `exported.py`.

An export holds examples that somebody chose and no corpus. What it does not say is NaN in the tables of such an index
and None on its cards. The tokens of its examples have numbers of their own, which are no tokenizer's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.checks import checked
from workbench.core.files import replacing
from workbench.core.locks import alone
from workbench.core.provenance import command_line
from workbench.index.annotations import Annotations
from workbench.index.entries import EntriesWriter
from workbench.index.exported import ExportedExample, ExportedFeature, FeatureExport
from workbench.index.feature_index import FeatureIndex
from workbench.index.layout import (
    ANNOTATIONS,
    DATA,
    EXPORTED,
    NOTE,
    PATTERNS,
    FeatureIndexError,
    check_ours,
    seal_of,
    write_array,
    write_note,
)
from workbench.index.promoted_tokens import TOKENS
from workbench.index.published import write_published
from workbench.index.selection import TOP
from workbench.index.statistics import write_statistics
from workbench.index.tokens import TokenTable, write_pieces

LARGEST = 1 << 21
"""Features of a dictionary, at most: the tables have a row for each number up to the highest."""
HIGHEST = float(np.finfo(np.float16).max)
"""The largest value that an index can hold."""
UNKNOWN = ("active", "density", "mean", "highest", "lowest")
"""Columns of numbers that an export may not state."""


@checked(FeatureIndexError)
def build_from_export(export: FeatureExport, path: str | Path) -> FeatureIndex:
    """Build an index from an export in the folder `path`; neither the dictionary nor its model has to be there.

    Cards have the export's examples, tokens, labels with their sources, densities and highest values. What the export
    does not say is None, and `index.about["export"]["absent"]` names it. Search by words, labels, tokens and density
    works; a regular expression needs a corpus. `index.feature` knows the features that the export holds alone. Labels,
    notes and stars that people wrote stay where an index of the same export is built anew, be it with other labels.

    Args:
        export: from `open_export`.
        path: the folder of the index; an index that is there is replaced.

    Returns:
        The index. Its features name no dictionary that is loaded; `dictionary.feature(hit.index)` does.

    Raises:
        FeatureIndexError: there are no features, a number or a value is too large, or the folder holds something else
            or labels for another dictionary, or can't be written.
    """
    folder = Path(path)
    size = _size(export)
    check_ours(folder)
    identity = export_identity(export)
    Annotations(folder / ANNOTATIONS, identity)  # raises for labels of another dictionary
    with alone(folder, FeatureIndexError), replacing(folder / DATA, FeatureIndexError, own=PATTERNS, note=NOTE) as new:
        new.mkdir()
        vocabulary: dict[str, int] = {}
        promoted = _promoted(export, size, vocabulary)
        n_tokens = _write_tokens(new, export, vocabulary)
        columns = _write_examples(new, export, size, TokenTable(new, n_tokens))
        write_statistics(new / "features.parquet", columns | promoted)
        write_published(new, export)
        write_note(new, _note(export, size, identity, n_tokens))
    return FeatureIndex(folder)


def called(export: FeatureExport) -> str:
    """The name of an export's dictionary in the ids of its features; it is never that of a model's neurons."""
    return "/".join(" ".join(one.split()) for one in (export.source, export.model, export.name) if one.strip())


def _size(export: FeatureExport) -> int:
    """One more than the highest number of a feature."""
    if not export.features:
        raise FeatureIndexError("The export holds no features.")
    size = max(export.features) + 1
    if size > LARGEST:
        raise FeatureIndexError(
            f"The export holds feature {size - 1:,}, and an index has at most {LARGEST:,}; numbers that pair a layer "
            "with an index are taken apart by open_export(path, layer=…)."
        )
    for number, feature in export.features.items():
        if number < 0 or number != feature.index:
            raise FeatureIndexError(f"The export holds feature {feature.index} under the number {number}.")
        if any(not abs(value) <= HIGHEST for one in feature.examples for value in one.values):
            raise FeatureIndexError(f"A value of feature {number} is above {HIGHEST:,.0f}, the largest of an index.")
        if any(len(one.tokens) != len(one.values) or not one.tokens for one in feature.examples):
            raise FeatureIndexError(f"An example of feature {number} has not one value for each of its tokens.")
        try:
            json.dumps(asdict(feature), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise FeatureIndexError(f"A text of feature {number} holds halves of characters.") from error
    return size


def export_identity(export: FeatureExport) -> str:
    """SHA-256 of what an export says of its dictionary; labels, of which there may be more tomorrow, do not count."""
    digest = hashlib.sha256(json.dumps([export.source, export.model, export.name, export.hook_point]).encode())
    for number in sorted(export.features):
        own = asdict(export.features[number])
        del own["labels"]
        digest.update(json.dumps(own, sort_keys=True).encode())
    return digest.hexdigest()


def _note(export: FeatureExport, size: int, identity: str, n_tokens: int) -> dict[str, Any]:
    dictionary = {"name": called(export), "kind": "", "reads": "", "writes": export.hook_point, "n_features": size}
    note: dict[str, Any] = {
        "format": EXPORTED,
        "dictionary": dictionary | {"hash": identity, "provenance": {"model_name": export.model}},
        "harvest": {"model": export.model, "model_hash": ""},
        "export": export.to_dict(),
        "keep": None,
        "signed": False,
        "n_tokens": n_tokens,
        "versions": {name: version(name) for name in ("numpy", "pyarrow")},
        "command": command_line(),
    }
    note["export"]["seal"] = seal_of(note)
    return note


def _write_tokens(folder: Path, export: FeatureExport, vocabulary: dict[str, int]) -> int:
    """Write the tokens of all examples, each a text of its own; returns their number."""
    ids: list[int] = []
    widths: list[int] = []
    runs: list[tuple[int, int, int, int]] = []
    for number, example in enumerate(_examples(export)):
        runs.append((len(ids), number, 0, 0))
        ids += [vocabulary.setdefault(token, len(vocabulary)) for token in example.tokens]
        widths += [min(len(token), np.iinfo(np.uint16).max) for token in example.tokens]
    if len(ids) >= 1 << 31:
        raise FeatureIndexError("An index holds at most 2,147,483,647 tokens; open the export with fewer examples.")
    write_array(folder / "tokens.bin", np.array(ids, np.int32))
    write_array(folder / "widths.bin", np.array(widths, np.uint16))
    write_array(folder / "runs.bin", np.array(runs, np.int32).reshape(-1, 4))
    nothing = pa.table({"id": pa.array([], pa.int32()), "text": pa.array([], pa.string())})
    pq.write_table(nothing, folder / "texts.parquet")  # no regular expression is asked of pieces of texts
    write_pieces(folder, list(vocabulary.values()), list(vocabulary))
    return len(ids)


def _examples(export: FeatureExport) -> list[ExportedExample]:
    """All examples in the order of the features, the highest values of each first."""
    return [one for number in sorted(export.features) for one in _sorted(export.features[number])]


def _sorted(feature: ExportedFeature) -> list[ExportedExample]:
    return sorted(feature.examples, key=lambda one: -max(one.values))


def _write_examples(folder: Path, export: FeatureExport, size: int, tokens: TokenTable) -> dict[str, np.ndarray]:
    """Write the values of all examples; returns the columns of statistics beside those of promoted tokens."""
    columns = {name: np.full(size, np.nan) for name in UNKNOWN}
    columns |= {"held": np.zeros(size, np.int8), "peaks": np.full((size, TOP), -1, np.int32)}
    row, nothing = 0, np.zeros(0, np.int32)
    with EntriesWriter(folder, tokens, None, signed=False) as entries:
        for number in range(size):
            feature = export.features.get(number)
            if feature is None:
                entries.add_examples(nothing, nothing, nothing, nothing)
                continue
            examples = _sorted(feature)
            starts = row + np.cumsum([0, *(len(one.tokens) for one in examples)])
            peaks = np.array([start + one.peak for start, one in zip(starts, examples, strict=False)], np.int32)
            values = np.array([value for one in examples for value in one.values], np.float16)
            active = np.flatnonzero(values).astype(np.int32)
            entries.add_examples(peaks, values[peaks - row], row + active, values[active])
            columns["peaks"][number, : len(peaks)] = tokens.ids[peaks[:TOP]]
            columns["held"][number] = 1
            columns["density"][number] = np.nan if feature.density is None else feature.density
            columns["highest"][number] = np.nan if feature.highest is None else feature.highest
            row = int(starts[-1])
    return columns


def _promoted(export: FeatureExport, size: int, vocabulary: dict[str, int]) -> dict[str, np.ndarray]:
    """The columns of the tokens that features promote and suppress; their texts go into the vocabulary."""
    columns: dict[str, np.ndarray] = {}
    for name in ("promoted", "suppressed"):
        lists = {number: getattr(one, name)[:TOKENS] for number, one in export.features.items()}
        width = max(map(len, lists.values()), default=0) or 1  # a table has no columns of nothing
        ids, scores = np.full((size, width), -1, np.int32), np.full((size, width), np.nan, np.float32)
        for number, texts in lists.items():
            ids[number, : len(texts)] = [vocabulary.setdefault(text, len(vocabulary)) for text in texts]
            known = getattr(export.features[number], f"{name}_scores")[: len(texts)]
            scores[number, : len(known)] = known
        columns |= {name: ids, f"{name}_scores": scores}
    return columns
