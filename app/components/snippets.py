"""What a page shows, as a script that shows the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st
from components.session import DEFAULT

if TYPE_CHECKING:
    from workbench.interventions import FeatureIntervention


def show(code: str) -> None:
    """The script in a fold."""
    with st.expander("Copy as Python", icon=":material/code:"):
        st.code(code, language="python")


def opening(source: str) -> str:
    """The lines every script begins with."""
    return f"import workbench as wb\n\nmodel = wb.load_model({'' if source == DEFAULT else repr(source)})\n"


def search(source: str, query: str, table: dict[str, Any], how: dict[str, Any]) -> str:
    """A search over all decoded neurons; an empty query lists the most specialised ones."""
    given = "".join(f", {key}={value!r}" for key, value in table.items())
    code = opening(source) + f"table = wb.decode_neurons(model{given})\n"
    if query:
        words = "".join(f", {key}={value!r}" for key, value in how.items() if value is not None)
        return code + (
            f"for hit in table.search({query!r}{words}):\n"
            "    print(hit.feature, hit.tokens[:5], round(hit.scores[hit.rank], 2), hit.rank, round(hit.excess, 1))\n"
        )
    sign = how.get("sign", 1)
    layers, least = how.get("layers"), how.get("min_score")
    test = [f"hit.layer in {list(layers)!r}"] if layers else []
    test += [f"hit.scores[0] >= {least!r}"] if least is not None else []
    chosen = f"\nhits = [hit for hit in hits if {' and '.join(test)}]" if test else ""
    return code + (
        f"order = (-table.excess[{0 if sign == 1 else 1}]).argsort()  # the most specialised first\n"
        f"hits = (table.hit(int(row), {sign}) for row in order){chosen}\n"
        "for hit, _ in zip(hits, range(200)):\n"
        "    print(hit.feature, hit.tokens[:5], round(hit.scores[0], 2), round(hit.excess, 1))\n"
    )


def strongest(source: str, weights: str, scale: str, text: str, top: int) -> str:
    """The neurons that score a token highest."""
    how = "" if scale == "raw" else f", scale={scale!r}"
    return opening(source) + (
        f"for feature, score in wb.neurons_writing(model, {text!r}, {weights!r}{how}, top={top}):\n"
        "    print(feature, round(score, 3))\n"
    )


def card(source: str, feature: str, top: int, near: int) -> str:
    """One neuron: its tokens of both signs and its neighbours."""
    return opening(source) + (
        f"neuron = wb.Feature.parse({feature!r})\n"
        "scores = wb.token_scores(model, neuron)  # one score for every token the model knows\n"
        "for name, side in [('promoted', scores), ('suppressed', -scores)]:\n"
        f"    best = side.topk({top})\n"
        "    shares = side.softmax(-1)[best.indices]\n"
        "    for token, score, share in zip(model.token_texts(best.indices), best.values, shares):\n"
        "        print(name, repr(token), round(float(score), 3), f'{float(share):.4%}')\n\n"
        f"for other, cosine in wb.nearest_neurons(model, neuron, {near}):\n"
        "    print(other, round(cosine, 3))\n"
    )


def intervention(one: FeatureIntervention) -> str:
    """An intervention as it is written in Python."""
    settings = dict(one.settings())
    direction = settings.pop("direction", None)
    if direction is not None:
        start = f"wb.Steer.along({settings['hook_point']!r}, {direction!r}, {settings['amount']!r}"
    else:
        values = "".join(f", {value!r}" for value in settings.values())
        if type(one).__name__ == "Ablate" and settings["mode"] == "zero":
            values = ""
        start = f'wb.{type(one).__name__}("{one.feature}"{values}'
    return start + (f", positions={one.positions!r})" if one.positions != "all" else ")")


def edit_list(interventions: Sequence[FeatureIntervention]) -> str:
    """Interventions as the value of a variable `edits`."""
    if not interventions:
        return "edits = []\n"
    return "edits = [\n" + "".join(f"    {intervention(one)},\n" for one in interventions) + "]\n"
