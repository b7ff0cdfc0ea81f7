"""Compare: the fidelity of two dictionaries side by side."""

TITLE, ICON, URL_PATH, ORDER = "Compare", ":material/balance:", "compare", 50
ABOUT = "Measure how much of the model two dictionaries preserve when it runs through them."
