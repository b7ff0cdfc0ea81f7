"""How the benchmarks measure time. Rivals take turns in one run, so that other work on the machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock and of the processor; other work on the machine changes the latter less."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> tuple[Any, Spent]:
    """The result of `work`, and the time it takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(rivals: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """The best time of each rival in seconds, over `rounds` turns after one to warm up."""
    best = dict.fromkeys(rivals, float("inf"))
    for turn in range(rounds + 1):
        for name, work in rivals.items():
            _, spent = timed(work)
            if turn:
                best[name] = min(best[name], spent.wall)
    return best


def medians(turns: list[Spent]) -> Spent:
    """The median of each time over turns."""
    return Spent(statistics.median(one.wall for one in turns), statistics.median(one.cpu for one in turns))


def medians_in_turns(
    rivals: dict[str, Callable[[], object]], rounds: int, log: Callable[[int, str, Spent], None]
) -> dict[str, Spent]:
    """The median times of each rival, over `rounds` turns after one to warm up; `log` is called after each turn."""
    turns: dict[str, list[Spent]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, work in rivals.items():
            _, spent = timed(work)
            if turn:
                turns[name].append(spent)
                log(turn, name, spent)
    return {name: medians(own) for name, own in turns.items()}


def report(what: str, seconds: dict[str, float], rival: str, wanted: str = "") -> None:
    """Print each time, and its speed as a share of the rival's."""
    print(what + (f"  (wanted: {wanted})" if wanted else ""))
    for name, time_taken in seconds.items():
        print(f"  {name:<44} {time_taken:8.3f} s   speed {seconds[rival] / time_taken:5.2f} of {rival}")
