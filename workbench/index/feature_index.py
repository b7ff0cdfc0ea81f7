"""A finished index: cards of features, searches, and what fires on a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from workbench.corpus import Corpus, TokenBatch
from workbench.dictionaries.features import Feature
from workbench.dictionaries.folder import CONFIG
from workbench.dictionaries.loading import BUNDLED, bundled
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.protocol import Dictionary
from workbench.index import card as said
from workbench.index.annotations import People, Remark
from workbench.index.entries import Entries
from workbench.index.examples import examples
from workbench.index.layout import DATA, PEOPLE, FeatureIndexError, read_note
from workbench.index.regex import RegexScores, compiled
from workbench.index.searching import Searcher
from workbench.index.selection import BANDS, TOP, shown
from workbench.index.statistics import histogram_edges, read_statistics
from workbench.index.tokens import TokenTable
from workbench.model.language_model import LanguageModel
from workbench.model.sampling import PromptError

Order = Literal["f1", "precision", "recall"]


def identity(model: LanguageModel | None, dictionary: Dictionary) -> str:
    """The hash by which an index knows its dictionary: of its weights; of the model's, for neurons."""
    return model.hash if isinstance(dictionary, Neurons) and model is not None else dictionary.hash


INSIDE = "index"
"""Where an index lies in the folder of its dictionary."""


class FeatureIndex:
    """The index of one dictionary's features over one corpus; made by `build_index`, opened by `open_index`.

    It can be read by many threads at once.

    Args:
        path: its folder.
        model: needed for `fires_on` only.
        dictionary: needed for `fires_on` only.

    Attributes:
        about: what it was made from: `dictionary`, `harvest` (with the model's and the corpus's hash), `versions`, …
        n_features, n_tokens: sizes.
        statistics: by name, `[n_features]` or `[n_features, n]`: `active`, `density`, `mean`, `highest`, `lowest`,
            `histogram`, `peaks` (ids of the tokens of the top examples), `promoted`, `neighbours`, `partners`, …
        entries: positions and values, sorted by feature.
        tokens: the tokens it was built on.

    Raises:
        FeatureIndexError: there is no index, it is damaged, or of another version, model or dictionary.
    """

    def __init__(self, path: str | Path, model: LanguageModel | None = None, dictionary: Dictionary | None = None):
        self.path = Path(path)
        self.about = read_note(self.path)
        dictionary_note = self.about["dictionary"]
        self.n_features: int = dictionary_note["n_features"]
        self.n_tokens: int = self.about["n_tokens"]
        self.model, self.dictionary = model, dictionary
        _check_same(self.path, self.about, model, dictionary)
        folder = self.path / DATA
        self.tokens = TokenTable(folder, self.n_tokens)
        self.statistics = read_statistics(folder / "features.parquet")
        counts = self.statistics["active"]
        self.entries = Entries(folder, self.n_tokens, counts, self.about["keep"], self.about["signed"])
        self._people = People(self.path / PEOPLE, dictionary_note["hash"])
        self._searcher = Searcher(folder / "words.sqlite", self._people, self.tokens, self.statistics)

    def __len__(self) -> int:
        return self.n_features

    def __repr__(self) -> str:
        name = self.about["dictionary"]["name"]
        return f"<FeatureIndex of {name}: {self.n_features:,} features, {self.n_tokens:,} tokens>"

    def top(self, index: int, n: int = TOP) -> tuple[np.ndarray, np.ndarray]:
        """A feature's highest entries: rows of the tokens `[n]`, and values `[n]` float16, highest first."""
        self._check(index)
        rows, values = self.entries.of(index)
        return rows[:n], values[:n]

    def examples(self, index: int, n: int = TOP, start: int = 0) -> list[said.Example]:
        """Examples of a feature, highest value first, `start` left out.

        In an index with `keep`, ranks above `TOP` may lack values around the peak, and few ranks are there.

        Raises:
            FeatureIndexError: no such feature, or a number below 0.
        """
        self._check(index)
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in (n, start)):
            raise FeatureIndexError(f"n and start are whole numbers from 0, not {n!r} and {start!r}.")
        places = np.arange(start, min(start + n, len(self.entries.kept(index))))
        return examples(self.entries, self.tokens, index, places)

    def feature(self, index: int) -> said.FeatureCard:
        """All that is known of a feature; raises `FeatureIndexError` if there is no such feature."""
        self._check(index)
        of = self._row(index)
        remark, remarks = self._people.of(index), self._people.all()
        places = shown(self.entries.kept(index), self.entries.signed)
        groups = [places.top, *places.bands, places.lowest]
        ends = np.cumsum([len(group) for group in groups])
        every = examples(self.entries, self.tokens, index, places.all())
        parts = [every[end - len(group) : end] for group, end in zip(groups, ends.tolist(), strict=True)]
        edges = histogram_edges(of["lowest"], of["highest"])
        return said.FeatureCard(
            Feature(self.about["dictionary"]["name"], index, source=self.dictionary),
            index,
            remark.label,
            remark.note,
            remark.starred,
            of["active"],
            of["density"],
            of["mean"],
            of["highest"],
            of["lowest"],
            said.Histogram(edges.tolist(), of["histogram"]),
            parts[0],
            [
                said.QuantileExample(**vars(example), band=(1 - (number + 1) / BANDS, 1 - number / BANDS))
                for number, band in enumerate(parts[1 : 1 + BANDS])
                for example in band
            ],
            parts[-1],
            self._scores(of["promoted"], of["promoted_scores"]),
            self._scores(of["suppressed"], of["suppressed_scores"]),
            [
                said.Neighbour(other, remarks.get(other, Remark()).label, cosine)
                for other, cosine in zip(of["neighbours"], of["neighbour_cosines"], strict=True)
            ],
            [
                said.Partner(other, remarks.get(other, Remark()).label, share, pmi)
                for other, share, pmi in zip(
                    *(of.get(name, []) for name in ("partners", "partner_shares", "partner_pmi")), strict=True
                )
                if other >= 0
            ],
        )

    def search(
        self,
        text: str | None = None,
        *,
        regex: str | None = None,
        label: str | None = None,
        token: str | int | None = None,
        starred: bool = False,
        density: tuple[float, float] = (0.0, 1.0),
        order: Order = "f1",
        min_precision: float = 0.0,
        min_recall: float = 0.01,
        limit: int | None = 50,
    ) -> list[said.FeatureHit]:
        """Features that fit everything that is asked, best first; with no question about words, densest first.

        Args:
            text: words that stand in the label, the note, the tokens the feature is most active on, or those it
                promotes; they count in this order.
            regex: a regular expression over the texts of the corpus. The start of its first group, or of the match,
                marks a token; features are scored by how well they tell these tokens.
            label: words that stand in the label.
            token: one token, exactly (" dog" with its space) or as its id, among the most active or promoted ones.
            starred: only features with a star.
            density: bounds of the share of tokens on which the feature is active.
            order: by which of its scores a regex search sorts.
            min_precision: a regex search leaves out features below it.
            min_recall: likewise.
            limit: at most so many; None for all.

        Raises:
            FeatureIndexError: a regular expression that can't be read, or a setting out of range.
        """
        if order not in ("f1", "precision", "recall"):
            raise FeatureIndexError(f"order is 'f1', 'precision' or 'recall', not {order!r}.")
        if limit is not None and limit < 1:
            raise FeatureIndexError(f"limit is a number of features from 1, or None for all, not {limit!r}.")
        remarks, searcher = self._people.all(), self._searcher
        fits = searcher.dense(density)
        if starred:
            fits &= searcher.among(feature for feature, remark in remarks.items() if remark.starred)
        if token is not None:
            fits &= searcher.with_token(token)
        if label is not None:
            fits &= searcher.labelled(label)
        found = {} if text is None else searcher.with_text(text)
        if text is not None:
            fits &= searcher.among(found)
        scores = None
        ranked: Iterable[int] = found or np.argsort(-self.statistics["density"], kind="stable").tolist()
        if regex is not None:
            scores = RegexScores(self.entries, np.unique(self.tokens.matches(compiled(regex))))
            fits &= (scores.hits > 0) & (scores.recall >= min_recall) & (scores.precision >= min_precision)
            ranked = np.lexsort((-scores.f1, -getattr(scores, order))).tolist()
        chosen = [feature for feature in ranked if fits[feature]][:limit]
        return [self._hit(feature, remarks.get(feature, Remark()), found, scores) for feature in chosen]

    def fires_on(self, prompt: str, top: int = 20) -> list[said.TokenFeatures]:
        """The features that are active on each token of a prompt, under the interventions in force here.

        Args:
            prompt: any text, in whatever length the model sees.
            top: features per token, highest value first.

        Raises:
            FeatureIndexError: the index was opened without the model or the dictionary.
            PromptError: an empty prompt, or one that is too long.
        """
        if self.model is None or self.dictionary is None:
            raise FeatureIndexError("To run a prompt, open the index with open_index(path, model, dictionary).")
        batch = _window(self.model, prompt)
        with torch.no_grad():
            x = self.model.capture(batch.tokens, [self.dictionary.reads])[self.dictionary.reads]
            codes = self.dictionary.encode(x[0].flatten(1).float())  # [pos, k]
        values, order = codes.values.sort(dim=-1, descending=True, stable=True)
        features = codes.indices.gather(-1, order)
        texts = self.model.token_texts(batch.tokens[0])
        fired = []
        for row in (batch.positions[0] >= 0).nonzero()[:, 0].tolist():
            active = values[row].nonzero()[:top, 0]
            pair = features[row, active].tolist(), values[row, active].tolist()
            fired.append(said.TokenFeatures(int(batch.tokens[0, row]), texts[row], *pair))
        return fired

    def label(self, index: int, text: str) -> None:
        """Name a feature; an empty text takes the name away. It is on disk when the call returns."""
        self._remark(index, label=_text(text))

    def note(self, index: int, text: str) -> None:
        """Write a note on a feature; an empty text takes it away."""
        self._remark(index, note=_text(text))

    def star(self, index: int, starred: bool = True) -> None:
        """Give a feature a star, or take it away."""
        self._remark(index, starred=bool(starred))

    def remarks(self) -> dict[int, Remark]:
        """Every feature that has a label, a note or a star."""
        return self._people.all()

    def export_labels(self, path: str | Path) -> None:
        """Write labels, notes and stars to a JSON file."""
        self._people.save(Path(path), self.about["dictionary"]["name"])

    def import_labels(self, path: str | Path) -> int:
        """Take over the labels, notes and stars that `export_labels` wrote; how many features that are.

        What the file says of a feature replaces what is there; other features are left alone.

        Raises:
            FeatureIndexError: no such file, or one for another dictionary.
        """
        return self._people.load(Path(path), self.n_features)

    def _check(self, index: int) -> None:
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < self.n_features:
            raise FeatureIndexError(
                f"{self.about['dictionary']['name']} has {self.n_features:,} features, 0 to {self.n_features - 1}; "
                f"there is no {index!r}."
            )

    def _remark(self, index: int, **fields: Any) -> None:
        self._check(index)
        self._people.change({int(index): fields})

    def _row(self, index: int) -> dict[str, Any]:
        """A feature's statistics as plain data."""
        return {name: column[index].tolist() for name, column in self.statistics.items()}

    def _scores(self, ids: list[int], scores: list[float]) -> list[said.TokenScore]:
        texts = self.tokens.strings(ids)
        return [said.TokenScore(*one) for one in zip(ids, texts, scores, strict=True) if one[0] >= 0]

    def _hit(self, feature: int, remark: Remark, found: dict[int, str], scores: RegexScores | None) -> said.FeatureHit:
        ids = dict.fromkeys(self.statistics["peaks"][feature].tolist())
        return said.FeatureHit(
            Feature(self.about["dictionary"]["name"], feature, source=self.dictionary),
            feature,
            remark.label,
            remark.starred,
            float(self.statistics["density"][feature]),
            float(self.statistics["highest"][feature]),
            [text for text in self.tokens.strings(np.array(list(ids))) if text],
            [text for text in self.tokens.strings(self.statistics["promoted"][feature]) if text],
            found.get(feature, ""),
            scores.of(feature) if scores else None,
        )


def open_index(
    path: str | Path, model: LanguageModel | None = None, dictionary: Dictionary | None = None
) -> FeatureIndex:
    """Open an index; without model and dictionary it can do all but run prompts.

    Args:
        path: the index's folder, that of the dictionary which it lies in, or the name of a dictionary that comes with
            Workbench, such as "resid-15".
        model: what it was built on.
        dictionary: what it is the index of; the features of its hits can be used in interventions then.

    Raises:
        FeatureIndexError: there is none, it is damaged, or of another version, model or dictionary.
    """
    folder = Path(path)
    if not folder.exists() and str(path) in bundled():
        folder = BUNDLED / folder
    return FeatureIndex(folder / INSIDE if (folder / CONFIG).exists() else folder, model, dictionary)


def _check_same(path: Path, note: dict[str, Any], model: LanguageModel | None, dictionary: Dictionary | None) -> None:
    made, about = note["harvest"], note["dictionary"]
    if model is not None and model.hash != made["model_hash"]:
        raise FeatureIndexError(
            f"{path} was built on {made['model']} ({made['model_hash'][:12]}), not on {model.name} "
            f"({model.hash[:12]}); open that model, or build the index anew."
        )
    if dictionary is None:
        return
    own = about["hash"] if isinstance(dictionary, Neurons) and model is None else identity(model, dictionary)
    if own != about["hash"] or dictionary.reads != about["reads"] or dictionary.n_features != about["n_features"]:
        raise FeatureIndexError(
            f"{path} is the index of {about['name']} ({about['hash'][:12]}), not of {dictionary.name} ({own[:12]}); "
            "load that dictionary, or build the index anew."
        )


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise FeatureIndexError(f"A label or note is a text, not {text!r}.")
    return text


def _window(model: LanguageModel, prompt: str) -> TokenBatch:
    """A prompt as an index's own texts were read: behind BOS, where the model has one."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError("The prompt is empty; give the model at least one token to start from.")
    windows = list(Corpus([prompt]).batches(model, model.network.n_ctx, 1, shuffle=False))
    if len(windows) > 1:
        raise PromptError(f"The prompt is longer than the {model.network.n_ctx:,} tokens that the model sees.")
    return windows[0]
