"""What a study declares: how it runs, which options it takes, and its rows of the table of published results."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of the table of published results.

    Attributes:
        paper: authors and arXiv number of the source; empty where there is none.
        claim: the paper's claim, with its figures.
        here: the outcome here; every figure is computed from the study's summary.
    """

    paper: str
    claim: str
    here: str


@dataclass(frozen=True)
class Outcome:
    """The output of one run.

    Attributes:
        results: everything measured, written to `results.json` in the report's folder.
        summary: the figures worth citing, as in `docs/results/NAME.json`.
        page: the report, an HTML file.
    """

    results: dict[str, Any]
    summary: dict[str, Any]
    page: Path


def no_options(parser: ArgumentParser) -> None:
    """Add nothing: the study has no options of its own."""


@dataclass(frozen=True)
class Study:
    """One study; the package `analyses.NAME` exports it as `STUDY`, and its docstring is the sentence of the help.

    Attributes:
        run: measures and writes the report; takes the parsed options.
        published_rows: the rows of the table of published results, from a summary as parsed JSON.
        shared: names of the options in `analyses.shared.command.SHARED` that the study takes.
        add_options: adds the study's own options.
    """

    run: Callable[[Namespace], Outcome]
    published_rows: Callable[[Mapping[str, Any]], list[Row]]
    shared: tuple[str, ...] = ()
    add_options: Callable[[ArgumentParser], None] = no_options
