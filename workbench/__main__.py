"""The cache from the console: `python -m workbench cache` lists it, `python -m workbench cache --empty` empties it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workbench.core.cache import cache_folder, cache_limit, cache_parts, empty_cache
from workbench.core.errors import WorkbenchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the status of the process.

    Args:
        arguments: words of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser("python -m workbench")
    cache = parser.add_subparsers(required=True).add_parser("cache", help="what is kept on disk and can be made again")
    cache.add_argument("--empty", nargs="*", metavar="PART", help="remove these parts, or all of them")
    asked = parser.parse_args(arguments)
    try:
        if asked.empty is not None:
            print(f"{empty_cache(*asked.empty) / 1e6:,.1f} MB were freed.")
        _list()
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _list() -> None:
    print(cache_folder())
    for part in cache_parts():
        print(f"{part.size / 1e6:>10,.1f} MB  {part.name:<12} {part.entries:>5,}  {part.about}")
    limited = [part for part in cache_parts() if part.limited]
    print(
        f"{' and '.join(part.name for part in limited)} take {sum(part.size for part in limited) / 1e6:,.1f} MB of the "
        f"{cache_limit() / 1e6:,.0f} MB that they may (WORKBENCH_CACHE_LIMIT, in MB); the longest unused go first."
    )


if __name__ == "__main__":
    sys.exit(main())
