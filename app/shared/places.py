"""Paths that visitors type: any of this machine for its own user, the app's own folders for visitors from elsewhere.

Every path that a page takes from a visitor goes through `allowed` before it is read or written.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import streamlit as st

START = Path.cwd()
"""The folder that the app was started in."""
OWN = ("WORKBENCH_RUNS", "WORKBENCH_DICTIONARIES")
"""Variables of the environment in which whoever starts the app names more folders."""


class PlaceError(ValueError):
    """A path that a visitor from elsewhere may not use."""


def allowed(typed: str | Path) -> str:
    """The same path or name as a text, if it may be used.

    Where the app listens to this machine alone, everything may. Where it listens beyond, what is left after all links
    are followed lies in the folder that the app was started in, in the cache of Workbench, or in a folder that `OWN`
    names. A name, as of a model on Hugging Face, is as good as a path in the first.

    Raises:
        PlaceError: it may not.
    """
    if listens_beyond() and not any(_is_inside(typed, home) for home in _homes()):
        raise PlaceError(
            f"{typed} is outside of the folder that the app was started in; it listens to other machines, so it reads "
            "and writes only there and in its cache."
        )
    return str(typed)


def listens_beyond() -> bool:
    """Whether other machines can reach the app."""
    address = st.get_option("server.address")
    if not address:  # all addresses of this machine
        return True
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address != "localhost"


def _homes() -> list[Path]:
    from workbench.core.cache import cache_folder

    named = [one for name in OWN for one in os.environ.get(name, "").split(os.pathsep) if one]
    return [START, cache_folder(), *(START / one for one in named)]


def _is_inside(typed: str | Path, home: Path) -> bool:
    try:
        return (START / Path(typed).expanduser()).resolve().is_relative_to(home.resolve())
    except (OSError, ValueError, RuntimeError):  # no path at all, links in a circle, ~ of an unknown user
        return False
