"""Write docs/models.md: what each architecture of the zoo can do, tried now; ends with an error if anything is wrong.

python scripts/write_models_page.py docs/models.md
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "laws")]

import zoo  # noqa: E402
from capabilities import CAPABILITIES, Subject, outcome  # noqa: E402

HEAD = """# Models

Any causal language model that TransformerLens {lens} has an adapter for opens. Each architecture below was tried as
a tiny model with random weights, every column against plain transformers {transformers}: {ticks} cells are right,
{refusals} are refused with the sentence whose number stands in them. `make zoo` tries all again and writes this page.

"""


def main() -> None:
    """Try everything, write the page, and list what is wrong."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("workbench").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sentences: dict[str, int] = {}
    rows, wrong, ticks = [], [], 0
    for name, entry in zoo.ZOO.items():
        subject, cells = Subject(name), []
        for capability in CAPABILITIES:
            result, sentence = outcome(subject, capability)
            ticks += result == "right"
            cells.append("✓" if result == "right" else str(sentences.setdefault(sentence, len(sentences) + 1)))
            if result == "wrong":
                wrong.append(f"{name}, {capability}: {sentence}")
        rows.append(f"| `{name}` | {entry.model_type} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    head = HEAD.format(
        lens=_version("transformer-lens"),
        transformers=transformers.__version__,
        ticks=ticks,
        refusals=len(rows) * len(CAPABILITIES) - ticks,
    )
    lines = [
        "| model | type | " + " | ".join(CAPABILITIES) + " |",
        "|" + "---|" * (len(CAPABILITIES) + 2),
        *rows,
        "",
        "## Columns",
        *(f"- **{name}**: {(check.__doc__ or '').strip()}" for name, check in CAPABILITIES.items()),
        "",
        "## Refusals",
        *(f"{number}. {sentence}" for sentence, number in sentences.items()),
    ]
    Path(sys.argv[1]).write_text(head + "\n".join(lines) + "\n")
    for line in wrong:
        print("WRONG", line)
    sys.exit(bool(wrong))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
