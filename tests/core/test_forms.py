"""JSON of strangers is read against a form, or refused in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typing_extensions import TypedDict

from workbench.core.errors import WorkbenchError
from workbench.core.forms import parse_json, read_json


class Note(TypedDict):
    format: int
    layers: list[int]
    about: dict[str, str]


GOOD = '{"format": 1, "layers": [0, 2], "about": {"a": "b"}}'


def test_what_has_the_form_is_read(tmp_path: Path) -> None:
    (tmp_path / "note.json").write_text(GOOD)
    assert read_json(tmp_path / "note.json", Note, WorkbenchError, "a note")["layers"] == [0, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it is no JSON"),
        ("[]", "it should be a valid dictionary"),
        ('{"format": 1}', "it has no layers"),
        (GOOD.replace("1", '"1"', 1), "format should be a valid integer, not '1'"),
        (GOOD.replace("2]", "true]"), r"layers\.1 should be a valid integer, not True"),
        (GOOD.replace("2]", "NaN]"), "NaN is no number of JSON"),
        ("[" * 100_000, "nested too deeply"),
        (GOOD.replace("1", "9" * 5000, 1), "it is no JSON"),
        ("\ufeff" + GOOD, "it is no JSON"),
        (GOOD.replace("2]", "1e999]"), "1e999 is too large"),
        (GOOD.replace("2]", str(2**70) + "]"), "more than 64 bits"),
        (GOOD.replace('"b"', '"\\ud800"'), "halves of characters"),
        (GOOD.replace('"b"', "[" * 200 + "]" * 200), "nested too deeply"),
    ],
)
def test_what_has_not_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(WorkbenchError, match=f"^This is not a note: .*{words}") as caught:
        parse_json(text, Note, WorkbenchError, "This is not a note")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path / "bytes", tmp_path, Path("a\0b"), "a\ud800b", "a" * 5000, ""):
        with pytest.raises(WorkbenchError, match="can't be read as a note"):
            read_json(path, Note, WorkbenchError, "a note")


@pytest.mark.parametrize("what", ["/dev/zero", "a fifo"])
def test_what_is_no_ordinary_file_is_not_read(what: str, tmp_path: Path) -> None:
    place = Path(what)
    if what == "a fifo":
        place = tmp_path / "fifo"
        os.mkfifo(place)
    script = (
        "import sys; from pathlib import Path; from workbench.core.errors import WorkbenchError\n"
        "from workbench.core.forms import read_json\nfrom workbench.core.text_files import read_utf8\n"
        "for read, more in ((read_json, (dict, WorkbenchError, 'a note')), (read_utf8, (WorkbenchError,))):\n"
        "    try: read(Path(sys.argv[1]), *more)\n"
        "    except WorkbenchError as wrong: print(wrong)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, place], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.count(f"{place} is no ordinary file") == 2
