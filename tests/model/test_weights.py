"""Fingerprints of weights, the cache folder, and files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

import workbench as wb
from workbench.core import files
from workbench.core.cache import cache_folder
from workbench.core.files import replacing
from workbench.core.hashing import fingerprint
from workbench.model import weights


def test_fingerprint_sees_every_bit_and_no_order() -> None:
    def tensors() -> dict[str, Tensor]:
        return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.0]), "c": torch.zeros(0)}

    base = fingerprint(tensors())
    assert base == fingerprint(dict(reversed(tensors().items())))
    strided = torch.stack([tensors()["a"], tensors()["a"]], -1)[..., 0]
    assert not strided.is_contiguous()
    assert base == fingerprint(tensors() | {"a": strided})
    changed = [
        tensors() | {"a": torch.arange(6.0).view(3, 2)},
        tensors() | {"a": torch.arange(6.0).view(2, 3).double()},
        tensors() | {"b": torch.tensor([1.0000001])},
        tensors() | {"d": torch.zeros(0)},
        {("x" if name == "b" else name): tensor for name, tensor in tensors().items()},
        {"a": tensors()["a"], "b": tensors()["b"]},
    ]
    prints = {base, *(fingerprint(one) for one in changed)}
    assert len(prints) == 1 + len(changed)


def test_fingerprint_of_tied_weights_counts_them_once(tiny_cache: Path) -> None:
    module = tiny.build("llama")
    names = weights.parameters_of(module)
    assert "lm_head.weight" not in names
    assert fingerprint(names) == wb.load_model(module).weights_hash


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "workbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/workbench")
    monkeypatch.setenv("WORKBENCH_CACHE", "/y")
    assert cache_folder() == Path("/y")


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_is_whole_or_not_at_all(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:  # as on a file system that can't
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    target = tmp_path / "a" / "file.txt"
    with replacing(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text(str(1 / (temporary.write_text("two") - 3)))
    assert target.read_text() == "one"
    folder = tmp_path / "a" / "folder"
    for content in ("one", "two"):
        with replacing(folder, owned=True) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["two"]
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    with replacing(folder, owned=True) as temporary:
        (temporary / "deep").mkdir(parents=True)
        save_file({"x": torch.ones(2)}, temporary / "deep" / "weights.safetensors")
        (temporary / "deep" / "weights.safetensors").chmod(0o600)  # as safetensors does, by itself or not
        (temporary / "run").touch(0o700)
    assert (folder / "deep" / "weights.safetensors").stat().st_mode == usual
    assert (folder / "run").stat().st_mode & 0o777 == (usual | 0o700) & 0o777
    with replacing(target, owned=True) as temporary:
        temporary.touch(0o600)
    assert target.stat().st_mode == usual
    assert sorted(path.name for path in target.parent.iterdir()) == ["file.txt", "folder"]


def test_what_killed_writers_left_is_cleared_away_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    dead, others = (tmp_path / f".{name}.part" for name in ("file.txt.abcd_123", "other.abcd_123"))
    for left in (dead, others):
        left.mkdir()
        (left / "half").write_text("x")
    with replacing(tmp_path / "file.txt") as slow:
        slow.write_text("slow")
        with replacing(tmp_path / "file.txt") as temporary:
            temporary.write_text("quick")
        assert (tmp_path / "file.txt").read_text() == "quick"
    assert (tmp_path / "file.txt").read_text() == "slow"
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", others.name}
