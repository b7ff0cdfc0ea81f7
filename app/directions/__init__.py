"""Directions: a concept from examples, where it separates, and what it does when the model writes."""

TITLE, ICON, URL_PATH, ORDER = "Directions", ":material/explore:", "directions", 35
ABOUT = (
    "Write sentences that have a concept and sentences that lack it; see at which layer they differ, steer along the "
    "difference beside a random direction, and keep it for Steer, Surgery and Browse."
)
STATE = ("direction request", "direction written", "direction layer")
