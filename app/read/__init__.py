"""Inspect: read a text and show which features are active on each of its tokens."""

TITLE, ICON, URL_PATH, ORDER = "Inspect", ":material/visibility:", "inspect", 20
ABOUT = "Type a text and see which features of the model are active on each of its tokens."
STATE = ("reading",)
