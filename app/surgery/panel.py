"""Operations on the model: the steps of this session, and the trial of the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, corpora, session

import workbench as wb
from workbench.core.text import plain
from workbench.surgery.registry import OPERATIONS, Cancelled

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.surgery import Certificate, Child

STEPS, TRIED, KEY, TEXTS = "surgery", "surgery tried", "surgery key", "surgery texts"
"""Keys of the session: the steps, the last trial, the key of the trial's task, the texts."""
SAVING, LOADING = "surgery saving", "surgery loading"
"""Keys of the session: the keys of the tasks that save and load a folder."""
QUESTION = "surgery question"
"""Key of the session: a question before something is replaced."""


@dataclass(frozen=True)
class SurgeryRequest:
    """Everything that a trial depends on."""

    source: str
    start: str
    """The model that the operation changes, as `caching.as_placed` names it."""
    operation: str
    arguments: Mapping[str, Any]
    corpus: str
    tokens: int

    @property
    def key(self) -> tuple[str, ...]:
        """The key of the trial's task, without the session."""
        words = repr(sorted((name, repr(value)) for name, value in self.arguments.items()))
        return ("surgery", self.source, self.start, self.operation, words, self.corpus, str(self.tokens))


@dataclass(frozen=True)
class Step:
    """One operation and the child it returned."""

    child: Child
    operation: str
    """Empty for a child that was loaded from a folder."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    corpus: str = corpora.FIRST
    tokens: int = 2048


def steps() -> list[Step]:
    """The steps of this session, in order."""
    return st.session_state.setdefault(STEPS, [])


def restore(model: LanguageModel) -> None:
    """Take over the steps on this model from before the page was reloaded or another model was chosen."""
    if STEPS not in st.session_state:
        st.session_state[STEPS] = list(caching.kept(session.name(), caching.as_placed(model)) or ())
    _hold()


def _hold() -> None:
    """Keep the steps for the session that follows when the page is reloaded."""
    if steps():
        caching.keep(session.name(), caching.as_placed(steps()[0].child.parent), tuple(steps()))
        st.query_params[session.CHANGES] = session.name()


def steps_and_trial() -> list[Step]:
    """The steps, followed by the last trial if there is one."""
    trial = st.session_state.get(TRIED)
    return [*steps(), *([trial] if trial else [])]


def current(model: LanguageModel) -> LanguageModel | Child:
    """The child or model that the next operation changes."""
    return steps()[-1].child if steps() else model


def current_model(model: LanguageModel) -> LanguageModel:
    """The model that the next operation changes."""
    return steps()[-1].child.model if steps() else model


def held_out(corpus: str) -> Any:
    """The corpus to measure on; None for the bundled stories, of which `certify` takes a held-out tenth."""
    return None if corpus == corpora.FIRST else corpora.opened(corpus)


def begin(model: LanguageModel, request: SurgeryRequest) -> None:
    """Start a trial; the trial of another request is dropped."""
    before, now = current(model), current_model(model)

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Step:
        arguments = dict(request.arguments)
        tell(0.0, OPERATIONS[request.operation].title)
        child = wb.surgery.apply_operation(
            before,
            request.operation,
            progress=lambda share, what: tell(share / 2, what),
            cancel=cancelled,
            **with_directions(now, request.operation, arguments),
        )
        if cancelled():
            raise Cancelled("Stopped before anything was measured.")
        child.certify(
            held_out(request.corpus),
            request.tokens,
            progress=lambda share, what: tell((1 + share) / 2, f"Measuring: {what}"),
            cancel=cancelled,
        )
        return Step(child, request.operation, arguments, request.corpus, request.tokens)

    key = (*request.key, session.name())  # one session takes the result
    if key != st.session_state.get(KEY):
        _drop_trial()
    st.session_state[TRIED], st.session_state[KEY] = None, key
    caching.begin(key, OPERATIONS[request.operation].title, work)


def directions(operation: str) -> set[str]:
    """The names of an operation's arguments that take a direction; the page keeps a feature for each."""
    return {one.name for one in OPERATIONS[operation].arguments if one.kind == "direction"}


def with_directions(model: LanguageModel, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the direction in the place of each feature that stands for one."""
    return {
        name: wb.surgery.direction_of(model, value) if name in directions(operation) and value is not None else value
        for name, value in arguments.items()
    }


def follow(request: SurgeryRequest | None) -> None:
    """Draw the progress of the trial, or take its result.

    Args:
        request: the widgets' request now; the error of another request's trial is dropped.
    """
    key = st.session_state.get(KEY)
    task = caching.task(key) if key else None
    if task is not None and task.failed and (request is None or key[:-1] != request.key):
        st.session_state[KEY] = None
        return
    task = background.finished(key, "Stopped before anything was measured.")
    if task is None:
        return
    st.session_state[TRIED], st.session_state[KEY] = task.result(), None
    st.session_state["surgery stopped"] = task.stopping
    caching.forget(key)  # the result is as large as a model, and the session holds it now


def show_steps(model: LanguageModel) -> None:
    """Draw the list of steps."""
    st.subheader("Steps so far", anchor=False)
    if not steps():
        st.caption("None: the model is as it was opened.")
        return
    for number, step in enumerate(steps()):
        with st.container(border=True, key=f"surgery-step-{number}"):
            words, numbers, button = st.columns([5, 4, 1.6], vertical_alignment="center")
            words.markdown(f"**{number + 1}. {plain(titled(step))}**  \n{plain(settings_text(step))}")
            certificate = step.child.certificate
            if certificate is not None:
                numbers.caption(plain(costs(certificate)))
            if number == len(steps()) - 1:
                button.button("Undo", key="surgery undo", icon=":material/undo:", on_click=_undo)
    if trouble := st.session_state.pop("surgery trouble", None):
        st.error(plain(trouble), icon=":material/error:")


def show_trial() -> None:
    """Draw the last trial with its certificate, and the buttons that keep or discard it."""
    step: Step | None = st.session_state.get(TRIED)
    if step is None:
        return
    st.subheader("What it costs", anchor=False)
    certificate = step.child.certificate
    assert certificate is not None
    stopped = "Stopped early. " if st.session_state.get("surgery stopped") else ""
    st.caption(
        plain(
            f"{stopped}{titled(step)}: {settings_text(step)}. Measured on {certificate.predictions:,} predictions in "
            f"{certificate.corpus['name']}, against the model as it was opened."
        )
    )
    show_certificate(certificate)
    with st.container(horizontal=True):
        st.button("Keep it", key="surgery keep", type="primary", icon=":material/check:", on_click=_keep)
        st.button("Discard it", key="surgery discard", icon=":material/close:", on_click=_discard)


def show_certificate(certificate: Certificate) -> None:
    """Draw the numbers of a certificate."""
    before, after = certificate.perplexity_before, certificate.perplexity_after
    with st.container(horizontal=True, gap="medium"):
        st.metric(
            "Perplexity",
            f"{after:.4g}",
            f"{after - before:+.3g}",
            delta_color="inverse",
            width="content",
            help=f"Of the text under the changed model; under the model as it was opened: {before:.4g}.",
        )
        st.metric(
            "KL",
            f"{certificate.kl:.3g}",
            width="content",
            help="KL divergence of its predictions from those of the model as it was opened, in nats.",
        )
        st.metric(
            "Same likeliest token",
            f"{certificate.same_top:.1%}",
            width="content",
            help="Share of the predictions with the same likeliest token as before.",
        )
    st.caption(plain(certificate.exactness()))


def titled(step: Step) -> str:
    """The title of a step's operation."""
    return OPERATIONS[step.operation].title if step.operation else "Loaded"


def settings_text(step: Step) -> str:
    """The settings of a step's operation, in a line."""
    known = OPERATIONS[step.operation].arguments if step.operation else ()
    titles = {argument.name: argument.title[0].lower() + argument.title[1:] for argument in known}
    defaults = {argument.name: argument.default for argument in known}
    words = []
    for name, value in step.arguments.items():
        if isinstance(value, bool):
            words += [f"{titles.get(name, name)}: {'yes' if value else 'no'}"] if value != defaults.get(name) else []
        elif value not in ("", None, [], ()):
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            words.append(text if name == "edits" else f"{name} {text}")
    return "; ".join(words) or "as it is"


def costs(certificate: Certificate) -> str:
    """A certificate's costs in a line."""
    return (
        f"perplexity {certificate.perplexity_before:.4g} to {certificate.perplexity_after:.4g}, "
        f"KL {certificate.kl:.3g} nats"
    )


def take(new: Sequence[Step]) -> None:
    """Replace the steps; a trial on the model before is stopped and dropped."""
    _drop_trial()
    clear_messages()
    if steps() and not new:
        caching.keep(session.name(), caching.as_placed(steps()[0].child.parent), ())
    st.session_state[STEPS] = list(new)
    _hold()
    _discard()


def clear_messages() -> None:
    """Remove the message of the last work on a folder, and the open question."""
    st.session_state[QUESTION] = None
    for place in (SAVING, LOADING):
        key = st.session_state.get(place)
        task = caching.task(key) if key else None
        if task is not None and task.done and (task.failed or place == SAVING):
            st.session_state.pop(place)
            caching.forget(key)


def _drop_trial() -> None:
    """Stop the trial that goes on; forget one that has ended, which is as large as a model."""
    key = st.session_state.pop(KEY, None)
    task = caching.task(key) if key else None
    if task is not None:
        task.stop()
        caching.forget(key)


def _keep() -> None:
    if step := st.session_state.get(TRIED):
        take([*steps(), step])


def _discard() -> None:
    st.session_state[TRIED] = None
    st.session_state.pop(TEXTS, None)


def _undo() -> None:
    """Restore the weights from before the last step; `undo` checks them."""
    if not steps():
        return
    try:
        steps()[-1].child.undo()
    except ValueError as error:
        st.session_state["surgery trouble"] = str(error)
        return
    take(steps()[:-1])
