"""Chat templates: programs that come with a model, run in their own process, with little time and memory.

The process is started with the first chat, runs transformers' own `render_jinja_template`, and ends with this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.paths import has_halves
from workbench.model.sampling import PromptError

PATIENCE = 5.0
"""Seconds that a template may take."""
STARTING = 60.0
"""Seconds that the process may take to start."""
MEMORY = 160 * 2**20
"""Bytes that a template may take beside those that the process begins with."""
LONGEST = 10_000_000
"""Characters that a template may write."""

PROCESS = """
import importlib, importlib.util, json, os, signal, sys, types

patience, memory, longest, sys.path[:] = *map(int, sys.argv[1:4]), json.loads(sys.argv[4])
packages = {"transformers": "", "transformers.utils": "utils"}
try:  # without the rest of the package, which takes a second
    root = importlib.util.find_spec("transformers").submodule_search_locations[0]
    for name, folder in packages.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [os.path.join(root, folder)]
    render = importlib.import_module("transformers.utils.chat_template_utils").render_jinja_template
except Exception:
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        del sys.modules[name]
    render = importlib.import_module("transformers.utils.chat_template_utils").render_jinja_template
try:
    import resource
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
except (ImportError, OSError, ValueError):
    pass  # where the system has no such limit, that of time is left
alarm = getattr(signal, "alarm", lambda seconds: None)  # should the other process be gone

def written(line):
    asked = json.loads(line)
    variables = {"chat_template": asked["template"], "add_generation_prompt": True}
    text = render([asked["messages"]], **{**asked["variables"], **variables})[0][0]
    if len(text) > longest:
        raise ValueError(f"it writes more than {longest:,} characters")
    return json.dumps({"text": text})

print("ready", flush=True)
for line in sys.stdin:
    alarm(patience + 1)
    try:
        answer = written(line)
    except MemoryError:
        answer = json.dumps({"error": f"it takes more than {memory / 1e6:,.0f} MB of memory"})
    except Exception as error:
        answer = json.dumps({"error": (str(error).strip() or type(error).__name__)[:1000]})
    alarm(0)
    print(answer, flush=True)
"""


class TemplateError(PromptError):
    """What is wrong with a chat template, in words that stand in another sentence."""


class _Renderer:
    """The process; one for all models and threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._owner = 0
        """The process that started it: a fork has to start its own."""

    def ask(self, question: str) -> dict[str, str]:
        """The answer to a line; raises `TemplateError` where the process had to be ended."""
        with self._lock:
            process = self._running
            if process is None or self._owner != os.getpid() or process.poll() is not None:
                process = self._running = _started()
                self._owner = os.getpid()
            line = _exchange(process, question, PATIENCE)
        if not line:
            raise TemplateError(f"it takes more than {PATIENCE:g} s or too much memory")
        return json.loads(line)


def _started() -> subprocess.Popen[str]:
    limits = [f"{PATIENCE:.0f}", str(MEMORY), str(LONGEST), json.dumps([path for path in sys.path if path])]
    command = [sys.executable, "-P", "-c", PROCESS, *limits]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, text=True, **pipes)
    if _exchange(process, "", STARTING) != "ready\n":
        raise TemplateError("the process for it can't be started")
    return process


def _exchange(process: Any, question: str, seconds: float) -> str:
    """The line that follows a question; empty where the process ended first, or was ended after some seconds."""
    timer, line = threading.Timer(seconds, process.kill), ""
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(question and question + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
    finally:
        timer.cancel()
        if not line:  # or an interrupted question would have its answer taken for that of the next
            process.kill()
            process.wait()
    return line


_renderer = _Renderer()


def render(template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
    """The text that a template makes of messages, up to where the answer begins.

    Args:
        template: Jinja, as transformers reads it.
        messages: of the chat.
        variables: what it may name besides, such as special tokens.

    Raises:
        TemplateError: it refuses the messages, or takes too much time or memory.
    """
    asked = {"template": template, "messages": [dict(one) for one in messages], "variables": dict(variables)}
    try:
        answer = _renderer.ask(json.dumps(asked, default=str))
    except OSError as error:
        raise TemplateError(f"the process for it can't be started, {error.strerror or error}") from error
    if "error" in answer:
        raise TemplateError(answer["error"])
    if has_halves(answer["text"]):
        raise TemplateError("it writes halves of characters (lone surrogates)")
    return answer["text"]
