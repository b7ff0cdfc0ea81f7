"""The query for neurons: the search box and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from caching import TOP_K

if TYPE_CHECKING:
    from workbench.model import LanguageModel

AMONG, HIGHEST = "among a neuron's top tokens", "at any rank"
WEIGHTS = {"gate": "gate", "up": "up", "down": "down"}
SIGNS = {1: "promotes", -1: "suppresses"}
MATCHES = {"any": "any form", "exact": "exactly", "contains": "inside words"}
SCALES = {"raw": "raw", "unit": "unit length", "norm": "through the final norm"}


@dataclass(frozen=True)
class Query:
    """A query for neurons."""

    text: str
    where: str
    weights: str
    sign: int
    match: str
    scale: str
    layers: tuple[int, ...] | None
    min_score: float | None
    max_rank: int | None

    def how(self) -> dict[str, Any]:
        """The keyword arguments of `NeuronTable.search`."""
        return {
            "match": self.match,
            "sign": self.sign,
            "layers": self.layers,
            "max_rank": self.max_rank,
            "min_score": self.min_score,
        }

    def at_any_rank(self) -> dict[str, Any]:
        """Those of `neurons_writing` that the query chooses."""
        return {"sign": self.sign, "layers": self.layers, "min_score": self.min_score}


def chosen_table(model: LanguageModel) -> tuple[str, str]:
    """The weights and the scale that are chosen now."""
    return st.session_state.get("weights") or _weights_of(model)[0], st.session_state.get("scale") or "raw"


def _weights_of(model: LanguageModel) -> list[str]:
    return ["down" if site == "post" else site for site in model.network.neuron_sites]


def ask(model: LanguageModel) -> Query:
    """Draw the widgets; returns their query."""
    box, where = st.columns([3, 2], vertical_alignment="bottom")
    text = box.text_input(
        "Search for a word",
        key="query",
        type="search",
        placeholder="dog",
        live="100ms",
        persist_state="session",
        icon=":material/search:",
    )
    place = where.segmented_control(
        "Where",
        [AMONG, HIGHEST],
        default=AMONG,
        required=True,
        key="where",
        persist_state="session",
        help=f"Among the {TOP_K} tokens that a neuron scores highest; or the neurons that score this token highest, "
        "wherever it ranks among their tokens.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        weights = _choice(
            "Weights",
            WEIGHTS,
            "weights",
            "**gate** and **up** read the residual stream; **down** writes into it.",
            options=_weights_of(model),
        )
        ranked = place == AMONG
        sign = _choice("Direction", SIGNS, "sign", "A neuron can point towards a word, or away from it.")
        match = _choice(
            "Match",
            MATCHES,
            "match",
            "**any form** ignores case and the leading space; **exactly** takes one token, ␣dog with its space."
            + ("" if ranked else f" Not “{HIGHEST}”: there one token is scored, the one that the page names."),
            disabled=not ranked,
        )
        with st.popover("Filters", icon=":material/filter_list:"):
            scale = _choice(
                "Scale of the weights",
                SCALES,
                "scale",
                "As they are; each neuron's divided by its length; or passed through the model's final norm.",
            )
            last = model.network.n_layers - 1
            low, high = st.slider("Layers", 0, last, (0, last), key="layers", persist_state="session")
            least = st.number_input("Lowest score", value=None, key="min_score", persist_state="session")
            rank = st.number_input(
                "Worst rank",
                0,
                TOP_K - 1,
                None,
                key="max_rank",
                persist_state="session",
                help="0 is the top token." + ("" if ranked else f" Not “{HIGHEST}”: there ranks do not count."),
                disabled=not ranked,
            )
    layers = None if (low, high) == (0, last) else tuple(range(low, high + 1))
    return Query(text or "", place, weights, sign, match, scale, layers, least, rank if ranked else None)


def _choice(
    label: str, names: dict, key: str, help: str, *, options: Sequence[Any] | None = None, disabled: bool = False
) -> Any:
    options = list(options or names)
    return st.segmented_control(
        label,
        options,
        default=options[0],
        required=True,
        format_func=names.__getitem__,
        key=key,
        help=help,
        disabled=disabled,
        persist_state="session",
    )
