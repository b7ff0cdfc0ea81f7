"""A small valid call of every public function, constructor and method; the fuzz replaces its arguments one by one."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch

import workbench as wb

POINT = "blocks.1.hook_resid_post"
MLP = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
NEURON = "neurons.1.post:7"
LEARNS = {"tokens": 40, "context": 16, "batch": 2, "seed": 0, "folder": None, "checkpoint_every": 60.0}
READS = {"tokens": 40, "context": 16, "batch": 2, "seed": 0}
COUNTER = itertools.count()


class World:
    """What valid calls need, each made at its first use.

    Args:
        model: a tiny model.
        folder: where files go.
    """

    def __init__(self, model: wb.model.LanguageModel, folder: Path):
        self.model, self.folder = model, folder

    def new(self, ending: str = "") -> Path:
        """A path where nothing is yet."""
        return self.folder / f"new{next(COUNTER)}{ending}"

    def floats(self, *shape: int) -> torch.Tensor:
        """Numbers from 0 to 1 on the model's device, the same each time."""
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(self.model.device)

    @functools.cached_property
    def corpus(self) -> wb.Corpus:
        return wb.Corpus([*tiny.TEXT.strip().split("\n"), "The dog ran. " * 5, "A cat sat."])

    @functools.cached_property
    def sae(self) -> Any:
        return wb.TopKSAE(32, 24, 4, hook_point=POINT, name="tiny-sae")

    @functools.cached_property
    def saved_sae(self) -> Path:
        self.sae.write(self.folder / "sae")
        return self.folder / "sae"

    @functools.cached_property
    def transcoders(self) -> list[Any]:
        return [
            wb.dictionaries.TopKTranscoder(
                32, 24, 4, reads=f"blocks.{n}.mlp.hook_in", writes=f"blocks.{n}.hook_mlp_out", name=f"t{n}"
            )
            for n in range(self.model.network.n_layers)
        ]

    @functools.cached_property
    def codebook(self) -> Any:
        book = wb.Codebook(32, 8, 2)
        book.reads = book.writes = POINT
        book.name = "tiny-book"
        return book

    @functools.cached_property
    def bottleneck(self) -> Any:
        return wb.dictionaries.KeyValueBottleneck(8, 3, 4, 6, 2)

    @functools.cached_property
    def graph(self) -> Any:
        return wb.attribution.attribute(self.model, self.transcoders, "The dog ran")

    @functools.cached_property
    def saved_graph(self) -> Path:
        wb.attribution.save_graph(self.graph, self.folder / "graph.json")
        return self.folder / "graph.json"

    @functools.cached_property
    def published(self) -> Any:
        return wb.attribution.to_neuronpedia(self.graph.prune(0.3, 0.3), "x")

    @functools.cached_property
    def direction(self) -> Any:
        return wb.directions.Direction({POINT: torch.arange(1.0, 33)}, "sad")

    @functools.cached_property
    def task(self) -> Any:
        return wb.circuits.Task(
            "animals",
            ["The dog ran to the", "The cat ran to the"],
            ["The dog and to the", "The cat and to the"],
            [["a", "b"], ["c"]],
            [["f"], ["g"]],
        )

    @functools.cached_property
    def alignment(self) -> Any:
        return wb.circuits.align_task(self.model, self.task)

    @functools.cached_property
    def saved_task(self) -> Path:
        wb.circuits.save_task(self.task, self.folder / "task.jsonl")
        return self.folder / "task.jsonl"

    @functools.cached_property
    def jacobian_lens(self) -> Any:
        return wb.lens.fit_jacobian_lens(self.model, self.corpus, prompts=1, context=8, skip=2)

    @functools.cached_property
    def lens(self) -> Any:
        layers = tuple(range(-1, self.model.network.n_layers - 1))
        record = wb.lens.LensRecord(self.model.name, self.model.hash, layers, {"tokens": 40})
        maps = 0.05 * self.floats(len(layers), 33, 32)
        return wb.lens.TunedLens(maps[:, :32].contiguous(), maps[:, 32].contiguous(), record)

    @functools.cached_property
    def saved_lens(self) -> Path:
        self.lens.save(self.folder / "lens")
        return self.folder / "lens"

    @functools.cached_property
    def table(self) -> Any:
        return wb.decode_neurons(self.model, "gate", 5)

    @functools.cached_property
    def index(self) -> Any:
        return wb.build_index(self.model, self.sae, self.corpus, self.folder / "index", context=16, batch=2)

    @functools.cached_property
    def edits(self) -> list[Any]:
        return [wb.Clamp(NEURON, 2.0)]

    @functools.cached_property
    def saved_edits(self) -> Path:
        wb.interventions.save_interventions(self.folder / "edits.json", self.model, self.edits)
        return self.folder / "edits.json"

    @functools.cached_property
    def child(self) -> Any:
        child = wb.bake(self.model, [wb.Scale(NEURON, 0.5)])
        child.certify(self.corpus, 40, context=16)
        return child

    @functools.cached_property
    def saved_child(self) -> Path:
        self.child.save_pretrained(self.folder / "child")
        return self.folder / "child"

    @functools.cached_property
    def sparsity(self) -> Any:
        return wb.sparsity.measure_sparsities(self.model, self.corpus, [10.0], 60, context=16, batch=2, resamples=9)[0]

    @functools.cached_property
    def groups(self) -> Any:
        return wb.sparsity.group_neurons(self.model, 0.1, self.corpus, 4, 60, context=16, batch=2)

    @functools.cached_property
    def machine(self) -> Any:
        return wb.synthetic.TokFSM(6, 2, 1, 8, 1)

    @functools.cached_property
    def speaker(self) -> wb.model.LanguageModel:
        """A model of the machine's language with a codebook in it."""
        module = tiny.build("llama", vocab_size=self.machine.n_vocab, max_position_embeddings=16, eos_token_id=None)
        model = wb.load_model(module, tokenizer=self.machine.tokenizer())
        model.splices = {POINT: self.codebook}
        return model

    @functools.cached_property
    def counts(self) -> Any:
        return wb.synthetic.count_codes(self.speaker, self.machine, [POINT], 8)

    @functools.cached_property
    def labelled(self) -> Any:
        return wb.surgery.Labelled([["the", "dog"], ["a", "cat"]], [[0, 1], [0, 1]], ("none", "comma"))

    @functools.cached_property
    def harvest(self) -> Any:
        return wb.harvest.Harvest(self.model, self.corpus, POINT, tokens=40, context=16, batch=2)

    @functools.cached_property
    def saved_store(self) -> Path:
        wb.harvest.Store.write(self.harvest, self.folder / "store")
        return self.folder / "store"

    @functools.cached_property
    def comparison(self) -> Any:
        return wb.compare(self.model, "The dog", self.edits, 3)

    @functools.cached_property
    def fidelity(self) -> Any:
        return wb.measure_fidelity(self.model, self.sae, self.corpus, tokens=40, context=16, batch=2, resamples=9)

    @functools.cached_property
    def logits(self) -> torch.Tensor:
        return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))


def _judge(w: World) -> Any:
    rule = {"join": "and", "conditions": [{"slot": "word", "values": ["dog"]}]}
    return wb.labels.RuleJudge(w.index, json.dumps(rule))


def _opened(w: World) -> Any:
    return wb.open_index(w.index.path, w.model, w.sae)


def _supernodes(w: World) -> Any:
    latents = [node.id for node in w.graph.nodes if node.kind == "latent"]
    return wb.attribution.Supernodes({"one": latents[:2], "two": latents[2:3]})


Calls = dict[str, Callable[[World], dict[str, Any]]]
TOKENS = torch.tensor([[3, 4, 5, 6, 7]])
NOTHING: dict[str, Any] = {"progress": None, "cancel": None}


def _coder(**more: Any) -> Callable[[World], dict[str, Any]]:
    return lambda w: {"d_in": 8, "width": 12, "name": "x", "seed": 0} | more


SAE = {"hook_point": POINT}
ENDS = {"d_out": 8, "reads": MLP[0], "writes": MLP[1]}

ANIMALS = ["dog", "cat", "man", "cow", "pig", "hen", "fox", "owl", "ant", "bee"]

FUNCTIONS: Calls = {
    "attribution.attribute": lambda w: {
        "model": w.model,
        "transcoders": w.transcoders,
        "prompt": "The dog ran",
        "target": None,
        "position": None,
    },
    "attribution.deembed": lambda w: {"model": w.model, "transcoder": w.transcoders[1], "index": 3},
    "attribution.head_drives": lambda w: {"model": w.model, "transcoder": w.transcoders[1], "index": 3},
    "attribution.token_drives": lambda w: {"model": w.model, "transcoder": w.transcoders[1], "index": 3},
    "attribution.from_json": lambda w: {"text": wb.attribution.to_json(w.graph)},
    "attribution.load_graph": lambda w: {"path": w.saved_graph},
    "attribution.save_graph": lambda w: {"graph": w.graph, "path": w.new(".json")},
    "attribution.to_json": lambda w: {"graph": w.graph},
    "attribution.to_neuronpedia": lambda w: {
        "graph": w.graph,
        "slug": "x",
        "scan": "",
        "pinned": [1],
        "supernodes": {"pets": [1]},
        "labels": {1: "dogs"},
    },
    "attribution.read_viewer_graph": lambda w: {"text": json.dumps(w.published)},
    "attribution.load_viewer_graph": lambda w: {"path": _published(w)},
    "attribution.save_viewer_graph": lambda w: {"content": w.published, "path": w.new(".json")},
    "dictionaries.Directions": lambda w: {"vectors": torch.ones(2, 32), "hook_point": POINT, "name": "sad"},
    "directions.Direction": lambda w: {
        "vectors": {POINT: torch.arange(1.0, 33)},
        "name": "sad",
        "model_name": "tiny",
        "provenance": {},
    },
    "directions.find_direction": lambda w: {
        "model": w.model,
        "positives": ["a dog ran", "the dog sat", "one dog"],
        "negatives": ["a cat ran", "the cat sat", "one cat"],
        "at": [POINT],
        "method": "difference",
        "position": "last",
        "seed": 0,
    },
    "directions.find_directions": lambda w: {
        "model": w.model,
        "positives": ["a dog ran", "the dog sat", "one dog"],
        "negatives": ["a cat ran", "the cat sat", "one cat"],
        "at": [POINT],
        "method": "difference",
        "position": "last",
        "seed": 0,
    },
    "directions.probe": lambda w: {
        "model": w.model,
        "texts": [f"the {word} ran" for word in ANIMALS],
        "labels": [0, 1] * 5,
        "at": [POINT],
        "position": "last",
        "seed": 0,
    },
    "steering.Divergence": lambda w: {"texts": ["a dog ran"]},
    "steering.PatternShare": lambda w: {"prompts": ["a dog"], "pattern": "a", "max_new_tokens": 2},
    "steering.Perplexity": lambda w: {"texts": ["a dog ran"]},
    "steering.Projection": lambda w: {"prompts": ["a dog"], "hook_point": POINT, "vector": [1.0] * 32},
    "steering.Repetition": lambda w: {"prompts": ["a dog"], "max_new_tokens": 2},
    "steering.WordProbability": lambda w: {"prompts": ["a dog"], "words": [" ran"]},
    "steering.feature_direction": lambda w: {"model": w.model, "feature": NEURON},
    "steering.lm_eval_model": lambda w: {"model": w.model, "interventions": [], "batch": 2},
    "steering.optimise_direction": lambda w: {
        "model": w.model,
        "prompts": ["a dog"],
        "continuation": " ran",
        "at": POINT,
        "share": 0.5,
        "steps": 1,
    },
    "steering.token_direction": lambda w: {"model": w.model, "word": "a", "at": POINT},
    "steering.search_direction": lambda w: {
        "model": w.model,
        "positives": ["a dog ran", "the dog sat", "one dog"],
        "negatives": ["a cat ran", "the cat sat", "one cat"],
        "effect": wb.steering.WordProbability(["a dog"], " ran"),
        "cost": wb.steering.Divergence(["a dog ran"]),
        "at": [POINT],
        "methods": ["difference"],
        "positions": ["last"],
        "acts": ["add"],
        "strengths": (0.5, 1.0),
        "trials": 2,
        "seed": 0,
        "checkpoint": None,
        "cancel": None,
    },
    "directions.load_direction": lambda w: {"path": _saved_direction(w)},
    "attribution.group_nodes": lambda w: {
        "model": w.model,
        "transcoders": w.transcoders,
        "graph": w.graph,
        "labels": {1: "dogs"},
        "most": 4,
    },
    "attribution.supernodes_of": lambda w: {"graph": w.graph},
    "attribution.with_supernodes": lambda w: {"graph": w.graph, "groups": _supernodes(w)},
    "attribution.verify_groups": lambda w: {
        "model": w.model,
        "transcoders": w.transcoders,
        "graph": w.graph,
        "groups": _supernodes(w),
        "controls": 1,
    },
    "attribution.verify_graph": lambda w: {
        "model": w.model,
        "transcoders": w.transcoders,
        "graph": w.graph,
        "nodes": 2,
    },
    "differences.compare_models": lambda w: {
        "a": w.model,
        "b": w.model,
        "corpus": w.corpus,
        "tokens": 40,
        "graft_tokens": 8,
        "context": 16,
        "prompts": ["The dog"],
        "max_new_tokens": 2,
    },
    "circuits.align_prompts": lambda w: {
        "model": w.model,
        "clean": ["The dog ran"],
        "corrupted": ["The cat and"],
        "spans": {"subject": ("dog", "cat")},
        "answers": ["a"],
        "wrong": ["b"],
    },
    "circuits.align_task": lambda w: {"model": w.model, "task": w.task},
    "circuits.attribute_positions": lambda w: {"model": w.model, "alignment": w.alignment, "layers": [0, 1]},
    "circuits.EmbeddingNoise": lambda w: {"place": "subject", "scale": 3.0, "samples": 2, "seed": 0},
    "circuits.open_cell": lambda w: {
        "model": w.model,
        "alignment": w.alignment,
        "row": "1",
        "place": w.alignment.places[0],
    },
    "circuits.patch_positions": lambda w: {"model": w.model, "alignment": w.alignment, "layers": [0, 1]},
    "circuits.attribution_patching": lambda w: {"model": w.model, "task": w.task},
    "circuits.edge_attribution_patching": lambda w: {"model": w.model, "task": w.task},
    "circuits.docstring": lambda w: {"model": w.model, "examples": 2},
    "circuits.encode_task": lambda w: {"model": w.model, "task": w.task},
    "circuits.evaluate_scores": lambda w: {"scores": torch.arange(6.0), "circuit": torch.arange(6) > 3},
    "circuits.evaluate_task": lambda w: {"model": w.model, "task": w.task},
    "circuits.find_circuit_discrete": lambda w: {
        "model": w.model,
        "positives": ["The dog", "The cat"],
        "negatives": ["The cat", "The dog"],
        "examples": 1,
        "features": 4,
        "epochs": 2,
    },
    "circuits.from_jsonl": lambda w: {"text": wb.circuits.to_jsonl(w.task), "name": "own"},
    "circuits.greater_than": lambda w: {"model": w.model, "examples": 2},
    "circuits.greater_than_model": lambda w: {"seed": 0},
    "circuits.head_outputs": lambda w: {"model": w.model, "positives": ["The dog"], "negatives": ["The cat"]},
    "circuits.induction_model": lambda w: {"seed": 0},
    "circuits.ioi": lambda w: {"model": w.model, "examples": 2},
    "circuits.keep_heads": lambda w: {"model": w.model, "task": w.task, "heads": [(0, 1)]},
    "circuits.load_task": lambda w: {"path": w.saved_task},
    "circuits.log_odds": lambda w: {
        "logits": torch.zeros(2, tiny.VOCAB, device=w.model.device),
        "encoded": wb.circuits.encode_task(w.model, w.task),
    },
    "circuits.patch_components": lambda w: {"model": w.model, "task": w.task},
    "circuits.patch_edges": lambda w: {"model": w.model, "task": w.task, "edges": [(0, 1, 1, 0)]},
    "circuits.roc_auc": lambda w: {"scores": torch.arange(6.0), "circuit": torch.arange(6) > 3},
    "circuits.roc_curve": lambda w: {"scores": torch.arange(6.0), "circuit": torch.arange(6) > 3},
    "circuits.save_task": lambda w: {"task": w.task, "path": w.new(".jsonl")},
    "circuits.strongest_components": lambda w: {"effects": torch.arange(6.0)},
    "circuits.to_jsonl": lambda w: {"task": w.task},
    "circuits.Task": lambda w: {
        "name": "x",
        "positives": ["a b"],
        "corrupted": ["b b"],
        "answers": ["c"],
        "wrong": [["d"]],
    },
    "corpus.Corpus": lambda w: {"texts": ["a text"], "name": "x", "note": {}},
    "corpus.as_corpus": lambda w: {"texts": w.corpus},
    "corpus.special_ids": lambda w: {"model": w.model},
    "dictionaries.BatchTopKSAE": _coder(k=2, **SAE),
    "dictionaries.MatryoshkaBatchTopKSAE": _coder(k=2, widths=[4, 12], **SAE),
    "dictionaries.GatedSAE": _coder(**SAE),
    "dictionaries.TopKSAE": _coder(k=2, **SAE),
    "dictionaries.TopKTranscoder": _coder(k=2, **ENDS),
    "dictionaries.TopKSkipTranscoder": _coder(k=2, **ENDS),
    "dictionaries.GroupMaxSAE": _coder(k=2, **SAE),
    "dictionaries.GroupMaxTranscoder": _coder(k=2, **ENDS),
    "dictionaries.GroupMaxSkipTranscoder": _coder(k=2, **ENDS),
    "dictionaries.JumpReLUSAE": _coder(l0=1.0, bandwidth=0.05, **SAE),
    "dictionaries.JumpReLUTranscoder": _coder(l0=1.0, bandwidth=0.05, **ENDS),
    "dictionaries.JumpReLUSkipTranscoder": _coder(l0=1.0, bandwidth=0.05, **ENDS),
    "dictionaries.StandardSAE": _coder(l1=1.0, **SAE),
    "dictionaries.Transcoder": _coder(l1=1.0, **ENDS),
    "dictionaries.SkipTranscoder": _coder(l1=1.0, **ENDS),
    "dictionaries.CrossLayerTranscoder": lambda w: {
        "d_in": 8,
        "width": 4,
        "l0": 1.0,
        "layers": 2,
        "bandwidth": 0.05,
        "skip": True,
        "reads": "blocks.0.mlp.hook_in + blocks.1.mlp.hook_in",
        "writes": "blocks.0.hook_mlp_out + blocks.1.hook_mlp_out",
        "name": "x",
        "seed": 0,
    },
    "dictionaries.Crosscoder": lambda w: {
        "d_in": 8,
        "width": 4,
        "l0": 1.0,
        "points": 2,
        "bandwidth": 0.05,
        "d_out": 8,
        "reads": "blocks.0.hook_resid_post + blocks.1.hook_resid_post",
        "writes": "blocks.0.hook_resid_post + blocks.1.hook_resid_post",
        "name": "x",
        "seed": 0,
    },
    "dictionaries.Codebook": lambda w: {"d_in": 8, "n_codes": 4, "k": 1, "groups": 2},
    "dictionaries.KeyValueBottleneck": lambda w: {
        "d_in": 8,
        "d_value": 3,
        "codebooks": 4,
        "n_keys": 6,
        "d_key": 2,
    },
    "dictionaries.Feature": lambda w: {"dictionary": "neurons.1.post", "index": 7},
    "dictionaries.load_dictionary": lambda w: {
        "path": w.saved_sae,
        "hook_point": w.sae.reads,
        "writes": None,
        "model_name": None,
        "device": w.model.device,
    },
    "dictionaries.load_set": lambda w: {"path": w.saved_sae, "device": w.model.device},
    "evaluation.bootstrap": lambda w: {
        "sums": {"a": torch.arange(4.0)},
        "measures": lambda sums: {"a": sums["a"]},
        "resamples": 9,
    },
    "evaluation.cross_entropy": lambda w: {
        "logits": w.logits,
        "targets": torch.ones(2, 5, dtype=torch.long),
        "counted": torch.ones(2, 5, dtype=torch.bool),
    },
    "evaluation.kl_divergence": lambda w: {
        "p_logits": w.logits,
        "q_logits": w.logits + 1,
        "counted": torch.ones(2, 5, dtype=torch.bool),
    },
    "evaluation.logits_under": lambda w: {"model": w.model, "tokens": TOKENS, "edits": w.model.bind(w.edits)},
    "evaluation.perplexity": lambda w: {"losses": torch.ones(3)},
    "evaluation.predictions": lambda w: {"content": torch.ones(2, 5, dtype=torch.bool)},
    "evaluation.repetition": lambda w: {"tokens": [1, 2, 3, 1, 2, 3], "n": 2},
    "evaluation.windows_at_once": lambda w: {"model": w.model, "context": 16, "batch": 4},
    "evaluation.token_losses": lambda w: {
        "logits": w.logits,
        "tokens": torch.ones(2, 5, dtype=torch.long),
        "counted": torch.ones(2, 4, dtype=torch.bool),
    },
    "harvest.Harvest": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "hook_points": [POINT],
        "tokens": 40,
        "context": 16,
        "batch": 2,
        "seed": 0,
        "repeat": False,
        "shard": (0, 1),
    },
    "harvest.Buffer": lambda w: {"source": w.harvest, "batch_size": 8, "block": 16, "seed": 0},
    "harvest.Store": lambda w: {"folder": w.saved_store, "hook_points": [POINT]},
    "index.open_export": lambda w: {"path": _export(w), "layer": None, "examples": 3},
    "index.export_features": lambda w: {
        "index": w.index,
        "folder": w.new(),
        "form": "neuronpedia",
        "model_id": "tiny",
        "source_set": "res",
        "creator": "",
    },
    "index.build_from_export": lambda w: {"export": wb.index.open_export(_export(w)), "path": w.new()},
    "index.add_labels": lambda w: {"index": w.index, "export": wb.index.open_export(_export(w))},
    "index.build_index": lambda w: {
        "model": w.model,
        "dictionary": w.sae,
        "corpus": w.corpus,
        "path": w.new(),
        "keep": None,
        "commit_every": 5.0,
        **READS,
    },
    "index.group_features": lambda w: {"index": w.index, "dictionary": w.sae, "least": 0.1, "nearest": 3, "seed": 0},
    "index.match_features": lambda w: {"index": _opened(w), "other": _opened(w)},
    "index.build_indexes": lambda w: {
        "model": w.model,
        "dictionaries": {w.new(): w.sae},
        "corpus": w.corpus,
        "keep": None,
        **READS,
    },
    "index.open_index": lambda w: {"path": w.index.path, "model": w.model, "dictionary": w.sae},
    "index.text_ends": lambda w: {"model": w.model, "texts": ["a"]},
    "interventions.choices": lambda w: {"dictionary": w.sae},
    "interventions.dictionary_of": lambda w: {"model": w.model, "feature": NEURON},
    "interventions.Ablate": lambda w: {"feature": NEURON, "mode": "zero", "mean": None, "positions": "all"},
    "interventions.AblateDirection": lambda w: {"direction": [1.0] * 32, "more": None, "layers": [0]},
    "interventions.Clamp": lambda w: {"feature": NEURON, "value": 1.0, "positions": "all"},
    "interventions.Force": lambda w: {"feature": w.codebook.feature(1), "replaces": "least", "positions": "all"},
    "interventions.Limit": lambda w: {
        "feature": NEURON,
        "value": 1.0,
        "side": "least",
        "share": 1.0,
        "positions": "all",
        "when": None,
    },
    "interventions.RemoveHead": lambda w: {"layer": 0, "head": 1},
    "interventions.RemoveLayer": lambda w: {"layer": 0},
    "interventions.RemoveSublayer": lambda w: {"layer": 0, "part": "mlp"},
    "interventions.Scale": lambda w: {"feature": NEURON, "factor": 1.0, "positions": "all"},
    "interventions.Steer": lambda w: {
        "feature": NEURON,
        "amount": 1.0,
        "hook_point": None,
        "direction": None,
        "positions": "all",
    },
    "interventions.SwapDirections": lambda w: {
        "hook_point": POINT,
        "first": [1.0] * 32,
        "second": [1.0, -1.0] * 16,
        "amount": 1.0,
        "positions": "all",
    },
    "interventions.When": lambda w: {"feature": NEURON, "above": 1.0, "below": None, "scope": "token"},
    "interventions.load_interventions": lambda w: {
        "path": w.saved_edits,
        "model": w.model,
        "dictionaries": [w.sae],
    },
    "interventions.save_interventions": lambda w: {
        "path": w.new(".json"),
        "model": w.model,
        "interventions": w.edits,
    },
    "interventions.load_model": lambda w: {
        "source": w.model.network.module,
        "device": "cpu",
        "dtype": "float32",
        "tokenizer": w.model.tokenizer,
    },
    "interventions.save_model": lambda w: {"model": w.speaker, "path": w.new(), "half": False},
    "measures.compare": lambda w: {
        "model": w.model,
        "prompt": "The dog",
        "interventions": w.edits,
        "max_new_tokens": 2,
        "sampling": None,
        "stop": True,
        "control": False,
        "seed": 0,
        "top": 5,
    },
    "measures.dose_response": lambda w: {
        "model": w.model,
        "prompt": "The",
        "word": " dog",
        "values": [1.0, 2.0],
        "make": lambda value: [wb.Clamp(NEURON, value)],
    },
    "measures.measure_fidelity": lambda w: {
        "model": w.model,
        "dictionary": w.sae,
        "corpus": w.corpus,
        "resamples": 9,
        **READS,
    },
    "measures.measure_fidelities": lambda w: {
        "model": w.model,
        "dictionaries": [w.sae],
        "corpus": w.corpus,
        "resamples": 9,
        **READS,
    },
    "model.LanguageModel": lambda w: {
        "module": w.model.network.module,
        "tokenizer": w.model.tokenizer,
        "name": "x",
        "hash": "0" * 64,
    },
    "model.Sampling": lambda w: {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "seed": 0},
    "neurons.compare_decodings": lambda w: {"one": w.table, "other": w.table},
    "neurons.nearest_neurons": lambda w: {"model": w.model, "feature": wb.Feature.parse(NEURON), "top": 3},
    "neurons.neurons_writing": lambda w: {
        "model": w.model,
        "text": " dog",
        "weights": "down",
        "sign": -1,
        "layers": [0, 1],
        "min_score": 0.0,
        "top": 3,
    },
    "neurons.token_scores": lambda w: {"model": w.model, "feature": wb.Feature.parse(NEURON), "scale": "raw"},
    "neurons.decode_neurons": lambda w: {"model": w.model, "weights": "gate", "top_k": 5, "scale": "raw"},
    "sparsity.group_neurons": lambda w: {
        "model": w.model,
        "thresholds": 0.1,
        "corpus": w.corpus,
        "groups": 4,
        **READS,
    },
    "labels.explain_with": lambda w: {
        "index": w.index,
        "asked": wb.labels.Writer(w.model, 2),
        "features": [1],
        "folder": w.new(),
        "limit": 4,
        "examples": 2,
        "tested": 1,
    },
    "labels.output_score": lambda w: {
        "index": _opened(w),
        "feature": int(w.index.statistics["highest"].argmax()),
        "says": [" the"],
        "prompts": ["The dog"],
        "controls": 2,
    },
    "labels.score_label": lambda w: {"index": w.index, "feature": 1, "judge": _judge(w), "n": 2, "seed": 0},
    "labels.Server": lambda w: {"address": "http://127.0.0.1:9", "model": "m", "timeout": 1.0, "tries": 1, "most": 3},
    "labels.Writer": lambda w: {"model": w.model, "most": 3},
    "labels.AskedJudge": lambda w: {
        "index": w.index,
        "notebook": wb.labels.Notebook(wb.labels.Writer(w.model, 2), w.new()),
        "label": "dogs",
    },
    "labels.Notebook": lambda w: {"asked": wb.labels.Writer(w.model, 2), "folder": w.new(), "limit": 2},
    "labels.RuleJudge": lambda w: {"index": w.index, "rule": _judge(w).rule},
    "lens.LogitLens": lambda w: {},
    "lens.fit_jacobian_lens": lambda w: {
        "model": w.model,
        "texts": w.corpus,
        "prompts": 1,
        "context": 8,
        "skip": 2,
        "checkpoint": None,
        "checkpoint_every": 60.0,
    },
    "lens.attribute_logit": lambda w: {
        "model": w.model,
        "text": "The dog ran",
        "target": 3,
        "position": -1,
        "detail": "neurons",
        "top": 3,
        "interventions": w.edits,
    },
    "lens.fit_tuned_lens": lambda w: {"model": w.model, "texts": w.corpus, "start_tokens": 30, **LEARNS},
    "lens.load_lens": lambda w: {"path": w.saved_lens, "model": w.model},
    "lens.measure_lens": lambda w: {
        "model": w.model,
        "lens": w.lens,
        "corpus": wb.Corpus(["A cat ran to the river.", "The dog sat."]),
        "tokens": 20,
        "batch": 2,
        "context": 16,
        "resamples": 9,
        "seed": 0,
    },
    "lens.measure_early_exit": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "kind": "logit",
        "confidences": [0.5],
        "tokens": 20,
        "context": 16,
        "resamples": 9,
        "seed": 0,
    },
    "lens.read_doubt": lambda w: {"model": w.model, "text": "The dog ran", "kind": "logit", "interventions": w.edits},
    "lens.read_words": lambda w: {"model": w.model, "text": "The dog ran", "top": 5},
    "lens.read_attention": lambda w: {
        "model": w.model,
        "text": "The dog ran",
        "weighted": "written",
        "layers": [1],
        "interventions": w.edits,
    },
    "lens.head_card": lambda w: {
        "model": w.model,
        "layer": 1,
        "head": 0,
        "corpus": w.corpus,
        "weighted": "written",
        "sources": [5],
        "top": 2,
        "promoted": 3,
        "tokens": 40,
        "context": 16,
        "seed": 0,
    },
    "lens.find_heads": lambda w: {"model": w.model, "behaviour": "first token", "layers": [1], "top": 2, "seed": 0},
    "findings.scan": lambda w: {
        "model": w.model,
        "text": "The dog ran",
        "target": 3,
        "dictionaries": [w.sae],
        "indexes": [],
        "corpus": w.corpus,
        "top": 1,
        "controls": 1,
        "tokens": 20,
        "seed": 0,
    },
    "lens.score_heads": lambda w: {"model": w.model, "length": 4, "rows": 2, "tokens": [5, 6, 7, 8], "seed": 0},
    "lens.read_lens": lambda w: {
        "model": w.model,
        "text": "The dog ran",
        "kind": "logit",
        "at": "resid_post",
        "layers": [1],
        "top_k": 3,
        "interventions": w.edits,
    },
    "lens.read_lenses": lambda w: {
        "model": w.model,
        "texts": ["The dog ran", "A cat"],
        "kind": "logit",
        "at": "resid_post",
        "layers": [1],
        "top_k": 3,
        "interventions": w.edits,
    },
    "sparsity.measure_routing": lambda w: {
        "model": w.model,
        "groups": w.groups,
        "corpus": w.corpus,
        "picked": [2],
        "resamples": 9,
        **READS,
    },
    "sparsity.measure_at_thresholds": lambda w: {
        "model": w.model,
        "thresholds": 0.1,
        "corpus": w.corpus,
        "resamples": 9,
        **READS,
    },
    "sparsity.measure_sparsity": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "ppl_increase": 10.0,
        "baselines": (),
        "resamples": 9,
        **READS,
    },
    "sparsity.measure_sparsities": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "ppl_increases": [10.0],
        "held_out": None,
        "baselines": ("fixed",),
        "resamples": 9,
        **READS,
    },
    "sparsity.neuron_activity": lambda w: {"model": w.model, "thresholds": 0.1, "corpus": w.corpus, **READS},
    "sparsity.save_sparsities": lambda w: {"results": [w.sparsity], "path": w.new(".json")},
    "sparsity.token_activity": lambda w: {"model": w.model, "thresholds": 0.1, "text": "The dog"},
    "sparsity.verify_sparsity": lambda w: {"model": w.model, "sparsity": w.sparsity, "corpus": w.corpus},
    "sparsity.with_sparsity": lambda w: {"model": w.model, "thresholds": [0.1, 0.1, 0.1]},
    "wb.bake": lambda w: {"model": w.model, "edits": w.edits, "beside": False, "name": None},
    "surgery.direction_of": lambda w: {"model": w.model, "feature": NEURON},
    "surgery.compare_texts": lambda w: {
        "start": w.model,
        "changed": w.child,
        "prompt": "The dog",
        "max_new_tokens": 2,
    },
    "surgery.heal": lambda w: {
        "model": w.model,
        "texts": w.corpus,
        "rank": 2,
        "only": None,
        "sparsify": None,
        **LEARNS,
    },
    "surgery.Decay": lambda w: {"sparsity": 0.5, "pattern": "2:4", "until": 0.5},
    "surgery.Labelled": lambda w: {"words": [["a"]], "labels": [[1]], "names": ("none", "comma")},
    "surgery.label_scores": lambda w: {"model": w.model, "texts": w.labelled, "context": 16, "batch": 2},
    "surgery.open_child": lambda w: {"folder": w.saved_child, "parent": w.model, "dictionaries": ()},
    "surgery.swap_activation": lambda w: {"model": w.model, "kind": "relu", "corpus": w.corpus, "tokens": 40},
    "surgery.remove_causal_mask": lambda w: {"model": w.model, "layers": [0]},
    "surgery.dare": lambda w: {"base": w.model, "tuned": [w.model], "p": 0.5, "weights": 1.0},
    "surgery.merge": lambda w: {
        "recipe": {"merge_method": "linear", "models": [{"model": str(w.saved_child)}], "parameters": {"weight": 1.0}},
        "device": "cpu",
    },
    "surgery.extract_expert": lambda w: {"model": w.model, "corpus": w.corpus, "keep": 0.5, "tokens": 40},
    "surgery.keep_neurons": lambda w: {
        "model": w.model,
        "mask": torch.arange(48).repeat(3, 1) < 24,
        "of": "x",
        "about": {"a": 1},
    },
    "surgery.merge_kv_heads": lambda w: {"model": w.model, "heads": 1, "method": "mean", "tokens": 40},
    "surgery.prune": lambda w: {
        "model": w.model,
        "sparsity": 0.5,
        "score": "wanda",
        "corpus": w.corpus,
        "tokens": 40,
        "sparsities": None,
    },
    "surgery.search_sparsity": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "sparsity": 0.5,
        "levels": (0.4, 0.5, 0.6),
        "passes": 3,
        "tokens": 40,
        "context": 16,
    },
    "surgery.quantise": lambda w: {"model": w.model, "bits": 8, "per_part": None},
    "surgery.search_bits": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "bits": 4.0,
        "levels": (5, 4, 3),
        "passes": 3,
        "tokens": 40,
        "context": 16,
    },
    "surgery.drop_sublayers": lambda w: {
        "model": w.model,
        "corpus": w.corpus,
        "share": 0.3,
        "passes": 3,
        "tokens": 40,
        "context": 16,
    },
    "surgery.apply_operation": lambda w: {"model": w.model, "operation": "quantise", "bits": 8},
    "surgery.verify_checkpoint": lambda w: {"folder": w.saved_child, "model": w.child, "tokens": TOKENS},
    "synthetic.TokFSM": lambda w: {"states": 6, "edges": 2, "digits": 1, "base": 8, "seed": 1},
    "synthetic.capture_at_states": lambda w: {
        "model": w.speaker,
        "machine": w.machine,
        "hook_points": [POINT],
        "walks": 3,
        "written": 0,
        "seed": 0,
    },
    "synthetic.count_codes": lambda w: {
        "model": w.speaker,
        "machine": w.machine,
        "hook_points": [POINT],
        "walks": 3,
        "written": 0,
        "seed": 0,
    },
    "synthetic.force_state": lambda w: {
        "model": w.speaker,
        "machine": w.machine,
        "counted": [w.counts],
        "state": 1,
        "length": 3,
    },
    "synthetic.next_states": lambda w: {
        "model": w.speaker,
        "machine": w.machine,
        "visited": torch.ones(2, 3, dtype=torch.long),
    },
    "synthetic.state_codes": lambda w: {"model": w.speaker, "counted": w.counts, "state": 1},
    "synthetic.state_column": lambda w: {"machine": w.machine, "state": 1, "written": [1]},
    "training.fine_tune": lambda w: {"model": w.model, "texts": w.corpus, "spliced": None, **LEARNS},
    "training.train": lambda w: {
        "dictionary": wb.TopKSAE(32, 16, 2),
        "model": w.model,
        "hook_point": POINT,
        "corpus": w.corpus,
        "tokens": 40,
        "context": 16,
        "batch_size": 16,
        "block": 32,
        "folder": None,
    },
    "training.ramp": lambda w: {"step": 1, "steps": 9, "rise": 0.1, "fall": 0.2},
    "training.read_history": lambda w: {"folder": w.folder},
}
"""By room and name; names of `wb` itself are found in their rooms."""
FUNCTIONS["circuits.find_heads_discrete"] = FUNCTIONS["circuits.find_circuit_discrete"]
FUNCTIONS["measures.compare_steps"] = FUNCTIONS["measures.compare"]

OBJECTS: dict[str, Callable[[World], Any]] = {
    "LanguageModel": lambda w: w.model,
    "Corpus": lambda w: w.corpus,
    "Notebook": lambda w: wb.labels.Notebook(wb.labels.Writer(w.model, 2), w.new()),
    "Supernodes": _supernodes,
    "FeatureIndex": lambda w: w.index,
    "NeuronTable": lambda w: w.table,
    "TopKSAE": lambda w: w.sae.to(w.model.device),
    "Codebook": lambda w: w.codebook.to(w.model.device),
    "KeyValueBottleneck": lambda w: w.bottleneck.to(w.model.device),
    "Graph": lambda w: w.graph,
    "FeatureExport": lambda w: wb.index.open_export(_export(w)),
    "ViewerGraph": lambda w: wb.attribution.read_viewer_graph(json.dumps(w.published)),
    "Direction": lambda w: w.direction,
    "Harvest": lambda w: w.harvest,
    "Store": lambda w: wb.harvest.Store(w.saved_store),
    "Child": lambda w: w.child,
    "Certificate": lambda w: w.child.certificate,
    "TokFSM": lambda w: w.machine,
    "Labelled": lambda w: w.labelled,
    "Feature": lambda w: wb.Feature.parse(NEURON),
    "Steer": lambda w: wb.Steer(NEURON, 1.0),
    "Attention": lambda w: wb.lens.read_attention(w.model, "The dog ran", layers=[1]),
    "Probe": lambda w: wb.probe(w.model, [f"the {word} ran" for word in ANIMALS], [0, 1] * 5, POINT),
    "Doubt": lambda w: wb.lens.read_doubt(w.model, "The dog ran"),
    "TextWords": lambda w: wb.lens.read_words(w.model, "The dog ran"),
    "JacobianLens": lambda w: w.jacobian_lens,
    "TunedLens": lambda w: w.lens,
    "LensGrid": lambda w: wb.read_lens(w.model, "The dog ran", layers=[1], top_k=3),
}
"""Objects whose methods are called."""

METHODS: Calls = {
    "Probe.direction": lambda w: {"hook_point": POINT, "label": 1},
    "LanguageModel.to_tokens": lambda w: {"text": "The dog", "start": True},
    "LanguageModel.to_text": lambda w: {"tokens": [3, 4]},
    "LanguageModel.text_pieces": lambda w: {"tokens": [3, 4], "after": [5]},
    "LanguageModel.token_labels": lambda w: {"tokens": [3, 4]},
    "LanguageModel.token_texts": lambda w: {"tokens": [3, 4]},
    "LanguageModel.chat_prompt": lambda w: {"messages": [{"role": "user", "content": "hi"}]},
    "LanguageModel.as_tokens": lambda w: {"tokens": TOKENS},
    "LanguageModel.__call__": lambda w: {"tokens": TOKENS, "mask": torch.ones(1, 5).bool(), "prompt_length": 2},
    "LanguageModel.capture": lambda w: {"tokens": TOKENS, "hook_points": [POINT], "mask": None, "prompt_length": 2},
    "LanguageModel.run": lambda w: {"tokens": TOKENS, "edits": (), "mask": None, "prompt_length": 2, "last": 0},
    "LanguageModel.intervening": lambda w: {"interventions": w.edits},
    "LanguageModel.spliced": lambda w: {"dictionaries": {POINT: w.sae}},
    "LanguageModel.bind": lambda w: {"interventions": w.edits},
    "LanguageModel.generate": lambda w: {
        "prompt": "The dog",
        "max_new_tokens": 2,
        "temperature": 1.0,
        "top_k": 5,
        "top_p": 0.9,
        "seed": 0,
        "interventions": [],
        "stop": True,
        "sampling": None,
    },
    "LanguageModel.chat": lambda w: {"message": "hi", "max_new_tokens": 2},
    "LanguageModel.generate_batch": lambda w: {"prompts": ["The dog", TOKENS[0]], "max_new_tokens": 2},
    "LanguageModel.stream": lambda w: {"prompt": "The dog", "max_new_tokens": 2},
    "LanguageModel.prompt_batch": lambda w: {"prompts": ["The dog"], "max_new_tokens": 2},
    "Corpus.load": lambda w: {"source": "stories", "column": "text", "limit": 3, "delimiter": ","},
    "Corpus.take": lambda w: {"n": 2},
    "Corpus.split": lambda w: {"share": 0.5},
    "Corpus.passages": lambda w: {"characters": 20},
    "Corpus.save": lambda w: {"path": w.new(".jsonl")},
    "Corpus.check_tokens": lambda w: {"model": w.model, "context": 16},
    "Corpus.count_tokens": lambda w: {"model": w.model, "at_most": 10},
    "Corpus.batches": lambda w: {"model": w.model, "bos": True, "repeat": False, "shard": (0, 1), **READS},
    "Attention.head": lambda w: {"layer": 1, "head": 0},
    "Attention.figure": lambda w: {"layer": 1, "head": 0},
    "Doubt.spans": lambda w: {"at_most": 3.0, "least": 1},
    "TunedLens.save": lambda w: {"folder": w.new(), "format": "workbench", "half": True},
    "TextWords.similarity": lambda w: {"other": wb.lens.read_words(w.model, "A cat sat")},
    "JacobianLens.save": lambda w: {"folder": w.new(), "format": "workbench", "half": True},
    "JacobianLens.vectors": lambda w: {"model": w.model, "tokens": [3, 5], "layer": 1},
    "JacobianLens.direction": lambda w: {"model": w.model, "token": 3, "layer": 1},
    "JacobianLens.swap": lambda w: {
        "model": w.model,
        "first": 3,
        "second": 5,
        "layers": [1],
        "amount": 1.0,
        "positions": "all",
    },
    "LensGrid.rank": lambda w: {"token": 3},
    "LensGrid.log_probability": lambda w: {"token": 3},
    "FeatureIndex.top": lambda w: {"index": 1, "n": 2},
    "FeatureIndex.examples": lambda w: {"index": 1, "n": 2, "start": 0},
    "FeatureIndex.feature": lambda w: {"index": 1},
    "FeatureIndex.search": lambda w: {"text": "dog"},
    "FeatureIndex.fires_on": lambda w: {"prompt": "The dog", "top": 3},
    "FeatureIndex.label": lambda w: {"index": 1, "text": "x"},
    "FeatureIndex.note": lambda w: {"index": 1, "text": "x"},
    "Notebook.ask": lambda w: {"prompt": "The dog"},
    "FeatureIndex.labels": lambda w: {"index": 1},
    "FeatureIndex.labels_by": lambda w: {"source": "rule"},
    "FeatureIndex.explain": lambda w: {"seed": 0},
    "FeatureIndex.add_labels": lambda w: {"source": "me", "labels": {1: wb.index.FeatureLabel("dogs", "me")}},
    "FeatureIndex.star": lambda w: {"index": 1, "starred": True},
    "FeatureIndex.export_labels": lambda w: {"path": w.new(".json")},
    "FeatureIndex.import_labels": lambda w: {"path": _labels(w)},
    "NeuronTable.feature": lambda w: {"row": 3},
    "NeuronTable.row": lambda w: {"feature": wb.Feature.parse(NEURON)},
    "NeuronTable.hit": lambda w: {"row": 3, "sign": 1, "rank": 0},
    "NeuronTable.search": lambda w: {"text": "dog"},
    "NeuronTable.matching_tokens": lambda w: {"text": "dog", "match": "any"},
    "TopKSAE.encode": lambda w: {"x": w.floats(2, 32)},
    "TopKSAE.decode": lambda w: {"codes": w.sae.encode(w.floats(2, 32))},
    "TopKSAE.reconstruct": lambda w: {"x": w.floats(2, 32)},
    "TopKSAE.to": lambda w: {"device": w.model.device},
    "TopKSAE.direction": lambda w: {"index": 1},
    "TopKSAE.feature": lambda w: {"index": 1},
    "TopKSAE.check": lambda w: {"index": 1},
    "TopKSAE.save": lambda w: {"path": w.new(), "half": False},
    "TopKSAE.write": lambda w: {"path": w.new(), "half": False},
    "Codebook.encode": lambda w: {"x": w.floats(2, 32)},
    "Codebook.decode": lambda w: {"codes": w.codebook.encode(w.floats(2, 32))},
    "Codebook.reconstruct": lambda w: {"x": w.floats(2, 32)},
    "Codebook.direction": lambda w: {"index": 1},
    "KeyValueBottleneck.encode": lambda w: {"x": w.floats(2, 8)},
    "KeyValueBottleneck.decode": lambda w: {"codes": w.bottleneck.encode(w.floats(2, 8))},
    "KeyValueBottleneck.learn_keys": lambda w: {"x": w.floats(20, 8), "epochs": 1, "batch": 10},
    "KeyValueBottleneck.learn": lambda w: {"x": w.floats(4, 8), "labels": torch.tensor([0, 1, 2, 0])},
    "Codebook.to": lambda w: {"device": w.model.device},
    "KeyValueBottleneck.to": lambda w: {"device": w.model.device},
    "Supernodes.rename": lambda w: {"name": "one", "new": "three"},
    "Supernodes.merge": lambda w: {"names": ["one", "two"], "new": "three"},
    "Supernodes.split": lambda w: {"name": "one", "nodes": _supernodes(w).groups["one"][:1], "new": "three"},
    "Graph.node": lambda w: {"id": w.graph.nodes[0].id},
    "Graph.edges_from": lambda w: {"source": w.graph.nodes[1].id},
    "Graph.edges_of": lambda w: {"target": w.graph.nodes[0].id},
    "Graph.prune": lambda w: {"share": 0.8, "edges": 0.9, "keep": [], "kinds": ["latent"]},
    "FeatureExport.feature": lambda w: {"index": 3},
    "FeatureExport.search": lambda w: {"text": "dog", "limit": 3},
    "ViewerGraph.node": lambda w: {"id": 0},
    "ViewerGraph.prune": lambda w: {"share": 0.8, "edges": 0.9, "keep": [], "kinds": ["latent"]},
    "Direction.at": lambda w: {"hook_point": POINT},
    "Direction.save": lambda w: {"path": w.new(".safetensors")},
    "Harvest.run": lambda w: {"skip": 0},
    "Store.run": lambda w: {"skip": 0},
    "Store.write": lambda w: {"harvest": w.harvest, "folder": w.new(), "dtype": "float32", "commit_every": 2.0},
    "Child.certify": lambda w: {
        "corpus": w.corpus,
        "tokens": 40,
        "tasks": None,
        "context": 16,
        "batch": 2,
        "seed": 0,
    },
    "Child.save_pretrained": lambda w: {"folder": w.new()},
    "Certificate.from_dict": lambda w: {"content": w.child.certificate.to_dict()},
    "TokFSM.walk": lambda w: {"rows": 2, "length": 3, "seed": 0},
    "TokFSM.write": lambda w: {"visited": torch.ones(2, 3, dtype=torch.long)},
    "TokFSM.read": lambda w: {"tokens": torch.ones(2, 4, dtype=torch.long)},
    "TokFSM.corpus": lambda w: {"texts": 2, "length": 3, "seed": 0},
    "TokFSM.batches": lambda w: {"model": w.speaker, "context": 8, "batch": 2, "tokens": 20, "seed": 0},
    "TokFSM.transition_accuracy": lambda w: {"model": w.speaker, "walks": 2, "context": 8, "seed": 0},
    "TokFSM.transitions": lambda w: {"model": w.speaker, "walks": 2, "context": 8, "seed": 0},
    "Labelled.ids": lambda w: {"model": w.model},
    "Labelled.batches": lambda w: {"model": w.model, "context": 16, "batch": 2, "seed": 0},
    "Feature.parse": lambda w: {"text": NEURON},
    "Steer.along": lambda w: {"hook_point": POINT, "direction": [1.0] * 32, "amount": 1.0, "positions": "all"},
}
"""By class and method."""


def _export(w: World) -> Path:
    path = w.folder / "export"
    wb.index.export_features(w.index, path, model_id="tiny", source_set="res")
    return path


def _published(w: World) -> Path:
    path = w.folder / "published.json"
    wb.attribution.save_viewer_graph(w.published, path)
    return path


def _saved_direction(w: World) -> Path:
    path = w.folder / "sad.safetensors"
    w.direction.save(path)
    return path


def _labels(w: World) -> Path:
    path = w.folder / "labels.json"
    w.index.export_labels(path)
    return path


def public(names: Any) -> Iterator[tuple[str, Any]]:
    """Functions and classes of a module, or functions of a class, that are public and Workbench's own."""
    for name, one in vars(names).items():
        value = one.__func__ if isinstance(one, classmethod | staticmethod) else one
        own = str(getattr(value, "__module__", "")).startswith("workbench.")
        if (
            own
            and (not name.startswith("_") or name == "__call__")
            and (inspect.isfunction(value) or isinstance(value, type))
        ):
            yield name, value


np.seterr(all="ignore")
