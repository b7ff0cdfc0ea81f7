"""States: the codes of a state machine's model that stand for states, and forcing them."""

import streamlit as st
from shared import session
from shared.waiting import one_sentence

from states import panel
from workbench.core.text import plain


def show() -> None:
    """Draw a run of states; on another model, draw the names of the models that have one."""
    model = session.current_model()
    machine = session.machine_of(model)
    if machine is not None:
        with one_sentence():
            panel.show(model, machine)
        return
    names = session.shipped_machines()
    more = " These come with Workbench; a click opens one, and the sidebar leads back." if names else ""
    st.info(
        f"This page is for small models of a finite state machine's language, whose truth is known.{more}",
        icon=":material/info:",
    )
    with st.container(horizontal=True):
        for name in names:
            st.button(plain(name), key=f"open {name}", on_click=session.take_model, args=(name,))


if __name__ == "__main__":
    show()
