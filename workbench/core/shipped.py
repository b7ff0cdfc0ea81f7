"""Where what comes with Workbench lies: corpora, dictionaries, models and the app."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

VARIABLE = "WORKBENCH_DATA"
"""Environment variable with more folders, as PATH has them; they come before all others."""
SECOND_WHEEL = "workbench_lm_data"
"""The package with the large dictionaries and models, which has a wheel of its own."""
_PACKAGE = Path(__file__).resolve().parents[1]
HOME = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent
"""The folder with `app/` and `data/`: inside an installed package, or the checkout."""


def folders(part: str) -> list[Path]:
    """The folders in which what is shipped of a part lies, such as "dictionaries"; the first has precedence."""
    roots = [Path(root) for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    roots.append(HOME / "data")
    second = importlib.util.find_spec(SECOND_WHEEL)
    roots += [Path(place) for place in (second and second.submodule_search_locations) or ()]
    return [root / part for root in roots if (root / part).is_dir()]


def shipped(part: str, pattern: str) -> dict[str, Path]:
    """What is shipped of a part, by name: the files or folders that a pattern such as "*.parquet" names.

    A pattern with a folder, such as "*/cfg.json", names the folder.
    """
    found: dict[str, Path] = {}
    for folder in folders(part):
        for path in sorted(folder.glob(pattern)):
            one = path.parent if "/" in pattern else path
            found.setdefault(one.stem if one is path else one.name, one)
    return dict(sorted(found.items()))


def missing(part: str) -> str:
    """How to get what is not there, as the end of a sentence."""
    return (
        f"the {part} that come with Workbench are not installed here: pip install {SECOND_WHEEL.replace('_', '-')}, "
        f"or name a folder that holds {part}/ in the variable {VARIABLE}"
    )
