"""A process that imports what is slow once, and runs each script in a fork of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

SERVER = """
import json, os, sys, tempfile, traceback
import torch
torch.set_num_threads(1)  # a fork has no other threads
exec(sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(asked["cwd"])
            sys.argv = ["-c", *asked["argv"]]
            status = 0
            try:
                exec(asked["script"], {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        answer = {"returncode": code, "stdout": out.read(), "stderr": err.read()}
    os.write(1, (json.dumps(answer) + "\\n").encode())
"""


class Preloaded:
    """Runs scripts as `python -c` does, in forks of a process that has done its imports.

    Args:
        imports: Python statements that the process begins with.
        options: of the interpreter, such as `-I`.
    """

    def __init__(self, imports: str, *options: str):
        command = [sys.executable, *options, "-c", SERVER, imports]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, script: str, argv: Sequence[str], cwd: Any) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run([python, "-c", script, *argv], cwd=cwd, capture_output=True, text=True)` returns."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"script": script, "argv": list(argv), "cwd": str(cwd)}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(
            [sys.executable, "-c", script, *argv], answer["returncode"], answer["stdout"], answer["stderr"]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
