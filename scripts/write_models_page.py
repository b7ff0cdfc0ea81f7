"""Write docs/models.md: what each architecture and tokenizer of the zoo can do, tried now.

It ends with an error if anything is wrong.

python scripts/write_models_page.py docs/models.md
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "laws")]

import tiny  # noqa: E402
import tokenizers_zoo  # noqa: E402
import zoo  # noqa: E402
from capabilities import CAPABILITIES, Subject  # noqa: E402
from models_page import SIGNS  # noqa: E402
from outcomes import outcome  # noqa: E402
from tokenizer_capabilities import CAPABILITIES as TOKENIZER_CAPABILITIES  # noqa: E402
from tokenizer_capabilities import Reader  # noqa: E402

HEAD = """# Models

Any causal language model that TransformerLens {lens} has an adapter for opens. Each architecture below was tried as
a tiny model with random weights, every column against plain transformers {transformers}: {ticks} cells are right,
{refusals} are refused with the sentence whose number stands in them. `make zoo` tries all again and writes this page.
Which models in GGUF files are read stands [on a page of its own](gguf.md).

"""

TOKENIZERS = """
## Tokenizers
Each kind was tried with a tiny model of {vocabulary} tokens, every column against the tokenizer itself. A dash stands
where there is nothing to try.

"""


class Tables:
    """Rows of cells, and the numbered sentences that all tables refer to."""

    def __init__(self) -> None:
        self.sentences: dict[str, int] = {}
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}

    def row(self, name: str, about: str, results: Iterable[tuple[str, str, str]]) -> str:
        """A row of what came of each capability: its name, the result and the sentence."""
        cells = []
        for capability, result, sentence in results:
            self.counts[result] = self.counts.get(result, 0) + 1
            number = self.sentences.setdefault(sentence, len(self.sentences) + 1) if result == "refused" else 0
            cells.append(SIGNS.get(result, str(number)))
            if result == "wrong":
                self.wrong.append(f"{name}, {capability}: {sentence}")
        line = f"| `{name}` | {about} | " + " | ".join(cells) + " |"
        print(line, flush=True)
        return line


def main() -> None:
    """Try everything, write the page, and list what is wrong."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("workbench").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tables = Tables()
    rows = []
    for name, entry in zoo.ZOO.items():
        subject = Subject(name)
        rows.append(
            tables.row(name, entry.model_type, ((one, *outcome(check, subject)) for one, check in CAPABILITIES.items()))
        )
    counts = dict(tables.counts)
    readers = []
    for name, kind in tokenizers_zoo.KINDS.items():
        reader = Reader(name)
        results = ((one, *outcome(check, reader)) for one, check in TOKENIZER_CAPABILITIES.items())
        readers.append(tables.row(name, kind.words, results))
    head = HEAD.format(
        lens=_version("transformer-lens"),
        transformers=transformers.__version__,
        ticks=counts["right"],
        refusals=counts["refused"],
    )
    lines = [
        *_table("model", "type", CAPABILITIES, rows),
        TOKENIZERS.format(vocabulary=tiny.VOCAB)
        + "\n".join(_table("tokenizer", "kind", TOKENIZER_CAPABILITIES, readers)),
        "",
        "## Columns",
        *(f"- **{name}**: {(check.__doc__ or '').strip()}" for name, check in CAPABILITIES.items()),
        "",
        "Of tokenizers:",
        *(f"- **{name}**: {(check.__doc__ or '').strip()}" for name, check in TOKENIZER_CAPABILITIES.items()),
        "",
        "## Refusals",
        *(f"{number}. {sentence}" for sentence, number in tables.sentences.items()),
    ]
    Path(sys.argv[1]).write_text(head + "\n".join(lines) + "\n")
    for line in tables.wrong:
        print("WRONG", line)
    sys.exit(bool(tables.wrong))


def _table(first: str, second: str, capabilities: Iterable[str], rows: Iterable[str]) -> list[str]:
    """The lines of a table."""
    names = list(capabilities)
    return [f"| {first} | {second} | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2), *rows]


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
