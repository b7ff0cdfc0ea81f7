"""How the benchmarks measure: rivals take turns in one run, so that what slows the machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable


def in_turns(rivals: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Best time of each rival in seconds, over `rounds` turns after one to warm up."""
    best = dict.fromkeys(rivals, float("inf"))
    for turn in range(rounds + 1):
        for name, work in rivals.items():
            start = time.perf_counter()
            work()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def report(what: str, seconds: dict[str, float], rival: str, wanted: str = "") -> None:
    """Print each time, and its speed as a share of the rival's."""
    print(what + (f"  (wanted: {wanted})" if wanted else ""))
    for name, time_taken in seconds.items():
        print(f"  {name:<44} {time_taken:8.3f} s   speed {seconds[rival] / time_taken:5.2f} of {rival}")
