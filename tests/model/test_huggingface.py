"""Models from folders and from the hub, by their names."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo as zoo_models
from local_hub import serving
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config
from wheels import DAMAGES, one_sentence

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.checkpoint_files import check_settings
from workbench.model.hub import in_words, why_unreachable


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


OLD_BUFFERS = {
    "gpt2": ("transformer.h.{}.attn.", {"bias": "mask", "masked_bias": "number"}),
    "gpt-neo": ("transformer.h.{}.attn.attention.", {"bias": "mask", "masked_bias": "number"}),
    "gpt-j": ("transformer.h.{}.attn.", {"bias": "mask", "masked_bias": "number"}),
    "codegen": ("transformer.h.{}.attn.", {"causal_mask": "mask"}),
    "gpt-neox": ("gpt_neox.layers.{}.attention.", {"bias": "mask", "masked_bias": "number", "rotary_emb.inv_freq": ""}),
}
"""Where checkpoints of old versions of transformers hold masks and tables, by architecture."""


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("name", OLD_BUFFERS)
def test_a_checkpoint_of_an_old_version_with_masks_is_opened(
    tmp_path: Path, tiny_cache: Path, name: str, dtype: torch.dtype
) -> None:
    plain = zoo_models.build(name)
    plain.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    prefix, buffers = OLD_BUFFERS[name]
    masks = {"mask": torch.ones(1, 1, 8, 8).tril().to(dtype), "number": torch.tensor(-1e9), "": torch.ones(2)}
    more = {prefix.format(layer) + key: masks[kind].clone() for layer in (0, 1) for key, kind in buffers.items()}
    save_file(load_file(file) | more, file, {"format": "pt"})
    tokens = torch.arange(6)[None]
    with torch.inference_mode():
        wanted = plain(input_ids=tokens).logits
    found = wb.load_model(tmp_path).network.module(input_ids=tokens).logits
    assert torch.allclose(found, wanted, atol=1e-5)


def test_weights_that_the_configuration_leaves_out_of_a_part_are_refused(tmp_path: Path, tiny_cache: Path) -> None:
    zoo_models.build("llama-biased").save_pretrained(tmp_path / "biased")
    zoo_models.build("gpt-j").save_pretrained(tmp_path / "vector")
    config = tmp_path / "biased" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_bias": False}))
    file = tmp_path / "vector" / "model.safetensors"
    more = {"transformer.h.0.attn.bias": torch.ones(32)}  # no mask
    save_file(load_file(file) | more, file, {"format": "pt"})
    for folder in ("biased", "vector"):
        with pytest.raises(wb.model.ModelError, match="does not ask for"):
            wb.load_model(tmp_path / folder)


def test_a_snapshot_in_the_cache_of_the_hub_is_opened(saved: Path, tmp_path: Path) -> None:
    """Its files, those in folders and hidden ones too, are links to `blobs`."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    for folder in (blobs, snapshot / "additional_chat_templates"):
        folder.mkdir(parents=True)
    for name in (".gitattributes", "additional_chat_templates/x.jinja"):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("x")
    for number, file in enumerate(sorted(one for one in saved.rglob("*") if one.is_file())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.relative_to(saved)).symlink_to(blobs / str(number))
    assert wb.load_model(snapshot).hash == wb.load_model(saved).hash


def test_attention_from_the_hub_in_an_inner_configuration_is_refused() -> None:
    config = Gemma3Config()
    check_settings("x", config, wb.model.ModelError)
    config.vision_config._attn_implementation = "stranger/kernel"
    with pytest.raises(wb.model.ModelError, match="fetched as code"):
        check_settings("x", config, wb.model.ModelError)
    config = Gemma3Config()
    config.text_config.transformers_weights = "x.bin"
    with pytest.raises(wb.model.ModelError, match="no safetensors file"):
        check_settings("x", config, wb.model.ModelError)
    config.text_config.transformers_weights = "x.safetensors.index.json"
    check_settings("x", config, wb.model.ModelError)


def test_threads_open_folders_at_the_same_time(saved: Path) -> None:
    """transformers alone can't: two at once leave weights on the meta device, or random."""
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(wb.load_model, [saved] * 8))
    assert {model.weights_hash for model in models} == {fingerprint(load_file(saved / "model.safetensors"))}


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
    with serving(tmp_path / "hub", monkeypatch) as hub:
        hub.repositories["someone/tiny"] = saved
        yield hub.asked


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


# --- a hub that can't be reached


@pytest.fixture
def dead_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Lets the hub be one that refuses connections, never accepts one, or accepts and never answers: its address."""
    held: list[socket.socket] = []

    def listening(backlog: int) -> int:
        server = socket.socket()
        held.append(server)
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        return server.getsockname()[1]

    def at(how: str) -> str:
        port = {"refuses": lambda: 9, "hangs": lambda: listening(0), "is slow": lambda: listening(50)}[how]()
        if how == "hangs":  # connections that fill the queue, so that the kernel drops the next
            for _ in range(4):
                filling = socket.socket()
                held.append(filling)
                filling.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filling.connect(("127.0.0.1", port))
        address = f"http://127.0.0.1:{port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        return address

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield at
    for one in held:
        one.close()


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_without_a_network_an_unknown_name_is_refused_soon(
    how: str, dead_hub: Callable[[str], str], own_cache: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--someone--known" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    note = own_cache / "models" / "0a1b" / "workbench.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"model": "the-default"}))
    address = dead_hub(how)
    start = time.monotonic()
    with pytest.raises(wb.model.ModelError) as caught:
        wb.load_model("nobody/no-such-model")
    assert time.monotonic() - start < 5
    assert one_sentence(caught.value), str(caught.value)
    assert "'nobody/no-such-model'" in str(caught.value)
    assert f"{address} can't be reached" in str(caught.value)
    assert "this machine has someone/known and the-default;" in str(caught.value)


def test_without_a_network_a_model_in_the_cache_is_opened(
    saved: Path, hub: list[str], dead_hub: Callable[[str], str], tmp_path: Path
) -> None:
    first = wb.load_model("someone/tiny")
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.rmtree(cached / ".no_exist")  # so that the hub would be asked
    dead_hub("refuses")
    assert wb.load_model("someone/tiny").hash == first.hash
    (file,) = cached.glob("snapshots/*/model.safetensors")
    file.unlink()
    with pytest.raises(wb.model.ModelError, match="this machine has someone/tiny only in part") as caught:
        wb.load_model("someone/tiny")
    assert one_sentence(caught.value), str(caught.value)


def test_a_slow_hub_is_asked_all_the_same(dead_hub: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.model.hub.PATIENCE", 0.5)
    dead_hub("is slow")
    assert why_unreachable() is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert why_unreachable() == "HF_HUB_OFFLINE is set"


def test_a_limit_set_by_the_user_replaces_ours(dead_hub: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    dead_hub("hangs")
    start = time.monotonic()
    assert "no connection within 1 s" in str(why_unreachable())
    assert time.monotonic() - start < 2.5


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://no-such-host.invalid")
    asked: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_address[1]}")
        close_session()  # the client reads the environment when it is made
        try:
            assert why_unreachable() is None
        finally:
            close_session()
            server.shutdown()
    assert asked == ["http://no-such-host.invalid/"]


def test_models_on_this_machine_in_words() -> None:
    assert in_words([]) == "no model in its caches"
    assert in_words(["a"]) == "a"
    assert in_words([*"abcdefgh"]) == "a, b, c, d, e, f, g and h"
    assert in_words([*"abcdefghij"]) == "a, b, c, d, e, f, g, h and 2 more"
