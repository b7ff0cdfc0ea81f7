"""The tokenizers of a merge: whether they are alike, and the one that the child has."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

from workbench.core.type_words import shown
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.merging.checkpoints import Checkpoint
from workbench.surgery.merging.recipe import Recipe


def check_alike(models: Mapping[str, Checkpoint]) -> None:
    """Refuse models whose tokenizers mean different tokens by one id; tokens that were added may differ.

    Raises:
        SurgeryError: a token of the vocabulary itself is another one.
    """
    known = [one for one in models.values() if one.tokenizer is not None]
    if not known:
        return
    first, *others = known
    tokens, added = _by_id(first.tokenizer)
    for other in others:
        theirs, own = _by_id(other.tokenizer)
        for id in sorted(tokens.keys() & theirs.keys() - added - own):
            if tokens[id] != theirs[id]:
                raise SurgeryError(
                    f"The tokenizers of {first.name} and {other.name} are unlike: token {id} is {shown(tokens[id])} "
                    f"and {shown(theirs[id])}; only models of one vocabulary are merged."
                )


def _by_id(tokenizer: Any) -> tuple[dict[int, str], set[int]]:
    """The tokens by id, and the ids of added ones."""
    return {id: token for token, id in tokenizer.get_vocab().items()}, {*tokenizer.added_tokens_decoder}


def common_rows(recipe: Recipe, models: Mapping[str, Checkpoint]) -> int | None:
    """The number of tokens where the recipe asks for a tokenizer: embeddings are cut to it; None where it does not.

    Raises:
        SurgeryError: tokenizers that are not the same, a model without one, or more tokens than rows.
    """
    if recipe.tokenizer is None:
        return None
    if recipe.tokenizer not in ("base", "union", *models):
        raise SurgeryError(f"tokenizer_source {shown(recipe.tokenizer)} is not one of the models of the recipe.")
    vocabularies = {}
    for name, one in models.items():
        if one.tokenizer is None:
            raise SurgeryError(f"{name} has no tokenizer, and tokenizer_source needs that of each model; leave it out.")
        vocabularies[name] = one.tokenizer.get_vocab()
    first = vocabularies[recipe.base]
    unlike = next((name for name, one in vocabularies.items() if one != first), None)
    if unlike is not None:
        differing = {*first.items()} ^ {*vocabularies[unlike].items()}
        raise SurgeryError(
            f"The tokenizers of {recipe.base} and {unlike} are unlike (such as in {shown(min(differing)[0])}), and "
            "tokenizer_source joins only equal ones here; merge models of one vocabulary."
        )
    if sorted(first.values()) != list(range(len(first))):
        raise SurgeryError(f"The ids of the tokens of {recipe.base} have gaps, so embeddings can't be cut to them.")
    small = next((one for one in models.values() if one.config.get_text_config().vocab_size < len(first)), None)
    if small is not None:
        raise SurgeryError(f"{small.name} has embeddings for fewer tokens than its tokenizer has.")
    return len(first)


def child_tokenizer(recipe: Recipe, models: Mapping[str, Checkpoint]) -> Any:
    """The tokenizer of the child where it is not the base's as it is; None elsewhere.

    Raises:
        SurgeryError: a template that is none, or no tokenizer to hold it.
    """
    source = models.get(recipe.tokenizer or "", models[recipe.base])
    template = recipe.chat_template
    if template == "auto":
        templates = [_template(one) for one in models.values()]
        counted = Counter(one for one in templates if one)
        template = counted.most_common(1)[0][0] if counted else None
    elif template is not None and (len(template) < 20 or "{" not in template):
        raise SurgeryError(
            f"chat_template {shown(template)} is no template; give its text, or auto for the one that most models have "
            "(mergekit's own templates are not read by their names)."
        )
    if template is None:
        return None if source is models[recipe.base] else source.tokenizer
    if source.tokenizer is None:
        raise SurgeryError(f"{source.name} has no tokenizer that could hold the chat_template.")
    tokenizer = copy.deepcopy(source.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def _template(model: Checkpoint) -> str:
    found = None if model.tokenizer is None else model.tokenizer.chat_template
    found = found.get("default") if isinstance(found, dict) else found
    return (found or "").strip()
