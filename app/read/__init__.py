"""Read: what a model predicts after each token of a text, layer by layer, and what its prediction is made of."""

TITLE, ICON, URL_PATH, ORDER = "Read", ":material/visibility:", "inspect", 20
ABOUT = (
    "Type a text and see what the model expects after each token, from layer to layer, and what makes it expect that."
)
STATE = ("reading", "reading kept", "read mode", "read row", "read position", "read layer", "open head", "taken out")
