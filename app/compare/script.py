"""The comparison of dictionaries as a script."""

from __future__ import annotations

from collections.abc import Sequence

from shared import snippets


def fidelity(source: str, folders: Sequence[str], corpus: str, tokens: int) -> str:
    """The fidelity of dictionaries on the same tokens."""
    return snippets.opening(source) + (
        f"dictionaries = [wb.load_dictionary(folder) for folder in {list(map(snippets.place, folders))!r}]\n"
        f"corpus = wb.Corpus.load({corpus!r})\n"
        f"for one in wb.measures.measure_fidelities(model, dictionaries, corpus, tokens={tokens}):\n"
        "    for name, (low, high) in one.intervals.items():\n"
        "        print(f'{name:15} {getattr(one, name):9.4f}  ({low:.4f} to {high:.4f})')\n"
        "    print(f'{\"dead\":15} {one.dead:9.4f}\\n')\n"
    )
