"""A finished index: cards of features, searches, and the features that are active on a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from workbench.core.checks import Natural, Number, Positive, Share, checked
from workbench.core.display import Rows, Tabular, columns
from workbench.core.patterns import SafePattern
from workbench.core.progress import Progress, remembering
from workbench.core.steady import read_steadily
from workbench.core.type_words import shown
from workbench.dictionaries.folder import CONFIG
from workbench.dictionaries.loading import bundled, bundled_folder
from workbench.dictionaries.protocol import Dictionary
from workbench.index.annotations import Annotations
from workbench.index.card import Example, FeatureCard, FeatureHit, TokenFeatures
from workbench.index.card_tables import NO_REMARK, CardTables
from workbench.index.entries import Entries
from workbench.index.examples import examples
from workbench.index.feature_label import PERSON, RULE, Explanations, FeatureLabel
from workbench.index.firing import active_features
from workbench.index.identity import check_same, identities
from workbench.index.label_files import Remark
from workbench.index.label_store import LabelStore, check_label
from workbench.index.layout import ANNOTATIONS, DATA, NOTE, FeatureIndexError, read_note
from workbench.index.naming import named, with_names
from workbench.index.ordering import densest_first, sharpest_first
from workbench.index.published import Published, read_published, with_published
from workbench.index.regex_scores import RegexScores
from workbench.index.rules.explaining import explain_features
from workbench.index.searching import NO_MATCH, Match, Searcher
from workbench.index.selection import TOP
from workbench.index.statistics import read_statistics
from workbench.index.tokens import TokenTable
from workbench.model.language_model import LanguageModel

Order = Literal["f1", "precision", "recall"]
Unasked = Literal["density", "sharpness"]
INSIDE = "index"
"""The name of an index's folder in the folder of its dictionary."""


class FeatureIndex(Tabular):
    """The index of one dictionary's features over one corpus; built by `build_index`, opened by `open_index`.

    Many threads can read it at once.

    Args:
        path: its folder.
        model: needed for `fires_on` only.
        dictionary: needed for `fires_on` only.

    Attributes:
        about: the note of the index: `dictionary`, `harvest` (with the hashes of model and corpus), `versions`, …
        n_features, n_tokens: sizes.
        statistics: by name, `[n_features]` or `[n_features, n]`: `active`, `density`, `mean`, `highest`, `lowest`,
            `histogram`, `peaks` (ids of the tokens of the top examples), `promoted`, `neighbours`, `partners`, …; of an
            index from an export `held` (which features it has) and NaN for what the export does not say.
        entries: positions and values, sorted by feature.
        tokens: the tokens that it was built on.

    Raises:
        FeatureIndexError: there is no index, or it is damaged, or of another version, model or dictionary.
    """

    opened_by: ClassVar[str] = "wb.open_index"

    @checked(FeatureIndexError)
    def __init__(self, path: str | Path, model: LanguageModel | None = None, dictionary: Dictionary | None = None):
        self.path = Path(path)
        self.model, self.dictionary = model, dictionary
        folder = self.path / DATA
        read_steadily(self._open, (folder, folder / NOTE), FeatureIndexError)
        about, named = self.about["dictionary"], self.about["dictionary"]["name"]
        others = (about.get("former_hash", ""), *([] if dictionary is None else identities(model, dictionary)))
        self._annotations = Annotations(self.path / ANNOTATIONS, about["hash"], *others)
        self._labels = LabelStore(self.path, self._annotations.known, self.n_features)
        self._searcher = Searcher(self.tokens, self.statistics)
        tables = self.statistics, self.entries, self.tokens
        self._cards = CardTables(named, dictionary, *tables, published=self._published)

    def _open(self) -> None:
        """Open the files of `data`, all of them: another process may replace them later."""
        folder, note = self.path / DATA, read_note(self.path)
        check_same(self.path, note, self.model, self.dictionary)
        self.about: dict[str, Any] = {**note}
        self.n_features, self.n_tokens = note["dictionary"]["n_features"], note["n_tokens"]
        self.tokens = TokenTable(folder, self.n_tokens)
        self.statistics = read_statistics(folder / "features.parquet")
        exported = "export" in note
        counts = None if exported else self.statistics["active"]
        self.entries = Entries(folder, self.n_tokens, counts, note["keep"], note["signed"])
        self._published: Published = read_published(folder) if exported else {}

    def __len__(self) -> int:
        return self.n_features

    def __repr__(self) -> str:
        name = self.about["dictionary"]["name"]
        held = f"{int(self.statistics['held'].sum()):,} of " if self.exported else ""
        return f"<FeatureIndex of {name}: {held}{self.n_features:,} features, {self.n_tokens:,} tokens>"

    @property
    def exported(self) -> bool:
        """Whether it was made from an export: of some features alone, without a corpus; see `build_from_export`."""
        return "export" in self.about

    @checked(FeatureIndexError)
    def top(self, index: Natural, n: Natural = TOP) -> tuple[np.ndarray, np.ndarray]:
        """A feature's highest entries: rows of the tokens `[n]`, and values `[n]` float16, highest first."""
        self._check(index)
        rows, values = self.entries.of(index)
        return rows[:n], values[:n]

    @checked(FeatureIndexError)
    def examples(self, index: Natural, n: Natural = TOP, start: Natural = 0) -> Rows[Example]:
        """Examples of a feature, highest value first, without the first `start`.

        An index with `keep` has few examples of ranks above `TOP`, and values around their peaks may lack.

        Raises:
            FeatureIndexError: there is no such feature, or a number below 0.
        """
        self._check(index)
        places = np.arange(start, min(start + n, len(self.entries.kept(index))))
        return Rows(examples(self.entries, self.tokens, index, places))

    @checked(FeatureIndexError)
    def feature(self, index: Natural) -> FeatureCard:
        """The card of a feature; raises `FeatureIndexError` if there is no such feature."""
        self._check(index)
        return replace(self._cards.card(index, self._named()), found=list(self._labels.all().get(index, ())))

    @checked(FeatureIndexError)
    def search(
        self,
        text: str | None = None,
        *,
        regex: str | None = None,
        label: str | None = None,
        token: str | Natural | None = None,
        starred: bool = False,
        density: tuple[Number, Number] = (0.0, 1.0),
        order: Order = "f1",
        unasked: Unasked = "density",
        min_precision: Share = 0.0,
        min_recall: Share = 0.01,
        limit: Positive | None = 50,
    ) -> Rows[FeatureHit]:
        """Features that meet all conditions, best first; without `text` and `regex`, in the order of `unasked`.

        Args:
            text: words, between white space, all of them in the label, in the note, in the tokens that the feature is
                most active on, or in those that it promotes; hits are ranked in this order. Case does not count, every
                other sign does: "C++" is not "C". The end of a word may be left out, not its beginning.
            regex: a regular expression over the texts of the corpus. The start of its first group, or of the match,
                marks a token; features are scored by how well they tell marked tokens from others.
            label: words in the label, as in `text`.
            token: one token, exactly (" dog" with its space) or as its id, among the most active or promoted ones.
            starred: only features with a star.
            density: bounds of the share of tokens on which the feature is active; where an export does not say it, a
                feature passes the widest bounds alone.
            order: the score that a regex search sorts by.
            unasked: the order without `text` and `regex`: "density", densest first; or "sharpness": features with a
                star, then those whose highest values stand on the fewest different tokens.
            min_precision: a regex search leaves out features with a lower precision.
            min_recall: a regex search leaves out features with a lower recall.
            limit: the largest number of hits; None for all.

        Raises:
            FeatureIndexError: a regular expression that can't be read, or a setting out of range.
        """
        if self.exported and (regex is not None or isinstance(token, int)):
            raise FeatureIndexError(
                "An index from an export holds no corpus for regular expressions and no ids of tokens; search for "
                "words or for the text of a token."
            )
        remarks, searcher = self._named(), self._searcher
        fits = searcher.dense(density)
        if starred:
            fits &= searcher.among(feature for feature, remark in remarks.items() if remark.starred)
        if token is not None:
            fits &= searcher.with_token(token)
        if label is not None:
            fits &= searcher.labelled(label, remarks)
        matches: dict[int, Match] = {} if text is None else searcher.with_text(text, remarks)
        if text is not None:
            fits &= searcher.among(matches)
        if regex == "":
            raise FeatureIndexError("There is nothing to search for; type a regular expression.")
        scores = None
        ranked: Iterable[int] = matches or self._unasked(unasked, remarks)
        if regex is not None:
            scores = RegexScores(self.entries, np.unique(self.tokens.matches(SafePattern(regex, FeatureIndexError))))
            fits &= (scores.hits > 0) & (scores.recall >= min_recall) & (scores.precision >= min_precision)
            ranked = np.lexsort((-scores.f1, -getattr(scores, order))).tolist()
        chosen = [feature for feature in ranked if fits[feature]][:limit]
        return Rows(
            self._cards.hit(
                feature,
                remarks.get(feature, NO_REMARK),
                matches.get(feature, NO_MATCH),
                None if scores is None else scores.of(feature),
            )
            for feature in chosen
        )

    def _unasked(self, order: Unasked, remarks: Mapping[int, Remark]) -> list[int]:
        """All features in an order that asks for nothing."""
        if order == "density":
            return densest_first(self.statistics).tolist()
        ranked = sharpest_first(self.statistics, self.tokens.pieces).tolist()
        return sorted(ranked, key=lambda feature: not remarks.get(feature, NO_REMARK).starred)

    @checked(FeatureIndexError)
    def fires_on(self, prompt: str, top: Natural = 20) -> Rows[TokenFeatures]:
        """The features that are active on each token of a prompt, under the interventions in force here.

        Args:
            prompt: any text that fits into the model's context.
            top: features per token, highest value first.

        Raises:
            FeatureIndexError: the index was opened without the model or the dictionary.
            PromptError: a prompt that is empty or too long.
        """
        if self.model is None or self.dictionary is None:
            raise FeatureIndexError("To run a prompt, open the index with open_index(path, model, dictionary).")
        return Rows(active_features(self.model, self.dictionary, prompt, top))

    @checked(FeatureIndexError)
    def label(self, index: Natural, text: str) -> None:
        """Name a feature; an empty text removes the name. It is on disk when the call returns."""
        self._remark(index, label=text)

    @checked(FeatureIndexError)
    def note(self, index: Natural, text: str) -> None:
        """Write a note on a feature; an empty text removes it."""
        self._remark(index, note=text)

    @checked(FeatureIndexError)
    def star(self, index: Natural, starred: bool = True) -> None:
        """Give a feature a star, or remove it."""
        self._remark(index, starred=starred)

    def remarks(self) -> dict[int, Remark]:
        """Every feature that has a label, a note or a star.

        In an index from an export, a feature without a label of one's own has the export's first.
        """
        return with_published(self._annotations.all(), self._published)

    def _named(self) -> dict[int, Remark]:
        """Remarks in which a feature that nobody named has its best label that was found."""
        return with_names(self.remarks(), self.names())

    def names(self) -> dict[int, FeatureLabel]:
        """The label that stands for each feature that has one, with its source and score.

        What a person wrote stands above an export's first label, and this above those of `explain` and of models, of
        which the one with the highest score counts.
        """
        return named(self._annotations.all(), self._published, self._labels.all())

    @checked(FeatureIndexError)
    def labels(self, index: Natural) -> list[FeatureLabel]:
        """Every label of a feature with its source: a person's, an export's, those that were found, best first."""
        self._check(index)
        own = self._annotations.of(index).label
        published = [FeatureLabel(one.text, one.source) for one in self._published.get(index, ())]
        return [FeatureLabel(own, PERSON)] * bool(own) + published + list(self._labels.all().get(index, ()))

    @checked(FeatureIndexError)
    def labels_by(self, source: str) -> dict[int, FeatureLabel]:
        """The labels of one source that were found, by feature: "rule", or the name of a model."""
        return {feature: one for feature, every in self._labels.all().items() for one in every if one.source == source}

    @checked(FeatureIndexError)
    def explain(
        self, *, seed: Natural = 0, progress: Progress | None = None, cancel: Callable[[], bool] | None = None
    ) -> Explanations:
        """Label every feature by a rule that tells the tokens on which it is active, and keep the labels on disk.

        Rules are tokens and words, the words before and behind, endings, words shortly before, classes such as numbers
        and beginnings of sentences, the tokens that the feature promotes, and two of these together. A rule is chosen
        on half of the texts and scored on the other half, by the area under the ROC curve of telling the tokens on
        which the feature has at least half of its highest value from all others; both sides weigh alike. A label is
        kept where the 95% interval of its score lies above chance.

        Labels of other sources stay; those of an earlier call are replaced.

        Args:
            seed: of the halves.
            progress: told the share that is done; None: a bar; False: nothing.
            cancel: asked now and then; once it returns True, explaining stops with a `FeatureIndexError`.

        Raises:
            FeatureIndexError: the index was made from an export, has a single text, or can't be written.
        """
        if self.exported:
            raise FeatureIndexError("An index from an export holds no corpus on which rules could be tested.")
        if len(np.unique(self.tokens.runs[:, 1])) < 2:
            raise FeatureIndexError("Rules are chosen on some texts and scored on others; build the index on several.")
        found = explain_features(
            self.tokens, self.entries, self.statistics, seed=seed, progress=progress, stops=remembering(cancel)
        )
        if found is None:
            raise FeatureIndexError("Explaining was cancelled; nothing was changed.")
        self._labels.replace(RULE, found.labels)
        return found

    @checked(FeatureIndexError)
    def add_labels(self, source: str, labels: Mapping[Natural, FeatureLabel]) -> None:
        """Keep labels that were found in another way, such as by a model, in the place of those of the same source.

        Args:
            source: who found them; not "rule" and not "a person".
            labels: by feature; each states the same source.

        Raises:
            FeatureIndexError: an empty or a taken source, a label of another one, a label without text or with scores
                outside of 0 to 1, a feature that there is not, or the labels can't be written.
        """
        if not source.strip() or source in (RULE, PERSON) or any(one.source != source for one in labels.values()):
            raise FeatureIndexError(
                f"Labels are added under one source of their own, which each states; not under {shown(source)}."
            )
        for feature, label in labels.items():
            self._check(feature)
            check_label(label, f"There is a label of feature {feature:,}")
        self._labels.replace(source, labels)

    @checked(FeatureIndexError)
    def export_labels(self, path: str | Path) -> None:
        """Write labels, notes and stars to a JSON file, or to a table where the name ends in `.csv` or `.tsv`.

        A table has the columns `feature`, `label`, `note`, `starred` and `dictionary`, the hash of the dictionary.

        Raises:
            FeatureIndexError: another ending, or the file can't be written, or something else than such an export is
                there.
        """
        self._annotations.save(Path(path), self.about["dictionary"]["name"], self.remarks())

    @checked(FeatureIndexError)
    def import_labels(self, path: str | Path) -> int:
        """Add the labels, notes and stars that `export_labels` wrote, or that a table of one's own holds.

        What the file holds for a feature replaces what is there; other features keep theirs. A `.csv` or `.tsv` file
        needs the column `feature`, with numbers; what it has no column for stays. Without a column `dictionary` it is
        taken for this one.

        Returns:
            The number of features in the file.

        Raises:
            FeatureIndexError: no such file, one for another dictionary, or a table with columns or values that mean
                nothing here.
        """
        return self._annotations.load(Path(path), self.n_features)

    def _check(self, index: int) -> None:
        if index >= self.n_features:
            raise FeatureIndexError(
                f"{self.about['dictionary']['name']} has {self.n_features:,} features, 0 to {self.n_features - 1}; "
                f"there is no {index!r}."
            )
        if self.exported and not self.statistics["held"][index]:
            raise FeatureIndexError(f"The export of {self.about['dictionary']['name']} holds no feature {index}.")

    def _remark(self, index: int, **fields: Any) -> None:
        self._check(index)
        self._annotations.change({index: fields})

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each feature; in an index from an export, for each that it holds."""
        remarks, held = self._named(), self.statistics.get("held")
        numbers = {name: self.statistics[name].tolist() for name in ("active", "density", "mean", "highest", "lowest")}
        for index, row in enumerate(columns(**numbers)):
            if held is not None and not held[index]:
                continue
            remark = remarks.get(index, NO_REMARK)
            yield {"index": index, "label": remark.label, "starred": remark.starred, **row}

    def _facts(self) -> Mapping[str, object]:
        about = self.about["dictionary"]
        return {"dictionary": about["name"], "features": self.n_features, "tokens": self.n_tokens, "folder": self.path}


@checked(FeatureIndexError)
def open_index(
    path: str | Path, model: LanguageModel | None = None, dictionary: Dictionary | None = None
) -> FeatureIndex:
    """The index in a folder; without model and dictionary it can do everything except run prompts.

    Args:
        path: the index's folder, the folder of a dictionary that holds one in `index/`, or the name of a dictionary
            that comes with Workbench, such as "resid-15".
        model: the model that it was built on.
        dictionary: the dictionary that it belongs to; features of cards and hits then can be used in interventions.

    Raises:
        FeatureIndexError: there is no index, or it is damaged, or of another version, model or dictionary.
    """
    folder = Path(path)
    if not folder.exists() and str(path) in bundled():
        folder = bundled_folder(path)
    inside = (folder / CONFIG).exists() and not (folder / DATA / NOTE).exists()
    return FeatureIndex(folder / INSIDE if inside else folder, model, dictionary)
