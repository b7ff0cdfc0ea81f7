"""Träuble et al., "Discrete Key-Value Bottleneck" (2022, arXiv 2207.11240): learning classes one after another.

The bundled corpus holds 24 kinds of text (letters, poems, news, code, …). A learner sees the kinds one after another,
all texts of one before any of the next, and is never told where a kind ends; afterwards it has to tell all kinds apart.
The encoder is the model's residual stream, the mean over a text's first tokens, and stays frozen. Rivals that learn in
the same order: a linear probe and an MLP. Keys are learned without labels. Every learner's rate is the best of a few,
chosen on texts that are neither learned from nor tested on: for the order at hand, and for all kinds mixed.

    python analyses/continual.py --out reports/continual --summary docs/results/continual.json
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow.parquet as pq
import torch
from neuron_decoding_figures import look
from report import Notes, Page, provenance, say, table, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import workbench as wb
from workbench.core.files import replacing
from workbench.dictionaries.codes import Codes
from workbench.figures.common import AGAINST, FAINT, FOR

FORMAT = 1
CORPUS = Path(__file__).resolve().parents[1] / "data" / "corpora" / "stories.parquet"
POINT = "blocks.15.hook_resid_post"
ORDERED, MIXED, AS_MIXED = "one after another", "all mixed", "one after another, at the rate for all mixed"
"""Ways to learn. Nobody who has not seen all kinds can choose the rate that suits their order: the third has the rate
that is best when they are mixed."""
COLOURS = {"key-value bottleneck": FOR, "linear probe": AGAINST, "MLP": "#7c8b93"}


@dataclass(frozen=True)
class Plan:
    """What is learned from, and how."""

    tokens: int = 64
    """Of each text, from its beginning."""
    epochs: int = 20
    """Times through a kind's texts before the next kind."""
    batch: int = 16
    codebooks: int = 256
    n_keys: int = 1024
    d_key: int = 32
    seeds: int = 5
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    probe_rates: tuple[float, ...] = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Data:
    """Activations of texts and their kinds, in three parts."""

    x: dict[str, Tensor]
    y: dict[str, Tensor]
    kinds: list[str]


@torch.inference_mode()
def encode(model: wb.model.LanguageModel, texts: Sequence[str], tokens: int) -> Tensor:
    """Mean of the residual stream over a text's first tokens, without the first, which is an attention sink."""
    rows = []
    for number, text in enumerate(texts):
        ids = model.to_tokens(text)[:, :tokens]
        rows.append(model.capture(ids, [POINT])[POINT][0, 1:].mean(0))
        if number % 500 == 0:
            say(f"Read {number:,} of {len(texts):,} texts")
    return torch.stack(rows)


def data(x: Tensor, labels: Sequence[str], seed: int) -> Data:
    """60% of each kind to learn from, 20% to choose learning rates on, 20% to test on; coordinates standardised."""
    kinds = sorted(set(labels))
    y = torch.tensor([kinds.index(label) for label in labels])
    chance = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"learn": [], "choose": [], "test": []}
    for kind in range(len(kinds)):
        rows = (y == kind).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=chance)]
        first, second = round(0.6 * len(rows)), round(0.8 * len(rows))
        for name, part in zip(parts, (rows[:first], rows[first:second], rows[second:]), strict=True):
            parts[name].append(part)
    at = {name: torch.cat(part) for name, part in parts.items()}
    mean, std = x[at["learn"]].mean(0), x[at["learn"]].std(0) + 1e-6
    return Data({n: (x[r] - mean) / std for n, r in at.items()}, {n: y[r] for n, r in at.items()}, kinds)


Learner = tuple[Callable[[Tensor], object], Callable[[str], Tensor]]
"""What learns from some texts to learn from, by their rows, and what scores the kinds of all texts of a part."""


class Trial:
    """One split of the texts and one order of the kinds."""

    def __init__(self, x: Tensor, labels: Sequence[str], plan: Plan, seed: int):
        self.data, self.plan, self.seed = data(x, labels, seed), plan, seed
        chance = torch.Generator().manual_seed(seed + 50)
        self.order: list[int] = torch.randperm(len(self.data.kinds), generator=chance).tolist()

    @functools.cached_property
    def keys(self) -> wb.dictionaries.KeyValueBottleneck:
        """The bottleneck with its keys in place."""
        made = wb.dictionaries.KeyValueBottleneck(
            self.data.x["learn"].shape[1],
            len(self.data.kinds),
            self.plan.codebooks,
            self.plan.n_keys,
            self.plan.d_key,
            seed=self.seed,
        )
        made.learn_keys(self.data.x["learn"], epochs=10, seed=self.seed)
        return made

    @functools.cached_property
    def codes(self) -> dict[str, Codes]:
        """Of all texts, by part: the keys are frozen."""
        return {part: self.keys.encode(x) for part, x in self.data.x.items()}

    def learner(self, name: str, rate: float) -> Learner:
        """A fresh one."""
        x, y = self.data.x, self.data.y["learn"]
        if name == "key-value bottleneck":
            keys, codes = self.keys, self.codes
            keys.values.zero_()
            values, indices, n = codes["learn"].values, codes["learn"].indices, codes["learn"].n_features
            return lambda rows: keys.learn(
                Codes(values[rows], indices[rows], n), y[rows], lr=rate
            ), lambda part: keys.decode(codes[part])
        torch.manual_seed(self.seed)
        width, kinds = x["learn"].shape[1], len(self.data.kinds)
        net: nn.Module = nn.Linear(width, kinds)
        if name == "MLP":
            net = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, kinds))
        optimiser = torch.optim.Adam(net.parameters(), lr=rate, fused=True)

        def learn(rows: Tensor) -> None:
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x["learn"][rows]), y[rows], label_smoothing=0.1).backward()
            optimiser.step()

        return learn, lambda part: net(x[part]).detach()

    def run(self, name: str, rate: float, mixed: bool) -> dict[str, Any]:
        """Learn the kinds one after another, or all mixed; accuracies on the kinds seen so far, and at the end."""
        learn, score = self.learner(name, rate)
        chance = torch.Generator().manual_seed(self.seed)
        y = self.data.y
        curve = []
        for number, kind in enumerate([-1] if mixed else self.order):
            rows = torch.arange(len(y["learn"])) if mixed else (y["learn"] == kind).nonzero()[:, 0]
            for _ in range(self.plan.epochs):
                for some in rows[torch.randperm(len(rows), generator=chance)].split(self.plan.batch):
                    learn(some)
            seen = torch.isin(y["choose"], torch.tensor(self.order[: None if mixed else number + 1]))
            curve.append(float((score("choose").argmax(-1) == y["choose"])[seen].double().mean()))
        test = float((score("test").argmax(-1) == y["test"]).double().mean())
        return {"choose": curve[-1], "test": test, "curve": curve}


def experiment(model: wb.model.LanguageModel, plan: Plan, folder: Path) -> dict[str, Any]:
    """All learners, orders and seeds."""
    rows = pq.read_table(CORPUS, columns=["text", "kind"]).to_pydict()
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, asdict(plan), len(rows["text"])])
    file = folder / "work" / f"encoded-{model.hash[:12]}-{plan.tokens}.safetensors"
    if not file.exists():
        made = encode(model, rows["text"], plan.tokens)
        with replacing(file) as temporary:
            save_file({"x": made}, temporary)
    x = load_file(file)["x"]
    results: dict[str, Any] = {"learners": {}, "kinds": sorted(set(rows["kind"])), "texts": len(x)}
    for seed in range(plan.seeds):
        trial = Trial(x, rows["kind"], plan, seed)
        for name in COLOURS:
            rates = plan.rates if name == "key-value bottleneck" else plan.probe_rates
            tried = {
                way: {
                    rate: notes.get(
                        f"{seed} {name} {way} {rate:g}", functools.partial(trial.run, name, rate, way == MIXED)
                    )
                    for rate in rates
                }
                for way in (ORDERED, MIXED)
            }
            best = {way: max(runs, key=lambda rate, runs=runs: runs[rate]["choose"]) for way, runs in tried.items()}
            found = {way: tried[way][best[way]] | {"rate": best[way]} for way in tried}
            found[AS_MIXED] = tried[ORDERED][best[MIXED]] | {"rate": best[MIXED]}
            for way, said in found.items():
                say(f"seed {seed}: {name}, {way}: {said['test']:.3f} (rate {said['rate']:g})")
                results["learners"].setdefault(name, {}).setdefault(way, []).append(said)
    return results | {"provenance": provenance(model, 0, plan=asdict(plan), hook_point=POINT)}


def means(results: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of the accuracy on test texts, by learner and way."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name, ways in results["learners"].items():
        for way, runs in ways.items():
            values = torch.tensor([one["test"] for one in runs])
            found.setdefault(name, {})[way] = float(values.mean()), float(values.std())
    return found


def curves(results: dict[str, Any]) -> go.Figure:
    """Accuracy on the kinds seen so far."""
    figure = go.Figure()
    for name, ways in results["learners"].items():
        values = torch.tensor([one["curve"] for one in ways[ORDERED]]).mean(0).tolist()
        figure.add_scatter(
            x=list(range(1, len(values) + 1)), y=values, mode="lines+markers", name=name, line={"color": COLOURS[name]}
        )
    count = len(results["kinds"])
    figure.add_scatter(
        x=list(range(1, count + 1)),
        y=[1 / n for n in range(1, count + 1)],
        mode="lines",
        name="chance",
        line={"color": FAINT, "dash": "dash"},
    )
    figure.update_xaxes(title="kinds seen so far")
    figure.update_yaxes(title="accuracy on texts of these kinds", range=[0, 1.02])
    return look(figure, 420)


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figure's JSON."""
    found, plan = means(results), results["provenance"]["plan"]
    page = Page(
        folder,
        "Learning kinds of text one after another",
        "A discrete key-value bottleneck (Träuble et al. 2022) beside a linear probe and an MLP, on the same frozen "
        f"activations of {results['provenance']['model']}: {len(results['kinds'])} kinds of text, each learned before "
        "the next begins, with no word on where one ends.",
    )
    page.section(
        "Accuracy over all kinds, afterwards",
        f"Mean and standard deviation over {plan['seeds']} orders, on texts that were not learned from. Chance is "
        f"{1 / len(results['kinds']):.1%}.",
    )
    rows = [
        [name, *(f"{found[name][way][0]:.1%} ± {found[name][way][1]:.1%}" for way in (ORDERED, AS_MIXED, MIXED))]
        for name in found
    ]
    page.add(table(["learner", ORDERED, AS_MIXED, MIXED], rows))
    page.figure("curves", curves(results), "Mean over orders, on the texts that learning rates were chosen on.")
    made = {key: value for key, value in results["provenance"].items() if key != "plan"}
    return page.write(made | {"plan": json.dumps(plan)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/continual"), help="folder of the report")
    parser.add_argument("--seeds", type=int, default=Plan.seeds)
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    results = experiment(wb.load_model(), Plan(seeds=asked.seeds), asked.out)
    write_json(asked.out / "results.json", results)
    if asked.summary:
        short = {key: results[key] for key in ("provenance", "kinds", "texts")}
        write_json(asked.summary, short | {"accuracy": means(results)}, indent=1)
    say(f"Written: {write_page(asked.out, results)}")


if __name__ == "__main__":
    main()
