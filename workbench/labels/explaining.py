"""Labels in words, written by a language model and tested by asking it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.core.checks import Natural, Positive, checked
from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress, remembering
from workbench.core.type_words import shown
from workbench.index import Explanations, FeatureIndex, FeatureLabel
from workbench.index.feature_label import CHANCE, PERSON, RULE
from workbench.index.rules.explaining import halves
from workbench.labels.asking import Notebook, Server, Writer
from workbench.labels.errors import LabelError
from workbench.labels.prompts import as_label, for_label
from workbench.labels.scores import AskedJudge, detect

FEWEST = 2
"""Examples that a label is made from, at least."""


@checked(LabelError)
def explain_with(
    index: FeatureIndex,
    asked: Server | Writer,
    features: Sequence[Natural],
    folder: str | Path,
    *,
    limit: Natural | None = None,
    examples: Positive = 8,
    tested: Positive = 8,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Explanations:
    """Label features by asking a language model, test each label by asking it again, and keep the labels on disk.

    It sees the strongest examples of half of the texts, and is then asked which texts of the other half hold what its
    label says. Answers are kept in `folder`, so that the same call goes on where one was stopped; labels are kept in
    the index under the model's name, beside those of other sources. One that is not above chance is not kept.

    Args:
        index: of a corpus.
        asked: who answers.
        features: the features.
        folder: for prompts and answers.
        limit: new prompts that are sent at most; None for no limit.
        examples: that a label is made from, at most.
        tested: texts with, and as many without, an active token that it is tested on.
        seed: of the halves, as in `FeatureIndex.explain`, and of the tested texts.
        progress: told the share that is done.
        cancel: asked before each feature; once it returns True, what was found is kept and the call ends with an error.

    Raises:
        LabelError: an index from an export, a feature that there is not, a server without an answer, the limit is
            reached, or it was cancelled; labels that were found until then are kept.
    """
    if index.exported or any(one >= index.n_features for one in features):
        raise LabelError("Labels are made from the corpus of an index that has the features.")
    if not asked.name.strip() or asked.name in (RULE, PERSON):
        raise LabelError(f"Labels are kept under the name of who writes them, which can't be {shown(asked.name)}.")
    notebook, stops = Notebook(asked, folder, limit), remembering(cancel)
    maker = _Maker(index, notebook, examples, tested, seed)
    labels: dict[int, FeatureLabel] = {}
    states = ["absent"] * index.n_features
    trouble: WorkbenchError | None = None
    for number, feature in enumerate(dict.fromkeys(features)):
        if progress:
            progress(number / len(features), f"Asking {asked.name}")
        try:
            if stops():
                raise LabelError("Asking was cancelled; labels that were found until then are kept.")
            states[feature], label = maker.label(feature)
        except WorkbenchError as wrong:  # of a server, or of a model's prompt that is too long
            trouble = wrong
            break
        if label is not None:
            labels[feature] = label
    others = {one: label for one, label in index.labels_by(asked.name).items() if states[one] == "absent"}
    index.add_labels(asked.name, others | labels)
    if trouble is not None:
        raise trouble
    return Explanations(labels, states, index.statistics["density"].tolist())


class _Maker:
    """Makes and tests the labels of one feature after another."""

    def __init__(self, index: FeatureIndex, notebook: Notebook, examples: int, tested: int, seed: int):
        self.index, self.notebook = index, notebook
        self.examples, self.tested, self.seed = examples, tested, seed
        self._chosen = halves(index.tokens, seed).chosen

    def label(self, feature: int) -> tuple[str, FeatureLabel | None]:
        """The state of a feature, and its label."""
        every = self.index.examples(feature, 20 * self.examples)
        some = [one for one in every if self._chosen[one.row] and one.value > 0][: self.examples]
        if len(some) < FEWEST:
            return ("rare" if every else "dead"), None
        text = as_label(self._answer(for_label(some)))
        if not text:
            return "chance", None
        judge = AskedJudge(self.index, self.notebook, text)
        found = detect(self.index, feature, judge, n=self.tested, seed=self.seed)
        if found is None and self.notebook.spent:
            raise _limit(self.notebook)
        if found is None or found.low <= CHANCE:
            return "chance", None
        return "labelled", FeatureLabel(text, self.notebook.asked.name, "words", found.value, found.low, found.high)

    def _answer(self, prompt: str) -> str:
        answer = self.notebook.ask(prompt)
        if answer is None:
            raise _limit(self.notebook)
        return answer


def _limit(notebook: Notebook) -> LabelError:
    return LabelError(
        f"The limit of {notebook.limit:,} prompts is reached; call again to go on, labels found until then are kept."
    )
