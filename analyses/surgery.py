"""What every operation of surgery costs the default model: budget against perplexity and KL, beside the papers' claims.

Everything is calibrated, searched and healed on one half of a text's articles, and measured on the other half and on
bundled stories. Claims are those of the papers that the operations are from; whether they hold at this size is decided
by rules that are written beside each.

    python analyses/surgery.py --real wiki.valid.txt --out reports/surgery --summary docs/results/surgery.json
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from report import Notes, provenance, say, write_json
from surgery_page import write_page
from surgery_tasks import accuracy, corpora_of, kinds

import workbench as wb
from workbench.surgery.finetuning.labelling import Labelled, label_scores, punctuation
from workbench.surgery.operations.experts import keep_neurons, masks_by_domain, neuron_use
from workbench.surgery.operations.matrices import matrices
from workbench.surgery.operations.sublayers import SublayerDropping
from workbench.surgery.search.evopress import search
from workbench.surgery.search.fitness import DenseKL

FORMAT = 1
"""Of the notes; a new number measures everything anew."""


@dataclass(frozen=True)
class Plan:
    """What is done, and on how much."""

    calibration: int = 2048
    """Tokens that pruning and rounding are calibrated on; half of them judge levels of each matrix."""
    window: int = 64
    """Positions of a window that candidates are judged on."""
    context: int = 128
    """Of all else."""
    test: int = 1536
    """Tokens of the other half of the articles, and since they are few, of one of them."""
    test_searches: int = 6144
    """Of passages from them, for what searches found: the sets differ by less than articles do."""
    stories: int = 768
    """Tokens of bundled stories."""
    calibration_searches: int = 4096
    """Tokens of passages that sets of sublayers are judged on."""
    split: int = 1
    """Which articles are in which half. The search's own settings were chosen on other halves, 0 and 3."""
    more_splits: tuple[int, ...] = (2, 4, 5)
    """Other halves, on which all but the uniform search are run once more: what is found depends on the articles."""
    passes: tuple[int, ...] = (40_000, 75_000)
    """Positions that the greedy search may run at the central budget; it takes whole windows, and these are one for
    each candidate, the least that there can be, and two. EvoPress may run as many as it did."""
    searches: int = 1
    """Seeds of EvoPress there."""
    fewer_passes: int = 25_000
    """Of the other searches."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Of sublayers that are skipped."""
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    bits: tuple[int, ...] = (8, 6, 5, 4, 3)
    heal_tokens: int = 8_000
    heal_batch: int = 2
    heal_rank: int = 8
    heal_lr: float = 1e-3
    full_lr: float = 5e-5
    """Where all weights of the layers learn."""
    kinds: tuple[str, ...] = ("code", "dialogue", "email", "list", "qa", "children", "review", "speech")
    kind_tokens: int = 48
    """Of each text whose kind is named."""
    kind_texts: int = 25
    """Of each kind that are tested on."""
    tune_tokens: int = 32_000
    tune_lr: float = 3e-5
    drops: tuple[float, ...] = (0.5, 0.9, 0.99)
    domains: tuple[str, ...] = ("code", "email", "news")
    keep: float = 0.75
    """Share of the neurons that an expert keeps."""
    label_tokens: int = 12_000
    label_words: int = 60
    label_texts: int = 100
    """Texts that labels are tested on."""
    seed: int = 0

    @property
    def centre(self) -> float:
        """The share in the middle, the central budget."""
        return self.shares[len(self.shares) // 2]


class Bench:
    """The model, the texts, and what was measured so far."""

    def __init__(self, model: wb.model.LanguageModel, real: wb.Corpus, plan: Plan, notes: Notes):
        self.model, self.real, self.plan, self.notes = model, real, plan, notes
        self.seen, self.unseen = real.split(0.5, plan.split)
        self.stories = wb.Corpus.load("stories")
        self.rows: list[dict[str, Any]] = []

    @functools.cached_property
    def fitness(self) -> DenseKL:
        """On passages from the half that is calibrated on."""
        tokens, context = self.plan.calibration_searches, self.plan.window
        return DenseKL(self.model, self.seen.passages(), tokens, context=context)

    @functools.cached_property
    def tests(self) -> dict[str, DenseKL]:
        """On the texts that nothing was chosen on."""
        return {
            "articles": DenseKL(self.model, self.unseen, self.plan.test, context=self.plan.context, seed=1),
            "stories": DenseKL(self.model, self.stories, self.plan.stories, context=self.plan.context, seed=1),
        }

    @functools.cached_property
    def many(self) -> DenseKL:
        """For what searches found."""
        tokens, context = self.plan.test_searches, self.plan.context
        return DenseKL(self.model, self.unseen.passages(), tokens, context=context, seed=2)

    def costs(self, module: Any) -> dict[str, float]:
        """KL and perplexity on both texts; None as the module is the model as it is."""
        found = {}
        for name, test in self.tests.items():
            measured = test.costs(module)
            found |= {f"kl_{name}": measured.kl, f"perplexity_{name}": measured.perplexity}
        return found

    def row(self, operation: str, setting: str, budget: str, make: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
        """Measure one changed model: `make` gives its plain module, and what else is said of it."""

        def measure() -> dict[str, Any]:
            module, said = make()
            return said | self.costs(module)

        found = self.notes.get(f"{operation}: {setting}", measure)
        self.rows.append({"operation": operation, "setting": setting, "budget": budget} | found)
        say(f"{operation}, {setting}: KL {found['kl_articles']:.4f}, perplexity {found['perplexity_articles']:.2f}")

    def child(self, make: Callable[[], wb.surgery.Child]) -> Callable[[], tuple[Any, dict[str, Any]]]:
        """For `row`, of an operation that gives a child."""
        return lambda: (make().model.network.module, {})


def skipping(bench: Bench) -> None:
    """Sublayers skipped: at one budget by four searches, some also on other halves and with other numbers of positions.

    One search does so at other budgets, and skips whole layers at the same one.
    """
    plan, centre = bench.plan, bench.plan.centre
    choices = {whole: SublayerDropping(bench.model, whole=whole) for whole in (False, True)}

    def find(
        bench: Bench, share: float, method: str, passes: int, *, may: int = 0, seed: int = 0, whole: bool = False
    ) -> int:
        """Measure what a search finds within `passes`, or `may` if it may run more; how many it took."""
        parts, what = choices[whole], "layers" if whole else "sublayers"

        def make() -> tuple[Any, dict[str, Any]]:
            budget = sum(costs[0] for costs in parts.costs) * (1 - round(share * len(parts.parts)) / len(parts.parts))
            found = search(parts, bench.fitness, budget, method, passes=may or passes, seed=seed)
            said = {"skipped": list(found.chosen), "token_forwards": found.token_forwards, "kl_calibration": found.kl}
            said |= {"evaluations": found.evaluations, "share": share, "method": method, "halves": bench.plan.split}
            said |= {"passes": passes, "kl_many": bench.many(parts.module), "kl_seen": bench.fitness(parts.module)}
            return parts.module, said

        name = f"{share:.0%}, {method}, {passes:,} positions"
        name += f", halves {bench.plan.split}" if bench.plan.split != plan.split else ""
        bench.row(f"skip {what}", name + (f", seed {seed}" if seed else ""), f"{1 - share:.0%} of {what}", make)
        return bench.rows[-1]["token_forwards"]

    for split in (plan.split, *plan.more_splits):
        here = bench
        if split != plan.split:
            here = Bench(bench.model, bench.real, replace(plan, split=split), bench.notes)
            here.rows = bench.rows
        for passes in plan.passes:
            took = find(here, centre, "greedy", passes)
            for seed in range(plan.searches):
                find(here, centre, "evopress", passes, may=took, seed=seed)
        find(here, centre, "ranked", plan.passes[0])
    find(bench, centre, "uniform", plan.passes[0])
    for share in plan.shares:
        if share != centre:
            find(bench, share, "evopress", plan.fewer_passes)
    find(bench, centre, "evopress", plan.fewer_passes, whole=True)


def healed_skipping(bench: Bench) -> None:
    """The best model that EvoPress found with most positions, by what it was chosen on, healed."""
    plan = bench.plan
    same = {"operation": "skip sublayers", "method": "evopress", "share": plan.centre}
    same |= {"halves": plan.split, "passes": plan.passes[-1]}
    skipped = [row for row in bench.rows if same.items() <= row.items()]
    best = min(skipped, key=lambda row: row["kl_calibration"])

    def make() -> wb.surgery.Child:
        edits = [wb.interventions.RemoveSublayer(int(one.split(".")[0]), one.split(".")[1]) for one in best["skipped"]]
        return heal(bench, wb.bake(bench.model, edits), "skipped")

    bench.row("skip sublayers", f"{best['setting']}, healed", best["budget"], bench.child(make))


def heal(bench: Bench, child: wb.surgery.Child | wb.model.LanguageModel, name: str, **how: Any) -> wb.surgery.Child:
    """A short fine-tune on the half that is calibrated on; low rank, unless `how` says otherwise."""
    plan = bench.plan
    how = {"rank": plan.heal_rank, "tokens": plan.heal_tokens, "lr": plan.heal_lr, "batch": plan.heal_batch} | how
    folder = bench.notes.file.parent / "healed" / name
    return wb.surgery.heal(child, bench.seen, context=plan.context, folder=folder, **how)


def pruning(bench: Bench) -> None:
    """Magnitude and Wanda at several sparsities, 2:4, sparsities of each matrix's own, and masks that come slowly."""
    plan, model = bench.plan, bench.model
    for score in ("magnitude", "wanda"):
        how = {"score": score, "corpus": bench.seen, "seed": plan.seed}
        for sparsity in plan.sparsities:
            make = bench.child(functools.partial(wb.surgery.prune, model, sparsity, **how))
            bench.row("prune", f"{sparsity:.0%}, {score}", f"{1 - sparsity:.0%} of weights", make)
        make = bench.child(functools.partial(wb.surgery.prune, model, pattern="2:4", **how))
        bench.row("prune", f"2:4, {score}", "50% of weights", make)

    def own() -> tuple[Any, dict[str, Any]]:
        child, found = wb.surgery.search_sparsity(
            model, bench.seen, 0.5, passes=plan.fewer_passes, tokens=plan.calibration // 2, context=plan.window
        )
        return child.model.network.module, {"token_forwards": found.token_forwards, "kl_calibration": found.kl}

    bench.row("prune", "50% on average, wanda, evopress", "50% of weights", own)
    full: dict[str, Any] = {"rank": None, "only": r"layers\.\d+\.", "lr": plan.full_lr}
    for until, name in ((0.5, "decaying mask"), (0.0, "mask at once")):
        decay = wb.surgery.Decay(pattern="2:4", until=until)
        make = bench.child(functools.partial(heal, bench, model, name, sparsify=decay, **full))
        bench.row("prune", f"2:4, magnitude, healed with a {name}", "50% of weights", make)


def rounding(bench: Bench) -> None:
    """Rounding to the nearest value, and bits of each matrix's own."""
    plan = bench.plan
    for bits in plan.bits:
        bench.row(
            "round",
            f"{bits} bits",
            f"{bits} bits",
            bench.child(functools.partial(wb.surgery.quantise, bench.model, bits)),
        )

    def own() -> tuple[Any, dict[str, Any]]:
        child, found = wb.surgery.search_bits(
            bench.model, bench.seen, 4.0, passes=plan.fewer_passes, tokens=plan.calibration // 2, context=plan.window
        )
        return child.model.network.module, {"token_forwards": found.token_forwards, "kl_calibration": found.kl}

    bench.row("round", "4 bits on average, evopress", "4 bits", own)


def heads(bench: Bench) -> None:
    """Three key and value heads become one, by their mean and by singular vectors, before and after healing."""
    for method in ("mean", "svd"):
        join = functools.partial(wb.surgery.merge_kv_heads, bench.model, 1, method=method, corpus=bench.seen)
        bench.row("join heads", f"3 → 1, {method}", "1/3 of the cache", bench.child(join))
        make = bench.child(lambda join=join, method=method: heal(bench, join(), f"heads {method}"))
        bench.row("join heads", f"3 → 1, {method}, healed", "1/3 of the cache", make)


def activations(bench: Bench) -> None:
    """Other activations, as fitted and after healing."""
    for kind in ("relu", "polyrelu", "polynorm", "series"):
        swap = functools.partial(wb.surgery.swap_activation, bench.model, kind, corpus=bench.seen)
        bench.row("swap activation", kind, "the same size", bench.child(swap))
        make = bench.child(lambda swap=swap, kind=kind: heal(bench, swap(), f"activation {kind}"))
        bench.row("swap activation", f"{kind}, healed", "the same size", make)


def experts(bench: Bench) -> dict[str, dict[str, float]]:
    """KL of each domain's expert on texts of each domain: rows are experts, columns what they are measured on."""
    plan, model = bench.plan, bench.model
    halves = {name: corpus.split(0.5, plan.seed) for name, corpus in corpora_of(plan.domains).items()}

    def measure() -> dict[str, dict[str, float]]:
        uses = {name: neuron_use(model, half[0], seed=plan.seed) for name, half in halves.items()}
        uses["all"] = sum(uses.values()) / len(uses)  # type: ignore[assignment]
        tests = {name: DenseKL(model, half[1], plan.stories // 2) for name, half in halves.items()}
        found: dict[str, dict[str, float]] = {}
        for name, mask in masks_by_domain(uses, plan.keep).items():
            module = keep_neurons(model, mask, of=name).model.network.module
            found[name] = {other: test.costs(module).kl for other, test in tests.items()}
            say(f"expert of {name}: {found[name]}")
        return found

    return bench.notes.get("experts", measure)


def dare(bench: Bench) -> dict[str, Any]:
    """Accuracy at naming the kind of a text: of the model, of a fine-tuned sibling, and of what DARE leaves of it."""
    plan, model = bench.plan, bench.model
    learn, test = kinds(plan.kinds, plan.kind_tokens, plan.kind_texts, plan.seed)

    @functools.cache
    def sibling() -> wb.surgery.Child:
        how: dict[str, Any] = {"tokens": plan.tune_tokens, "lr": plan.tune_lr, "context": plan.kind_tokens + 8}
        return wb.surgery.heal(model, learn, batch=8, folder=bench.notes.file.parent / "healed" / "kinds", **how)

    found: dict[str, Any] = {"texts": len(test.texts), "chance": 1 / len(test.names), "drops": []}
    found["base"] = bench.notes.get("kinds: base", lambda: accuracy(model, test))
    found["tuned"] = bench.notes.get("kinds: tuned", lambda: accuracy(sibling().model, test))
    for p in plan.drops:
        for rescale in (True, False) if p else (True,):
            seeds = (0, 1) if p == 0.9 else (0,)
            for seed in seeds:
                made = bench.notes.get(
                    f"kinds: {p} {rescale} {seed}",
                    lambda p=p, rescale=rescale, seed=seed: accuracy(
                        wb.surgery.dare(model, sibling(), p, rescale=rescale, seed=seed).model, test
                    ),
                )
                found["drops"].append({"p": p, "rescale": rescale, "seed": seed, "accuracy": made})
                say(f"DARE, p = {p}, {'with' if rescale else 'without'} rescaling: {made:.3f}")
    return found


def labels(bench: Bench) -> dict[str, Any]:
    """Marks behind words: F1 after the same fine-tune, with the mask taken off groups of layers."""
    plan, n = bench.plan, bench.model.network.n_layers
    groups = {"no layer": [], "first half": range(n // 2), "last half": range(n // 2, n), "all layers": range(n)}
    learn = punctuation(bench.stories.split(0.2, plan.seed)[0], plan.label_words)
    test = punctuation(bench.stories.split(0.2, plan.seed)[1], plan.label_words)
    test = Labelled(test.words[: plan.label_texts], test.labels[: plan.label_texts], test.names)
    found = {}
    for name, layers in groups.items():

        def measure(layers: Sequence[int] = tuple(layers), name: str = name) -> dict[str, Any]:
            start = wb.surgery.remove_causal_mask(bench.model, list(layers)) if layers else bench.model
            folder = bench.notes.file.parent / "healed" / f"labels {name}"
            how: dict[str, Any] = {"tokens": plan.label_tokens, "lr": plan.full_lr, "folder": folder}
            tuned = wb.surgery.heal(start, learn, context=96, batch=2, only=r"layers\.\d+\.|norm", **how)
            return label_scores(tuned.model, test).to_dict()

        found[name] = bench.notes.get(f"labels: {name}", measure)
        say(f"labels, {name}: F1 {found[name]['f1']:.3f}, accuracy {found[name]['accuracy']:.3f}")
    return found


def experiment(model: wb.model.LanguageModel, real: wb.Corpus, plan: Plan, folder: Path) -> dict[str, Any]:
    """All operations; a run that was broken off goes on where it stopped."""
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, real.hash, asdict(plan)])
    bench = Bench(model, real, plan, notes)
    plain = notes.get("plain", lambda: {f"perplexity_{n}": t.costs().perplexity for n, t in bench.tests.items()})
    results: dict[str, Any] = {"plain": plain, "dare": dare(bench)}
    for operation in (rounding, pruning, heads, activations):
        operation(bench)
    results |= {"experts": experts(bench), "labels": labels(bench)}
    for operation in (skipping, healed_skipping):
        operation(bench)
    results["rows"] = bench.rows
    results["matrices"] = len(matrices(model))
    return results | {"provenance": provenance(model, plan.seed, text=real.hash, plan=asdict(plan))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/surgery"), help="folder of the report")
    parser.add_argument("--real", default="stories", help="a corpus of articles: half is tuned on, half measured on")
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    results = experiment(wb.load_model(), wb.Corpus.load(asked.real), Plan(), asked.out)
    write_json(asked.out / "results.json", results)
    page, claims = write_page(asked.out, results)
    if asked.summary:
        write_json(asked.summary, results | {"claims": [asdict(one) for one in claims]}, indent=1)
    say(f"Written: {page}")


if __name__ == "__main__":
    main()
