"""Writing an index in the forms of Neuronpedia's exports and of circuit-tracer's feature files; see `exported.py`."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from workbench.core.checks import checked
from workbench.core.files import replacing
from workbench.core.type_words import shown
from workbench.index.card import Example, FeatureCard
from workbench.index.exported import FeatureExport
from workbench.index.feature_index import FeatureIndex
from workbench.index.layout import FeatureIndexError

BATCH = 1024
"""Features of a file, as in Neuronpedia's own exports."""
LONGEST_NAME = 200
"""Characters of the name of a model or a set."""


@checked(FeatureIndexError)
def export_features(
    index: FeatureIndex,
    folder: str | Path,
    *,
    form: Literal["neuronpedia", "circuit-tracer"] = "neuronpedia",
    model_id: str,
    source_set: str,
    creator: str = "",
) -> None:
    """Write every feature of an index, with its examples, tokens and label, whole or not at all.

    As Neuronpedia takes them: `features/`, `activations/` and `explanations/` with files of JSON lines, packed, and
    `model.jsonl`, `source.jsonl`, `sourceset.jsonl` and `release.jsonl`. As circuit-tracer's viewer takes them: a file
    for each feature, which goes to `features/SCAN/` of its data. What the index does not know is left out: an example
    is cut where it keeps no values.

    Args:
        index: the index.
        folder: the folder; an older export of the same index there is replaced.
        form: whose form.
        model_id: the model's id there.
        source_set: the name of the set of dictionaries there, without a layer.
        creator: the id of the account that the set belongs to.

    Raises:
        FeatureIndexError: the dictionary is of no single layer, a name is empty or too long, or the folder can't be
            written or holds other files.
    """
    for name, value in (("model_id", model_id), ("source_set", source_set)):
        if not value.strip() or len(value) > LONGEST_NAME:
            raise FeatureIndexError(f"{name} is a name of 1 to {LONGEST_NAME} characters, not {shown(value)}.")
    place = Path(folder)
    reads = str(index.about["dictionary"]["reads"])
    match = re.fullmatch(r"blocks\.(\d+)\.[^ ]+", reads)
    if match is None:
        raise FeatureIndexError(f"{reads or 'An unknown place'} is no single layer, which both forms need.")
    layer = int(match[1])
    with replacing(place, FeatureIndexError) as temporary:
        temporary.mkdir()
        if form == "circuit-tracer":
            for feature in range(index.n_features):
                number = (layer + feature) * (layer + feature + 1) // 2 + feature
                content = _feature_file(index.feature(feature), number, source_set)
                (temporary / f"{number}.json").write_text(json.dumps(content), encoding="utf-8")
        else:
            ids = {"modelId": model_id, "layer": f"{layer}-{source_set}"}
            _write_batches(temporary, index, ids, creator)
            _write_set(temporary, ids, source_set, creator)


def _write_batches(folder: Path, index: FeatureIndex, ids: dict[str, str], creator: str) -> None:
    hook = {"hookName": index.about["dictionary"]["writes"] or None}
    for number, start in enumerate(range(0, index.n_features, BATCH)):
        cards = [index.feature(one) for one in range(start, min(start + BATCH, index.n_features))]
        _lines(folder / "features", number, (_facts(card, ids | {"creatorId": creator} | hook) for card in cards))
        examples = ((card, example) for card in cards for example in card.top_examples)
        _lines(folder / "activations", number, (_activation(*one, ids | {"creatorId": creator}) for one in examples))
        labelled = [card for card in cards if card.label]
        _lines(folder / "explanations", number, (_label(card, ids | {"authorId": creator}) for card in labelled))


def _lines(folder: Path, number: int, rows: Iterable[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(text.encode(), 5, mtime=0))


def _facts(card: FeatureCard, ids: dict[str, Any]) -> dict[str, Any]:
    edges, counts = card.histogram.edges, card.histogram.counts
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return ids | {
        "index": str(card.index),
        "maxActApprox": card.highest,
        "frac_nonzero": card.density,
        "pos_str": [one.token for one in card.promoted],
        "pos_values": [one.score for one in card.promoted],
        "neg_str": [one.token for one in card.suppressed],
        "neg_values": [one.score for one in card.suppressed],
        "freq_hist_data_bar_heights": counts,
        "freq_hist_data_bar_values": middles if counts else [],
        "hasVector": False,
        "vector": [],
    }


def _activation(card: FeatureCard, example: Example, ids: dict[str, Any]) -> dict[str, Any]:
    tokens, values = _known(example)
    peak = max(range(len(values)), key=values.__getitem__)
    name = f"{ids['modelId']} {ids['layer']} {card.index} {example.row}"
    return ids | {
        "id": f"c{hashlib.sha256(name.encode()).hexdigest()[:24]}",
        "index": str(card.index),
        "tokens": tokens,
        "values": values,
        "maxValue": values[peak],
        "maxValueTokenIndex": peak,
        "minValue": min(values),
    }


def _known(example: Example) -> tuple[list[str], list[float]]:
    """The tokens around the peak whose values are known, without a gap."""
    start, stop = example.peak, example.peak + 1
    while start > 0 and example.activations[start - 1] is not None:
        start -= 1
    while stop < len(example.tokens) and example.activations[stop] is not None:
        stop += 1
    return example.tokens[start:stop], [float(one or 0.0) for one in example.activations[start:stop]]


def _label(card: FeatureCard, ids: dict[str, Any]) -> dict[str, Any]:
    name = f"{ids['modelId']} {ids['layer']} {card.index} {card.label}"
    return ids | {
        "id": f"c{hashlib.sha256(name.encode()).hexdigest()[:24]}",
        "index": str(card.index),
        "description": card.label,
        "notes": card.note or None,
    }


def _write_set(folder: Path, ids: dict[str, str], source_set: str, creator: str) -> None:
    """Write what Neuronpedia keeps of model, set, source and release, as far as it is known."""
    own = {"creatorId": creator}
    rows = {
        "model": own | {"id": ids["modelId"], "instruct": False, "displayName": ids["modelId"]},
        "source": own | {"id": ids["layer"], "modelId": ids["modelId"], "setName": source_set},
        "sourceset": own | {"modelId": ids["modelId"], "name": source_set, "releaseName": source_set},
        "release": own | {"name": source_set, "description": source_set, "creatorName": creator},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n", encoding="utf-8")


def _feature_file(card: FeatureCard, number: int, transcoder: str) -> dict[str, Any]:
    groups: dict[str, list[Example]] = {"Top": list(card.top_examples)}
    for one in card.quantile_examples:
        groups.setdefault(f"Values from {one.band[0]:.0%} to {one.band[1]:.0%}", []).append(one)
    return {
        "transcoder_id": transcoder,
        "index": number,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_quantile_example(one) for one in examples]}
            for name, examples in groups.items()
            if examples
        ],
        "top_logits": [one.token for one in card.promoted],
        "bottom_logits": [one.token for one in card.suppressed],
        "act_min": card.lowest,
        "act_max": card.highest,
        "quantile_values": [],
        "histogram": [float(one) for one in card.histogram.counts],
        "activation_frequency": card.density,
        **({"label": card.label} if card.label else {}),
    }


def _quantile_example(example: Example) -> dict[str, Any]:
    tokens, values = _known(example)
    peak = max(range(len(values)), key=values.__getitem__)
    return {"tokens_acts_list": values, "train_token_ind": peak, "is_repeated_datapoint": False, "tokens": tokens}


@checked(FeatureIndexError)
def add_labels(index: FeatureIndex, export: FeatureExport) -> int:
    """Name the features of an index by an export's labels, each with its source in the note.

    A feature that has a label or a note keeps both. The export has to be of the same dictionary: it names no feature
    beyond the index, states no other hook point, and where both know the tokens that features promote, they promote
    the same.

    Args:
        index: the index.
        export: from `open_export`.

    Returns:
        The number of features that were named.

    Raises:
        FeatureIndexError: the export is of another dictionary, or the labels can't be written.
    """
    _check_same(index, export)
    known = index.remarks()
    fresh = {
        one.index: one.labels[0]
        for one in export.features.values()
        if one.labels and not (one.index in known and (known[one.index].label or known[one.index].note))
    }
    for feature, label in fresh.items():
        index.label(feature, label.text)
        index.note(feature, f"Label: {label.source}, from {export.model or export.source} {export.name}".strip())
    return len(fresh)


ALIKE = 0.3
"""Least share of promoted tokens that two lists of one dictionary have in common, on average."""


def _check_same(index: FeatureIndex, export: FeatureExport) -> None:
    name = index.about["dictionary"]["name"]
    if max(export.features) >= index.n_features:
        raise FeatureIndexError(
            f"The export holds feature {max(export.features):,} and {name} has {index.n_features:,}; it is of another "
            "dictionary."
        )
    writes = index.about["dictionary"]["writes"]
    if export.hook_point and writes and export.hook_point != writes:
        raise FeatureIndexError(f"The export is of {shown(export.hook_point)} and {name} writes at {shown(writes)}.")
    alike = []
    for one in list(export.features.values())[:200]:
        mine = [token.token for token in index.feature(one.index).promoted] if one.promoted else []
        count = min(len(mine), len(one.promoted), 10)
        if count:
            alike.append(len({*mine[:count]} & {*one.promoted[:count]}) / count)
    if alike and sum(alike) / len(alike) < ALIKE:
        raise FeatureIndexError(
            f"The export's features promote other tokens than those of {name}, so it is of another dictionary."
        )
