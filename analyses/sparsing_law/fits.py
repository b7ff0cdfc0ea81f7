"""The laws of the sparsing law, fitted without initial values: a grid over the numbers that are not linear.

The paper's law for ReLU, `A(D) = exp(b - c D^α) + A0`, falls towards A0 ("log-space power law"); that for SiLU,
`A(D) = A0 - c / D^α`, rises towards it. Here c may have either sign, so that both laws fit both activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

EXPONENTS = np.linspace(0.02, 2.0, 100)
PUBLISHED = {
    "data, ReLU": "the share of active neurons falls with the data, by a log-space power law",
    "data, SiLU": "the share of active neurons rises with the data, by a power law, and converges",
    "width and depth": "the share of active neurons rises with the ratio of width to depth, in a line up to a point",
    "size": "at one ratio of width to depth, the limit of the share of active neurons hardly depends on size",
}
"""Findings of the paper."""


def fits(tokens: Sequence[float], active: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Both laws, fitted to the share of active neurons after these numbers of tokens, with residuals.

    `rms` is the root mean square of the residuals; `r2` the share of the variance that is explained; `aic` Akaike's
    criterion for small samples, which tells laws with three and with four free numbers apart (lower is better; infinite
    for fewer points than it takes).
    """
    x, y = np.asarray(tokens, float) / 1e6, np.asarray(active, float)
    return {"power": _judged(x, y, *_power(x, y)), "log-space power": _judged(x, y, *_log_power(x, y))}


def _power(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """The best exponent of the grid; A0 and c by least squares."""
    designs = np.stack([np.broadcast_to(np.ones_like(x), (len(EXPONENTS), len(x))), -(x ** -EXPONENTS[:, None])], -1)
    solved = np.linalg.pinv(designs) @ y  # [exponents, 2]
    curves = np.einsum("anp,ap->an", designs, solved)
    best = int(((curves - y) ** 2).sum(1).argmin())
    limit, c = solved[best]
    return {"A0": float(limit), "c": float(c), "alpha": float(EXPONENTS[best])}, curves[best]


def _log_power(x: np.ndarray, y: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """For each limit and exponent a line through log(A - A0); limits are below all points, since the law falls."""
    span = max(float(y.max() - y.min()), 1e-6)
    limits = y.min() - span * np.geomspace(0.01, 4.0, 60)
    above = y - limits[:, None]  # [limits, n]
    slopes = -(x ** EXPONENTS[:, None])  # [exponents, n]
    lines = np.stack([np.ones_like(slopes), slopes], -1)  # [exponents, n, 2]
    designs = lines[None] * above[:, None, :, None]  # errors of A count, not of its log: [limits, exponents, n, 2]
    wanted = np.log(above) * above
    solved = (np.linalg.pinv(designs) @ wanted[:, None, :, None])[..., 0]  # [limits, exponents, 2]
    curves = np.exp(np.einsum("anp,lap->lan", lines, solved)) + limits[:, None, None]
    errors = ((curves - y) ** 2).sum(-1)
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    b, c = solved[row, column]
    numbers = {"A0": float(limits[row]), "b": float(b), "c": float(c), "alpha": float(EXPONENTS[column])}
    return numbers, curves[row, column]


def _judged(x: np.ndarray, y: np.ndarray, numbers: dict[str, float], curve: np.ndarray) -> dict[str, Any]:
    n, k = len(x), len(numbers) + 1  # and the spread of the residuals
    square = float(((curve - y) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    spare = n - k - 1
    aic = n * math.log(max(square, 1e-16) / n) + 2 * k + 2 * k * (k + 1) / spare if spare > 0 else math.inf
    return {
        "numbers": numbers,
        "fitted": curve.tolist(),
        "residuals": (y - curve).tolist(),
        "rms": math.sqrt(square / n),
        "r2": 1 - square / total if total > 0 else 1.0,
        "aic": aic,
    }


def verdicts(runs: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """The paper's four findings, each with a verdict and its figures."""
    base = next(iter(runs)).split("-")[1]
    noise = _noise(runs, base)
    return [
        _with_data(runs, "relu", -1, noise),
        _with_data(runs, "silu", 1, noise),
        _with_ratio(runs, noise),
        _with_size(runs, noise),
    ]


def _last(run: dict[str, Any]) -> float:
    return run["points"][-1]["active"]


def _noise(runs: dict[str, dict[str, Any]], base: str) -> float | None:
    """The largest difference between the ends of two trainings of one model; None where each model is trained once."""
    apart = []
    for activation in ("relu", "silu"):
        ends = [_last(run) for name, run in runs.items() if name.startswith(f"{activation}-{base}-")]
        if len(ends) > 1:
            apart.append(max(ends) - min(ends))
    return max(apart) if apart else None


def _noise_sentence(noise: float | None) -> str:
    return "" if noise is None else f" Two trainings of one model end {noise:.3f} apart at most."


def _with_data(runs: dict[str, dict[str, Any]], activation: str, sign: int, noise: float | None) -> dict[str, str]:
    """Whether the share of active neurons moves in the paper's direction, from its middle on, in all runs."""
    law = "log-space power" if sign < 0 else "power"
    own = [run for run in runs.values() if run["activation"] == activation]
    moves, ranks, better = [], [], 0
    for run in own:
        active = [point["active"] for point in run["points"]]
        moves.append(active[-1] - active[0])
        ranks.append(_rank_correlation(active))
        better += run["fits"][law]["aic"] <= min(fit["aic"] for fit in run["fits"].values())
    right = [sign * move > (noise or 0.0) and sign * rank > 0.5 for move, rank in zip(moves, ranks, strict=True)]
    what = "data, ReLU" if sign < 0 else "data, SiLU"
    verdict = "reproduced" if all(right) else "partly" if any(right) else "not reproduced"
    least = min(run["fits"][law]["r2"] for run in own)
    figures = (
        f"From the first to the last point it moves by {min(moves):+.3f} to {max(moves):+.3f} in {len(own)} runs "
        f"(rank correlation with the data {min(ranks):+.2f} to {max(ranks):+.2f}; {sum(right)} runs in the paper's "
        f"direction). The paper's form explains at least {least:.1%} of the variance, and is the better of the two "
        f"by AIC in {better} of {len(own)}.{_noise_sentence(noise)}"
    )
    return {"finding": what, "paper": PUBLISHED[what], "verdict": verdict, "figures": figures}


def _with_ratio(runs: dict[str, dict[str, Any]], noise: float | None) -> dict[str, str]:
    """Whether the share of active neurons rises over runs of about the same size at different ratios."""
    sentences, right, reach = [], [], False
    for activation in ("relu", "silu"):
        middle = next(run for run in runs.values() if run["activation"] == activation)
        alike = {
            run["ratio"]: run
            for name, run in runs.items()
            if run["activation"] == activation
            and name.endswith("-0")
            and 0.7 < run["weights"] / middle["weights"] < 1.4
        }
        if len(alike) < 3:
            continue
        reach = True
        ratios = sorted(alike)
        ends = [_last(alike[ratio]) for ratio in ratios]
        sentences.append(
            f"{activation}: " + ", ".join(f"{end:.3f} at {ratio:.0f}" for ratio, end in zip(ratios, ends, strict=True))
        )
        right.append(ends == sorted(ends) and ends[-1] - ends[0] > (noise or 0.0))
    verdict = "reproduced" if reach and all(right) else "partly" if any(right) else "not reproduced"
    figures = (
        "; ".join(sentences)
        + f". Whether there is a point beyond which it stays is out of reach.{_noise_sentence(noise)}"
    )
    what = "width and depth"
    if not reach:
        verdict, figures = "out of reach", "Fewer than three shapes of about the same size were trained."
    return {"finding": what, "paper": PUBLISHED[what], "verdict": verdict, "figures": figures}


def _with_size(runs: dict[str, dict[str, Any]], noise: float | None) -> dict[str, str]:
    """Whether runs at the base's ratio end within the difference of two trainings, or within a tenth of their mean."""
    sentences, right = [], []
    for activation in ("relu", "silu"):
        middle = next(run for run in runs.values() if run["activation"] == activation)
        mine = [
            run
            for name, run in runs.items()
            if run["activation"] == activation and run["ratio"] == middle["ratio"] and name.endswith("-0")
        ]
        if len(mine) < 3:
            continue
        mine.sort(key=lambda run: run["weights"])
        ends = [_last(run) for run in mine]
        parts = (f"{end:.3f} with {run['weights']:,} weights" for end, run in zip(ends, mine, strict=True))
        sentences.append(f"{activation}: " + ", ".join(parts))
        right.append(max(ends) - min(ends) <= max(noise or 0.0, 0.1 * sum(ends) / len(ends)))
    what = "size"
    if not right:
        sentences, verdict = ["Fewer than three sizes of one ratio were trained"], "out of reach"
    else:
        verdict = "reproduced" if all(right) else "partly" if any(right) else "not reproduced"
    figures = "; ".join(sentences) + f". The paper's sizes go from 0.1 to 2.4 billion weights.{_noise_sentence(noise)}"
    return {"finding": what, "paper": PUBLISHED[what], "verdict": verdict, "figures": figures}


def _rank_correlation(values: Sequence[float]) -> float:
    """Spearman's rank correlation of the values with their order."""
    ranks = np.argsort(np.argsort(values))
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])
