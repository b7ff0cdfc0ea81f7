"""What is read: a text or a chat, under which edits, by which lens, and the results that a session keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import caching
import streamlit as st
from shared import snippets

from workbench.interventions.saved import to_json

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind
    from workbench.model import LanguageModel

Result = TypeVar("Result")
KEPT = 40
"""Results that a session keeps: patterns of layers, sums of logits, features."""
KIND = "logit"
"""The lens that a model needs no fit for."""
PLACES = {
    "resid_post": "the stream behind each layer",
    "attn_out": "what attention adds",
    "mlp_out": "what the MLP adds",
    "heads": "what each head adds",
}
STREAM = "resid_post"


@dataclass(frozen=True)
class TextRequest:
    """A text that is read."""

    source: str
    chat: bool
    text: str
    interventions: tuple[InterventionKind, ...]

    def prompt(self, model: LanguageModel) -> str:
        """The model's input text: the text as it is, or in the chat template."""
        return model.chat_prompt(self.text) if self.chat else self.text

    def key(self, model: LanguageModel) -> tuple[str, ...]:
        """All that a result on this text depends on."""
        edits = to_json(model, self.interventions) if self.interventions else ""
        return (caching.as_placed(model), str(self.chat), self.text, edits)

    def code(self) -> str:
        """The lines of a script that open the model and define the prompt and the edits."""
        prompt = f"model.chat_prompt({self.text!r})" if self.chat else repr(self.text)
        return snippets.opening(self.source) + snippets.edit_list(self.interventions) + f"prompt = {prompt}\n"


@dataclass(frozen=True)
class LensRequest:
    """How the layers are read."""

    kind: str = KIND
    at: str = STREAM
    layer: int | None = None
    """The layer whose heads are the rows; None for all layers."""

    @property
    def whole(self) -> bool:
        """Whether the rows are the stream behind all layers, by the lens without a fit."""
        return (self.kind, self.at) == (KIND, STREAM)

    def arguments(self) -> str:
        """The arguments of `read_lens` behind the prompt, for a script."""
        words = [repr(self.kind)] if self.kind != KIND else []
        words += [f"at={self.at!r}"] if self.at != STREAM else []
        words += [f"layers=[{self.layer}]"] if self.layer is not None else []
        return "".join(f", {word}" for word in words)


def kept(key: Sequence[Hashable], make: Callable[[], Result]) -> Result:
    """A result of this session, made once for each key; the `KEPT` latest are kept."""
    store: dict[tuple[Hashable, ...], Result] = st.session_state.setdefault("reading kept", {})
    if tuple(key) not in store:
        made = make()
        while len(store) >= KEPT:
            store.pop(next(iter(store)))
        store[tuple(key)] = made
    return store[tuple(key)]
