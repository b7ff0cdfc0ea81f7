"""How well a model predicts, and how far that hangs on the texts."""
