"""Sparsity: how many neurons each token needs."""

TITLE, ICON, URL_PATH, ORDER = "Sparsity", ":material/blur_on:", "sparsity", 90
ABOUT = "Measure how many of the model's neurons each token can do without, and what that costs in perplexity."
