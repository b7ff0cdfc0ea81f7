"""Settings: what is kept on disk and in memory, and how to empty it."""

TITLE, ICON, URL_PATH, ORDER = "Settings", ":material/settings:", "settings", 200
ABOUT = "What is kept on this machine to be fast, how much room it takes, and how to empty it."
