"""Where the model of a session computes and in which type: the choice in the sidebar, and what is used and free there.

Nothing of torch is needed before the model is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import streamlit as st

if TYPE_CHECKING:
    from workbench.model import LanguageModel

AUTO = "auto"
PLACED = "placed"
"""In the session: the device and the type that were chosen."""
DEVICE, TYPE = "device asked for", "type asked for"
"""Keys of the form's widgets."""


def chosen() -> tuple[str, str]:
    """The device and the type that this session asks for, as `load_model` takes them."""
    return st.session_state.get(PLACED, (AUTO, AUTO))


def arguments() -> str:
    """What was chosen as arguments of `load_model`, in Python; empty for "auto"."""
    named = zip(("device", "dtype"), chosen(), strict=True)
    return ", ".join(f"{name}={value!r}" for name, value in named if value != AUTO)


def ask(room: Any, on_change: Callable[[tuple[str, str]], None]) -> None:
    """Draw the form that chooses device and type.

    Args:
        room: the container.
        on_change: called with the former choice once there is another.
    """
    from workbench.model.placing import TYPES, devices, type_name

    def take() -> None:
        before = chosen()
        st.session_state[PLACED] = (st.session_state[DEVICE], st.session_state[TYPE])
        if chosen() != before:
            on_change(before)

    device, dtype = chosen()
    with room.popover("Device and type", width="stretch"), st.form("placement", border=False):
        offered = list(dict.fromkeys([AUTO, *devices(), device]))
        st.selectbox(
            "Device",
            offered,
            offered.index(device),
            key=DEVICE,
            help="Where the model computes; auto is a graphics card where there is one.",
        )
        types = list(dict.fromkeys([AUTO, *map(type_name, TYPES), dtype]))
        st.selectbox(
            "Type",
            types,
            types.index(dtype),
            key=TYPE,
            help="Of weights and activations; auto is the checkpoint's own on a graphics card, and float32 on the "
            "processor. 16 bits take half the memory and round.",
        )
        st.form_submit_button("Open the model so", on_click=take, width="stretch")


def facts(model: LanguageModel) -> list[str]:
    """Device, type and memory of a model, in words."""
    from workbench.model.placing import free_memory, type_name, used_memory

    used, free = used_memory(model.device), free_memory(model.device)
    sizes = [f"{_size(size)} {word}" for size, word in ((used, "used"), (free, "free")) if size is not None]
    return [f"on {model.device} in {type_name(model.dtype)}", *([f"memory: {', '.join(sizes)}"] if sizes else [])]


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
