"""Dunefsky, Chlenski, Nanda, "Transcoders find interpretable LLM feature circuits" (2024, arXiv 2406.11944): fidelity.

Is a transcoder of an MLP as sparse and as faithful as a sparse autoencoder on the MLP's output? Both are trained on the
same activations of one layer, at the same width, on the same tokens, and spliced into the model on texts that neither
has seen. Activations, trainings and measurements are kept under `work/`, so that a run that is broken off goes on.

    python analyses/transcoder_vs_sae.py --out reports/transcoder_vs_sae
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analyses.neuron_decoding.figures import look
from analyses.shared.report import Notes, Page, provenance, say, table, write_json
from workbench.corpus import Corpus
from workbench.dictionaries.relu import StandardSAE, Transcoder
from workbench.dictionaries.topk import TopKSAE, TopKTranscoder
from workbench.dictionaries.trainable import Trainable
from workbench.figures.common import AGAINST, FAINT, FOR
from workbench.harvest import Harvest, Store
from workbench.interventions.opening import load_model
from workbench.measures.fidelity import measure_fidelities
from workbench.model.language_model import LanguageModel
from workbench.training import train

FORMAT = 1
"""Of the notes; a new number measures everything anew."""
HELD_OUT = 0.1
"""Share of the texts that nothing is trained on."""
COLOURS = {"transcoder": FOR, "SAE": AGAINST}
KEPT = ("l0", "fvu", "cosine", "ce", "ce_spliced", "ce_zero", "loss_recovered", "kl")
PUBLISHED = {
    "transcoder": [(82.7, 3.349), (44.0, 3.355), (27.5, 3.368)],
    "SAE": [(109.9, 3.351), (55.1, 3.360), (31.5, 3.368)],
}
"""The paper's Pythia-410M, layer 15: L0 and cross-entropy."""


@dataclass(frozen=True)
class Plan:
    """What is trained and measured, and on how much."""

    layer: int
    width: int
    ks: tuple[int, ...]
    """Active latents of TopK."""
    l1s: tuple[float, ...]
    """Penalties of ReLU; none leaves it out."""
    tokens: int
    """Learned from, by each dictionary."""
    stored: int
    """Tokens whose activations are kept on disk; they are learned from again where `tokens` are more."""
    measured: int
    """Held-out tokens."""
    seed: int
    batch_size: int = 4096
    context: int = 256


def pairs(plan: Plan, d_model: int) -> dict[str, Trainable]:
    """The dictionaries to train by name, `{kind} {sparsity}`; a transcoder and an SAE for each sparsity."""
    reads, writes = f"blocks.{plan.layer}.mlp.hook_in", f"blocks.{plan.layer}.hook_mlp_out"
    made: dict[str, Trainable] = {}
    for k in plan.ks:
        made[f"transcoder k={k}"] = TopKTranscoder(
            d_model, plan.width, k, reads=reads, writes=writes, name=f"transcoder-k{k}", seed=plan.seed
        )
        made[f"SAE k={k}"] = TopKSAE(d_model, plan.width, k, hook_point=writes, name=f"sae-k{k}", seed=plan.seed)
    for l1 in plan.l1s:
        made[f"transcoder l1={l1:g}"] = Transcoder(
            d_model, plan.width, l1, reads=reads, writes=writes, name=f"transcoder-l1-{l1:g}", seed=plan.seed
        )
        made[f"SAE l1={l1:g}"] = StandardSAE(
            d_model, plan.width, l1, hook_point=writes, name=f"sae-l1-{l1:g}", seed=plan.seed
        )
    return made


def experiment(model: LanguageModel, corpus: Corpus, plan: Plan, folder: Path) -> dict[str, Any]:
    """Everything: activations, trainings, measurements."""
    learned, held_out = corpus.split(HELD_OUT, plan.seed)
    made = provenance(
        model, plan.seed, corpus=corpus.name, corpus_hash=corpus.hash, corpus_licence=corpus.licence, plan=asdict(plan)
    )
    dictionaries = pairs(plan, model.network.d_model)
    points = [f"blocks.{plan.layer}.mlp.hook_in", f"blocks.{plan.layer}.hook_mlp_out"]
    harvest = Harvest(model, learned, points, plan.stored, plan.context, seed=plan.seed, repeat=True)
    say(f"Reading {plan.stored:,} activations of layer {plan.layer}")
    store = Store.write(harvest, folder / "work" / "activations", progress=_every(60))
    for name, dictionary in dictionaries.items():
        say(f"Training {name}")
        how: dict[str, Any] = {"batch_size": plan.batch_size, "seed": plan.seed, "progress": _every(60)}
        train(dictionary, tokens=plan.tokens, source=store, folder=folder / "work" / dictionary.name, **how)
    hashes = {name: dictionary.hash for name, dictionary in dictionaries.items()}
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, corpus.hash, asdict(plan), hashes])

    def measure() -> list[dict[str, Any]]:
        how: dict[str, Any] = {"context": plan.context, "seed": plan.seed, "progress": _every(60)}
        found = measure_fidelities(model, list(dictionaries.values()), held_out, plan.measured, **how)
        return [one.to_dict() for one in found]

    say(f"Measuring on {plan.measured:,} held-out tokens")
    rows = [
        {"name": name, "kind": name.split()[0], "sparsity": name.split()[1], "hash": hashes[name], **row}
        for name, row in zip(dictionaries, notes.get("fidelity", measure), strict=True)
    ]
    return {"provenance": made, "plan": asdict(plan), "rows": rows, "comparisons": compare_pairs(rows)}


def compare_pairs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Transcoder and SAE of one sparsity: which recovers more of the loss, and do the 95% intervals lie apart?"""
    found = []
    for one in (row for row in rows if row["kind"] == "transcoder"):
        other = next(row for row in rows if row["kind"] == "SAE" and row["sparsity"] == one["sparsity"])
        mine, its = one["intervals"]["loss_recovered"], other["intervals"]["loss_recovered"]
        apart = mine[0] > its[1] or its[0] > mine[1]
        better = "transcoder" if one["loss_recovered"] > other["loss_recovered"] else "SAE"
        found.append(
            {
                "sparsity": one["sparsity"],
                "l0": {"transcoder": one["l0"], "SAE": other["l0"]},
                "loss_recovered": {"transcoder": one["loss_recovered"], "SAE": other["loss_recovered"]},
                "ce_spliced": {"transcoder": one["ce_spliced"], "SAE": other["ce_spliced"]},
                "better": better if apart else "",
            }
        )
    return found


def frontier(rows: Sequence[dict[str, Any]], measure: str, title: str, lines: dict[str, float]) -> go.Figure:
    """A measure against L0 on a logarithmic scale, one line for each kind of dictionary, with 95% intervals.

    Args:
        rows: results.
        measure: which of them.
        title: what it is.
        lines: values to mark, by name.
    """
    figure = go.Figure()
    for family, dash in (("k", "solid"), ("l1", "dot")):
        for kind, colour in COLOURS.items():
            mine = [row for row in rows if row["kind"] == kind and row["sparsity"].startswith(f"{family}=")]
            mine.sort(key=lambda row: row["l0"])
            if not mine:
                continue
            ends = [row["intervals"][measure] for row in mine]
            figure.add_scatter(
                x=[row["l0"] for row in mine],
                y=[row[measure] for row in mine],
                error_y={
                    "array": [high - row[measure] for row, (_, high) in zip(mine, ends, strict=True)],
                    "arrayminus": [row[measure] - low for row, (low, _) in zip(mine, ends, strict=True)],
                    "thickness": 1,
                    "width": 3,
                },
                customdata=[row["name"] for row in mine],
                hovertemplate="%{customdata}<br>L0 %{x:.1f}<br>" + title + " %{y:.4f}<extra></extra>",
                mode="lines+markers",
                line={"color": colour, "width": 2.5, "dash": dash},
                name=f"{kind}, {'TopK' if family == 'k' else 'ReLU'}",
            )
    for name, value in lines.items():
        figure.add_hline(value, line={"color": FAINT, "width": 1, "dash": "dash"}, annotation_text=name)
    figure.update_xaxes(type="log", title="L0, active latents per token")
    figure.update_yaxes(title=title)
    return look(figure, 420)


def density_figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """How often latents are active: for each dictionary the density of its latents, from rarest to commonest."""
    figure = go.Figure()
    for row in rows:
        shares = sorted(share for share in row["density"] if share > 0)
        step = max(len(shares) // 300, 1)
        figure.add_scatter(
            x=[1 - (len(shares) - place) / len(row["density"]) for place in range(0, len(shares), step)],
            y=shares[::step],
            mode="lines",
            line={"color": COLOURS[row["kind"]], "width": 1.5},
            name=row["name"],
        )
    figure.update_xaxes(title="share of the latents, rarest first", range=[0, 1])
    figure.update_yaxes(title="share of the tokens where active", type="log", exponentformat="power")
    return look(figure, 420)


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    plan, rows, made = results["plan"], results["rows"], results["provenance"]
    first = rows[0]
    page = Page(
        folder,
        "Transcoders beside sparse autoencoders",
        "Dunefsky, Chlenski and Nanda (2024) find that a transcoder, which computes an MLP's output from its input, is "
        "at equal L0 at least as faithful as a sparse autoencoder on that output. Here is the same comparison on layer "
        f"{plan['layer']} of {made['model']}: width {plan['width']:,}, {plan['tokens']:,} tokens each.",
    )
    verdicts = {kind: sum(one["better"] == kind for one in results["comparisons"]) for kind in COLOURS}
    undecided = len(results["comparisons"]) - sum(verdicts.values())
    page.section(
        "At equal sparsity",
        f"Of {len(results['comparisons'])} pairs, the transcoder recovers more of the loss in "
        f"{verdicts['transcoder']}, the SAE in {verdicts['SAE']}; in {undecided} the 95% intervals overlap. Compare "
        "the L0 of a pair before its fidelity: where it differs, read the curves below instead.",
    )
    columns = ["sparsity", "L0 transcoder", "L0 SAE", "loss recovered transcoder", "loss recovered SAE", "apart"]
    page.add(
        table(
            columns,
            [
                [one["sparsity"], *one["l0"].values(), *map(_four, one["loss_recovered"].values()), one["better"]]
                for one in results["comparisons"]
            ],
        )
    )
    lines = {"plain model": first["ce"]}
    page.section("The frontier")
    caption = f"On {first['tokens']:,} tokens of {first['texts']:,} held-out texts; bars are 95% intervals over texts."
    page.figure("ce", frontier(rows, "ce_spliced", "cross-entropy, nats", lines), caption)
    page.figure("loss_recovered", frontier(rows, "loss_recovered", "loss recovered", {"perfect": 1.0}), caption)
    page.figure("kl", frontier(rows, "kl", "KL(plain ‖ spliced), nats", {}), caption)
    page.figure("fvu", frontier(rows, "fvu", "variance of the MLP's output unexplained", {}), caption)
    page.figure("density", density_figure(rows), "Latents that are never active are left out.")
    page.section(
        "All figures",
        f"Cross-entropies in nats per token: plain model {first['ce']:.4f}, with the MLP's output set to zero "
        f"{first['ce_zero']:.4f}. Special tokens are neither spliced nor counted.",
    )
    page.add(
        table(
            ["dictionary", "L0", "FVU", "cosine", "cross-entropy", "loss recovered", "KL", "dead"],
            [
                [
                    row["name"],
                    row["l0"],
                    *(_four(row[key]) for key in ("fvu", "cosine", "ce_spliced")),
                    _interval(row, "loss_recovered"),
                    _interval(row, "kl"),
                    f"{row['dead']:.1%}",
                ]
                for row in rows
            ],
        )
    )
    page.section("What the paper reports", "Pythia-410M, layer 15, width ×32, 60M tokens, ReLU with an L1 penalty.")
    page.add(table(["kind", "L0", "cross-entropy"], [[k, x, _four(y)] for k, pts in PUBLISHED.items() for x, y in pts]))
    return page.write({key: value for key, value in made.items() if key != "plan"})


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The few figures that are cited elsewhere, with where they come from."""
    keep = ("name", "hash", "tokens", "texts", "dead", "intervals", *KEPT)
    rows = [{key: row[key] for key in keep} for row in results["rows"]]
    return {key: results[key] for key in ("provenance", "comparisons")} | {"rows": rows}


def _four(value: float) -> str:
    return f"{value:.4f}"


def _interval(row: dict[str, Any], measure: str) -> str:
    low, high = row["intervals"][measure]
    return f"{row[measure]:.4f} ({low:.4f} to {high:.4f})"


def _every(seconds: float) -> Any:
    """Progress in a line now and then."""
    last = [time.monotonic()]

    def tell(share: float, what: str) -> None:
        if time.monotonic() - last[0] >= seconds:
            last[0] = time.monotonic()
            say(f"  {share:.0%}, {what}")

    return tell


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description="Transcoders beside sparse autoencoders (Dunefsky et al. 2024).")
    parser.add_argument("--out", type=Path, default=Path("reports/transcoder_vs_sae"), help="folder of the report")
    parser.add_argument("--model", help="a Hugging Face name or a folder; the default model if left out")
    parser.add_argument("--corpus", default="stories", help="a bundled name, a file, a folder or a data set")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--width", type=int, default=4608, help="latents")
    parser.add_argument("--k", type=int, nargs="*", default=[8, 16, 32, 64], help="active latents of TopK")
    parser.add_argument("--l1", type=float, nargs="*", default=[], help="penalties of ReLU; none leaves it out")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="learned from, by each dictionary")
    parser.add_argument("--stored", type=int, default=1_000_000, help="tokens whose activations are kept on disk")
    parser.add_argument("--measured", type=int, default=16_384, help="held-out tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    sizes = (asked.tokens, asked.stored, asked.measured)
    plan = Plan(asked.layer, asked.width, tuple(asked.k), tuple(asked.l1), *sizes, asked.seed)
    results = experiment(load_model(asked.model), Corpus.load(asked.corpus), plan, asked.out)
    write_json(asked.out / "results.json", results)
    if asked.summary:
        write_json(asked.summary, summary(results), indent=1)
    say(f"Written: {write_page(asked.out, results)}")


if __name__ == "__main__":
    main()
