"""Everything of Workbench that saves, with two contents that it can write and how they are read.

`test_kills.py` runs each under faults of the disk, `test_disks.py` on real disks that fail, `test_races.py` beside
another process. `test_kills.py` fails where a function that writes is in none of them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import workbench as wb
from workbench.core.steady import read_steadily
from workbench.harvest import Harvest, Store

PACKAGE = Path(wb.__file__).parent
POINT = "blocks.1.hook_resid_post"
PUBLISHED = Path(__file__).parents[1] / "fixtures" / "graphs" / "graph.json"
GRAPH = Path(__file__).parents[1] / "fixtures" / "graph_format_1.json"
EXEMPT = {
    ("model/default_model.py", "fetch_default"),
    ("model/default_model.py", "_convert"),
    ("surgery/certificate/check.py", "verify_checkpoint"),
    ("dictionaries/hub.py", "_check_single"),
}
"""The first two download; `tests/model/test_default_model.py` kills them. The others write into the system's temporary
folder."""


@dataclasses.dataclass(frozen=True)
class Saver:
    """One way to save."""

    name: str
    place: str
    """Name of the file or folder, in a folder of its own."""
    save: Callable[[Path, int], Any]
    """Writes content 0 or 1."""
    read: Callable[[Path], Any]
    """What is there, by anything that differs between the two contents; None where nothing is there."""
    prepare: Callable[[Path], None] = lambda path: None
    """Puts there what the saver finds."""
    slow: bool = False
    resumes: bool = False
    """Whether it is long work, of which a part may be there."""

    @property
    def folder(self) -> bool:
        """Whether it writes a folder."""
        return "." not in self.place


@functools.cache
def model() -> wb.model.LanguageModel:
    return wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())


@functools.cache
def corpus(number: int = 0) -> wb.Corpus:
    texts = [f"Story {one} of {number}. The dog ran to the river, and the cat ran to the house." for one in range(6)]
    return wb.Corpus(texts, f"texts {number}", {"source": "a test", "licence": f"licence {number}"})


def sae(number: int) -> wb.TopKSAE:
    return wb.TopKSAE(32, 24, 4 + number, hook_point=POINT, name="sae", seed=number)


def _read_sae(path: Path) -> Any:
    if not path.exists() or not (path / "cfg.json").exists():
        return None
    found = wb.load_dictionary(path)
    return found.hash, found.config()["k"]


def transcoder(number: int) -> wb.dictionaries.Transcoder:
    reads, writes = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
    return wb.dictionaries.Transcoder(32, 24, reads=reads, writes=writes, seed=number)


def clt(number: int) -> wb.dictionaries.CrossLayerTranscoder:
    places = [" + ".join(f"blocks.{n}.{part}" for n in (0, 1)) for part in ("mlp.hook_in", "hook_mlp_out")]
    return wb.dictionaries.CrossLayerTranscoder(64, 48, layers=2, reads=places[0], writes=places[1], seed=number)


def _read_clt(path: Path) -> Any:
    return wb.load_dictionary(path).tensors_hash if path.exists() else None


def _read_foreign(path: Path) -> Any:
    return [one.tensors_hash for one in wb.dictionaries.load_set(path)] if path.exists() else None


def _put_index(path: Path) -> None:
    (path / "index").mkdir(parents=True)
    (path / "index" / "people.sqlite").write_text("mine")


def _put_saelens(path: Path) -> None:
    """A folder of SAELens with an index in it."""
    _put_index(path)
    sae(7).write(path)
    config = json.loads((path / "cfg.json").read_text())
    del config["workbench"]
    (path / "cfg.json").write_text(json.dumps(config))
    with safe_open(path / "sae_weights.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path / "sae_weights.safetensors")


def _read_beside_index(path: Path) -> Any:
    assert (path / "index" / "people.sqlite").read_text() == "mine"
    return _read_sae(path)


def _read_corpus(path: Path) -> Any:
    if not path.exists():
        return None
    found = wb.Corpus.load(path)
    assert found.note["hash"] == found.hash
    return found.hash, found.licence


def _read_text(path: Path) -> Any:
    return path.read_text() if path.exists() else None


def _read_bytes(path: Path) -> Any:
    return path.read_bytes() if path.exists() else None


@functools.cache
def _graph(number: int) -> Any:
    return dataclasses.replace(wb.attribution.load_graph(GRAPH), counts={"number": number})


def _read_graph(path: Path) -> Any:
    return wb.attribution.load_graph(path).counts if path.exists() else None


def _published(number: int) -> Any:
    content = json.loads(PUBLISHED.read_text())
    return {**content, "metadata": content["metadata"] | {"scan": f"model {number}"}}


def _direction(number: int) -> Any:
    return wb.directions.Direction({POINT: torch.full((32,), 1.0 + number)})


def _export(path: Path, number: int) -> Any:
    wb.index.export_features(
        wb.open_index(path.parents[1] / "given" / "0"), path, model_id=f"tiny {number}", source_set="res"
    )


def _index_export(path: Path, number: int) -> Any:
    example = wb.index.ExportedExample([" dog", "s"], [2.0 + number, 0.0])
    features = {3: wb.index.ExportedFeature(3, examples=[example], promoted=[" cat"])}
    return wb.index.build_from_export(wb.index.FeatureExport("Neuronpedia", "m", "6-res", "", features), path)


def _read_export(path: Path) -> Any:
    return wb.index.open_export(path).model if path.exists() else None


def _read_direction(path: Path) -> Any:
    if not path.exists():
        return None
    return {point: one.tolist() for point, one in wb.directions.load_direction(path).vectors.items()}


@functools.cache
def _jacobian_lens(number: int) -> Any:
    return wb.lens.fit_jacobian_lens(model(), corpus(), prompts=1, context=8 + number, skip=2)


def _save_jacobian_lens(path: Path, number: int) -> None:
    _jacobian_lens(number).save(path, format="jacobian-lens")


def _read_jacobian_lens(path: Path) -> Any:
    return wb.lens.load_lens(path, model()).weight.tolist() if path.exists() else None


def _fit_jacobian_lens(path: Path, number: int) -> Any:
    how = {"prompts": 2, "context": 8 + number, "skip": 2, "checkpoint_every": 0.0}
    return wb.lens.fit_jacobian_lens(model(), corpus(), checkpoint=path, **how)


def _read_sums(path: Path) -> Any:
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["workbench"])
        return file.get_tensor("sums").tolist() if note["done"] == 2 else None


@functools.cache
def search(path: Path, number: int, **how: Any) -> Any:
    effect, cost = wb.steering.WordProbability(["the dog"], " ran"), wb.steering.Divergence(["the dog ran"])
    texts = [[f"{start} {word}" for word in ("dog", "cat", "man", "king")] for start in ("the", "a")]
    how = {"trials": 4, "seed": number, "at": POINT, "checkpoint": path, **how}
    return wb.steering.search_direction(model(), *texts, effect, cost, **how)


def _read_search(path: Path) -> Any:
    if not path.exists():
        return None
    trials = json.loads(path.read_text())["trials"]
    return trials if len(trials) == 4 else None


def _lens(number: int) -> Any:
    return wb.lens.fit_tuned_lens(model(), corpus(number), tokens=32, batch=2, context=16)


def _read_lens(path: Path) -> Any:
    return wb.lens.load_lens(path, model()).bias.tolist() if path.exists() else None


def _fit_lens(path: Path, number: int) -> Any:
    how = {"tokens": 64, "batch": 2, "context": 16, "start_tokens": 32, "checkpoint_every": 0.0, "seed": number}
    return wb.lens.fit_tuned_lens(model(), corpus(), folder=path, **how)


def _read_lens_training(path: Path) -> Any:
    return _read_lens(path) if (path / "progress.json").exists() else None


def _task(number: int) -> Any:
    return wb.circuits.Task("own", [f"The dog {number}"], ["The cat 0"], [" ran"], [" sat"])


@functools.cache
def _sparsity(number: int) -> Any:
    outcome = wb.sparsity.SparsityOutcome(
        8, 7, 1, 0.5, [0.5, 0.5], 1.0, 1.0 + number, 0.01, {"ce": (0.0, 1.0)}, [(0.0, 1.0), (0.0, 1.0)]
    )
    return wb.sparsity.Sparsity(0.01, 0.1, [0.1, 0.2], outcome, outcome, [], {}, {}, 1.0, False, {"number": number})


@functools.cache
def _child(number: int) -> Any:
    child = wb.bake(model(), [wb.Clamp(f"neurons.1.post:{number}", 2.0)])
    child.certify(corpus(), tokens=32)
    return child


def _read_child(path: Path) -> Any:
    return wb.surgery.open_child(path, model()).model.hash if path.exists() else None


@functools.cache
def _spliced(number: int) -> wb.model.LanguageModel:
    """A model that runs through a dictionary."""
    return wb.training.fine_tune(model(), corpus(), {POINT: _codebook()}, tokens=32, batch=2, context=16, seed=number)


def _codebook() -> wb.Codebook:
    return wb.Codebook(32, 8, hook_point=POINT, seed=0)


def _read_spliced(path: Path) -> Any:
    return wb.load_model(path).hash if path.exists() else None


@functools.cache
def _label_index(folder: Path, number: int) -> Any:
    index = wb.build_index(model(), sae(0), corpus(), folder, context=32, batch=4)
    index.label(0, f"label {number}")
    return index


def _export_labels(path: Path, number: int) -> None:
    index = wb.open_index(path.parents[1] / "given" / str(number))
    index.export_labels(path)


def _give_indexes(path: Path) -> None:
    for number in (0, 1):
        _label_index(path.parents[1] / "given" / str(number), number)


def _label(path: Path, number: int) -> None:
    wb.open_index(path.parent).label(0, f"label {number}")


def _find_label(path: Path, number: int) -> None:
    label = wb.index.FeatureLabel(f"label {number}", "a model")
    wb.open_index(path.parent).add_labels("a model", {0: label})


def _read_label(path: Path) -> Any:
    return wb.open_index(path.parent).feature(0).label or None


def _train(path: Path, number: int) -> Any:
    how = {"tokens": 96, "batch_size": 32, "context": 16, "block": 64, "checkpoint_every": 0.0, "seed": number}
    return wb.train(sae(0), model(), POINT, corpus(), folder=path, **how)


def _read_training(path: Path) -> Any:
    return _read_sae(path) if (path / "progress.json").exists() else None


def _fine_tune(path: Path, number: int) -> Any:
    how = {"tokens": 64, "batch": 2, "context": 16, "checkpoint_every": 0.0, "seed": number}
    return wb.training.fine_tune(model(), corpus(), {POINT: _codebook()}, folder=path, **how)


def _read_fine_tuned(path: Path) -> Any:
    if not (path / "progress.json").exists():
        return None
    return wb.load_dictionary(path / "0").hash, hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def _heal(path: Path, number: int) -> Any:
    how = {"tokens": 64, "batch": 2, "context": 16, "rank": 1, "checkpoint_every": 0.0, "seed": number}
    return wb.surgery.heal(model(), corpus(), folder=path, **how)


def _read_healed(path: Path) -> Any:
    return _read_bytes(path / "model.safetensors") if (path / "progress.json").exists() else None


def _index(path: Path, number: int) -> Any:
    return wb.build_index(model(), sae(number), corpus(), path, context=32, batch=2, commit_every=0.0)


def _read_index(path: Path) -> Any:
    if not (path / "data").exists():
        return None

    def read() -> Any:
        index = wb.open_index(path)
        files = (file for file in sorted((path / "data").iterdir()) if file.name != "index.json")
        return index.about["dictionary"]["hash"], [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    return read_steadily(read, [path / "data"], wb.WorkbenchError)  # the files apart from the index that was opened


def _store(path: Path, number: int) -> Any:
    return Store.write(Harvest(model(), corpus(), POINT, context=16, batch=2, seed=number), path, commit_every=0.0)


def _read_store(path: Path) -> Any:
    if not (path / "progress.json").exists() or not (store := Store(path)).complete:
        return None
    return store[slice(None)].values[POINT].numpy().tobytes()


def fill_cache(path: Path, number: int) -> wb.neurons.NeuronTable:
    """Open a model and decode its neurons with this cache folder; each number is another model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(path))
        opened = wb.load_model(tiny.build("gpt2", seed=number), tokenizer=tiny.tokenizer())
        return wb.decode_neurons(opened, "down", top_k=4)


SAVERS = [
    Saver("dictionary", "sae", lambda path, n: sae(n).save(path), _read_sae),
    Saver("dictionary with index", "sae", lambda path, n: sae(n).save(path), _read_beside_index, _put_index),
    Saver("dictionary over SAELens", "sae", lambda path, n: sae(n).save(path), _read_beside_index, _put_saelens),
    Saver("dictionary for SAELens", "sae", lambda path, n: sae(n).save(path, format="saelens"), _read_sae),
    Saver("dictionary for sparsify", "d", lambda path, n: sae(n).save(path, format="sparsify"), _read_foreign),
    Saver(
        "dictionary for dictionary_learning",
        "d",
        lambda path, n: sae(n).save(path, format="dictionary_learning"),
        _read_foreign,
    ),
    Saver("transcoder", "d", lambda path, n: transcoder(n).save(path, format="circuit_tracer"), _read_foreign),
    Saver("clt", "d", lambda path, n: clt(n).save(path, format="circuit_tracer_cross_layer"), _read_clt),
    Saver("corpus.jsonl", "c.jsonl", lambda path, n: corpus(n).save(path), _read_corpus),
    Saver("corpus.parquet", "c.parquet", lambda path, n: corpus(n).save(path), _read_corpus),
    Saver("graph", "g.json", lambda path, n: wb.attribution.save_graph(_graph(n), path), _read_graph),
    Saver(
        "published graph",
        "g.json",
        lambda path, n: wb.attribution.save_viewer_graph(_published(n), path),
        lambda path: wb.attribution.load_viewer_graph(path).model if path.exists() else None,
    ),
    Saver("control vector", "v.gguf", lambda path, n: _direction(n).save(path), _read_direction),
    Saver("direction", "v.safetensors", lambda path, n: _direction(n).save(path), _read_direction),
    Saver("lens for jacobian-lens", "l.pt", _save_jacobian_lens, _read_jacobian_lens),
    Saver("lens sums", "s.safetensors", _fit_jacobian_lens, _read_sums, resumes=True),
    Saver("search", "s.trials", search, _read_search, resumes=True),
    Saver("lens", "lens", lambda path, n: _lens(n).save(path), _read_lens),
    Saver("lens for tuned-lens", "lens", lambda path, n: _lens(n).save(path, format="tuned-lens"), _read_lens),
    Saver("lens training", "run", _fit_lens, _read_lens_training, slow=True, resumes=True),
    Saver("task", "t.jsonl", lambda path, n: wb.circuits.save_task(_task(n), path), _read_text),
    Saver(
        "interventions",
        "i.json",
        lambda path, n: wb.interventions.save_interventions(path, model(), [wb.Clamp("neurons.1.post:3", 2.0 + n)]),
        _read_text,
    ),
    Saver("sparsity.json", "s.json", lambda path, n: wb.sparsity.save_sparsities([_sparsity(n)], path), _read_text),
    Saver("sparsity.parquet", "s.parquet", lambda p, n: wb.sparsity.save_sparsities([_sparsity(n)], p), _read_bytes),
    Saver("labels", "l.json", _export_labels, _read_text, _give_indexes),
    Saver("labels.csv", "l.csv", _export_labels, _read_text, _give_indexes),
    Saver("found labels", "labels.parquet", _find_label, _read_label, lambda path: _index(path.parent, 0), slow=True),
    Saver("label", "people.sqlite", _label, _read_label, lambda path: _index(path.parent, 0), slow=True),
    Saver("model", "m", lambda path, n: wb.interventions.save_model(_spliced(n), path), _read_spliced, slow=True),
    Saver("child", "child", lambda path, n: _child(n).save_pretrained(path), _read_child, slow=True),
    Saver("training", "run", _train, _read_training, resumes=True),
    Saver("fine-tune", "run", _fine_tune, _read_fine_tuned, resumes=True),
    Saver("heal", "run", _heal, _read_healed, slow=True, resumes=True),
    Saver("index", "index", _index, _read_index, resumes=True),
    Saver("index over another", "index", _index, _read_index, lambda path: _index(path, 7), slow=True, resumes=True),
    Saver("export", "export", _export, _read_export, _give_indexes),
    Saver("index of an export", "index", _index_export, _read_index, resumes=True),
    Saver("store", "store", _store, _read_store, resumes=True),
]


def writers() -> Iterator[tuple[str, str]]:
    """The functions of the package that write files: file and name."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        for function in ast.walk(tree) if file.parent.name != "core" else ():
            if isinstance(function, ast.FunctionDef) and any(map(_writes, ast.walk(function))):
                yield str(file.relative_to(PACKAGE)), function.name


def _writes(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in ("write_text", "write_bytes", "mkdir", "connect")
    return isinstance(node.func, ast.Name) and node.func.id in ("replacing", "save_file")
