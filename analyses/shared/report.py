"""Notes of a running study, the provenance of its results, and its report.

A report is one HTML file that needs no network: it contains plotly.js once. Each figure's JSON is written beside it.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.offline import get_plotlyjs

from workbench.core.files import replacing
from workbench.core.provenance import command_line
from workbench.core.text import visible
from workbench.figures.common import FONT, GRID, INK
from workbench.model.language_model import LanguageModel

PACKAGES = ("workbench-lm", "torch", "transformers", "transformer-lens", "plotly")

STYLE = """
:root { color-scheme: light; --ink: #1f2b2a; --soft: #5c6a70; --line: #e0e6e1; --wash: #f3f6f2; --link: #1f7a6d;
  --font: "Source Sans", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: white; font: 16px/1.6 var(--font); }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 96px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3.2rem 0 .4rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .2rem; }
p, li { max-width: 46rem; }
.lead { font-size: 1.1rem; color: var(--soft); }
a { color: var(--link); }
.note, figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
figure { margin: 1.4rem 0 2rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; line-height: 1.4; }
th, td { text-align: left; padding: .42rem .7rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
td { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { background: var(--wash); padding: .05rem .3rem; border-radius: 4px; font-size: .88em; white-space: pre-wrap; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--link); }
.yes, .partly, .no, .open { font-weight: 600; white-space: nowrap; }
.yes { color: #1b7f4d; } .partly { color: #a86b00; } .no { color: #b3372f; } .open { color: var(--soft); }
"""


_start = time.monotonic()


def say(what: str) -> None:
    """Print one line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _start:7.1f} s] {what}", flush=True)


def progress_of(what: str, seconds: float = 30.0) -> Callable[[float, str], None]:
    """A progress callback that prints at most one line in so many seconds."""
    last = time.monotonic()

    def print_progress(share: float, words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(f"{what}: {share:.0%}, {words}")

    return print_progress


DRAW = """
const draw = (id, f) => Plotly.newPlot(id, f.data, f.layout, {responsive: true, displaylogo: false});
"""


class Cell(str):
    """A table cell that is HTML; other cells are escaped."""


class Notes:
    """Results by name, one line of JSON each; an interrupted run resumes where it stopped.

    Args:
        file: the file of the lines; it is emptied if it was written for another `stamp`.
        stamp: everything that the results depend on, as JSON.
    """

    def __init__(self, file: Path, stamp: Any):
        self.file = file
        self.known: dict[str, Any] = {}
        self.stamp = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
        lines = file.read_text().splitlines() if file.exists() else []
        if not lines or lines[0] != self.stamp:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.stamp + "\n")
            return
        for line in lines[1:]:
            try:
                name, value = json.loads(line)
            except ValueError:  # the run was interrupted inside this line
                continue
            self.known[name] = value
        if not file.read_text().endswith("\n"):
            with open(file, "a") as broken:
                broken.write("\n")

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of this name; `make` computes it if there is none yet."""
        if name not in self.known:
            line = json.dumps([name, make()])
            with open(self.file, "a") as file:
                file.write(line + "\n")
            self.known[name] = json.loads(line)[1]
        return self.known[name]


def wilson(successes: int, trials: int, z: float = 1.959964) -> dict[str, float | int]:
    """A rate with its 95% confidence interval (Wilson 1927), which holds for few trials and for rates of 0 and 1."""
    if trials == 0:
        return {"k": 0, "n": 0, "rate": math.nan, "low": 0.0, "high": 1.0}
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    return {"k": successes, "n": trials, "rate": rate, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def provenance(model: LanguageModel, seed: int, **more: Any) -> dict[str, Any]:
    """The origin of results: model, seed, versions, and the command line."""
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    return {
        "model": model.name,
        "model_hash": model.hash,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "command": f"python {command_line()}",
    } | more


def write_json(path: Path, value: Any, **how: Any) -> None:
    """Write a JSON file, whole or not at all; NaN becomes null."""
    with replacing(path, owned=True) as temporary:
        temporary.write_text(json.dumps(_finite(value), allow_nan=False, **how) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; columns of numbers are aligned right, and every cell that is no `Cell` is escaped."""
    numeric = [bool(rows) and all(isinstance(row[place], int | float) for row in rows) for place in range(len(columns))]
    mark = [' class="number"' if number else "" for number in numeric]
    head = "".join(f"<th{m}>{html.escape(name)}</th>" for name, m in zip(columns, mark, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{_cell(value)}</td>" for value, m in zip(row, mark, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def look(figure: go.Figure, height: int, top: int = 64) -> go.Figure:
    """The figure in the style of all reports."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": top, "b": 10},
        font={"family": FONT, "size": 13, "color": INK},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        hoverlabel={"bgcolor": "white", "font": {"family": FONT, "size": 13, "color": INK}},
    )
    figure.update_xaxes(automargin=True, gridcolor=GRID, zerolinecolor=GRID)
    return figure.update_yaxes(automargin=True, gridcolor=GRID, zerolinecolor=GRID)


def tokens(texts: Sequence[str]) -> Cell:
    """Tokens in sequence, with visible spaces."""
    return Cell(" ".join(f"<code>{html.escape(visible(text))}</code>" for text in texts))


class Page:
    """One HTML page, built from top to bottom.

    Args:
        folder: where `index.html` and the figures go.
        title: its heading.
        lead: one paragraph under it, as HTML.
    """

    def __init__(self, folder: Path, title: str, lead: str):
        self.folder = folder
        self.title = title
        self.parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{lead}</p>']

    def add(self, *parts: str) -> None:
        """Append HTML."""
        self.parts.extend(parts)

    def section(self, heading: str, *paragraphs: str) -> None:
        """A heading and paragraphs of HTML."""
        self.add(f"<h2>{html.escape(heading)}</h2>", *(f"<p>{text}</p>" for text in paragraphs))

    def figure(self, name: str, figure: go.Figure, caption: str) -> None:
        """A Plotly figure with its caption; its JSON goes to `{name}.json` in the page's folder."""
        text = figure.to_json()
        with replacing(self.folder / f"{name}.json", owned=True) as temporary:
            temporary.write_text(text)
        shown = text.replace("</", "<\\/")
        draw = f'draw("{name}", {shown})'
        self.add(
            f'<figure><div id="{name}"></div><figcaption>{caption} '
            f'<a href="{name}.json">Figure as JSON</a></figcaption></figure><script>{draw}</script>'
        )

    def details(self, summary: str, inside: str) -> None:
        """A section that opens on a click."""
        self.add(f"<details><summary>{html.escape(summary)}</summary>{inside}</details>")

    def write(self, source: dict[str, Any]) -> Path:
        """Write `index.html`, with the provenance of the results at its foot."""
        flat = {**{key: value for key, value in source.items() if key != "versions"}, **source["versions"]}
        self.section("Where this comes from")
        self.add(
            table(["", ""], [[key, Cell(f"<code>{html.escape(str(value))}</code>")] for key, value in flat.items()])
        )
        path = self.folder / "index.html"
        with replacing(path, owned=True) as temporary:
            temporary.write_text(
                '<!doctype html><html lang="en"><head><meta charset="utf-8">'
                '<meta name="viewport" content="width=device-width, initial-scale=1">'
                ""
                f"<title>{html.escape(self.title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script><script>{DRAW}</script></head>"
                f"<body><main>{''.join(self.parts)}</main></body></html>\n"
            )
        return path


def _cell(value: Any) -> str:
    if isinstance(value, Cell):
        return value
    if isinstance(value, float):
        return f"{value:,.2f}" if math.isfinite(value) else "–"
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))


def _finite(value: Any) -> Any:
    """The same plain data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
