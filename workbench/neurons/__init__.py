"""MLP neurons through the LM head."""
