"""Browse: search the model's neurons or a dictionary's latents, and open one."""

from browse.outline import show as placeholder  # noqa: F401 - read by `shared.pages`

TITLE, ICON, URL_PATH, ORDER = "Browse", ":material/search:", "browse", 10
ABOUT = (
    "Search the model's neurons by the tokens that their weights score highest, and a dictionary's latents "
    "by the texts they are active on."
)
STATE = ("open", "dictionary", "weights", "layers")
