"""Reading exports of features; see `exported.py`."""

from __future__ import annotations

import gzip
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated, Any, NotRequired, TypeVar, cast

from annotated_types import Ge, Le
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Number, checked
from workbench.core.forms import parse_json, read_json
from workbench.core.paths import check_ordinary, check_stays
from workbench.core.steady import read_steadily
from workbench.core.text import counted
from workbench.core.type_words import reason_of, shown
from workbench.index.exported import ExportedExample, ExportedFeature, ExportedLabel, FeatureExport
from workbench.index.layout import FeatureIndexError
from workbench.index.selection import AFTER, BEFORE

T = TypeVar("T")
LONGEST = 8 * 2**20
"""Bytes of a line."""
RATIO = 100
"""Bytes of a packed file's content for each byte of the file, beside `LONGEST`; JSON has about ten."""
LINES = (".jsonl", ".jsonl.gz")
PARTS = ("features", "activations", "explanations")


@with_config(ConfigDict(extra="allow"))
class FeatureLine(TypedDict):
    """A feature of Neuronpedia's."""

    modelId: str
    layer: str
    index: int | str
    frac_nonzero: NotRequired[Annotated[Number, Ge(0), Le(1)] | None]
    maxActApprox: NotRequired[Number | None]
    pos_str: NotRequired[list[str] | None]
    neg_str: NotRequired[list[str] | None]
    pos_values: NotRequired[list[Number] | None]
    neg_values: NotRequired[list[Number] | None]
    hookName: NotRequired[str | None]


@with_config(ConfigDict(extra="allow"))
class ActivationLine(TypedDict):
    """An example of Neuronpedia's."""

    modelId: str
    layer: str
    index: int | str
    tokens: list[str]
    values: list[Number]


@with_config(ConfigDict(extra="allow"))
class ExplanationLine(TypedDict):
    """A label of Neuronpedia's."""

    modelId: str
    layer: str
    index: int | str
    description: str
    typeName: NotRequired[str | None]
    explanationModelName: NotRequired[str | None]


FORMS: dict[str, Any] = {"features": FeatureLine, "activations": ActivationLine, "explanations": ExplanationLine}


class Example(TypedDict):
    """An example of circuit-tracer's."""

    tokens_acts_list: list[Number]
    tokens: list[str]


class Quantile(TypedDict):
    """A group of examples of circuit-tracer's."""

    quantile_name: str
    examples: list[Example]


@with_config(ConfigDict(extra="allow"))
class FeatureFile(TypedDict):
    """A feature of circuit-tracer's."""

    index: Natural
    examples_quantiles: list[Quantile]
    transcoder_id: NotRequired[str]
    top_logits: NotRequired[list[str]]
    bottom_logits: NotRequired[list[str]]
    act_max: NotRequired[Number | None]
    activation_frequency: NotRequired[Annotated[Number, Ge(0), Le(1)] | None]
    label: NotRequired[str]


@checked(FeatureIndexError)
def open_export(path: str | Path, *, layer: Natural | None = None, examples: Natural = 10) -> FeatureExport:
    """The features of a folder of Neuronpedia or of circuit-tracer.

    Args:
        path: a folder with `features/`, `activations/` or `explanations/`, or one with a file `NUMBER.json` for each
            feature; or a single file of these.
        layer: of circuit-tracer's files, the layer whose features are read: their numbers are then the pairs of layer
            and index by Cantor's function that its viewer asks for. None if they are the indices.
        examples: kept of each feature, those with the highest values; up to 20 tokens in front of the highest value and
            10 behind it.

    Raises:
        FeatureIndexError: the folder holds no such files, one is damaged, or they are of several models or
            dictionaries.
    """
    folder = Path(path)
    return read_steadily(lambda: _read(folder, layer, examples), (folder,), FeatureIndexError)


def _read(folder: Path, layer: int | None, examples: int) -> FeatureExport:
    """The export as it is now."""
    if folder.is_file():
        return _single(folder, layer, examples)
    if any((folder / part).is_dir() for part in PARTS):
        for file in folder.iterdir():  # also what is not read here
            check_stays(file, folder, FeatureIndexError)
        if layer is not None:
            raise FeatureIndexError("A Neuronpedia export is of one layer and states indices; leave layer out.")
        return _neuronpedia(folder, {part: _files(folder / part) for part in PARTS}, examples)
    files = sorted((int(file.stem), file) for file in folder.glob("*.json") if _is_number(file.stem))
    if not files:
        raise FeatureIndexError(
            f"{folder} holds no export: neither a folder features, activations or explanations, nor files as 17.json."
        )
    return _circuit_tracer(folder, files, layer, examples)


def is_export(path: Path) -> bool:
    """Whether a folder or file has the names of an export's."""
    if path.is_file():
        return path.name.endswith(LINES) or (path.suffix == ".json" and _is_number(path.stem))
    if not path.is_dir():
        return False
    parts = (file for part in PARTS for ending in LINES for file in (path / part).glob(f"*{ending}"))
    return any(parts) or any(_is_number(file.stem) for file in path.glob("*.json"))


def _single(file: Path, layer: int | None, most: int) -> FeatureExport:
    """The features of one file."""
    if file.suffix == ".json" and _is_number(file.stem):
        return _circuit_tracer(file.parent, [(int(file.stem), file)], layer, most)
    if not file.name.endswith(LINES):
        raise FeatureIndexError(f"{file} is no file of an export: neither lines of JSON nor a file as 17.json.")
    if layer is not None:
        raise FeatureIndexError("A Neuronpedia export is of one layer and states indices; leave layer out.")
    keys = next(iter(_lines([file], dict[str, Any], file.parent)), {}).keys()
    part = "activations" if "tokens" in keys else "explanations" if "description" in keys else "features"
    return _neuronpedia(file.parent, {part: [file]}, most)


def _files(folder: Path) -> list[Path]:
    return sorted(file for ending in LINES for file in folder.glob(f"*{ending}"))


def _neuronpedia(folder: Path, files: Mapping[str, list[Path]], most: int) -> FeatureExport:
    named: set[tuple[str, str]] = set()
    hook_points: set[str] = set()
    features: dict[int, ExportedFeature] = {}
    for part, own in files.items():
        for line in _lines(own, FORMS[part], folder):
            named.add((line["modelId"], line["layer"]))
            if len(named) > 1:
                pairs = " and ".join(f"{shown(model)} {shown(layer)}" for model, layer in sorted(named))
                raise FeatureIndexError(f"{folder} holds features of several dictionaries ({pairs}); keep them apart.")
            index = _index(line["index"], folder)
            feature = features.get(index) or ExportedFeature(index)
            if part == "features" and (hook := line.get("hookName")):
                hook_points.add(hook)
            features[index] = _with_example(feature, line, most) if part == "activations" else _ADD[part](feature, line)
    if not features:
        raise FeatureIndexError(f"{folder} holds no features.")
    model, name = named.pop()
    hook_point = hook_points.pop() if len(hook_points) == 1 else ""
    return FeatureExport("Neuronpedia", model, name, hook_point, dict(sorted(features.items())))


def _with_facts(feature: ExportedFeature, line: FeatureLine) -> ExportedFeature:
    promoted, suppressed = line.get("pos_str") or [], line.get("neg_str") or []
    return replace(
        feature,
        density=_number(line.get("frac_nonzero")),
        highest=_number(line.get("maxActApprox")),
        promoted=promoted,
        suppressed=suppressed,
        promoted_scores=_scores(promoted, line.get("pos_values"), feature.index),
        suppressed_scores=_scores(suppressed, line.get("neg_values"), feature.index),
    )


def _scores(tokens: list[str], values: list[float] | None, index: int) -> list[float]:
    """The scores of tokens; none where nothing is said."""
    if values and len(values) != len(tokens):
        raise FeatureIndexError(
            f"Feature {index} has {counted(len(tokens), 'token')} with {counted(len(values), 'score')}."
        )
    return [float(one) for one in values or []]


def _with_example(feature: ExportedFeature, line: ActivationLine, most: int) -> ExportedFeature:
    example = _example(line["tokens"], line["values"], f"feature {feature.index}")
    return replace(feature, examples=_best([*feature.examples, example], most))


def _with_label(feature: ExportedFeature, line: ExplanationLine) -> ExportedFeature:
    by = [one for one in (line.get("typeName"), line.get("explanationModelName")) if one]
    label = ExportedLabel(line["description"].strip(), ", ".join(["Neuronpedia", *by]))
    return replace(feature, labels=[*feature.labels, label]) if label.text else feature


_ADD: dict[str, Any] = {"features": _with_facts, "explanations": _with_label}


def _circuit_tracer(folder: Path, files: list[tuple[int, Path]], layer: int | None, most: int) -> FeatureExport:
    names: set[str] = set()
    features: dict[int, ExportedFeature] = {}
    for number, file in files:
        check_stays(file, folder, FeatureIndexError)
        saved = read_json(file, FeatureFile, FeatureIndexError, "a feature of circuit-tracer")
        if saved["index"] != number:
            raise FeatureIndexError(f"{file} says that it is feature {saved['index']}; name it after its number.")
        names.add(saved.get("transcoder_id", ""))
        if layer is not None:
            of, index = unpaired(number)
            if of != layer:
                continue
        else:
            index = number
        examples = [
            _example(one["tokens"], one["tokens_acts_list"], file.name)
            for group in saved["examples_quantiles"]
            for one in group["examples"]
        ]
        label = saved.get("label", "").strip()
        features[index] = ExportedFeature(
            index,
            [ExportedLabel(label, "circuit-tracer")] if label else [],
            _best(examples, most),
            _number(saved.get("activation_frequency")),
            _number(saved.get("act_max")),
            saved.get("top_logits", []),
            saved.get("bottom_logits", []),
        )
    if not features:
        raise FeatureIndexError(f"{folder} holds no feature of layer {layer}.")
    if len(names) > 1:
        raise FeatureIndexError(f"{folder} holds features of several transcoders; keep them apart.")
    return FeatureExport("circuit-tracer", "", names.pop(), "", dict(sorted(features.items())))


def unpaired(number: int) -> tuple[int, int]:
    """Layer and index of a number that pairs them by Cantor's function."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def _example(tokens: list[str], values: list[float], where: str) -> ExportedExample:
    if len(tokens) != len(values) or not tokens:
        raise FeatureIndexError(
            f"An example of {where} has {counted(len(tokens), 'token')} and {counted(len(values), 'value')}."
        )
    peak = max(range(len(values)), key=values.__getitem__)
    part = slice(max(0, peak - BEFORE), peak + AFTER + 1)
    return ExportedExample([sys.intern(one) for one in tokens[part]], [float(one) for one in values[part]])


def _best(examples: list[ExportedExample], most: int) -> list[ExportedExample]:
    return sorted(examples, key=lambda one: -max(one.values))[:most]


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15


def _index(value: int | str, folder: Path) -> int:
    if not _is_number(str(value)):
        raise FeatureIndexError(f"{folder} holds a feature whose index is {shown(value)}, which is no number.")
    return int(value)


def _lines(files: list[Path], form: type[T], home: Path) -> Iterator[T]:
    """The lines of all files of a part, packed or not, in their form."""
    for file in files:
        check_stays(file, home, FeatureIndexError)
        check_ordinary(file, FeatureIndexError)
        try:
            with cast("IO[bytes]", gzip.open(file) if file.suffix == ".gz" else open(file, "rb")) as opened:
                yield from _parsed(opened, file, form)
        except (OSError, EOFError, zlib.error) as error:
            raise FeatureIndexError(f"{file} can't be read: {reason_of(error)}.") from error


def _parsed(opened: IO[bytes], file: Path, form: type[T]) -> Iterator[T]:
    allowed, number = file.stat().st_size * RATIO + LONGEST, 0
    while line := opened.readline(LONGEST):
        number, allowed = number + 1, allowed - len(line)
        if allowed < 0 or (len(line) == LONGEST and not line.endswith(b"\n")):
            raise FeatureIndexError(f"{file} is no export: line {number:,} or the whole is far too long.")
        yield parse_json(line, form, FeatureIndexError, f"Line {number:,} of {file} is not what Neuronpedia exports")
