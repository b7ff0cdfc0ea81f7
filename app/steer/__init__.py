"""Steer: change neurons and latents while the model generates."""

TITLE, ICON, URL_PATH, ORDER = "Steer", ":material/tune:", "steer", 30
ABOUT = "Hold neurons or latents at a value while the model generates, and compare the text with the plain one."
STATE = ("rows", "mode", "answer", "curve", "varied", "turns")
