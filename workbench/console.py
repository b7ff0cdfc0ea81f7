"""The command `workbench`: `workbench app`, `fetch`, `info`, `cache`; also `python -m workbench`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence

from workbench.core import shipped
from workbench.core.cache import cache_folder, cache_limit, cache_parts, empty_cache
from workbench.core.errors import WorkbenchError

PACKAGES = ("workbench-lm", "torch", "transformers", "transformer-lens", "streamlit")
"""Whose versions a report of a fault needs."""


def app(options: Sequence[str]) -> None:
    """Open the app in the browser; options go to Streamlit, such as --server.port 8600."""
    command = [sys.executable, "-m", "streamlit", "run", str(shipped.HOME / "app" / "main.py"), *options]
    os.execv(sys.executable, command)


def fetch(options: Sequence[str]) -> None:
    """Fetch the default model, 93 MB, and convert it, unless it is there."""
    _none(options)
    from workbench.model.default_model import fetch_default

    print(f"The default model is in {fetch_default()}")


def info(options: Sequence[str]) -> None:
    """Print the versions, the devices, the cache, and what came with the installation."""
    _none(options)
    import torch

    from workbench.model.gguf_architectures import ARCHITECTURES

    rows = {name: importlib.metadata.version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    rows["devices"] = ", ".join([f"processor ({torch.get_num_threads()} threads)", *_accelerators()])
    rows["GGUF files of"] = ", ".join(ARCHITECTURES)
    rows["cache"] = str(cache_folder())
    for part, pattern in (("corpora", "*.parquet"), ("dictionaries", "*/cfg.json"), ("models", "*/spliced.json")):
        rows[part] = ", ".join(shipped.shipped(part, pattern)) or f"none: {shipped.missing(part)}"
    print("\n".join(f"{name + ':':<18}{value}" for name, value in rows.items()))


def cache(options: Sequence[str]) -> None:
    """List what is kept on disk and can be made again; --empty removes it, or the parts named behind it."""
    parser = argparse.ArgumentParser("workbench cache")
    parser.add_argument("--empty", nargs="*", metavar="PART", help="remove these parts, or all of them")
    asked = parser.parse_args(options)
    if asked.empty is not None:
        print(f"{empty_cache(*asked.empty) / 1e6:,.1f} MB were freed.")
    print(cache_folder())
    parts = cache_parts()
    for part in parts:
        print(f"{part.size / 1e6:>10,.1f} MB  {part.name:<12} {part.entries:>5,}  {part.about}")
    limited = [part for part in parts if part.limited]
    print(
        f"{' and '.join(part.name for part in limited)} take {sum(part.size for part in limited) / 1e6:,.1f} MB of the "
        f"{cache_limit() / 1e6:,.0f} MB that they may (WORKBENCH_CACHE_LIMIT, in MB); the longest unused go first."
    )


def _accelerators() -> list[str]:
    import torch

    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [*cards, "MPS"] if torch.backends.mps.is_available() else cards


def _none(options: Sequence[str]) -> None:
    if options:
        raise SystemExit(f"workbench: this command takes no options, not {' '.join(options)}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"app": app, "fetch": fetch, "info": info, "cache": cache}


def main(words: Sequence[str] | None = None) -> int:
    """Carry out one command; 0 where it succeeded, 1 with a sentence on standard error where it did not."""
    lines = "\n".join(f"  {name:<8}{command.__doc__}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "workbench", description=f"commands:\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    chosen, options = parser.parse_known_args(words)
    try:
        COMMANDS[chosen.command](options)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
