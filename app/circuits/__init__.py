"""Circuits: the attention heads that do a task, by several methods."""

TITLE, ICON, URL_PATH, ORDER = "Circuits", ":material/lan:", "circuits", 80
ABOUT = "Find the attention heads that do a task, by several methods side by side, and ablate the others."
STATE = ("circuit", "circuit of", "circuit size")
