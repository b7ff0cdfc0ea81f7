"""A Hugging Face hub on this machine, which serves folders as repositories."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0a1b" * 10


@dataclass
class LocalHub:
    """What a hub on this machine has, and what it was asked."""

    cache: Path
    """The cache of `huggingface_hub`, empty at first."""
    repositories: dict[str, Path] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    """Hashes of commits by repository, where they are not `COMMIT`; the revisions are these and "main"."""
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    """Paths of all requests."""
    got: list[str] = field(default_factory=list)
    """Of those, the files whose content was asked for, by their paths in the repository."""
    pause: float = 0.0
    """Seconds between two pieces of a file."""
    breaks: bool = False
    """Whether connections end in the middle of a file."""
    address: str = ""

    def files(self) -> list[str]:
        """The files that were fetched since the last call, in order."""
        names, self.got = self.got, []
        return names

    def snapshot(self, repository: str) -> Path:
        """Where `huggingface_hub` keeps a repository's files."""
        commit = self.commits.get(repository, COMMIT)
        return self.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


def handler(hub: LocalHub) -> type[http.server.BaseHTTPRequestHandler]:
    """The class that answers a hub's requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.asked.append(path)
            of_api, wanted = path.startswith("/api/models/"), path.removeprefix("/api/models").strip("/")
            name = next((one for one in hub.repositories if f"{wanted}/".startswith(f"{one}/")), None)
            if name is None:
                return self._send(b"", 200 if path == "/" else 401, {"X-Error-Code": "RepoNotFound"})
            action, _, rest = wanted.removeprefix(f"{name}/").partition("/")
            revision, _, inside = rest.partition("/")
            commit = hub.commits.get(name, COMMIT)
            if revision not in ("main", commit):
                return self._send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
            place = hub.repositories[name] / inside
            if of_api and action == "revision":
                return self._send(json.dumps({"id": name, "sha": commit}).encode())
            if of_api:
                deep = parse_qs(url.query).get("recursive") in (["true"], ["True"])
                return self._tree(hub.repositories[name], place, deep=deep)
            if self.command == "GET":
                hub.got.append(inside)
            if name in hub.gated:
                return self._send(b"", 403, {"X-Error-Code": "GatedRepo"})
            return self._file(place, commit)

        do_HEAD = do_GET

        def _tree(self, root: Path, place: Path, *, deep: bool) -> None:
            if not place.is_dir():
                return self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            entries = [
                {"path": str(one.relative_to(root)), "oid": "0"}
                | ({"type": "directory"} if one.is_dir() else {"type": "file", "size": one.stat().st_size})
                for one in sorted(place.rglob("*") if deep else place.iterdir())
            ]
            return self._send(json.dumps(entries).encode())

        def _file(self, file: Path, commit: str) -> None:
            more = {"X-Repo-Commit": commit}
            if not file.is_file():
                return self._send(b"", 404, more | {"X-Error-Code": "EntryNotFound"})
            content = file.read_bytes()
            more["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._send(content, 200, more)

        def _send(self, content: bytes, status: int = 200, more: dict[str, str] | None = None) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
            self.send_response(206 if start else status)
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in (more or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            pieces = [content[at : at + 4096] for at in range(start, len(content), 4096)] if hub.pause else [content]
            with contextlib.suppress(OSError):  # whoever asked went away
                for piece in pieces[: len(pieces) // 2 if hub.breaks else None]:
                    self.wfile.write(piece)
                    time.sleep(hub.pause)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that `huggingface_hub` and transformers take for the one that they know."""
    hub = LocalHub(cache)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the endpoint of its first use
        yield hub
        server.shutdown()
