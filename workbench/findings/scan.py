"""`scan`: what is interesting on a text, each finding with what happens when it is taken out."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.core.checks import Natural, Positive, checked
from workbench.core.progress import Progress
from workbench.corpus import Corpus
from workbench.dictionaries.protocol import Dictionary
from workbench.findings.errors import FindingError
from workbench.findings.parts import carrying_latents, carrying_parts
from workbench.findings.places import answer_layer, needed_token
from workbench.findings.results import Finding, Scan
from workbench.findings.subject import Subject, Token
from workbench.findings.unusual import matched, of_corpus, of_index, unusual_latents
from workbench.index import FeatureIndex
from workbench.lens.tokens import texts_of
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt


@checked(FindingError)
def scan(
    model: LanguageModel,
    text: Prompt,
    target: Token | tuple[Token, Token] | None = None,
    *,
    dictionaries: Sequence[Dictionary] = (),
    indexes: Sequence[FeatureIndex] = (),
    corpus: Corpus | None = None,
    top: Positive = 3,
    controls: Positive = 6,
    tokens: Positive = 2048,
    seed: Natural = 0,
    progress: Progress | None = None,
) -> Scan:
    """What is interesting on a text: findings, each a sentence with its number, the call that shows it, and a test.

    Found are the heads, neurons and latents that add most to the logit behind the text, the layer from which on the
    answer stands, the token that the prediction depends on, and latents that are rare elsewhere. A test takes each out
    in a run of the model and measures how far the log-probability of the target falls, beside random ones of its kind:
    heads and neurons of the same layer, latents that are active on the same token, other layers, other tokens. Heads,
    neurons and latents are set to zero at all positions; layers write nothing.

    Args:
        model: the model; interventions in force act in every run.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        target: the token whose prediction is looked at; two tokens for the difference of their logits; None for the
            likeliest token.
        dictionaries: whose latents are looked at.
        indexes: of dictionaries; they say how rare a latent is.
        corpus: texts that say how rare the latents of the other dictionaries are.
        top: findings of a kind, at most.
        controls: random ones of its kind beside each, at most.
        tokens: of the corpus, at most.
        seed: of what is drawn.
        progress: told the share that is done.

    Raises:
        FindingError: an index whose dictionary is not given, or a corpus without dictionaries.
        LensError: a target of several tokens, or several rows of tokens.
        PromptError: an empty text, or one longer than the context.
        DictionaryError: a dictionary that does not fit the model.
    """
    named = isinstance(target, tuple) and target[0] == target[1]
    if named:
        raise FindingError("The two tokens are the same, so their difference is always 0; name two others.")
    told = progress or (lambda share, words: None)
    known = _known(dictionaries, indexes)
    if corpus is not None and not known:
        raise FindingError("A corpus says how rare latents are; give dictionaries, or leave the corpus out.")
    told(0.0, "Reading the text")
    subject = Subject.of(model, text, target, controls, seed)
    notes: list[str] = []
    found: list[Finding] = []
    told(0.1, "Taking out heads and neurons")
    found += carrying_parts(subject, top, notes)
    told(0.5, "Taking out layers and tokens")
    found += answer_layer(subject, notes) + needed_token(subject, notes)
    told(0.7, "Taking out latents")
    found += carrying_latents(subject, known, top, notes)
    for dictionary in known:
        index = next((one for one in indexes if matched(known, one) is dictionary), None)
        elsewhere = None if index is None else of_index(index)
        if elsewhere is None and corpus is not None:
            elsewhere = of_corpus(subject, dictionary, corpus, tokens)
        if elsewhere is not None:
            found += unusual_latents(subject, dictionary, elsewhere, top, notes)
    found.sort(key=lambda one: (not one.test.stands_out, -abs(one.test.effect)))
    told(1.0, "Done")
    return Scan(texts_of(model, subject.tokens[0]), subject.name, subject.plain, found, notes)


def _known(dictionaries: Sequence[Dictionary], indexes: Sequence[FeatureIndex]) -> list[Dictionary]:
    """The dictionaries, and those that indexes bring.

    Raises:
        FindingError: an index of another dictionary, or features of the model itself.
    """
    known = list(dictionaries)
    for index in indexes:
        own = matched(known, index)
        if own is None:
            name = index.about["dictionary"]["name"]
            raise FindingError(f"There is an index of {name}, but no such dictionary; give that too.")
        if all(own is not one for one in known):
            known.append(own)
    for one in known:
        if one.of_model:
            raise FindingError(f"{one.name} belongs to the model, whose neurons are looked at anyway; leave it out.")
    return known
