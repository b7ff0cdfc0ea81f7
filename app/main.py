"""Workbench in the browser: `streamlit run app/main.py`. Navigation, the shared sidebar, the model.

The server imports this file once and starts to open the model while the browser loads the page; every view of a page
runs it.
"""

import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import caching
import streamlit as st
from shared import pages, session, tokens

QUIET = 30  # seconds without a search for garbage, at most, while the first model opens


@asynccontextmanager
async def opening(_: st.App) -> AsyncIterator[None]:
    """Open the default model when the server starts."""
    threading.Thread(target=_open_first, daemon=True).start()
    pages.discover()  # imports what the first view needs
    yield


def _open_first() -> None:
    """Open the default model, and look for no garbage meanwhile: of the many objects that imports make none is any,
    and a sixth of the time goes into looking."""
    gc.disable()
    try:
        caching.opening(session.DEFAULT).wait(QUIET)
    finally:
        gc.enable()


def show() -> None:
    """Draw the page at the requested address."""
    st.set_page_config("Workbench", str(pages.APP / "icon.svg"), layout="wide", initial_sidebar_state=270)
    st.logo(str(pages.APP / "logo.svg"), size="large", icon_image=str(pages.APP / "icon.svg"))
    entries = {}
    for entry in pages.discover():
        if entry.available():
            script, shown = pages.script(entry.folder), {"title": entry.title, "icon": entry.icon}
            if not entries:  # it stands at the address `/`, and is found by its name too
                entries[st.Page(script, **shown, url_path="home", default=True)] = entry
                shown["visibility"] = "hidden"
            entries[st.Page(script, **shown, url_path=entry.url_path)] = entry
    page = st.navigation(list(entries))
    tokens.use_style()
    session.choose_model()
    session.link_changes()
    st.title(page.title, anchor=False)
    st.caption(entries[page].about)
    top, below = st.container(), st.empty()
    if not session.is_open():
        with below:
            entries[page].placeholder()
    with top:
        session.open_model()
    below.empty()
    page.run()


if __name__ == "__main__":
    show()
else:
    app = st.App(__file__, lifespan=opening)
