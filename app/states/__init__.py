"""States: a model of a finite state machine's language, whose truth is known."""

from shared import session

TITLE, ICON, URL_PATH, ORDER = "States", ":material/account_tree:", "states", 100
ABOUT = (
    "On a model of a finite state machine's language, see which codes stand for which state, and what the model "
    "predicts when they are forced."
)
STATE = ("state count", "forced state")


def available() -> bool:
    """Whether the chosen model may be one of a state machine's language, or one of these comes with Workbench."""
    return session.source() != session.DEFAULT or bool(session.shipped_machines())
