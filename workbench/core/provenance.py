"""What is recorded with everything that is made: the command that ran."""

from __future__ import annotations

import os
import shlex
import sys


def command_line() -> str:
    """The command that runs, to be recorded with what it makes; absolute paths in it are told from where it runs."""
    words = [os.path.relpath(word) if os.path.isabs(word) else word for word in sys.argv]
    return shlex.join(words)
