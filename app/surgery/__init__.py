"""Surgery: edit the model's weights step by step and save a checkpoint."""

TITLE, ICON, URL_PATH, ORDER = "Surgery", ":material/content_cut:", "surgery", 60
ABOUT = "Edit the model's weights step by step, measure each step, and save an ordinary checkpoint."
STATE = (
    "surgery",
    "surgery tried",
    "surgery key",
    "surgery texts",
    "surgery saving",
    "surgery loading",
    "surgery question",
)
