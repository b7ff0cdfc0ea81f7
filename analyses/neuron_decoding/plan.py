"""The plan of the study: words, prompts and rules from `plan.toml`, and constants."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

PLAN = Path(__file__).with_name("plan.toml")
SEED = 0
SITES = ("gate", "up", "post")
WEIGHTS = ("gate", "up", "down")
ONE_WORD = 3
"""A neuron means one word if this many of its top tokens are the same word as the first."""
SAMPLE = 64
"""Neurons per layer and weight whose softmax is computed."""


def read_plan(smallest: bool = False) -> dict[str, Any]:
    """The plan in `plan.toml`; the smallest one keeps every part and shortens every list."""
    plan = tomllib.loads(PLAN.read_text())
    if smallest:
        plan["concepts"] = {family: dict(list(words.items())[:1]) for family, words in plan["concepts"].items()}
        plan["dose"] |= {"values": [-20, 0, 20], "random": 2, "prompts": plan["dose"]["prompts"][:2]}
        some = {"tokens": 12, "sites": ["up", "post"], "values": [20, -20], "random": 1}
        plan["favourite"] |= some | {key: plan["favourite"][key][:2] for key in ("held_out", "counted")}
    return plan
