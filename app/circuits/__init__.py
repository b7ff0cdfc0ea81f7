"""Circuits: the attention heads that do a task, by several methods."""

TITLE, ICON, URL_PATH, ORDER = "Circuits", ":material/lan:", "circuits", 80
ABOUT = "Find the heads that do a task, and the layer and position at which two prompts part."
STATE = ("circuit", "circuit of", "circuit size", "positions", "position cell", "position row", "position place")
