"""Settings: what is kept on disk and in memory, and how to empty it."""

from __future__ import annotations

import caching
import streamlit as st
from shared.places import listens_beyond
from shared.waiting import one_sentence

from workbench.core.cache import CachePart, cache_folder, cache_limit, cache_parts, empty_cache
from workbench.core.errors import WorkbenchError
from workbench.core.text import plain

TROUBLE = "trouble with the cache"


def show() -> None:
    """Draw what the cache on disk and this process keep, each with a button that empties it."""
    if trouble := st.session_state.pop(TROUBLE, ""):
        st.error(plain(trouble), icon=":material/error:")
    with one_sentence():
        _show_disk()
    _show_memory()


def _show_disk() -> None:
    st.subheader("On disk", anchor=False)
    parts, limit = cache_parts(), cache_limit()
    limited = [part for part in parts if part.limited]
    taken = sum(part.size for part in limited)
    if not listens_beyond():
        st.caption(plain(cache_folder()))
    st.caption(
        f"{plain(' and '.join(map(_title, limited)))} take {plain(_size(taken))} of the {plain(_size(limit))} that "
        "they may (`WORKBENCH_CACHE_LIMIT`, in MB); the longest unused go first. What is emptied is made again when it "
        "is needed; the default model is then downloaded again."
    )
    for part in parts:
        name, entries, size, button = st.columns([5, 1, 1, 1], vertical_alignment="center")
        name.markdown(f"**{plain(_title(part))}**: {plain(part.about)}")
        entries.markdown(f"{part.entries:,} {'entry' if part.entries == 1 else 'entries'}")
        size.markdown(plain(_size(part.size)))
        off = not part.entries or listens_beyond()
        button.button("Empty", key=f"empty {part.name}", on_click=_empty, args=(part.name,), disabled=off)


def _show_memory() -> None:
    st.subheader("In memory", anchor=False)
    for what, (count, most) in caching.held().items():
        st.markdown(f"**{plain(what.capitalize())}**: {count:,}, at most {most:,}")
    st.button(
        "Free this memory",
        key="let go",
        on_click=caching.let_go,
        disabled=listens_beyond(),
        help="For all who use this app; the model of a page is opened again when the page is drawn.",
    )
    if listens_beyond():
        st.caption("This app listens to other machines, so only whoever runs it empties its cache: `workbench cache`.")


def _empty(part: str) -> None:
    try:
        empty_cache(part)
    except WorkbenchError as error:
        st.session_state[TROUBLE] = str(error)


def _title(part: CachePart) -> str:
    return part.name.replace("_", " ").capitalize()


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    show()
