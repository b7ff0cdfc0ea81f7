"""Asking a language model for text: one that is open here, or a server with the OpenAI interface.

Every prompt and its answer are kept in a file of lines of JSON, so that work that was stopped goes on without asking
again. What an answer says is text and nothing else: nothing in it is run, followed or shown as markup.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from workbench.core.checks import Natural, Number, Positive, checked
from workbench.core.failures import explained
from workbench.core.forms import parse_json
from workbench.core.hashing import hash_of
from workbench.core.locks import alone
from workbench.core.paths import check_ordinary
from workbench.core.type_words import reason_of, shown
from workbench.labels.errors import LabelError
from workbench.model.language_model import LanguageModel

LARGEST = 2**20
"""Bytes of a server's answer that are read."""
ANSWERS = "answers.jsonl"
Timeout = Annotated[Number, Gt(0)]


@with_config(ConfigDict(extra="allow"))
class _Message(TypedDict):
    content: str


@with_config(ConfigDict(extra="allow"))
class _Choice(TypedDict):
    message: _Message


@with_config(ConfigDict(extra="allow"))
class _Completion(TypedDict):
    choices: list[_Choice]


class _Kept(TypedDict):
    key: str
    prompt: str
    answer: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing: an address leads nowhere else."""
        return None


@checked(LabelError)
@dataclass(frozen=True)
class Server:
    """A server with the OpenAI interface, such as llama.cpp's, Ollama's or vLLM's.

    Args:
        address: such as `http://localhost:11434/v1`; prompts are posted to `/chat/completions` below it.
        model: the name of the model there.
        key: sent as a bearer token, if not empty; it is not kept.
        timeout: seconds that an answer may take.
        tries: how often a prompt is sent that gets no answer.
        most: tokens of an answer.

    Raises:
        LabelError: an address that is no web address.
    """

    address: str
    model: str
    key: str = field(default="", repr=False)
    timeout: Timeout = 60.0
    tries: Positive = 2
    most: Positive = 200

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LabelError(f"The address of a server begins with http:// or https://, not {shown(self.address)}.")

    @property
    def name(self) -> str:
        """The name under which its labels are kept."""
        return self.model or urllib.parse.urlsplit(self.address).netloc

    @property
    def identity(self) -> str:
        """What its answers are kept by: its name, so that a server may move."""
        return self.name

    @checked(LabelError)
    def ask(self, prompt: str) -> str:
        """The answer to a prompt.

        Raises:
            LabelError: no answer in time, or one that is none.
        """
        content = {"model": self.model, "temperature": 0, "max_tokens": self.most}
        body = json.dumps(content | {"messages": [{"role": "user", "content": prompt}]}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        place = f"{self.address.rstrip('/')}/chat/completions"
        request = urllib.request.Request(place, body, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        trouble = ""
        for _ in range(self.tries):
            try:
                with opener.open(request, timeout=self.timeout) as answer:
                    return self._read(_in_time(answer, time.monotonic() + self.timeout))
            except (OSError, http.client.HTTPException) as wrong:  # URLError and time-outs are OSErrors
                trouble = reason_of(wrong)
        raise LabelError(f"The server at {shown(self.address)} gives no answer: {trouble}; start it, or try later.")

    def _read(self, content: bytes) -> str:
        complaint = f"The server at {shown(self.address)} answers with something else than a completion"
        if len(content) > LARGEST:
            raise LabelError(f"{complaint}: more than {LARGEST:,} bytes.")
        try:
            text = content.decode()
        except UnicodeDecodeError as wrong:
            raise LabelError(f"{complaint}: no text.") from wrong
        choices = parse_json(text, _Completion, LabelError, complaint)["choices"]
        if not choices:
            raise LabelError(f"{complaint}: it holds no choice.")
        return choices[0]["message"]["content"]


@checked(LabelError)
@dataclass(frozen=True)
class Writer:
    """A language model that is open here, as one that answers.

    Args:
        model: the model; where it has a chat template, a prompt is a message of a user.
        most: tokens of an answer.
    """

    model: LanguageModel
    most: Positive = 60

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def identity(self) -> str:
        """What its answers are kept by: the weights, whatever their name, and the length of an answer."""
        return f"{self.model.hash} {self.most}"

    @checked(LabelError)
    def ask(self, prompt: str) -> str:
        """The likeliest answer to a prompt."""
        if getattr(self.model.tokenizer, "chat_template", None):
            return self.model.chat(prompt, self.most).text
        return self.model.generate(prompt, self.most).text


def _in_time(answer: http.client.HTTPResponse, end: float) -> bytes:
    """The bytes of an answer, up to one more than are read; a server that trickles is stopped."""
    content = b""
    while len(content) <= LARGEST and (part := answer.read1(1 << 16)):
        content += part
        if time.monotonic() > end:
            raise TimeoutError("it takes too long")
    return content


@checked(LabelError)
class Notebook:
    """Answers that are kept on disk, and a limit on how many new ones are asked for.

    Args:
        asked: who answers.
        folder: where prompts and answers are kept.
        limit: number of new prompts that are sent; None for no limit.

    Raises:
        LabelError: the file of answers is damaged or can't be read.
    """

    def __init__(self, asked: Server | Writer, folder: str | Path, limit: Natural | None = None):
        self.asked, self.folder, self.limit, self.sent = asked, Path(folder), limit, 0
        self.file = self.folder / ANSWERS
        self._answers = self._read()

    @property
    def spent(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.sent >= self.limit

    @checked(LabelError)
    def ask(self, prompt: str) -> str | None:
        """The answer to a prompt, kept or new; None where it is not kept and the limit is reached."""
        key = hash_of([self.asked.identity, prompt])
        if key not in self._answers:
            if self.spent:
                return None
            self.sent += 1
            self._answers[key] = self.asked.ask(prompt)
            self._append({"key": key, "prompt": prompt, "answer": self._answers[key]})
        return self._answers[key]

    def _append(self, row: dict[str, str]) -> None:
        with alone(self.folder, LabelError), explained(self.file, LabelError), open(self.file, "ab") as file:
            file.write(f"{json.dumps(row)}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> dict[str, str]:
        check_ordinary(self.file, LabelError)
        try:
            lines = self.file.read_bytes().split(b"\n") if self.file.exists() else []
        except OSError as wrong:
            raise LabelError(f"{self.file} can't be read: {reason_of(wrong)}.") from wrong
        answers, complaint = {}, f"{self.file} is no file of answers; move it away"
        for number, line in enumerate(lines):
            if number == len(lines) - 1:  # what a killed process began to write, or nothing
                self._cut(line)
                break
            row = parse_json(line.decode(errors="replace"), _Kept, LabelError, complaint)
            answers[row["key"]] = row["answer"]
        return answers

    def _cut(self, rest: bytes) -> None:
        """Remove the end of a line that was not written to its end."""
        if rest:
            with explained(self.file, LabelError), open(self.file, "r+b") as file:
                file.truncate(self.file.stat().st_size - len(rest))
