"""Attribution: the graph of features behind one prediction."""

TITLE, ICON, URL_PATH, ORDER = "Attribution", ":material/hub:", "attribution", 70
ABOUT = "Trace a prediction back to features and their edges, and measure what happens without them."
STATE = (
    *("attributed", "attribution of", "attribution node", "attribution pins", "attribution measured"),
    *("published graph", "published node", "published trouble"),
)
