"""Whatever saves: killed at any contact with the disk, or on a disk that fails, the old or the new is there whole.

A bounded, seeded sample runs with the suite; `make torture` (`WORKBENCH_TORTURE`) runs every contact.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk_faults import REFUSED, Fault, forked, in_fork
from savers import EXEMPT, SAVERS, Saver, corpus, fill_cache, sae, writers
from trials import REACHED, WHOLE, Trial, names

import workbench as wb
from workbench.core.files import FileError, clear_leftovers, replacing
from workbench.core.locks import alone

CODES = (errno.ENOSPC, errno.EROFS, errno.EACCES)
SEED = os.environ.get("WORKBENCH_SEED", "0")
"""Of which of these each saver meets in the short form."""
Tried = Callable[[Saver, bool], Trial]
each = pytest.mark.parametrize("saver", SAVERS, ids=lambda saver: saver.name)
pytestmark = pytest.mark.usefixtures("tiny_cache", "one_thread")


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    """The trial of a saver, over an old content or over nothing: what it leaves undisturbed is found once."""
    return functools.cache(lambda saver, old: Trial(saver, tmp_path_factory.mktemp("trial"), old))


@each
@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "over nothing"])
def test_killed_at_any_contact_the_old_or_the_new_is_whole(saver: Saver, old: bool, tried: Tried) -> None:
    if saver.resumes and old:
        pytest.skip("long work goes on in its folder and replaces nothing but an index")
    if saver.slow and not old and not WHOLE:
        pytest.skip("in the long form")
    trial = tried(saver, old)
    for contact in trial.contacts(2 if old and not saver.slow else 1):
        path, ending = trial.disturbed(Fault(contact))
        assert ending.status == -signal.SIGKILL, f"at contact {contact}: {ending.sentence}"
        trial.finishes(path)


@each
def test_killed_at_any_time_the_old_or_the_new_is_whole(saver: Saver, tried: Tried, tmp_path: Path) -> None:
    """Libraries that are not written in Python touch the disk unseen."""
    if not WHOLE:
        pytest.skip("in the long form")
    trial = tried(saver, not saver.resumes)
    begun, path = time.monotonic(), trial.copy()
    in_fork(lambda: saver.save(path, 1), tmp_path)
    lasts, chance = time.monotonic() - begun, random.Random(saver.name)
    for _ in range(12):
        path = trial.copy()
        running = forked(lambda path=path: saver.save(path, 1), path.parent)
        time.sleep(chance.uniform(0, lasts))
        os.kill(running.process, signal.SIGKILL)
        assert running.ending().status in (0, -signal.SIGKILL)
        assert saver.read(path) in (trial.before, trial.after)
        trial.finishes(path)


@each
def test_a_failing_disk_is_one_sentence(saver: Saver, tried: Tried) -> None:
    trial = tried(saver, not saver.resumes)
    for code in CODES if WHOLE else (random.Random(f"{SEED} {saver.name}").choice(CODES),):
        for contact in trial.contacts(1, most=16):
            path, ending = trial.disturbed(Fault(contact, code))
            where = f"{os.strerror(code)} at contact {contact}: {ending.sentence}"
            if ending.status != 0:  # it can fail after all is done, when what is old is cleared away
                assert ending.status == REFUSED, where
                assert str(path.parent) in ending.sentence, where
                assert "\n" not in ending.sentence, where
                assert ending.sentence.count("written") == 1, where
            trial.finishes(path)


def test_every_function_that_writes_is_among_the_savers(tmp_path: Path) -> None:
    for saver in () if REACHED else SAVERS:  # the tests above reached what they reach
        Trial(saver, tmp_path / saver.name, old=not saver.resumes)
    ending = in_fork(lambda: fill_cache(tmp_path / "cache", 5), tmp_path)
    assert set(writers()) - REACHED - set(map(tuple, ending.places)) - EXEMPT == set()


@pytest.mark.parametrize("code", CODES if WHOLE else (random.Random(SEED).choice(CODES),), ids=os.strerror)
def test_a_cache_that_cannot_be_written_stops_nothing(code: int, tmp_path: Path) -> None:
    whole = fill_cache(tmp_path / "whole", 5)

    def check() -> None:
        assert np.array_equal(fill_cache(tmp_path / "failing", 5).tokens, whole.tokens)

    contacts = in_fork(check, tmp_path).contacts
    for contact in range(1, contacts + 1, 1 if WHOLE else 6):
        shutil.rmtree(tmp_path / "failing", ignore_errors=True)
        assert in_fork(check, tmp_path, Fault(contact, code)).status == 0


@pytest.mark.parametrize("saver", [one for one in SAVERS if one.folder], ids=lambda saver: saver.name)
def test_a_folder_has_one_writer_who_is_named(saver: Saver, tmp_path: Path) -> None:
    path = tmp_path / saver.place
    saver.prepare(path)
    before = names(path)
    with alone(path, FileError):
        ending = in_fork(lambda: saver.save(path, 1), tmp_path)
        assert ending.status == REFUSED
        assert f"{path} is being written by process {os.getpid()} on " in ending.sentence
    assert names(path) == before
    saver.save(path, 1)
    assert saver.read(path) is not None


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP], ids=os.strerror)
def test_where_the_file_system_has_no_locks_folders_are_written(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with alone(tmp_path, FileError), replacing(tmp_path / "file") as temporary:
            temporary.write_text("mine")
    assert names(tmp_path) == ["file"]


def test_only_the_leftovers_of_the_same_name_are_cleared(tmp_path: Path) -> None:
    long = "a" * 40
    for name, other in (("my-sae", "my-sae.v2"), (f"{long}1", f"{long}2"), (long, f"{long}1")):
        with replacing(tmp_path / name) as temporary, replacing(tmp_path / other) as beside:
            temporary.touch()
            beside.touch()
        temporary.parent.mkdir()
        beside.parent.mkdir()
        clear_leftovers(tmp_path / name)
        assert not temporary.parent.exists()
        assert beside.parent.exists()


# ---- what a saver replaces


@each
def test_nothing_else_is_replaced(saver: Saver, tmp_path: Path) -> None:
    """A folder, or a file of another kind, of a user's stays as it is."""
    if saver.resumes or "with index" in saver.name or "SAELens" in saver.name:
        pytest.skip("it adds to a folder")
    place = tmp_path / "start" / saver.place
    place.parent.mkdir()
    saver.prepare(place)
    beside = names(place.parent)
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "thesis.txt").write_text("mine")
    assert_refused_or_beside(saver, place, place / "deep" / "thesis.txt")
    shutil.rmtree(place)
    for number, content in enumerate(OTHERS):
        place.write_bytes(content)
        assert_refused(saver, place)
        assert place.read_bytes() == content, number
        assert names(place.parent) == sorted([*beside, saver.place])


OTHERS = [
    b"mine",
    b"\0\1",
    b"{}",
    b"[]",
    b'{"mine": [1, 2]}',
    b'[{"mine": 1}]',
    b'{"text": "a", "id": 7}\n{"text": "b", "id": 8}\n',
    b'{"text": "a"}\n{"text": "b"}\n',
    b"feature,label\n3,mine\n",
]
"""Files that no saver wrote."""


@pytest.mark.parametrize(
    "saver", [one for one in SAVERS if one.place.endswith((".json", ".jsonl"))], ids=lambda saver: saver.name
)
def test_what_a_user_added_to_a_saved_file_is_not_lost(saver: Saver, tmp_path: Path) -> None:
    place = tmp_path / "start" / saver.place
    place.parent.mkdir()
    saver.prepare(place)
    saver.save(place, 0)
    whole = place.read_text()
    lines = [json.loads(line) for line in whole.splitlines()] if saver.place.endswith("l") else [json.loads(whole)]
    last = lines[-1]
    for content in (last, last[-1]) if isinstance(last, list) else (last, *map(last.get, ADDED_TO & last.keys())):
        for record in content[-1:] if isinstance(content, list) else [content]:
            record["mine"] = "a remark"
            place.write_text("".join(json.dumps(line) + "\n" for line in lines))
            assert_refused(saver, place)
            assert "a remark" in place.read_text()
            del record["mine"]
    place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    saver.save(place, 1)


ADDED_TO = {"interventions", "nodes", "edges", "model", "provenance"}
"""Keys of what else a user may add something to."""


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_texts_that_a_user_altered_or_made_are_not_lost(name: str, tmp_path: Path) -> None:
    made = tmp_path / name
    corpus(0).save(made)
    corpus(1).save(made)
    assert wb.Corpus.load(made).texts == corpus(1).texts
    if name.endswith("l"):
        made.write_text(made.read_text().replace("dog", "cat", 1))
    else:
        table = pq.read_table(made)
        pq.write_table(table.slice(1), made)
    mine = tmp_path / f"mine-{name}"
    if name.endswith("l"):
        mine.write_text(json.dumps({"text": "mine"}) + "\n")
    else:
        pq.write_table(pa.table({"text": ["mine"]}), mine)
    for file in (made, mine):
        before = file.read_bytes()
        with pytest.raises(wb.WorkbenchError, match="no corpus as it was saved"):
            corpus(2).save(file)
        assert file.read_bytes() == before


def test_no_folder_is_called_like_the_home_of_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for save in (corpus().save, lambda path: sae(0).save(path.removesuffix(".jsonl")), _alone):
        with pytest.raises(wb.WorkbenchError, match=r"Path\.home"):
            save("~/texts/c.jsonl")
    assert names(tmp_path) == []


def _alone(path: str) -> None:
    with alone(Path(path), FileError):
        pass


def assert_refused(saver: Saver, place: Path) -> str:
    with pytest.raises(wb.WorkbenchError) as refused:
        saver.save(place, 1)
    assert str(place) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def assert_refused_or_beside(saver: Saver, place: Path, mine: Path) -> None:
    if saver.name == "dictionary":  # its two files stand beside others
        saver.save(place, 1)
    else:
        assert_refused(saver, place)
    assert mine.read_text() == "mine"


def test_a_new_saver_is_safe_without_knowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "file.json").write_text(json.dumps({"mine": 1}))

    def save(name: str, content: dict[str, Any] | str, inside: str = "") -> None:
        with replacing(tmp_path / name) as temporary:
            if inside:
                temporary.mkdir()
            (temporary / inside if inside else temporary).write_text(json.dumps(content))

    for name, inside in (("folder", ""), ("folder", "ours"), ("file", "ours"), ("file", ""), ("file.json", "")):
        with pytest.raises(FileError, match="choose another"):
            save(name, {"ours": 1}, inside)
    assert (tmp_path / "folder" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    save("new.json", {"ours": 1, "more": 2})
    save("new.json", {"ours": 3, "more": 4})
    (tmp_path / "empty").mkdir()
    save("empty", {"ours": 1}, "ours")
    save("empty", {"ours": 2}, "ours")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileError, match="runs in"):
        save("empty", {"ours": 3}, "ours")
    with pytest.raises(FileError, match="no path"):
        save("a\0b", {})
    assert names(tmp_path) == ["empty", "empty/ours", "file", "file.json", "folder", "folder/mine", "new.json"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "there.json")
    for number in (1, 2):
        with replacing(tmp_path / "link.json") as temporary:
            temporary.write_text(json.dumps({"number": number}))
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real" / "there.json").read_text()) == {"number": 2}


def test_where_folders_cannot_change_places_the_old_one_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.core.files._exchange", lambda *_: False)

    def save(content: str) -> None:
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)

    save("old")
    contacts = in_fork(lambda: save("new"), tmp_path).contacts
    for contact in range(1, contacts + 1):
        save("old")
        assert in_fork(lambda: save("new"), tmp_path, Fault(contact)).status == -signal.SIGKILL
        clear_leftovers(tmp_path / "folder")  # as the next one does first
        assert (tmp_path / "folder" / "file").read_text() in ("old", "new"), contact
        assert names(tmp_path) == ["folder", "folder/file"]
