"""The table of published results, computed from `docs/results`.

The table stands between two comments in docs/published.md; `python -m analyses published` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from analyses.shared.discovery import load_study, study_folders
from analyses.shared.study import Row
from workbench.core.files import replacing

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "published.md", ROOT / "docs" / "results"
BEGIN = "<!-- made by `python -m analyses published` from docs/results; change nothing up to the next comment -->"
END = "<!-- end of what `python -m analyses published` makes -->"


def table_of(rows: dict[str, Sequence[Row]]) -> str:
    """The table in Markdown, from each study's rows by its name."""
    lines = ["| | the paper | here |", "|---|---|---|"]
    for name, own in rows.items():
        before = None
        for row in own:
            source = f"`{name}`" if before is None else "the same"
            source = "" if row.paper == before else f"{source}, {row.paper}" if row.paper else source
            lines.append(f"| {source} | {_cell(row.claim)} | {_cell(row.here)} |")
            before = row.paper
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rows_of_results(results: Path = RESULTS) -> dict[str, list[Row]]:
    """Each study's rows, from its file in a folder of summaries; studies without a file are left out."""
    files = {name: results / f"{name}.json" for name in study_folders()}
    return {
        name: load_study(name).published_rows(json.loads(file.read_text()))
        for name, file in files.items()
        if file.exists()
    }


def with_table(page: str, table: str) -> str:
    """The text of the page with the table between the two comments replaced.

    Raises:
        ValueError: a comment is missing.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"The page needs the lines {BEGIN!r} and {END!r}, between which the table is written.")
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}"


def write_page(page: Path = PAGE) -> None:
    """Write the table into the page."""
    text = with_table(page.read_text(), table_of(rows_of_results()))
    with replacing(page, owned=True) as temporary:
        temporary.write_text(text)


# Sentences


def span(values: Iterable[float], form: str = ".2f") -> str:
    """The smallest and the largest value: `0.32 to 0.43`, or one where both are written alike."""
    ends = list(values)
    low, high = (f"{end:{form}}" for end in (min(ends), max(ends)))
    if low == high:
        return low
    return f"{low.removesuffix('%')} to {high}" if form.endswith("%") else f"{low} to {high}"


def listed(values: Iterable[float], form: str = ".3f") -> str:
    """All values: `0.71, 0.67 and 0.75`."""
    words = [f"{value:{form}}" for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
