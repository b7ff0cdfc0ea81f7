"""Folders and files of strangers, each with something in it that would run, fetch or read what it should not.

Every kind of thing that is saved (`KEPT` of the fuzz) is attacked file by file: a link out of the folder, a pickle in
the place of the file. Beside these stand the attacks that a format of its own makes possible, in `HOSTILE`.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import torch
from fuzz_examples import World
from fuzz_files import KEPT
from safetensors.torch import save_file

import workbench as wb
from workbench.surgery.child import files_of
from workbench.surgery.notes import NOTE, sealed

NAMED = {"labels", "labels csv", "corpus jsonl", "corpus parquet", "task", "graph", "edits", "GGUF"} | {
    "published graph",
    "control vector",
    "direction",
    "jacobian-lens",
}
"""Kinds of one file, which a person names: a link in its place is the person's own."""
OURS = {"cached table", "cached hook points"}
"""What lies in the cache of the person alone."""
WIDTH = "blocks.0.hook_resid_post"


@dataclass
class Place:
    """Where a hostile thing is planted.

    Attributes:
        folder: of the stranger.
        secret: what nothing may read: a model, a dictionary, an index, a store, a text.
        marker: what a payload creates.
        base: a good model's folder.
    """

    world: World
    folder: Path
    secret: Path
    marker: Path
    base: Path

    def model(self, name: str = "model", *, without: tuple[str, ...] = (), **config: Any) -> Path:
        """A copy of the good model, without some files, with other fields of its configuration."""
        to = self.folder / name
        shutil.copytree(self.base, to)
        for one in without:
            (to / one).unlink()
        if config:
            change(to / "config.json", **config)
        return to

    def pickle(self) -> bytes:
        """A pickle that creates the marker."""
        return pickle.dumps(Payload(str(self.marker)))

    def archive(self) -> bytes:
        """The same in the form of `torch.save`."""
        file = io.BytesIO()
        torch.save({"weight": Payload(str(self.marker))}, file)
        return file.getvalue()

    def code(self, folder: Path, name: str) -> None:
        """A module that creates the marker and defines classes of every name that `auto_map` may ask for."""
        (folder / f"{name}.py").write_text(
            f"open({str(self.marker)!r}, 'w').close()\n"
            "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            "class C(LlamaConfig): pass\n"
            "class M(LlamaForCausalLM): config_class = C\n"
            "class T(PreTrainedTokenizerFast): pass\n"
        )


class Payload:
    """An object whose pickle creates a file where it is opened."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@dataclass(frozen=True)
class Hostile:
    """One attack."""

    name: str
    plant: Callable[[Place], Callable[[], Any]]
    """Plants it; returns what opens it."""
    refused: str = ""
    """A part of the sentence; empty where it may open with a right result."""


def _model_with_code(place: Place, **how: Any) -> Callable[[], Any]:
    to = place.model(auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, **how)
    place.code(to, "code")
    return lambda: opens_as_base(place, to)


def _tokenizer_with_code(place: Place, **config: Any) -> Callable[[], Any]:
    to = place.model()
    change(to / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}, tokenizer_class="Own", **config)
    place.code(to, "code")
    return lambda: opens_as_base(place, to)


def opens_as_base(place: Place, folder: Path) -> None:
    """The folder opens as the good model, to the bit and the token."""
    model, good = wb.load_model(folder), wb.load_model(place.base)
    assert model.hash == good.hash
    assert torch.equal(model.to_tokens("The dog ran"), good.to_tokens("The dog ran"))


def _sharded(named: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model(without=("model.safetensors",))
        (to / "w.bin").write_bytes(place.archive())
        good = wb.load_model(place.base).network.module.state_dict()
        index = {"metadata": {}, "weight_map": dict.fromkeys(good, named)}
        (to / "model.safetensors.index.json").write_text(json.dumps(index))
        return lambda: wb.load_model(to)

    return plant


def _only_pickles(use: Callable[[Place, Path], Any]) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model(without=("model.safetensors",))
        (to / "pytorch_model.bin").write_bytes(place.archive())
        return lambda: use(place, to)

    return plant


def _linked(name: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model(without=(name,))
        (to / name).symlink_to(place.secret / "model" / name)
        return lambda: wb.load_model(to)

    return plant


def _linked_inside(name: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model() / name
        to.parent.mkdir(exist_ok=True)
        to.symlink_to(place.secret / "secret.txt")
        return lambda: wb.load_model(place.folder / "model")

    return plant


def _gguf_part(place: Place) -> Callable[[], Any]:
    """The second part of a model is a link to a file outside."""
    fields = {"general.architecture": "llama", "split.no": 0, "split.count": 2, "split.tensors.count": 2}
    first = ggufs.write_parts(place.folder / "m-00001-of-00002.gguf", fields, {"a": np.zeros((2, 2))})
    (place.folder / "m-00002-of-00002.gguf").symlink_to(place.secret / "secret.txt")
    return lambda: wb.load_model(first)


def _gguf_template(text: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        keys = {"tokenizer__chat_template": text.replace("MARKER", str(place.marker))}
        path = ggufs.write(place.folder / "model.gguf", tiny.build("llama"), tiny.tokenizer(), **keys)
        return lambda: wb.load_model(path).chat("hi", 1)

    return plant


def _hidden_weights(place: Place) -> Callable[[], Any]:
    opening = _sharded(".w.safetensors")(place)
    (place.folder / "model" / ".w.safetensors").symlink_to(place.secret / "model" / "model.safetensors")
    return opening


def _named_pickle(use: Callable[[Place, Path], Any]) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model(transformers_weights="adapter_model.bin")
        (to / "adapter_model.bin").write_bytes(place.archive())
        return lambda: use(place, to)

    return plant


def _named_vocabulary(place: Place) -> Callable[[], Any]:
    to = place.model(without=("tokenizer.json",))
    paths = {f"{name}_file": str(place.secret / "model" / "tokenizer.json") for name in ("vocab", "tokenizer", "spm")}
    change(to / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **paths)
    return lambda: wb.load_model(to)


def _named_files(place: Place) -> Callable[[], Any]:
    """As old versions of transformers left them beside a whole tokenizer."""
    to = place.model()
    paths = {f"{name}_file": str(place.secret / "secret.txt") for name in ("tokenizer", "special_tokens_map", "vocab")}
    change(to / "tokenizer_config.json", **paths)
    return lambda: opens_as_base(place, to)


def _template(text: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model()
        written = text.replace("MARKER", str(place.marker)).replace("SECRET", str(place.secret / "secret.txt"))
        (to / "chat_template.jinja").write_text(written)
        change(to / "tokenizer_config.json", chat_template=written)
        return lambda: wb.load_model(to).chat_prompt("Hello")

    return plant


def _adapter(base: str | None, **files: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.folder / "adapter"
        to.mkdir()
        named = str(place.secret / "model") if base is None else base
        config = {"peft_type": "LORA", "base_model_name_or_path": named, "r": 1, "lora_alpha": 1.0}
        (to / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
        path = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        tensors = {f"{path}A.weight": torch.ones(1, 32), f"{path}B.weight": torch.ones(32, 1)}
        if "pickled" in files:
            (to / "adapter_model.bin").write_bytes(place.archive())
        else:
            save_file(tensors, to / "adapter_model.safetensors")
        return lambda: wb.load_model(to)

    return plant


def _spliced(hook_points: dict[str, str], link: str = "") -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.folder / "spliced"
        shutil.copytree(place.base, to / "model")
        (to / "dictionaries").mkdir()
        if link:
            (to / "dictionaries" / "0").symlink_to(place.secret / "dictionary")
        good = wb.load_model(place.base)
        note = {"format": 1, "hook_points": hook_points, "name": "x", "hash": good.hash, "plain_hash": good.hash}
        (to / "spliced.json").write_text(json.dumps(note))
        return lambda: wb.load_model(to)

    return plant


def _dictionary_of_pickles(place: Place) -> Callable[[], Any]:
    to = place.folder / "dictionary"
    to.mkdir()
    for name in ("sae.pt", "ae.pt", "sae_weights.pt", "params.npz"):
        (to / name).write_bytes(place.archive())
    (to / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    return lambda: wb.load_dictionary(to)


def _state_with_code(place: Place) -> Callable[[], Any]:
    to = place.folder / "run"
    to.mkdir()
    (to / "ae.pt").write_bytes(place.archive())
    (to / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    return lambda: wb.load_dictionary(to)


def _set_with_a_tag(place: Place) -> Callable[[], Any]:
    to = place.folder / "set"
    wb.dictionaries.Transcoder(8, 16, reads="blocks.0.mlp.hook_in", writes="blocks.0.mlp.hook_out").save(
        to, format="circuit_tracer"
    )
    text = (to / "config.yaml").read_text()
    (to / "config.yaml").write_text(text + f"other: !!python/object/apply:os.mkdir ['{place.marker}']\n")
    return lambda: wb.dictionaries.load_set(to)


def _index_of_paths(place: Place) -> Callable[[], Any]:
    to = place.folder / "index"
    shutil.copytree(place.world.index.path, to)
    note = json.loads((to / "data" / "index.json").read_text())
    note["files"]["../../../secret/secret.txt"] = {"bytes": 7, "sha256": "0" * 64}
    (to / "data" / "index.json").write_text(json.dumps(note))
    return lambda: wb.open_index(to)


def _store_of_paths(place: Place) -> Callable[[], Any]:
    to = place.folder / "store"
    shutil.copytree(place.world.saved_store, to)
    note = json.loads((to / "progress.json").read_text())
    note["widths"] = {str(place.secret / "store" / name): width for name, width in note["widths"].items()}
    (to / "progress.json").write_text(json.dumps(note))
    return lambda: wb.harvest.Store(to)


def _corpus_of_links(place: Place) -> Callable[[], Any]:
    to = place.folder / "texts"
    (to / "deep").mkdir(parents=True)
    (to / "a.txt").write_text("The dog ran.")
    (to / "deep" / "b.txt").symlink_to(place.secret / "secret.txt")
    return lambda: wb.Corpus.load(to)


def _corpus_behind_links(place: Place) -> Callable[[], Any]:
    to = place.folder / "texts"
    to.mkdir()
    (to / "a.txt").write_text("The dog ran.")
    (to / "linked").symlink_to(place.secret)

    def check() -> None:
        assert list(wb.Corpus.load(to).texts) == ["The dog ran."]

    return check


def _pickling_parquet(place: Place) -> Callable[[], Any]:
    to = place.folder / "texts.parquet"
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": place.pickle()}
    field = pa.field("text", pa.string(), metadata=metadata)
    pq.write_table(pa.table([pa.array(["The dog ran."])], pa.schema([field])), to)

    def check() -> None:
        assert list(wb.Corpus.load(to).texts) == ["The dog ran."]

    return check


def _dare(change_folder: Callable[[Place, Path], None]) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model("tuned")
        change_folder(place, to)
        return lambda: wb.surgery.dare(wb.load_model(place.base), to, 0.5)

    return plant


def _merge(change_folder: Callable[[Place, Path], None]) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        to = place.model("merged")
        change_folder(place, to)
        models = [{"model": str(place.base)}, {"model": str(to)}]
        recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
        return lambda: wb.surgery.merge(recipe)

    return plant


def _recipe_with_tags(place: Place) -> Callable[[], Any]:
    to = place.folder / "recipe.yml"
    to.write_text(f"merge_method: !!python/object/apply:os.system ['touch {place.marker}']\nmodels: []\n")
    return lambda: wb.surgery.merge(to)


def _link_weights(place: Place, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(place.secret / "model" / "model.safetensors")


def _bring_code(place: Place, folder: Path) -> None:
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "code.C"})
    place.code(folder, "code")


def _child_with_code(place: Place) -> Callable[[], Any]:
    to = place.folder / "child"
    shutil.copytree(place.world.saved_child, to)
    _bring_code(place, to)
    note = json.loads((to / NOTE).read_text())
    (to / NOTE).write_text(json.dumps(sealed(note | {"files": files_of(to)})))  # a stranger seals what is altered
    return lambda: wb.surgery.open_child(to, place.world.model)


def _verify(place: Place, folder: Path) -> None:
    wb.surgery.verify_checkpoint(folder, place.world.model)


def _opening(place: Place, folder: Path) -> Callable[[], Any]:
    return lambda: wb.load_model(folder)


def _weights_by_path(place: Place) -> Callable[[], Any]:
    to = place.model(without=("model.safetensors",), transformers_weights="../../secret/model/model.safetensors")
    return lambda: wb.load_model(to)


HUB = {"AutoConfig": "stranger/code--code.C", "AutoModelForCausalLM": "stranger/code--code.M"}
CODE, OUTSIDE, LINK = "brings code of its own", "in its own folder", "is a link out of its folder"
POPEN = "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}"
CLASSES = "{{ ''.__class__.__mro__[1].__subclasses__() }}"

HOSTILE = [
    Hostile("a model of an unknown kind with code", lambda p: _model_with_code(p, model_type="own"), CODE),
    Hostile("a model of a known kind with code", _model_with_code),
    Hostile("a model with code on the hub", lambda p: _opening(p, p.model(model_type="own", auto_map=HUB)), CODE),
    Hostile("a tokenizer with code", _tokenizer_with_code),
    Hostile("an index of weights that names a pickle", _sharded("w.bin"), OUTSIDE),
    Hostile("an index of weights that names a path", _sharded("../../secret/model/model.safetensors"), OUTSIDE),
    Hostile("weights in pickles only", _only_pickles(lambda p, to: wb.load_model(to)), "convert it"),
    Hostile("weights in pickles only, compared", _only_pickles(_verify), "convert it"),
    Hostile(
        "a pickle named by the configuration", _named_pickle(lambda p, to: wb.load_model(to)), "no safetensors file"
    ),
    Hostile("a pickle named by the configuration, compared", _named_pickle(_verify), "no safetensors file"),
    Hostile("an index of weights that names a hidden link", _hidden_weights, LINK),
    Hostile("an index of weights that names a hidden file", _sharded(".w.safetensors"), OUTSIDE),
    Hostile("a chat template by a link in a folder", _linked_inside("additional_chat_templates/x.jinja"), LINK),
    Hostile("a link in a hidden folder", _linked_inside(".more/x.txt"), LINK),
    Hostile("weights by a link", _linked("model.safetensors"), LINK),
    Hostile("a tokenizer by a link", _linked("tokenizer.json"), LINK),
    Hostile("a configuration by a link", _linked("config.json"), LINK),
    Hostile("weights by a path in the configuration", _weights_by_path, "by a path"),
    Hostile("a vocabulary by a path", _named_vocabulary),
    Hostile("a part of a GGUF file by a link", _gguf_part, "leads out of its folder"),
    Hostile("a chat template of a GGUF file", _gguf_template(POPEN), "refuses this chat"),
    Hostile("a tokenizer that names other files", _named_files),
    Hostile(
        "attention from the hub",
        lambda p: _opening(p, p.model(attn_implementation="stranger/kernel")),
        "fetched as code",
    ),
    Hostile(
        "attention from the hub, compared",
        lambda p: (to := p.model(attn_implementation="stranger/kernel")) and (lambda: _verify(p, to)),
        "fetched as code",
    ),
    Hostile("a chat template that runs a command", _template(POPEN), "chat template"),
    Hostile("a chat template that looks for classes", _template(CLASSES), "chat template"),
    Hostile("a chat template that reads a file", _template("{% include 'SECRET' %}"), "chat template"),
    Hostile("an adapter to a model on the hub", _adapter("stranger/base"), "nothing is fetched"),
    Hostile("an adapter to a model outside", _adapter(None), "outside its folder"),
    Hostile("an adapter in a pickle", _adapter("base", pickled="yes"), "as safetensors"),
    Hostile("dictionaries of a model by a path", _spliced({WIDTH: "../../secret/dictionary"}), "outside"),
    Hostile("dictionaries of a model by a link", _spliced({WIDTH: "0"}, link="yes"), LINK),
    Hostile("a dictionary in pickles", _dictionary_of_pickles),
    Hostile("a state of tensors with code", _state_with_code, "more than tensors and plain data"),
    Hostile("a set whose configuration makes an object", _set_with_a_tag, "tags are not read"),
    Hostile("an index of features that names a path", _index_of_paths, "outside"),
    Hostile("a store that names paths", _store_of_paths, "outside"),
    Hostile("a corpus with a link", _corpus_of_links, LINK),
    Hostile("a corpus with a folder behind a link", _corpus_behind_links),
    Hostile("a corpus whose columns are unpickled", _pickling_parquet),
    Hostile("a tuned model by a link", _dare(_link_weights), LINK),
    Hostile("a tuned model with code", _dare(_bring_code)),
    Hostile("a merged model by a link", _merge(_link_weights), LINK),
    Hostile("a merged model with code", _merge(_bring_code)),
    Hostile("a recipe of a merge with code", _recipe_with_tags, "has the tag"),
    Hostile("a child with code", _child_with_code, CODE),
]


def secrets(world: World, base: Path, folder: Path) -> None:
    """Fill a folder with things that a hostile one could lead to."""
    shutil.copytree(base, folder / "model")
    shutil.copytree(world.saved_store, folder / "store")
    wb.TopKSAE(32, 16, 2, hook_point=WIDTH, name="secret").save(folder / "dictionary")
    (folder / "secret.txt").write_text("secret.")


def good_model(folder: Path) -> Path:
    """The folder of a plain tiny model."""
    tiny.build("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def attacks_on_files(name: str, place: Place) -> Iterator[tuple[str, Callable[[], Any], bool]]:
    """Each file of a kind of thing as a link out of its folder and as a pickle.

    Returns:
        Words on the attack, what opens the file, and whether it must be refused.
    """
    kept, good = KEPT[name], place.folder / "good"
    good.mkdir()
    kept.write(place.world, good)
    for number, file in enumerate(sorted(one for one in good.rglob("*") if one.is_file())):
        inside = file.relative_to(good)
        contents = {"pickle": place.pickle(), "archive": place.archive()}
        for word in ("link", *contents):
            if word == "link" and name in NAMED | OURS:
                continue
            to = place.folder / f"{word} {number}"
            shutil.copytree(good, to)
            (to / inside).unlink()
            if word == "link":
                kept_away = place.secret / f"{number} {inside.name}"
                shutil.copy(file, kept_away)
                (to / inside).symlink_to(kept_away)
            else:
                (to / inside).write_bytes(contents[word])
            yield f"{name}: {inside} as a {word}", lambda to=to: kept.open(place.world, to), word == "link"
