"""Dunefsky, Chlenski, Nanda, "Transcoders find interpretable LLM feature circuits" (2024, arXiv 2406.11944): fidelity.

Is a transcoder of an MLP as sparse and as faithful as a sparse autoencoder on the MLP's output? Both are trained on the
same activations of one layer, at the same width, on the same tokens, and spliced into the model on texts that neither
has seen. Activations, trainings and measurements are kept under `work/`: an interrupted run resumes.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analyses.shared.report import Notes, progress_of, provenance, say
from analyses.shared.study import Outcome, Study
from analyses.transcoder_vs_sae.page import write_page
from analyses.transcoder_vs_sae.rows import published_rows
from workbench.corpus import Corpus
from workbench.dictionaries.relu import StandardSAE, Transcoder
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder
from workbench.dictionaries.trainable import Trainable
from workbench.harvest import Harvest, Store
from workbench.interventions.opening import load_model
from workbench.measures.fidelity import measure_fidelities
from workbench.model.language_model import LanguageModel
from workbench.training import train

FORMAT = 1
"""Format of the notes; a new number measures everything anew."""
HELD_OUT = 0.1
"""Share of the texts held out from training."""
KEPT = ("l0", "fvu", "cosine", "ce", "ce_spliced", "ce_zero", "loss_recovered", "kl")


@dataclass(frozen=True)
class Plan:
    """What is trained and measured, and the numbers of tokens."""

    layer: int
    width: int
    ks: tuple[int, ...]
    """Active latents of TopK dictionaries."""
    l1s: tuple[float, ...]
    """Sparsity penalties of ReLU dictionaries; none leaves this kind out."""
    tokens: int
    """Training tokens of each dictionary."""
    stored: int
    """Tokens whose activations are kept on disk; they are reused where `tokens` is larger."""
    measured: int
    """Held-out tokens."""
    seed: int
    batch_size: int = 4096
    context: int = 256


def pairs(plan: Plan, d_model: int) -> dict[str, Trainable]:
    """Untrained dictionaries by name, `{kind} {sparsity}`: a transcoder and an SAE for each sparsity."""
    reads, writes = f"blocks.{plan.layer}.mlp.hook_in", f"blocks.{plan.layer}.hook_mlp_out"
    untrained: dict[str, Trainable] = {}
    for k in plan.ks:
        untrained[f"transcoder k={k}"] = TopKTranscoder(
            d_model, plan.width, k, reads=reads, writes=writes, name=f"transcoder-k{k}", seed=plan.seed
        )
        untrained[f"SAE k={k}"] = TopKSAE(d_model, plan.width, k, hook_point=writes, name=f"sae-k{k}", seed=plan.seed)
    for l1 in plan.l1s:
        untrained[f"transcoder l1={l1:g}"] = Transcoder(
            d_model, plan.width, l1, reads=reads, writes=writes, name=f"transcoder-l1-{l1:g}", seed=plan.seed
        )
        untrained[f"SAE l1={l1:g}"] = StandardSAE(
            d_model, plan.width, l1, hook_point=writes, name=f"sae-l1-{l1:g}", seed=plan.seed
        )
    return untrained


def experiment(model: LanguageModel, corpus: Corpus, plan: Plan, folder: Path) -> dict[str, Any]:
    """All results: harvests activations, trains, measures.

    An interrupted run resumes from the folder.
    """
    learned, held_out = corpus.split(HELD_OUT, plan.seed)
    source = provenance(
        model, plan.seed, corpus=corpus.name, corpus_hash=corpus.hash, corpus_licence=corpus.licence, plan=asdict(plan)
    )
    dictionaries = pairs(plan, model.network.d_model)
    points = [f"blocks.{plan.layer}.mlp.hook_in", f"blocks.{plan.layer}.hook_mlp_out"]
    harvest = Harvest(model, learned, points, plan.stored, plan.context, seed=plan.seed, repeat=True)
    say(f"Reading {plan.stored:,} activations of layer {plan.layer}")
    store = Store.write(harvest, folder / "work" / "activations", progress=progress_of("Activations"))
    for name, dictionary in dictionaries.items():
        say(f"Training {name}")
        how: dict[str, Any] = {"batch_size": plan.batch_size, "seed": plan.seed, "progress": progress_of(name)}
        train(dictionary, tokens=plan.tokens, source=store, folder=folder / "work" / dictionary.name, **how)
    hashes = {name: dictionary.hash for name, dictionary in dictionaries.items()}
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, corpus.hash, asdict(plan), hashes])

    def measure() -> list[dict[str, Any]]:
        how: dict[str, Any] = {"context": plan.context, "seed": plan.seed, "progress": progress_of("Fidelity")}
        fidelities = measure_fidelities(model, list(dictionaries.values()), held_out, plan.measured, **how)
        return [one.to_dict() for one in fidelities]

    say(f"Measuring on {plan.measured:,} held-out tokens")
    rows = [
        {"name": name, "kind": name.split()[0], "sparsity": name.split()[1], "hash": hashes[name], **row}
        for name, row in zip(dictionaries, notes.get("fidelity", measure), strict=True)
    ]
    return {"provenance": source, "plan": asdict(plan), "rows": rows, "comparisons": compare_pairs(rows)}


def compare_pairs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each sparsity the kind that recovers more of the loss, or "" where the 95% intervals overlap."""
    comparisons = []
    for one in (row for row in rows if row["kind"] == "transcoder"):
        other = next(row for row in rows if row["kind"] == "SAE" and row["sparsity"] == one["sparsity"])
        own, others = one["intervals"]["loss_recovered"], other["intervals"]["loss_recovered"]
        apart = own[0] > others[1] or others[0] > own[1]
        better = "transcoder" if one["loss_recovered"] > other["loss_recovered"] else "SAE"
        comparisons.append(
            {
                "sparsity": one["sparsity"],
                "l0": {"transcoder": one["l0"], "SAE": other["l0"]},
                "loss_recovered": {"transcoder": one["loss_recovered"], "SAE": other["loss_recovered"]},
                "ce_spliced": {"transcoder": one["ce_spliced"], "SAE": other["ce_spliced"]},
                "better": better if apart else "",
            }
        )
    return comparisons


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures worth citing, with their provenance."""
    keep = ("name", "hash", "tokens", "texts", "dead", "intervals", *KEPT)
    rows = [{key: row[key] for key in keep} for row in results["rows"]]
    return {key: results[key] for key in ("provenance", "comparisons")} | {"rows": rows}


def run(settings: Namespace) -> Outcome:
    """Measure, and write the report."""
    sizes = (settings.tokens, settings.stored, settings.measured)
    plan = Plan(settings.layer, settings.width, tuple(settings.k), tuple(settings.l1), *sizes, settings.seed)
    if settings.smallest:
        plan = replace(plan, width=64, ks=(4,), l1s=(), tokens=1024, stored=512, measured=512, batch_size=256)
    results = experiment(load_model(settings.model), Corpus.load(settings.corpus), plan, settings.out)
    return Outcome(results, summary(results), write_page(settings.out, results))


def add_options(parser: ArgumentParser) -> None:
    """Add the layer, the sizes of the dictionaries and of their training."""
    parser.add_argument("--corpus", default="stories", help="a bundled name, a file, a folder or a data set")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--width", type=int, default=4608, help="latents")
    parser.add_argument("--k", type=int, nargs="*", default=[8, 16, 32, 64], help="active latents of TopK")
    parser.add_argument("--l1", type=float, nargs="*", default=[], help="penalties of ReLU; none leaves it out")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="training tokens of each dictionary")
    parser.add_argument("--stored", type=int, default=1_000_000, help="tokens whose activations are kept on disk")
    parser.add_argument("--measured", type=int, default=16_384, help="held-out tokens")


STUDY = Study(run, published_rows, shared=("model", "seed"), add_options=add_options)
