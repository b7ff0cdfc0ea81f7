"""The features that are active on each token of a text, for several dictionaries, in one pass of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from workbench.core.checks import Natural, checked
from workbench.core.display import Rows, Shown
from workbench.core.progress import Progress
from workbench.corpus import Corpus, CorpusError
from workbench.dictionaries.features import Feature
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import gather, sites
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Fired(Shown):
    """The features that are active on one token."""

    token: int
    text: str
    features: list[Feature]
    """Highest value first; at most `top` of each dictionary."""
    values: list[float]
    """The value of each feature."""

    def to_dict(self) -> dict[str, Any]:
        """The features as plain data, each as its id."""
        return asdict(self) | {"features": [str(feature) for feature in self.features]}


@checked(CorpusError)
def active_features(
    model: LanguageModel,
    dictionaries: Sequence[Dictionary],
    text: str,
    top: Natural = 10,
    *,
    progress: Progress | None = None,
) -> Rows[Fired]:
    """The features that are active on each token of a text, under the interventions in force around the call.

    The text is read like a corpus that dictionaries are trained on: after the tokenizer's BOS token, which is not in
    the result, and in windows where it is longer than the model's context. Special tokens in it and, where there is no
    BOS, the first token of a window have no features.

    Args:
        model: the model.
        dictionaries: each reads at its own hook point.
        text: any text.
        top: at most so many features of each dictionary for a token.
        progress: called with the share done and a word on what is being done; None: a bar; False: nothing.

    Returns:
        One entry for each token but BOS, in the order of the text.

    Raises:
        CorpusError: an empty text, or a model without a tokenizer.
        DictionaryError: a dictionary that does not fit the model.
    """
    if not text.strip():
        raise CorpusError("There is no text; write something for the model to read.")
    reads = {id(one): [point.name for point in sites(one, model).reads] for one in dictionaries}
    points = sorted({name for names in reads.values() for name in names})
    corpus = Corpus([text])
    by_position: dict[int, Fired] = {}
    total = max(corpus.count_tokens(model, None, model.network.n_ctx), 1)
    with torch.inference_mode():
        for batch in corpus.batches(model, model.network.n_ctx, 1, shuffle=False):
            activations = model.capture(batch.tokens, points, mask=batch.mask)
            seen = {name: value[0].flatten(1).float() for name, value in activations.items()}
            codes = [one.encode(gather(seen, reads[id(one)])) for one in dictionaries]
            texts = model.token_texts(batch.tokens[0])
            for place in batch.mask[0].nonzero()[:, 0].tolist():
                if int(batch.positions[0, place]) < 0:  # BOS
                    continue
                fired: list[tuple[float, Feature]] = []
                for one, code in zip(dictionaries, codes, strict=True):
                    if not bool(batch.content[0, place]):
                        continue
                    values, columns = code.values[place].topk(min(top, code.values.shape[-1]))
                    kept = zip(values.tolist(), code.indices[place, columns].tolist(), strict=True)
                    fired += [(value, one.feature(index)) for value, index in kept if value > 0]
                fired.sort(key=lambda pair: -pair[0])
                at = int(batch.positions[0, place])
                by_position[at] = Fired(
                    int(batch.tokens[0, place]), texts[place], [one for _, one in fired], [v for v, _ in fired]
                )
            if progress:
                progress(len(by_position) / total, f"{len(by_position):,} of {total:,} tokens")
    return Rows(by_position[at] for at in sorted(by_position))  # windows come in the order of their lengths
