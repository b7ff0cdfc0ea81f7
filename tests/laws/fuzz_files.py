"""Everything that is saved, and what opens it: the fuzz alters the files of each and opens them again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import ggufs
import tiny
import torch
from fuzz_alterations import (
    Alteration,
    bytes_alterations,
    json_alterations,
    lines_alterations,
    parquet_alterations,
    sqlite_alterations,
    tensor_alterations,
)
from fuzz_examples import POINT, World

import workbench as wb
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.trainable import Trainable

SAELENS = Path(__file__).resolve().parents[1] / "fixtures" / "saelens"


@dataclass(frozen=True)
class Kept:
    """One kind of thing on disk."""

    write: Callable[[World, Path], None]
    """Write a valid one into an empty folder."""
    open: Callable[[World, Path], Any]
    """Open it; the result is plain data that says what it means."""
    free: str = ""
    """A regular expression of alterations that may change what it means: a name, a note."""


def _dictionary(kind: Any) -> Kept:
    def write(w: World, folder: Path) -> None:
        made = kind.example()
        for tensor in made.state_dict().values():
            tensor.add_(0.1)
        made.name, made.provenance = "x", {"a": 1}
        made.write(folder / "d")

    return Kept(write, lambda w, folder: _behaviour(wb.load_dictionary(folder / "d")), DICTIONARY)


DICTIONARY = (
    r"inf in threshold|cfg.json: (without )?rescale_acts"
    r"|cfg.json: (without )?(workbench( |$)|workbench.kind$|metadata|workbench\.(provenance|name|reads|writes|unit_)"
    r"|workbench\.settings\.(l0|l1|auxiliary|bandwidth)|dtype|device|reshape_activations|seed|model_name|hook_|dataset|context_size|prepend|neuronpedia|from_pretrained"
    r"|model_from|sae_lens|finetuning|aux|lp_norm|l0_|init_|noise|decoder|mse|use_|jumprelu_|pre_act|k_aux|l1_|topk_thr)"
)


def _behaviour(dictionary: Dictionary) -> list[Any]:
    """What a dictionary makes of some inputs."""
    x = torch.randn(5, dictionary.d_in, generator=torch.Generator().manual_seed(0))
    codes = dictionary.encode(x)
    return [type(dictionary).__name__, codes.dense().tolist(), dictionary.reconstruct(x).tolist()]


def _saelens(name: str) -> Kept:
    def write(w: World, folder: Path) -> None:
        shutil.copytree(SAELENS / name, folder / "d", ignore=shutil.ignore_patterns("expected*"))

    return Kept(write, lambda w, folder: _behaviour(wb.load_dictionary(folder / "d")), f"{DICTIONARY}|swapped|bytes")


def _foreign(name: str, free: str) -> Kept:
    """A folder of another tool, which has no hashes: an altered number in it is another dictionary."""

    def write(w: World, folder: Path) -> None:
        shutil.copytree(SAELENS.parent / name, folder / "d", ignore=shutil.ignore_patterns("expected*"))

    def content(w: World, folder: Path) -> list[Any]:
        return [_behaviour(one) for one in wb.dictionaries.load_set(folder / "d")]

    return Kept(write, content, f"{free}|swapped|bytes|inf in")


def _index_content(w: World, folder: Path) -> list[Any]:
    index = wb.open_index(folder / "index", w.model, w.sae)
    cards = [index.feature(number).to_dict() for number in (0, 1, 2)]
    remarks = {number: (one.label, one.note, one.starred) for number, one in index.remarks().items()}
    return [cards, [hit.index for hit in index.search("dog")], remarks, len(index.search(label="word"))]


def _write_index(w: World, folder: Path) -> None:
    shutil.copytree(w.index.path, folder / "index")
    wb.open_index(folder / "index").label(1, "a word")


def _exported_content(w: World, folder: Path) -> list[Any]:
    index = wb.open_index(folder / "index")
    about = {name: index.about[name] for name in ("dictionary", "export", "n_tokens")}
    return [about, index.feature(3).to_dict(), [hit.index for hit in index.search("dog")]]


def _write_exported(w: World, folder: Path) -> None:
    labels = [wb.index.ExportedLabel("dogs", "me")]
    example = wb.index.ExportedExample([" dog", "s"], [2.0, 0.0])
    features = {3: wb.index.ExportedFeature(3, labels, [example], 0.5, promoted=[" cat"])}
    wb.index.build_from_export(wb.index.FeatureExport("Neuronpedia", "m", "6-res", "", features), folder / "index")


def _labels(name: str) -> Kept:
    def write(w: World, folder: Path) -> None:
        w.index.label(1, "a word")
        w.index.export_labels(folder / name)

    def content(w: World, folder: Path) -> Any:
        shutil.copytree(w.index.path, folder / "index")
        try:
            index = wb.open_index(folder / "index")
            index.import_labels(folder / name)
            return [index.feature(1).label, sorted(index.remarks())]
        finally:
            shutil.rmtree(folder / "index")

    return Kept(write, content, "features|name" if name.endswith("json") else ".")


def _store_content(w: World, folder: Path) -> Any:
    store = wb.harvest.Store(folder / "store")
    part = store[:]
    again = wb.harvest.Store.write(w.harvest, folder / "store")
    return [{name: one.tolist() for name, one in part.values.items()}, part.tokens.tolist(), len(again)]


def _corpus(name: str) -> Kept:
    def content(w: World, folder: Path) -> Any:
        loaded = wb.Corpus.load(folder / name)
        return [list(loaded.texts), loaded.hash]

    return Kept(lambda w, folder: w.corpus.save(folder / name), content, ".")


def _training(w: World, folder: Path) -> Any:
    sae = wb.TopKSAE(32, 16, 2)
    how: dict[str, Any] = {"tokens": 120, "context": 16, "batch_size": 16, "block": 32, "checkpoint_every": 0.0}
    count = iter(range(100))
    stop = (lambda: next(count) >= 3) if not (folder / "run").exists() else None
    wb.train(sae, w.model, POINT, w.corpus, folder=folder / "run", cancel=stop, **how)
    return [sae.hash, len(wb.training.read_history(folder / "run")) > 0]


def _fine_tuning(w: World, folder: Path) -> Any:
    how: dict[str, Any] = {"tokens": 120, "context": 16, "batch": 2, "checkpoint_every": 0.0}
    count = iter(range(100))
    stop = (lambda: next(count) >= 2) if not (folder / "run").exists() else None
    return wb.training.fine_tune(w.model, w.corpus, folder=folder / "run", cancel=stop, **how).hash


def _history(w: World, folder: Path) -> Any:
    return [line["step"] for line in wb.training.read_history(folder)]


def _table(w: World, folder: Path) -> Any:
    with wb_cache(folder / "cache"):
        table = wb.decode_neurons(w.model, "gate", 5)
    return [table.tokens.tolist(), table.scores.tolist(), table.excess.tolist()]


def _hook_points(w: World, folder: Path) -> Any:
    with wb_cache(folder / "cache"):
        model = wb.load_model(w.model.network.module, tokenizer=w.model.tokenizer)
    return [(point.name, point.shape, point.module, point.side, point.key) for point in model.hook_points.values()]


def wb_cache(folder: Path) -> Any:
    """A cache folder for a block."""
    import os
    from contextlib import contextmanager

    @contextmanager
    def change() -> Iterator[None]:
        before = os.environ.get("WORKBENCH_CACHE")
        os.environ["WORKBENCH_CACHE"] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["WORKBENCH_CACHE"]
            else:
                os.environ["WORKBENCH_CACHE"] = before

    return change()


def _child(w: World, folder: Path) -> Any:
    child = wb.surgery.open_child(folder / "child", w.model)
    certificate = child.certificate
    assert certificate is not None
    numbers = [certificate.kl, certificate.perplexity_after, certificate.max_logit_difference]
    return [child.model.hash, child.model(torch.tensor([[3, 4, 5]])).tolist(), numbers, certificate.to_markdown() != ""]


def _write_child(w: World, folder: Path) -> None:
    shutil.copytree(w.saved_child, folder / "child")


def _spliced(w: World, folder: Path) -> Any:
    model = wb.load_model(folder / "model")
    return [model(torch.tensor([[3, 4, 5]])).tolist(), model.hash]


def _gguf(w: World, folder: Path) -> Any:
    model = wb.load_model(folder / "model.gguf")
    return [model(torch.tensor([[3, 4, 5]])).tolist(), model.to_tokens("The dog").tolist(), sorted(model.stop_tokens)]


def _direction(file: Path) -> Any:
    read = wb.directions.load_direction(file)
    return {point: vector.tolist() for point, vector in read.vectors.items()}


def _lens(w: World, folder: Path) -> Any:
    lens = wb.lens.load_lens(folder / "lens", w.model)
    return [lens.transport(0, torch.ones(2, 32)).tolist(), lens.about.model_name, list(lens.about.layers)]


TIMES = "history|provenance|seconds"

KEPT: dict[str, Kept] = {
    **{f"dictionary {word}": _dictionary(kind) for word, kind in Dictionary.kinds.items() if not kind.of_model},
    **{f"SAELens {one.name}": _saelens(one.name) for one in sorted(SAELENS.iterdir())},
    "sparsify": _foreign("sparsify/groupmax/layers.1.mlp", r"cfg.json: .*(k|activation|transcode)"),
    "dictionary_learning": _foreign("dictionary_learning/trainer_5", r"config.json: .*(dict_class|\.k\b|io)"),
    "circuit-tracer": _foreign("circuit_tracer/jumprelu", "threshold|line|layer_2.safetensors: gone"),
    "index": Kept(
        _write_index, _index_content, r"people\.sqlite|index.json: .*(name|provenance|licence|source|command)"
    ),
    "index of an export": Kept(_write_exported, _exported_content, r"index.json: .*(versions|command)"),
    "labels": _labels("labels.json"),
    "labels csv": _labels("labels.csv"),
    "store": Kept(
        lambda w, folder: wb.harvest.Store.write(w.harvest, folder / "store") and None,
        _store_content,
        r"progress.json: .*(command|versions|checksums)",
    ),
    "corpus jsonl": _corpus("texts.jsonl"),
    "corpus parquet": _corpus("texts.parquet"),
    "task": Kept(
        lambda w, folder: wb.circuits.save_task(w.task, folder / "task.jsonl"),
        lambda w, folder: [str(wb.circuits.load_task(folder / "task.jsonl"))],
        "line",
    ),
    "graph": Kept(
        lambda w, folder: wb.attribution.save_graph(w.graph.prune(0.3, 0.3), folder / "graph.json"),
        lambda w, folder: wb.attribution.to_json(wb.attribution.load_graph(folder / "graph.json")),
        ".",
    ),
    "export": Kept(
        lambda w, folder: wb.index.export_features(w.index, folder / "export", model_id="tiny", source_set="res"),
        lambda w, folder: [repr(asdict(one)) for one in wb.index.open_export(folder / "export").features.values()],
        ".",
    ),
    "published graph": Kept(
        lambda w, folder: wb.attribution.save_viewer_graph(w.published, folder / "graph.json"),
        lambda w, folder: json.dumps(wb.attribution.load_viewer_graph(folder / "graph.json").to_dict()),
        ".",
    ),
    "control vector": Kept(
        lambda w, folder: w.direction.save(folder / "sad.gguf"),
        lambda w, folder: _direction(folder / "sad.gguf"),
        "name",
    ),
    "lens": Kept(lambda w, folder: w.lens.save(folder / "lens"), _lens, r"lens.json: .*(versions|command)"),
    "jacobian-lens": Kept(
        lambda w, folder: w.jacobian_lens.save(folder / "lens.pt", format="jacobian-lens"),
        lambda w, folder: wb.lens.load_lens(folder / "lens.pt", w.model).weight.tolist(),
        "bytes altered",
    ),
    "tuned-lens": Kept(
        lambda w, folder: w.lens.save(folder / "lens", format="tuned-lens"),
        _lens,
        "base_model|fitted_on|model_name|lens_type|bias$|unembed|bytes altered",
    ),
    "direction": Kept(
        lambda w, folder: w.direction.save(folder / "sad.safetensors"),
        lambda w, folder: _direction(folder / "sad.safetensors"),
        "name",
    ),
    "edits": Kept(
        lambda w, folder: wb.interventions.save_interventions(
            folder / "edits.json", w.model, [*w.edits, wb.Steer(w.sae.feature(1), 2.0, positions=[0, 1])]
        ),
        lambda w, folder: [
            str(one) for one in wb.interventions.load_interventions(folder / "edits.json", w.model, [w.sae])
        ],
        r"interventions\.\d|model.name|dictionaries",
    ),
    "child": Kept(_write_child, _child, "certificate.md"),
    "model with dictionaries": Kept(
        lambda w, folder: wb.interventions.save_model(w.speaker, folder / "model"),
        _spliced,
        "about|name",
    ),
    "training": Kept(lambda w, folder: _training(w, folder) and None, _training, TIMES),
    "fine-tuning": Kept(lambda w, folder: _fine_tuning(w, folder) and None, _fine_tuning, f"{TIMES}|model.safetensors"),
    "history": Kept(
        lambda w, folder: (folder / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2}\n') and None,
        _history,
        "line|history",
    ),
    "GGUF": Kept(
        lambda w, folder: ggufs.write(folder / "model.gguf", tiny.build("llama"), tiny.tokenizer()) and None,
        _gguf,
        "bytes altered",
    ),
    "cached table": Kept(lambda w, folder: _table(w, folder) and None, _table),
    "cached hook points": Kept(lambda w, folder: _hook_points(w, folder) and None, _hook_points),
}


def alterations(folder: Path) -> Iterator[Alteration]:
    """Every alteration of every file of a folder, to a copy of the folder."""
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        kinds: list[Iterator[Alteration]] = [bytes_alterations(file)]
        if file.suffix == ".json":
            kinds.append(json_alterations(file))
        elif file.suffix == ".jsonl":
            kinds.append(lines_alterations(file))
        elif file.suffix == ".safetensors":
            kinds.append(tensor_alterations(file))
        elif file.suffix == ".parquet":
            kinds.append(parquet_alterations(file))
        elif file.suffix == ".sqlite":
            kinds.append(sqlite_alterations(file))
        inside = file.relative_to(folder)
        for what, act in chain(*kinds):
            yield what, lambda copy, act=act, inside=inside: act(copy / inside)


def equal(one: Any, other: Any) -> bool:
    """Whether two results mean the same, numbers but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


assert Trainable  # kinds that learn are registered
