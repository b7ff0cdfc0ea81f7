"""Operations on the model: what was done in this session, and trying the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import caching
import streamlit as st
from shared import background, corpora, session
from shared.tokens import plain

import workbench as wb
from workbench.surgery.registry import OPERATIONS, Cancelled

if TYPE_CHECKING:
    from workbench.model import LanguageModel
    from workbench.surgery import Certificate, Child

STEPS, TRIED, KEY, TEXTS = "surgery", "surgery tried", "surgery key", "surgery texts"
"""Places in the session: what was kept, what was tried last, the work that goes on, what was written."""
SAVING, LOADING = "surgery saving", "surgery loading"
"""The same for work on folders."""
ASKED = "surgery asked"
"""A question before something is replaced."""


@dataclass(frozen=True)
class Asked:
    """All that a trial depends on."""

    source: str
    start: str
    """Hash of the model that is changed."""
    operation: str
    arguments: Mapping[str, Any]
    corpus: str
    tokens: int

    @property
    def key(self) -> tuple[str, ...]:
        """Names the trial."""
        said = repr(sorted((name, repr(value)) for name, value in self.arguments.items()))
        return ("surgery", self.source, self.start, self.operation, said, self.corpus, str(self.tokens))


@dataclass(frozen=True)
class Step:
    """One change, with what it made."""

    child: Child
    operation: str
    """Empty for one that was loaded from a folder."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    corpus: str = corpora.FIRST
    tokens: int = 2048


def steps() -> list[Step]:
    """What was kept in this session, in order."""
    return st.session_state.setdefault(STEPS, [])


def restore(model: LanguageModel) -> None:
    """Find again what was made of this model before the page was loaded anew or another model was chosen."""
    if STEPS not in st.session_state:
        st.session_state[STEPS] = list(caching.kept(session.name(), model.hash) or ())
    _hold()


def _hold() -> None:
    """Hold what was made beyond this session."""
    if steps():
        caching.keep(session.name(), steps()[0].child.parent.hash, tuple(steps()))
        st.query_params[session.CHANGES] = session.name()


def shown() -> list[Step]:
    """The same, with what was tried last."""
    tried = st.session_state.get(TRIED)
    return [*steps(), *([tried] if tried else [])]


def current(model: LanguageModel) -> LanguageModel | Child:
    """What the next operation changes."""
    return steps()[-1].child if steps() else model


def current_model(model: LanguageModel) -> LanguageModel:
    """The same as a model."""
    return steps()[-1].child.model if steps() else model


def held_out(corpus: str) -> Any:
    """The text to measure on; of the bundled stories a tenth, which nothing is chosen on."""
    return None if corpus == corpora.FIRST else wb.Corpus.load(corpus)


def begin(model: LanguageModel, asked: Asked) -> None:
    """Start a trial."""
    before = current(model)

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Step:
        arguments = dict(asked.arguments)
        tell(0.0, OPERATIONS[asked.operation].title)
        child = wb.surgery.apply_operation(
            before,
            asked.operation,
            progress=lambda share, what: tell(share / 2, what),
            cancel=cancelled,
            **arguments,
        )
        if cancelled():
            raise Cancelled("Stopped before anything was measured.")
        child.certify(
            held_out(asked.corpus),
            asked.tokens,
            progress=lambda share, what: tell((1 + share) / 2, f"Measuring: {what}"),
            cancel=cancelled,
        )
        return Step(child, asked.operation, arguments, asked.corpus, asked.tokens)

    key = (*asked.key, session.name())  # what comes of it is taken by one session
    if key != st.session_state.get(KEY):
        _drop_trial()
    st.session_state[TRIED], st.session_state[KEY] = None, key
    caching.begin(key, OPERATIONS[asked.operation].title, work)


def follow(asked: Asked | None) -> bool:
    """Show the trial that goes on, or take what came of it; whether one goes on.

    Args:
        asked: what the widgets ask for now; why a trial of something else failed is of no use any more.
    """
    key = st.session_state.get(KEY)
    task = caching.task(key) if key else None
    if task is None:
        return False
    if not task.done:
        background.follow(key)
        return True
    if task.failed:
        if asked is None or key[:-1] != asked.key:
            st.session_state[KEY] = None
        elif not background.show_failure(key):
            st.info("Stopped before anything was measured.", icon=":material/pause:")
        return False
    st.session_state[TRIED], st.session_state[KEY] = task.result(), None
    st.session_state["surgery stopped"] = task.stopping
    caching.forget(key)  # it is as large as a model, and the session has it now
    return False


def show_steps(model: LanguageModel) -> None:
    """The list of what was kept."""
    st.subheader("Done so far", anchor=False)
    if not steps():
        st.caption("Nothing: the model is as it was opened.")
        return
    for number, step in enumerate(steps()):
        with st.container(border=True, key=f"surgery-step-{number}"):
            words, numbers, button = st.columns([5, 4, 1.6], vertical_alignment="center")
            words.markdown(f"**{number + 1}. {plain(titled(step))}**  \n{plain(in_words(step))}")
            certificate = step.child.certificate
            if certificate is not None:
                numbers.caption(plain(costs(certificate)))
            if number == len(steps()) - 1:
                button.button("Undo", key="surgery undo", icon=":material/undo:", on_click=_undo)
    if trouble := st.session_state.pop("surgery trouble", None):
        st.error(plain(trouble), icon=":material/error:")


def show_trial() -> None:
    """What was tried last and what it costs, to be kept or not."""
    step: Step | None = st.session_state.get(TRIED)
    if step is None:
        return
    st.subheader("What it costs", anchor=False)
    certificate = step.child.certificate
    assert certificate is not None
    stopped = "Stopped early. " if st.session_state.get("surgery stopped") else ""
    st.caption(
        plain(
            f"{stopped}{titled(step)}: {in_words(step)}. Measured on {certificate.predictions:,} predictions in "
            f"{certificate.corpus['name']}, against the model as it was opened."
        )
    )
    show_certificate(certificate)
    with st.container(horizontal=True):
        st.button("Keep it", key="surgery keep", type="primary", icon=":material/check:", on_click=_keep)
        st.button("Discard it", key="surgery discard", icon=":material/close:", on_click=_discard)


def show_certificate(certificate: Certificate) -> None:
    """The numbers of a certificate."""
    before, after = certificate.perplexity_before, certificate.perplexity_after
    with st.container(horizontal=True, gap="medium"):
        st.metric(
            "Perplexity",
            f"{after:.4g}",
            f"{after - before:+.3g}",
            delta_color="inverse",
            width="content",
            help=f"How surprised the changed model is by the text; the model as it was opened: {before:.4g}.",
        )
        st.metric(
            "KL",
            f"{certificate.kl:.3g}",
            width="content",
            help="How far its predictions are from those of the model as it was opened, in nats. 0: no difference.",
        )
        st.metric(
            "Same likeliest token",
            f"{certificate.same_top:.1%}",
            width="content",
            help="Share of the predictions with the same likeliest token as before.",
        )
    st.caption(plain(certificate.exactness()))


def titled(step: Step) -> str:
    """The name of an operation for people."""
    return OPERATIONS[step.operation].title if step.operation else "Loaded"


def in_words(step: Step) -> str:
    """What it was asked to do."""
    known = OPERATIONS[step.operation].arguments if step.operation else ()
    titles = {argument.name: argument.title[0].lower() + argument.title[1:] for argument in known}
    defaults = {argument.name: argument.default for argument in known}
    said = []
    for name, value in step.arguments.items():
        if isinstance(value, bool):
            said += [f"{titles.get(name, name)}: {'yes' if value else 'no'}"] if value != defaults.get(name) else []
        elif value not in ("", None, [], ()):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            said.append(shown if name == "edits" else f"{name} {shown}")
    return "; ".join(said) or "as it is"


def costs(certificate: Certificate) -> str:
    """A certificate in a line."""
    return (
        f"perplexity {certificate.perplexity_before:.4g} to {certificate.perplexity_after:.4g}, "
        f"KL {certificate.kl:.3g} nats"
    )


def take(found: Sequence[Step]) -> None:
    """Make this the list of what was done. A trial of what the model was is dropped, and stopped if it goes on."""
    _drop_trial()
    quiet()
    if steps() and not found:
        caching.keep(session.name(), steps()[0].child.parent.hash, ())
    st.session_state[STEPS] = list(found)
    _hold()
    _discard()


def quiet() -> None:
    """Take away what was said of a folder before, and the question that was asked."""
    st.session_state[ASKED] = None
    for place in (SAVING, LOADING):
        key = st.session_state.get(place)
        task = caching.task(key) if key else None
        if task is not None and task.done and (task.failed or place == SAVING):
            st.session_state.pop(place)
            caching.forget(key)


def _drop_trial() -> None:
    """Stop the trial that goes on, and forget one that has ended: it is as large as a model."""
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
    """Back to the weights before the last step, checked to be what they were."""
    if not steps():
        return
    try:
        steps()[-1].child.undo()
    except ValueError as error:
        st.session_state["surgery trouble"] = str(error)
        return
    take(steps()[:-1])
