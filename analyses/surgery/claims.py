"""The papers' claims on the operations of surgery, and whether they hold here, by a rule for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One claim: the operation, the paper, its claim, and what was measured here."""

    operation: str
    paper: str
    claimed: str
    here: str
    holds: bool
    rule: str
    """The rule that decides `holds`."""


def claims(results: Mapping[str, Any]) -> list[Claim]:
    """All claims, from the results of the study."""
    rows = {(row["operation"], row["setting"]): row["kl_articles"] for row in results["rows"]}
    return [
        *_searches(results["rows"]),
        *_compression(rows),
        *_modules(rows),
        _dare(results["dare"]),
        _labels(results["labels"]),
        _experts(results["experts"]),
    ]


def mean_accuracy(dare: Mapping[str, Any], p: float, rescale: bool) -> float:
    """Mean accuracy over seeds at one drop rate."""
    values = [one["accuracy"] for one in dare["drops"] if one["p"] == p and one["rescale"] == rescale]
    return sum(values) / len(values)


def _searches(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    """Claims on skipping, for each number of positions."""
    share = next(row["share"] for row in rows if row.get("method") == "greedy")
    skip = [row for row in rows if row["operation"] == "skip sublayers" and row.get("share") == share]
    for baselines, claimed, margin in (
        (("ranked",), "an evolutionary search finds better sets than scores of single parts", 0.05),
        (("greedy",), "it also beats a greedy search, which takes one part after another", 0.15),
    ):
        for passes in sorted({row["passes"] for row in skip if row["method"] == baselines[0]}):
            compared = [row for row in skip if row["method"] in baselines or row["method"] == "evopress"]
            compared = [row for row in compared if row["passes"] == passes]
            unseen, here = compare_searches(compared, "kl_many")
            seen, there = compare_searches(compared, "kl_seen")
            yield Claim(
                "skip sublayers",
                "EvoPress, arXiv 2410.14649",
                claimed,
                f"{share:.0%} skipped, {_positions(compared)}. KL on articles that no search saw: {here}; on the text "
                f"that sets are judged on: {there}",
                unseen >= margin and seen >= margin,
                f"{margin:.0%} lower on both, in the mean over the choices of articles",
            )


def _positions(rows: Sequence[dict[str, Any]]) -> str:
    """The mean number of positions that each search took, as a phrase."""
    methods = dict.fromkeys(row["method"] for row in rows)
    took = {method: [row["token_forwards"] for row in rows if row["method"] == method] for method in methods}
    return ", ".join(f"{method} with {fmean(some):,.0f}" for method, some in took.items()) + " positions"


def compare_searches(rows: Iterable[dict[str, Any]], kl: str) -> tuple[float, str]:
    """The share by which EvoPress is lower than its best baseline, in the mean over halves; a phrase with all KLs."""
    own: dict[int, list[dict[str, Any]]] = {}
    baselines: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        (own if row["method"] == "evopress" else baselines).setdefault(row["halves"], []).append(row)
    best = {halves: min(others, key=lambda row: row[kl]) for halves, others in baselines.items()}
    kls = {halves: fmean(row[kl] for row in rows) for halves, rows in own.items()}
    lower = fmean(1 - value / best[halves][kl] for halves, value in kls.items())
    each = ", ".join(f"{value:.3f} ({best[halves]['method']} {best[halves][kl]:.3f})" for halves, value in kls.items())
    return lower, f"{each}, in the mean {abs(lower):.0%} {'lower' if lower > 0 else 'higher'}"


def _compression(rows: dict[tuple[str, str], float]) -> Iterator[Claim]:
    """Claims on pruning and rounding."""
    evo, lower = "EvoPress, arXiv 2410.14649", "lower KL"
    even, own = rows["prune", "50%, wanda"], rows["prune", "50% on average, wanda, evopress"]
    here = f"KL {own:.3f}; with 50% in every matrix {even:.3f}"
    yield Claim("prune", evo, "a sparsity found for each matrix beats one for all", here, own < even, lower)
    even, own = rows["round", "4 bits"], rows["round", "4 bits on average, evopress"]
    here = f"KL {own:.3f}; with 4 bits in every matrix {even:.3f}"
    yield Claim("round", evo, "bits found for each matrix beat equal ones", here, own < even, lower)
    wanda, size = rows["prune", "50%, wanda"], rows["prune", "50%, magnitude"]
    here = f"KL {wanda:.3f} by Wanda, {size:.3f} by magnitude"
    claimed = "weights times inputs are far better to prune by than weights, at 50%"
    yield Claim("prune", "Wanda, arXiv 2306.11695", claimed, here, wanda < 0.8 * size, "20% lower KL")
    slow, fast = (rows["prune", f"2:4, magnitude, healed with a {name}"] for name in ("decaying mask", "mask at once"))
    here = f"KL {slow:.3f} with a decaying mask, {fast:.3f} at once"
    claimed = "a mask that decays while the model learns is better than one at once"
    yield Claim("prune", "Kao et al., arXiv 2209.07617", claimed, here, slow < fast, lower)


def _modules(rows: dict[tuple[str, str], float]) -> Iterator[Claim]:
    """Claims on heads and activations."""
    yu = "Yu et al., arXiv 2406.07056"
    svd, mean = rows["join heads", "3 → 1, svd"], rows["join heads", "3 → 1, mean"]
    here = f"KL {svd:.3f} by singular vectors, {mean:.3f} by the mean"
    yield Claim("join heads", yu, "singular vectors keep more than the mean", here, svd < mean, "lower KL")
    svd, mean = rows["join heads", "3 → 1, svd, healed"], rows["join heads", "3 → 1, mean, healed"]
    here = f"KL {svd:.3f} after healing, by the mean {mean:.3f}"
    claimed = "fine-tuned, the model is comparable to what it was"
    yield Claim("join heads", yu, claimed, here, svd < 0.1, "KL below 0.1 after this short fine-tune")
    kinds = ("relu", "polyrelu", "polynorm", "series")
    kl = {kind: rows["swap activation", f"{kind}, healed"] for kind in kinds}
    here = "KL after healing: " + ", ".join(f"{kind} {value:.3f}" for kind, value in kl.items())
    claimed = "polynomials are better activations than ReLU (in models trained with them)"
    holds = min(kl["polyrelu"], kl["polynorm"]) < kl["relu"]
    yield Claim("swap activation", "Zhuo et al., arXiv 2411.03884", claimed, here, holds, "lower KL after healing")


def _dare(dare: dict[str, Any]) -> Claim:
    scaled, bare = (mean_accuracy(dare, 0.9, rescale) for rescale in (True, False))
    return Claim(
        "DARE",
        "Yu et al., arXiv 2311.03099",
        "90% of a delta can go at almost no loss, if the rest is made larger",
        f"accuracy {dare['base']:.1%} before, {dare['tuned']:.1%} tuned; at p = 0.9 {scaled:.1%} with rescaling, "
        f"{bare:.1%} without",
        scaled >= dare["tuned"] - 0.01 and bare < scaled - 0.01,
        "at most 1 point lost with rescaling, and more without",
    )


def _labels(scores: dict[str, Any]) -> Claim:
    f1 = {name: one["f1"] for name, one in scores.items()}
    return Claim(
        "take off the mask",
        "Dukić and Šnajder, arXiv 2401.14556",
        "fine-tuned, layers that see ahead label better, some groups better than all (at 7B; not at 68M)",
        "F1 by the layers that see ahead: " + ", ".join(f"{name} {value:.3f}" for name, value in f1.items()),
        max(f1.values()) > f1["no layer"],
        "a higher F1 with any group than with none",
    )


def _experts(cut: dict[str, dict[str, float]]) -> Claim:
    names = [name for name in cut if name != "all"]
    own = sum(cut[name][name] for name in names) / len(names)
    together = sum(cut["all"][name] for name in names) / len(names)
    return Claim(
        "cut experts",
        "Read-ME, arXiv 2410.19123",
        "neurons chosen for a domain serve it better than neurons chosen for all",
        f"mean KL on the own domain {own:.3f}; with neurons chosen for all domains {together:.3f}",
        own < together,
        "lower mean KL",
    )
