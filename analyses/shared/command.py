"""The one command line of all studies.

python -m analyses --help                 # every study, with a sentence each
python -m analyses NAME --out reports/NAME --summary docs/results/NAME.json
python -m analyses NAME --smallest        # tiny settings: a check that the study runs
python -m analyses published                 # write the table of published results from docs/results
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.shared.discovery import load_study, sentence_of, study_folders
from analyses.shared.published import PAGE, write_page
from analyses.shared.report import say, write_json

SHARED: dict[str, dict[str, Any]] = {
    "model": {"help": "a Hugging Face name or a folder (default: the default model)"},
    "real": {"help": "a file or folder of real text, beside the bundled corpus"},
    "seed": {"type": int, "default": 0, "help": "(default: 0)"},
    "train": {"action": "store_true", "help": "first train what ships, or resume its training"},
    "work": {"type": Path, "help": "folder of activations and checkpoints (default: runs/NAME)"},
}
"""Options that several studies take, by name; a study lists those it takes in `Study.shared`."""


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen study is imported, and only its own options are added."""
    parser = argparse.ArgumentParser(
        "python -m analyses", description="Run a study, or write the table of published results."
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, folder in study_folders().items():
        sentence = sentence_of(folder)
        command = commands.add_parser(name, help=sentence, description=sentence)
        if name == chosen:
            _add_options(command, name)
    published = commands.add_parser("published", help="Write the table of published results from docs/results.")
    published.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    return parser


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Options that every study takes, then the shared ones that this study takes, then its own."""
    study = load_study(name)
    parser.add_argument("--out", type=Path, help=f"folder of the report (default: reports/{name})")
    parser.add_argument("--summary", type=Path, help="write the figures worth citing to this JSON file")
    parser.add_argument("--smallest", action="store_true", help="tiny settings, to check that the study runs")
    for option in study.shared:
        parser.add_argument(f"--{option}", **SHARED[option])
    study.add_options(parser)
    parser.set_defaults(study=study)


def main(arguments: Sequence[str]) -> None:
    """Run one study and write its report, or write the table of published results."""
    settings = build_parser(arguments[0] if arguments else None).parse_args(arguments)
    if settings.name == "published":
        write_page(settings.page)
        return
    folder = f"{settings.name}-smallest" if settings.smallest else settings.name
    settings.out = settings.out or Path("reports") / folder
    if "work" in settings.study.shared:
        settings.work = settings.work or Path("runs") / folder
    if settings.smallest and "train" in settings.study.shared and settings.train:
        raise SystemExit("--smallest measures the models that ship and trains none; leave out --train.")
    outcome = settings.study.run(settings)
    write_json(settings.out / "results.json", outcome.results)
    if settings.summary:
        write_json(settings.summary, outcome.summary, indent=1)
    say(f"Written: {outcome.page}")
