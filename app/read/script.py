"""The active features of a text as a script."""

from __future__ import annotations

from collections.abc import Sequence

from shared import snippets


def firing(source: str, folders: Sequence[str], text: str, top: int) -> str:
    """The active features of some dictionaries on a text."""
    return (
        "from workbench.measures.firing import active_features\n"
        + snippets.opening(source)
        + f"dictionaries = [wb.load_dictionary(folder) for folder in {list(map(snippets.place, folders))!r}]\n"
        f"for token in active_features(model, dictionaries, {text!r}, top={top}):\n"
        "    fired = zip(map(str, token.features), token.values)\n"
        "    print(repr(token.text), [(feature, round(value, 2)) for feature, value in fired])\n"
    )
