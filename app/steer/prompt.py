"""The prompt and the sampling settings, and the request that they make."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from shared import snippets
from shared.sample import QUESTION, sample_text

import workbench as wb
from steer import conversation

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind
    from workbench.measures import Comparison
    from workbench.measures.comparison import Step
    from workbench.model import LanguageModel

CHAT, CONTINUE = "Chat", "Continue a text"


@dataclass(frozen=True)
class AnswerRequest:
    """Everything that an answer depends on."""

    source: str
    chat: bool
    text: str
    interventions: tuple[InterventionKind, ...]
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    repetition_penalty: float
    min_new_tokens: int
    stop: tuple[str, ...]
    control: bool
    earlier: tuple[conversation.Turn, ...] = ()
    """The turns before the prompt, of a chat."""

    def prompt(self, model: LanguageModel) -> str:
        """The model's input text: the prompt in its chat template, or as it is."""
        return model.chat_prompt(conversation.messages(self.earlier, self.text)) if self.chat else self.text

    def steps(self, model: LanguageModel) -> Generator[Step, None, Comparison]:
        """The steps of generating the plain and the edited texts; see `compare_steps`."""
        return wb.measures.compare_steps(
            model,
            self.prompt(model),
            self.interventions,
            self.max_new_tokens,
            sampling=wb.model.Sampling(**self.sampling()),
            control=self.control,
            seed=self.seed,
        )

    def sampling(self) -> dict[str, Any]:
        """The settings of how tokens are chosen that differ from the first ones."""
        names = ("temperature", "top_k", "top_p", "seed") if self.temperature > 0 else ()
        settings = {name: getattr(self, name) for name in (*names, "repetition_penalty", "min_new_tokens", "stop")}
        first = wb.model.Sampling()
        return {name: value for name, value in settings.items() if value != getattr(first, name)}

    def code(self) -> str:
        """A script that generates the same texts."""
        arguments = f"{self.max_new_tokens}"
        sampling = self.sampling()
        if sampling:
            settings = ", ".join(f"{name}={value!r}" for name, value in sampling.items())
            arguments += f", sampling=wb.model.Sampling({settings})"
        if self.control:
            arguments += f", control=True, seed={self.seed}"
        return (
            snippets.opening(self.source)
            + snippets.edit_list(self.interventions)
            + self.prompt_code()
            + f"both = wb.compare(model, prompt, edits, {arguments})\n\n"
            + SHOW
            + (SHOW_CONTROL if self.control else "")
        )

    def prompt_code(self) -> str:
        """The line that defines the prompt."""
        if not self.chat:
            return f"prompt = {self.text!r}\n"
        return f"prompt = model.chat_prompt({conversation.messages(self.earlier, self.text)!r})\n"


SHOW = """print("plain: ", both.baseline.text)
print("edited:", both.edited.text)
print("mean KL:", sum(both.kl) / max(len(both.kl), 1))
print("perplexity under the plain model:", both.baseline_perplexity, both.edited_perplexity)
print("repetition:", both.baseline_repetition, both.sides[0].repetition)
for change in both.top_changes[:12]:
    print(repr(change.text), change.before, change.after)
"""
SHOW_CONTROL = """print("control:", both.control.generation.text)
print(sum(both.control.kl) / max(len(both.control.kl), 1), both.control.perplexity, both.control.repetition)
"""


def show(model: LanguageModel, interventions: list[InterventionKind]) -> tuple[AnswerRequest, Any]:
    """Draw the widgets; returns their request and a place for the button."""
    can_chat = bool(getattr(model.tokenizer, "chat_template", None))
    st.session_state.setdefault("mode", CHAT if can_chat else CONTINUE)
    if st.session_state.get("prompt", QUESTION) == QUESTION:
        st.session_state["prompt"] = sample_text(model, QUESTION)
    head, settings = st.columns([5, 2], vertical_alignment="bottom")
    how = head.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    how.subheader("Prompt", anchor=False, width="content")
    mode = how.segmented_control(
        "Ask",
        [CHAT, CONTINUE] if can_chat else [CONTINUE],
        required=True,
        key="mode",
        persist_state="session",
        label_visibility="collapsed",
    )
    with settings.popover("Settings", icon=":material/settings:", width="stretch"):
        length = st.slider("Tokens at most", 8, 256, 64, 8, key="length", persist_state="session")
        temperature = st.slider(
            "Temperature",
            0.0,
            2.0,
            0.0,
            0.1,
            key="temperature",
            persist_state="session",
            help="0 takes the likeliest token at every step; higher values vary more.",
        )
        top_k = st.number_input(
            "Top k", 1, None, None, key="top_k", persist_state="session", help="Only the k likeliest tokens."
        )
        top_p = st.number_input(
            "Top p",
            0.01,
            1.0,
            None,
            0.05,
            key="top_p",
            persist_state="session",
            help="Only the likeliest tokens that together have this probability.",
        )
        seed = st.number_input("Seed", 0, None, 0, key="seed", persist_state="session")
        penalty = st.slider(
            "Repetition penalty",
            1.0,
            2.0,
            1.0,
            0.05,
            key="repetition_penalty",
            persist_state="session",
            help="Makes tokens that the prompt or the text holds already less likely; 1 changes nothing.",
        )
        least = st.number_input(
            "Tokens at least", 0, 256, 0, key="min_new_tokens", persist_state="session", help="No end before them."
        )
        stop = st.text_area(
            "Stop at",
            key="stop strings",
            height=68,
            persist_state="session",
            help="The text ends where it holds one of these strings; one a line, and \\n for a line break.",
        )
    if mode == CHAT:
        conversation.show()
    text = st.text_area("Prompt", key="prompt", height=70, persist_state="session", label_visibility="collapsed")
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        button = st.empty()
        control = st.toggle(
            "Compare with a random feature, edited as hard",
            key="control",
            persist_state="session",
            help="If this edit changes the text as much, the effect is not specific to the feature.",
        )
    source = st.session_state["source"]
    request = AnswerRequest(
        source=source,
        chat=mode == CHAT,
        text=text,
        interventions=tuple(interventions),
        max_new_tokens=length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=int(seed),
        repetition_penalty=penalty,
        min_new_tokens=int(least),
        stop=tuple(line.replace("\\n", "\n") for line in stop.split("\n") if line),
        control=control,
        earlier=conversation.turns() if mode == CHAT else (),
    )
    return request, button
