"""Dictionaries by their names on the hub and in SAELens's list of releases; the hub is one on this machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_hub import COMMIT, LocalHub, serving

from workbench.dictionaries import formats
from workbench.dictionaries.folder import CONFIG, WEIGHTS, DictionaryError
from workbench.dictionaries.hub_names import Address, as_address, repository_of
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.relu import Transcoder
from workbench.dictionaries.sets import load_set
from workbench.dictionaries.topk import TopKSAE

NAME = "someone/dictionaries"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "saelens"
POINT = "blocks.1.hook_resid_post"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub with someone/dictionaries: two layers, and much that is none of their files."""
    root = tmp_path / "hub"
    for layer in (0, 1):
        folder = root / f"layer_{layer}" / "width_16"
        TopKSAE(8, 16, 2, hook_point=POINT, seed=layer).save(folder)
        (folder / "optimizer.safetensors").write_bytes(bytes(1000))
    (root / "README.md").write_text("x")
    (root / "notes").mkdir()
    (root / "notes" / "a.txt").write_text("x")
    with serving(tmp_path / "cache", monkeypatch) as hub:
        hub.repositories[NAME] = root
        yield hub


def sentence(name: str) -> str:
    """The error of opening a name, which is one sentence."""
    with pytest.raises(DictionaryError) as caught:
        load_dictionary(name)
    text = str(caught.value)
    assert text.endswith(".")
    assert text.count(". ") == 0, text
    return text


def test_a_name_opens_a_dictionary_and_fetches_its_files_alone(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    want = load_dictionary(hub.repositories[NAME] / "layer_1" / "width_16")
    found = load_dictionary(f"{NAME}/layer_1/width_16")
    assert found.hash == want.hash
    assert (found.reads, found.folder) == (POINT, str(hub.snapshot(NAME) / "layer_1" / "width_16"))
    assert hub.files() == [f"layer_1/width_16/{CONFIG}", f"layer_1/width_16/{WEIGHTS}"]
    assert found.provenance["hub"] == f"{NAME}/layer_1/width_16@{COMMIT}"
    hub.asked.clear()
    assert load_dictionary(f"hf:{found.provenance['hub']}").hash == want.hash
    assert not hub.asked, "a commit that is there was asked for"
    page = f"https://huggingface.co/{NAME}/tree/main/layer_1/width_16"
    for name in (f"{NAME}/layer_1/width_16@main", f"hf:{NAME}/layer_1/width_16/", page):
        assert load_dictionary(name).hash == want.hash
    assert hub.files() == []
    file = f"{NAME}/layer_1/width_16/{WEIGHTS}"
    assert "it is a single file that none of them names" in sentence(file)  # no format here reads a single file


def test_what_is_here_has_precedence_and_the_prefix_asks_the_hub(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = TopKSAE(8, 16, 3, hook_point=POINT, seed=5)
    mine.save(tmp_path / NAME / "layer_1" / "width_16")
    assert load_dictionary(f"{NAME}/layer_1/width_16").hash == mine.hash
    assert load_dictionary(f"hf:{NAME}/layer_1/width_16").hash != mine.hash
    with pytest.raises(DictionaryError, match=r"There is no folder .*/layer_0"):
        load_dictionary(Path(NAME) / "layer_0")  # a Path is no name


def test_a_download_is_reported_stopped_and_resumed(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    big = TopKSAE(64, 512, 2, hook_point=POINT)
    big.save(hub.repositories[NAME] / "big")
    hub.pause = 0.02
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    shares: list[float] = []
    words: list[str] = []

    def progress(share: float, what: str) -> None:
        shares.append(share)
        words.append(what)

    with pytest.raises(
        DictionaryError, match="The download of someone/dictionaries was stopped; the same call goes on"
    ):
        load_dictionary(f"{NAME}/big", progress=progress, cancel=lambda: shares[-1] > 0.2)
    assert 0.2 < shares[-1] < 0.9
    assert shares == sorted(shares)
    assert not (hub.snapshot(NAME) / "big" / WEIGHTS).exists()
    hub.pause = 0
    assert load_dictionary(f"{NAME}/big", progress=progress).hash == big.hash
    assert shares[-1] == 1
    assert "sae_weights.safetensors, 0.3 MB of 0.3 MB" in words[-1]


def test_files_in_the_store_that_all_repositories_share_are_opened(hub: LocalHub) -> None:
    """As `huggingface_hub` keeps what came by Xet: `blobs` of the cache, known by a file in it."""
    first = load_dictionary(f"{NAME}/layer_0/width_16")
    store = hub.cache / "blobs" / "ab"
    store.mkdir(parents=True)
    for blob in (hub.snapshot(NAME).parents[1] / "blobs").iterdir():
        blob.rename(store / blob.name)
        blob.symlink_to(Path("../../blobs/ab") / blob.name)
    with pytest.raises(DictionaryError, match="is a link out of its folder"):
        load_dictionary(first.folder)
    (hub.cache / "blobs" / ".huggingface-shared-blobs").touch()
    assert load_dictionary(first.folder).hash == first.hash


def test_a_part_of_a_set_that_is_here_is_not_taken_for_the_set(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories["someone/set"] = tmp_path / "set"
    for layer in range(3):
        one = Transcoder(8, 16, reads=f"blocks.{layer}.mlp.hook_in", writes=f"blocks.{layer}.mlp.hook_out")
        one.save(tmp_path / "set", format="circuit_tracer")
    load_dictionary("someone/set/layer_0.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(load_set("someone/set")) == 1
    assert "more of it may be on the hub" in caplog.text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert len(load_set(f"someone/set@{COMMIT}")) == 3


def test_a_hub_that_breaks_off_is_a_sentence(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.pause, hub.breaks = 1e-6, True
    TopKSAE(64, 512, 2, hook_point=POINT).save(hub.repositories[NAME] / "big")
    assert "The hub did not give someone/dictionaries (" in sentence(f"{NAME}/big")
    hub.pause, hub.breaks = 0, False
    load_dictionary(f"{NAME}/big")


def test_without_the_hub_what_is_in_the_cache_is_opened(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dictionary(f"{NAME}/layer_0/width_16")
    offline = "the hub can't be asked: HF_HUB_OFFLINE is set."
    for name, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setattr(f"huggingface_hub.constants.{name}", value)
            for revision in ("", "@main", f"@{COMMIT}"):
                assert load_dictionary(f"{NAME}/layer_0/width_16{revision}").hash == first.hash
            why = offline if value is True else "http://127.0.0.1:9 can't be reached"
            assert why in sentence(f"{NAME}/layer_1/width_16")


def test_what_the_hub_has_not_is_named(hub: LocalHub) -> None:
    assert (
        sentence("nobody/nothing/x") == "The hub has no repository nobody/nothing, or keeps it private; check the name."
    )
    assert sentence(f"{NAME}/layer_0/width_16@v2") == f"{NAME} has no revision v2; name a branch, a tag or a commit."
    assert (
        sentence(f"{NAME}/layer_0/width_32")
        == f"The hub has no {NAME}/layer_0/width_32; {NAME}/layer_0 holds width_16."
    )
    assert f"; {NAME} holds README.md, layer_0, layer_1 and notes." in sentence(f"{NAME}/layer_9/width_16/x")
    assert f"{NAME}/notes on the hub is not a dictionary of" in sentence(f"{NAME}/notes")
    several = (
        f'{NAME} holds 2 dictionaries, layer_0/width_16 and layer_1/width_16; name one, as in "{NAME}/layer_0/width'
    )
    assert several in sentence(NAME)
    assert not hub.files()
    hub.gated.add(NAME)
    assert f"accept its terms on {hub.address}/{NAME} and log in" in sentence(f"{NAME}/layer_0/width_16")
    assert sentence("hf:nobody") == (
        "'hf:nobody' is no name on the hub; write hf:OWNER/REPOSITORY, with /FOLDER and @REVISION if need be."
    )


SET = """
TITLE = "layers"
FILES = ("set.json", "layer_*.safetensors")


def matches(path):
    return (path / "set.json").is_file() or path.name.startswith("layer_")


def parts(path):
    if path.is_file():
        return []
    if (path / "set.json").stat().st_size == 0:
        raise ValueError("its set.json is empty")
    return sorted(path.glob("layer_*.safetensors"))


def read(path):
    import workbench as wb
    sae = wb.TopKSAE(8, 16, 2, hook_point=(path.parent / "set.json").read_text(), name=path.name)
    return sae
"""


def with_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the format of sets be the only one."""
    folder.mkdir()
    (folder / "set_of_layers.py").write_text(SET)
    monkeypatch.setattr(formats, "__path__", [str(folder)])
    monkeypatch.delitem(sys.modules, f"{formats.__name__}.set_of_layers", raising=False)


def test_a_set_is_refused_before_its_weights_are_fetched(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_format(tmp_path / "code", monkeypatch)
    root = hub.repositories[NAME]
    (root / "set").mkdir()
    (root / "set" / "set.json").write_text(POINT)
    for layer in range(9):
        (root / "set" / f"layer_{layer}.safetensors").write_bytes(bytes([layer]))
    assert f"{NAME}/set holds 9 dictionaries, layer_0.safetensors, layer_1" in sentence(f"{NAME}/set")
    assert hub.files() == ["set/set.json"]
    assert load_dictionary(f"{NAME}/set/layer_2.safetensors").reads == POINT
    assert hub.files() == ["set/layer_2.safetensors"]
    assert [one.name for one in load_set(f"{NAME}/set")] == [f"layer_{layer}.safetensors" for layer in range(9)]
    assert len(hub.files()) == 8


REGISTRY = """
tiny-res:
  repo_id: someone/dictionaries
  model: gpt2-small
  saes:
  - id: blocks.1.hook_resid_post
    path: layer_1/width_16
    neuronpedia: gpt2-small/1-res
    l0: 2.0
  - {id: layer, path: 3}
tiny-other:
  repo_id: someone/dictionaries
  model: gpt2-small
  config_overrides: {dataset_path: x, normalize_activations: constant_norm_rescale}
  saes: [{id: a, path: foreign}]
tiny-gemma:
  repo_id: someone/dictionaries
  model: gpt2-small
  config_overrides: {normalize_activations: constant_norm_rescale}
  saes: [{id: a, path: set/layer_0.safetensors}]
"""


def test_a_release_of_saelens_is_opened_by_its_id(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "releases.yaml"
    file.write_text(REGISTRY)
    monkeypatch.setenv("WORKBENCH_SAELENS_REGISTRY", str(file))
    found = load_dictionary(f"tiny-res/{POINT}")
    assert found.hash == load_dictionary(f"{NAME}/layer_1/width_16").hash
    wanted = {"model_name": "gpt2-small", "saelens": f"tiny-res/{POINT}", "neuronpedia": "gpt2-small/1-res"}
    assert found.provenance.items() >= wanted.items()
    assert sentence("tiny-res/x") == f"SAELens's release tiny-res has no x; it has {POINT} and layer."
    assert "tiny-res/layer is a part of the dictionary in someone/dictionaries; open that" in sentence("tiny-res/layer")
    shutil.copytree(FIXTURES / "standard", hub.repositories[NAME] / "foreign")
    plain, stated = load_dictionary(f"{NAME}/foreign"), load_dictionary("tiny-other/a")
    assert plain.hash != stated.hash
    x = torch.randn(4, plain.d_in)
    scale = plain.d_in**0.5 / x.norm(dim=-1, keepdim=True)  # constant_norm_rescale, as SAELens has it
    assert torch.allclose(stated.reconstruct(x), plain.reconstruct(x * scale) / scale, atol=1e-5)
    with_format(tmp_path / "code", monkeypatch)
    (hub.repositories[NAME] / "set").mkdir()
    (hub.repositories[NAME] / "set" / "layer_0.safetensors").touch()
    assert "states its normalize_activations, which is not applied to those of layers" in sentence("tiny-gemma/a")
    for content in ("a: !!python/object/apply:os.system [x]", "- a", "tiny-res: 3", "\x00"):
        file.write_text(content)
        assert str(file) in sentence(f"tiny-res/{POINT}")


NAMES = {
    "google/gemma-scope-2b-pt-res/layer_20/width_16k": ("google/gemma-scope-2b-pt-res", "layer_20/width_16k", ""),
    "hf:a/b": ("a/b", "", ""),
    "hf:a/b/c@refs/pr/1": ("a/b", "c", "refs/pr/1"),
    "https://huggingface.co/a/b/blob/v1/c/d.npz?x=1": ("a/b", "c/d.npz", "v1"),
    "https://huggingface.co/a/b": ("a/b", "", ""),
}


def test_names_on_the_hub() -> None:
    for name, parts in NAMES.items():
        assert as_address(name) == Address(*parts), name
        assert as_address(Address(*parts).address) == Address(*parts)
    for name in ("resid-15", "/a/b", "./a/b", "../a/b", "~/a/b", "a/b/../c", "a//b", "", "a b/c", "a/b/."):
        assert as_address(name) is None, name
    for name in (
        "hf:x",
        "hf:/a/b/..",
        "https://example.org/a/b",
        "http://huggingface.co/a/b",
        "hf:a/b@/bin/ls",
        "hf:a/b@../x",
    ):
        with pytest.raises(DictionaryError, match="is no name on the hub"):
            as_address(name)


def test_the_repository_of_a_folder_in_the_cache() -> None:
    folder = Path("/x/hub/models--google--gemma-scope-2b-pt-res/snapshots/0a1b/layer_20/width_16k")
    assert repository_of(folder) == Address("google/gemma-scope-2b-pt-res", "layer_20/width_16k", "0a1b")
    assert repository_of(Path("/x/models--a--b/other/0a1b")) is None
