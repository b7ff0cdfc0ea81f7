"""The cache has a limit of size, says what it holds, and can be emptied without touching anything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny

import workbench as wb
from workbench.console import main
from workbench.core.cache import cache_folder, cache_limit, cache_parts, empty_cache, in_use, optional
from workbench.core.files import FileError


def write(name: str, size: int, seconds: int) -> Path:
    """A file of the cache that was last used so many seconds after others."""
    file = cache_folder() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with optional(file):
        file.write_bytes(b"x" * size)
    os.utime(file, (seconds, seconds))
    return file


def table(number: int) -> str:
    return f"decodings/{number:064x}-gate-raw-10.safetensors"


def test_what_was_used_longest_ago_goes_first(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_LIMIT", "1")
    strange = write("decodings/mine.txt", 900_000, 0)
    model = write(f"models/{'a' * 64}/model.safetensors", 2_000_000, 0)
    one, two = write(table(1), 400_000, 1), write(table(2), 400_000, 2)
    point = write(f"hook_points/{'b' * 64}.json", 100_000, 3)
    in_use(one)
    three = write(table(3), 400_000, 4)
    assert [one.exists(), two.exists(), three.exists(), point.exists()] == [True, False, True, True]
    four = write(table(4), 5_000_000, 5)  # the newest stays, however large
    assert [one.exists(), three.exists(), point.exists(), four.exists()] == [False, False, False, True]
    assert strange.exists()
    assert model.exists()


def test_it_says_what_it_holds_and_is_emptied_by_parts(own_cache: Path) -> None:
    strange = [
        write("decodings/mine.txt", 10, 0),
        write("models/mine/x", 10, 0),
        write("other/x-x-x-x.safetensors", 10, 0),
    ]
    link = own_cache / "hook_points" / f"{'c' * 64}.json"
    link.parent.mkdir()
    link.symlink_to(strange[0])
    write(table(1), 400, 1)
    write(f"models/{'a' * 64}/model.safetensors", 2000, 0)
    held = {part.name: (part.entries, part.size, part.limited) for part in cache_parts()}
    assert held == {"models": (1, 2000, False), "decodings": (1, 400, True), "hook_points": (0, 0, True)} | {
        "products": (0, 0, True)
    }
    with pytest.raises(FileError, match="no part 'x'"):
        empty_cache("decodings", "x")
    assert empty_cache("decodings") == 400
    assert [part.entries for part in cache_parts()] == [1, 0, 0, 0]
    assert empty_cache() == 2000
    assert not any(part.entries for part in cache_parts())
    assert all(file.exists() for file in (*strange, link))


def test_what_is_emptied_is_made_again(own_cache: Path) -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    first = wb.decode_neurons(model, "gate", 5)
    assert [part.entries for part in cache_parts()] == [0, 1, 1, 0]
    empty_cache()
    again = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    assert (wb.decode_neurons(again, "gate", 5).tokens == first.tokens).all()
    assert [part.entries for part in cache_parts()] == [0, 1, 1, 0]


def test_the_console_lists_and_empties(
    own_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(table(1), 2_500_000, 1)
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert str(own_cache) in said
    assert "2.5 MB  decodings" in said
    assert main(["cache", "--empty", "decodings"]) == 0
    assert capsys.readouterr().out.startswith("2.5 MB were freed.")
    assert main(["cache", "--empty", "x"]) == 1
    assert "no part 'x'" in capsys.readouterr().err
    for wrong in ("-1", "1.5", "many", "9" * 5000):
        monkeypatch.setenv("WORKBENCH_CACHE_LIMIT", wrong)
        with pytest.raises(FileError, match="a whole number of megabytes"):
            cache_limit()
        write(table(2), 10, 1)  # a wrong limit removes nothing and stops nothing
    assert (own_cache / table(2)).exists()
