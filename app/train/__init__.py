"""Train: start, watch, stop and resume the training of a dictionary."""

TITLE, ICON, URL_PATH, ORDER = "Train", ":material/model_training:", "train", 40
ABOUT = "Train a sparse dictionary on the activations of a layer."
STATE = ("training layer", "training place")
