"""Differences: what differs between two models."""

TITLE, ICON, URL_PATH, ORDER = "Differences", ":material/difference:", "differences", 65
ABOUT = "What a tuning or an operation changed: on texts, in the stream, in weights and in features."
STATE = ("differences",)
