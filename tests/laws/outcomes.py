"""What came of a check of a capability: right, nothing to check, refused in a sentence, or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import workbench as wb

T = TypeVar("T")


class NotHere(Exception):
    """There is nothing to check."""


def outcome(check: Callable[[T], None], subject: T) -> tuple[str, str]:
    """ "right", "none", "refused" or "wrong", and a sentence on it.

    A check returns when all is right. A refusal raises a `WorkbenchError`, a wrong answer an `AssertionError`; whatever
    else is raised is a fault as well.
    """
    try:
        check(subject)
    except NotHere as reason:
        return "none", str(reason)
    except wb.WorkbenchError as refusal:
        return "refused", str(refusal)
    except AssertionError as fault:
        return "wrong", _first_line(fault) or "an assertion failed"
    except Exception as fault:  # noqa: BLE001 - whatever a library raises is a fault to be listed
        return "wrong", f"{type(fault).__name__}: {_first_line(fault)}"
    return "right", ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
