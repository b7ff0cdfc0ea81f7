"""A Streamlit server of one's own, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

ROOT = Path(__file__).parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PROTOCOL, AGAIN = "streamlit", ForwardMsg.FINISHED_EARLY_FOR_RERUN
"""How browsers speak with the server, and what it says of a script that is about to run again."""
PATIENCE = 240_000
"""Milliseconds: on a new machine the first page waits for the neurons to be decoded."""


@dataclass
class Server:
    """A running server."""

    url: str
    log: Path
    pid: int

    def said(self) -> str:
        """All that it has written so far."""
        return self.log.read_text()


def find_chromium() -> str | None:
    """A Chromium of the system, or the one that `playwright install chromium` fetched; None without either."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextmanager
def serve(script: Path, log: Path) -> Iterator[Server]:
    """Run a Streamlit script on a free port until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless", "true"]
    command += ["--server.address", "127.0.0.1", "--server.port", str(port)]
    with open(log, "w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        _wait_for(process, port, log)
        yield Server(f"http://127.0.0.1:{port}", log, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def view(url: str, address: str = "", query: str = "") -> int:
    """Draw a page of a server in a session of its own, as a browser asks for it; returns the bytes that were sent.

    Args:
        url: of the server.
        address: of the page; empty for the first one.
        query: of the address, without its question mark.
    """
    size, ended, stream = 0, False, f"{url.replace('http', 'ws')}/_stcore/stream"
    how = {"subprotocols": [PROTOCOL], "max_size": None, "open_timeout": PATIENCE / 1000}
    with connect(stream, **how) as socket:
        asked = BackMsg()
        asked.rerun_script.page_name, asked.rerun_script.query_string = address, query
        socket.send(asked.SerializeToString())
        while not ended:
            data = socket.recv(timeout=PATIENCE / 1000)
            message = ForwardMsg.FromString(data)
            ended = message.WhichOneof("type") == "script_finished" and message.script_finished != AGAIN
            size += len(data)
    return size


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def _wait_for(process: subprocess.Popen, port: int, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"The server has ended:\n{log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"The server does not answer:\n{log.read_text()}")
