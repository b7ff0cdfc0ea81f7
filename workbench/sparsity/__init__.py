"""How many neurons a model can do without, and at what cost."""
