"""Fetch and convert the default model, and print the progress."""

from __future__ import annotations

import sys

from workbench.model.default_model import fetch_default
from workbench.model.weights import ModelError


def main() -> int:
    """Exit code 0 when the model is in the cache."""
    try:
        print(f"The default model is in {fetch_default()}")
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
