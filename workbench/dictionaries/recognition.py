"""The format of a dictionary's folder or file, recognised by what lies there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar, cast

from workbench.core.paths import check_links, check_ordinary
from workbench.core.type_words import reason_of, shortened
from workbench.dictionaries import formats
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.protocol import Dictionary

NAMED = 6
"""Names of files and parts that a sentence names."""
T = TypeVar("T")


class Format(Protocol):
    """A module of `formats/`; it may offer `parts` and `write` too."""

    __name__: str
    TITLE: str
    FILES: tuple[str, ...]
    matches: Callable[[Path], bool]
    read: Callable[[Path], Dictionary]


def known_formats() -> Iterator[Format]:
    """The modules of `formats/`, by name."""
    for module in sorted(pkgutil.iter_modules(formats.__path__), key=lambda one: one.name):
        yield cast(Format, importlib.import_module(f"{formats.__name__}.{module.name}"))


def format_of(path: Path) -> Format:
    """The one format that a folder or file has, whether it holds one dictionary or several.

    Raises:
        DictionaryError: none or more than one of the formats known has it, or the path is or holds a link out of it, or
            is no ordinary file.
    """
    if not path.exists():
        raise DictionaryError(f"There is no {path}.")
    check_ordinary(path, DictionaryError)
    check_links(path, DictionaryError)
    found = recognised(path)
    if not found:
        raise DictionaryError(_unknown(path))
    if len(found) > 1:
        raise DictionaryError(
            f"{path} could be a dictionary of {in_words([one.TITLE for one in found], 'or')}; put the files of each "
            "into a folder of its own."
        )
    return found[0]


def recognised(path: Path) -> list[Format]:
    """The formats that say of a folder or file that it is theirs: one, unless it can't be opened."""
    with explained(path):
        return [one for one in known_formats() if one.matches(path)]


def titles() -> str:
    """The formats known, in words: "SAELens or sparsify"."""
    names = sorted((one.TITLE for one in known_formats()), key=str.lower)
    return in_words(names, "or", len(names))


def parts_of(path: Path, form: Format | None = None) -> list[Path]:
    """The paths of the dictionaries that a folder or file holds: itself where it is one dictionary.

    Args:
        form: its format; None to recognise it.

    Raises:
        DictionaryError: it has no known format or several, or a part is missing.
    """
    find = vars(form or format_of(path)).get("parts")
    with explained(path):
        return (list(find(path)) if find else []) or [path]


def part_names(path: Path, parts: Iterable[Path]) -> list[str]:
    """What tells the parts of a path apart: their paths in it."""
    return [str(one.relative_to(path)) if one.is_relative_to(path) else str(one) for one in parts]


def lies_in(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path relative to a folder, with "/", is one that a pattern of `FILES` names; `*` crosses no "/"."""
    parts = PurePosixPath(name).parts
    for pattern in patterns:
        wanted = PurePosixPath(pattern).parts
        if len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn what a format raises into a `DictionaryError` that names the folder or file."""
    try:
        yield
    except KeyError as error:
        raise DictionaryError(f"{path} can't be used: it lacks {reason_of(error)}.") from error
    except (OSError, TypeError, ValueError, AttributeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise DictionaryError(f"{path} can't be used: {reason_of(error)}.") from error


def in_words(names: list[str], last: str = "and", most: int = NAMED) -> str:
    """Names as a part of a sentence, at most so many of them: "a, b and c"."""
    names = [shortened(one) for one in names]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1:,} more"]
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else "".join(names)


def _unknown(path: Path) -> str:
    """Why a path has none of the formats, in a sentence."""
    begun = f"{path} is not a dictionary of {titles()}"
    if not path.is_dir():
        return f"{begun}: it is a single file that none of them names; give the folder in which the tool wrote it."
    names = sorted(one.name + "/" * one.is_dir() for one in path.iterdir())
    lacks = []
    for one in known_formats():
        there = [pattern for pattern in one.FILES if any(path.glob(pattern))]
        if there and len(there) < len(one.FILES):
            gone = next(pattern for pattern in one.FILES if pattern not in there)
            lacks.append(f"for {one.TITLE} it has no {gone}")
    found = f"it holds {in_words(names)}" if names else "it is empty"
    return f"{begun}: {', and '.join([found, *lacks])}."
