"""README's rows on surgery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from analyses.shared.published import listed
from analyses.shared.study import Row
from analyses.surgery.claims import mean_accuracy

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def published_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row for each paper that a claim is from."""
    kl = {(row["operation"], row["setting"]): row["kl_articles"] for row in summary["rows"]}
    decaying, at_once = (
        kl["prune", f"2:4, magnitude, healed with a {name}"] for name in ("decaying mask", "mask at once")
    )
    wanda, magnitude = kl["prune", "50%, wanda"], kl["prune", "50%, magnitude"]
    tokens = summary["provenance"]["plan"]["heal_tokens"]
    return [
        Row(
            "Sieberling et al. (arXiv 2410.14649)",
            "an evolutionary search finds better sets of sublayers than scores of single ones",
            f"{_searches(summary['rows'])} With a level for each matrix, 50% pruned, "
            f"{kl['prune', '50% on average, wanda, evopress']:.3f} and {wanda:.3f} with one for all; at 4 bits "
            f"{kl['round', '4 bits on average, evopress']:.3f} and {kl['round', '4 bits']:.3f}",
        ),
        Row(
            "Yu et al. (arXiv 2311.03099)",
            "90% of what a fine-tune changed can go, if the rest is made larger",
            _dare(summary["dare"]),
        ),
        Row(
            "Sun et al. (arXiv 2306.11695)",
            "weights times inputs are better to prune by than weights",
            f"KL at 50% {wanda:.2f} and {magnitude:.2f}",
        ),
        Row(
            "Kao et al. (arXiv 2209.07617)",
            "a mask that decays while the model learns is better than one at once",
            f"{'' if decaying < at_once else 'not '}after {tokens:,} tokens: 2:4, KL {decaying:.2f} and {at_once:.2f}",
        ),
        Row(
            "Yu et al. (arXiv 2406.07056)",
            "key and value heads are better joined by singular vectors than by their mean",
            _heads(kl, tokens),
        ),
        Row(
            "Dukić and Šnajder (arXiv 2401.14556)",
            "layers without a causal mask label words better",
            "marks behind words, F1: "
            + ", ".join(f"{name.removesuffix(' layers')} {one['f1']:.2f}" for name, one in _labels(summary["labels"])),
        ),
        Row(
            "Cai et al. (arXiv 2410.19123)",
            "neurons chosen for a domain serve it better than those chosen for all",
            _experts(summary["experts"], summary["provenance"]["plan"]["keep"]),
        ),
    ]


def _searches(rows: Sequence[Mapping[str, Any]]) -> str:
    """KL of EvoPress beside scores of single sublayers and a greedy search, on text that no search used."""
    share = next(row["share"] for row in rows if row.get("method") == "greedy")
    central = [row for row in rows if row["operation"] == "skip sublayers" and row.get("share") == share]
    few, many = sorted({row["passes"] for row in central})[:2]
    count = len(central[0]["skipped"])

    def kls(method: str, passes: int) -> list[float]:
        return [row["kl_many"] for row in central if (row["method"], row["passes"]) == (method, passes)]

    own, ranked, greedy = (kls(method, few) for method in ("evopress", "ranked", "greedy"))
    own_twice, greedy_twice = kls("evopress", many), kls("greedy", many)
    always = all(mine < other for mine, other in zip(own_twice, greedy_twice, strict=True))
    return (
        f"{count} of {round(count / share)} skipped, KL on passages of articles that no search saw, for "
        f"{NUMBERS.get(len(own), len(own))} choices of the articles: {listed(own)}, by scores of single ones "
        f"{listed(ranked)} with as many passes: {_lower(own, ranked)} in the mean (evenly spread "
        f"{kls('uniform', few)[0]:.2f}). A greedy search that scores every sublayer anew at each step finds "
        f"{listed(greedy)}: {_lower(own, greedy)}. With {many / few:.1f} times the passes {listed(own_twice)} beside "
        f"{listed(greedy_twice)}: {_lower(own_twice, greedy_twice)}{'' if always else ', not always'}."
    )


def _lower(own: Sequence[float], others: Sequence[float]) -> str:
    """By how much the first values are lower, in the mean of their ratios."""
    share = fmean(1 - mine / other for mine, other in zip(own, others, strict=True))
    return f"{abs(share):.0%} {'lower' if share > 0 else 'higher'}"


def _dare(dare: Mapping[str, Any]) -> str:
    scaled, bare = (mean_accuracy(dare, 0.9, rescale) for rescale in (True, False))
    draws = sum(one["p"] == 0.9 and one["rescale"] for one in dare["drops"])
    return (
        f"accuracy {dare['base']:.1%} before, {dare['tuned']:.1%} tuned; with 90% dropped {scaled:.1%} "
        f"({NUMBERS.get(draws, draws)} draws), {bare:.1%} if the rest is not made larger"
    )


def _heads(kl: Mapping[tuple[str, str], float], tokens: int) -> str:
    svd, mean = (kl["join heads", f"3 → 1, {method}"] for method in ("svd", "mean"))
    healed, healed_mean = (kl["join heads", f"3 → 1, {method}, healed"] for method in ("svd", "mean"))
    far = ", far from what it was" if min(healed, healed_mean) > 1 else ""
    return (
        f"three heads become one: KL {svd:.2f} and {mean:.2f}; after a fine-tune on {tokens:,} tokens {healed:.2f} and "
        f"{healed_mean:.2f}{far}"
    )


def _labels(labels: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Scores by the layers without a mask, in the order of `labels`."""
    return [(name if name in ("no layer", "all layers") else f"the {name}", one) for name, one in labels.items()]


def _experts(experts: Mapping[str, Mapping[str, float]], keep: float) -> str:
    names = [name for name in experts if name != "all"]
    own, together = (fmean(experts[of or name][name] for name in names) for of in ("", "all"))
    return f"{NUMBERS.get(len(names), len(names))} domains, {keep:.0%} kept: mean KL {own:.3f} and {together:.3f}"
