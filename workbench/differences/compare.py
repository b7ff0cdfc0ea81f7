"""`compare_models`: what differs between two models, on texts, in the stream, in the weights and in features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from workbench.core.checks import Integer, Natural, Positive, checked
from workbench.core.progress import Progress, remembering, silence
from workbench.corpus import Corpus
from workbench.dictionaries.protocol import Dictionary
from workbench.differences import sentences
from workbench.differences.errors import DifferenceError
from workbench.differences.features import compare_decodings_of, compare_dictionary, compare_edit
from workbench.differences.grafts import measure_grafts
from workbench.differences.pairs import Pair, open_pair
from workbench.differences.results import Difference, ModelDifferences
from workbench.differences.texts import Windows, compare_texts_and_streams
from workbench.differences.weights import compare_weights
from workbench.model.edits import Intervention
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child

Part = Literal["texts", "weights", "grafts", "features"]
"""Texts with the residual streams; weights; grafts of b's parts into a; neurons, latents and edits."""
FEATURE_TOKENS = 2048
"""Tokens on which latents and edits are compared, at most."""


@checked(DifferenceError)
def compare_models(
    a: LanguageModel | Child | str | Path,
    b: LanguageModel | Child | str | Path,
    corpus: Corpus | str | Path = "stories",
    *,
    parts: Sequence[Part] = ("texts", "weights", "grafts", "features"),
    tokens: Positive = 8192,
    graft_tokens: Positive = 512,
    context: Annotated[Integer, Ge(2)] = 128,
    batch: Positive = 8,
    prompts: Sequence[str] = (),
    max_new_tokens: Positive = 32,
    dictionaries: Sequence[Dictionary] = (),
    interventions: Sequence[Intervention] = (),
    top: Positive = 5,
    seed: Natural = 0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> ModelDifferences:
    """What differs between two models of one tokenizer, in findings with their numbers.

    Models of unlike shapes are compared by their texts alone, which a note says. A model against itself has no
    findings. Interventions and splices in force around the call are set aside; those beside a child run with it.
    Where `cancel` stops the work, what was compared until then is returned.

    Args:
        a, b: models, children, or names or folders of models; b's equal tensors are then held once.
        corpus: texts; or what `Corpus.load` takes.
        parts: what is compared.
        tokens: of the texts, at most; latents and edits take at most 2,048.
        graft_tokens: of the texts for each graft.
        context: positions of a window.
        batch: windows that run at once, at most.
        prompts: that both models continue.
        max_new_tokens: of each continuation.
        dictionaries: of a, whose latents are compared.
        interventions: whose effects in both models are compared.
        top: entries of a list, at most.
        seed: of the choice of the texts, and of the random control.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.
        cancel: asked now and then; once it returns True, the work stops.

    Raises:
        DifferenceError: unlike tokenizers, or texts without a prediction.
        DictionaryError: a dictionary that does not fit the models.
        EditError: an intervention that does not fit the models.
        ModelError: a folder that holds no model.
    """
    told, asked, stopped = progress or silence, remembering(cancel), [False]

    def stops() -> bool:
        stopped[0] = asked()
        return stopped[0]

    text = corpus if isinstance(corpus, Corpus) else Corpus.load(corpus)
    told(0.0, "Opening the models")
    with uninterrupted():
        pair = open_pair(a, b, text)
        result = ModelDifferences(pair.a.name, pair.b.name, [])
        work = _Work(pair, result, Windows(text, tokens, context, batch, seed), top, stops)
        steps: list[tuple[float, Callable[[Callable[[float, str], None]], None]]] = []
        if "texts" in parts:
            steps.append((4.0, work.texts))
        if prompts:
            steps.append((1.0, lambda tell: work.answers(prompts, max_new_tokens)))
        result.notes.extend(_types(pair))
        if pair.alike:
            result.notes.append(f"The models are compared by their texts alone, since {pair.alike}.")
        elif pair.changed or pair.unpaired:
            if pair.unpaired:
                result.notes.append(_unpaired(pair))
            if any(pair.beside):
                result.notes.append("Grafts are left out, since interventions run beside a model's weights.")
            if "weights" in parts:
                steps.append((2.0, work.weights))
            if "grafts" in parts and not any(pair.beside) and not pair.unpaired:
                steps.append((4.0, lambda tell: work.grafts(graft_tokens, tell)))
        if "features" in parts and not pair.alike:
            steps.append((2.0, lambda tell: work.features(dictionaries, interventions, tell)))
        done, whole = 0.0, sum(size for size, _ in steps) or 1.0
        for size, step in steps:
            if stops():
                break
            step(lambda share, words, done=done, size=size: told((done + share * size) / whole, words))
            done += size
        result.notes.extend(["The comparison was stopped before all was compared."] * stopped[0])
    told(1.0, "Done")
    return result


def _types(pair: Pair) -> list[str]:
    """A sentence on types that differ; none where they do not."""
    a, b = (str(one.dtype).removeprefix("torch.") for one in (pair.a, pair.b))
    return [] if a == b else [f"a computes in {a} and b in {b}, whose rounding is part of what differs."]


def _unpaired(pair: Pair) -> str:
    """The sentence on tensors that have no counterpart."""
    first, *others = pair.unpaired
    more = f" and {len(others)} more tensors" if others else ""
    verb = "have" if more else "has"
    return (
        f"{first}{more} {verb} no counterpart of the same shape in the other model, so weights are compared "
        "without them, and grafts are left out."
    )


class _Work:
    """The steps of a comparison, each of which adds to the result."""

    def __init__(
        self, pair: Pair, result: ModelDifferences, windows: Windows, top: int, stops: Callable[[], bool]
    ) -> None:
        self.pair, self.result, self.windows, self.top, self.stops = pair, result, windows, top, stops

    def texts(self, tell: Callable[[float, str], None]) -> None:
        """Predictions and streams."""
        side = compare_texts_and_streams(self.pair, self.windows, self.top, tell, self.stops)
        self.result.texts = side.texts
        self.result.stream.extend(side.stream)
        self._found(sentences.of_texts(side.texts) + sentences.of_stream(side.stream))

    def answers(self, prompts: Sequence[str], max_new_tokens: int) -> None:
        """Continuations of prompts, side by side."""
        for prompt in prompts:
            if self.stops():
                break
            texts = [
                model.generate(prompt, max_new_tokens, interventions=list(beside)).text
                for model, beside in zip((self.pair.a, self.pair.b), self.pair.beside, strict=True)
            ]
            self.result.answers.append((prompt, texts[0], texts[1]))

    def weights(self, tell: Callable[[float, str], None]) -> None:
        """Matrices, heads and neurons."""
        weights = compare_weights(self.pair, self.top, tell, self.stops)
        self.result.weights = weights
        self._found(sentences.of_weights(weights, self.top))

    def grafts(self, tokens: int, tell: Callable[[float, str], None]) -> None:
        """Parts of b in a."""
        some = replace(self.windows, tokens=min(tokens, self.windows.tokens))
        grafts = measure_grafts(self.pair, some, tell, self.stops)
        self.result.grafts.extend(grafts)
        self._found(sentences.of_grafts(grafts, min(3, self.top)))

    def features(
        self,
        dictionaries: Sequence[Dictionary],
        interventions: Sequence[Intervention],
        tell: Callable[[float, str], None],
    ) -> None:
        """Neurons, latents and edits."""
        some = replace(self.windows, tokens=min(self.windows.tokens, FEATURE_TOKENS))
        decoding = compare_decodings_of(self.pair, self.top, self.windows.seed) if self.pair.changed else None
        self.result.decoding = decoding
        self._found(sentences.of_decoding(decoding) if decoding else [])
        for number, dictionary in enumerate(dictionaries):
            tell((number + 1) / (len(dictionaries) + 1), "latents")
            one = compare_dictionary(self.pair, dictionary, some, self.top, self.stops)
            self.result.dictionaries.append(one)
            self._found(sentences.of_dictionary(one, self.top))
        for edit in interventions:
            one = compare_edit(self.pair, edit, some)
            self.result.edits.append(one)
            self._found(sentences.of_edit(one))

    def _found(self, findings: Sequence[Difference]) -> None:
        self.result.findings.extend(findings)
