"""The lists and the neuron's card of Browse as scripts."""

from __future__ import annotations

from typing import Any

from shared import snippets


def search(source: str, query: str, table: dict[str, Any], how: dict[str, Any]) -> str:
    """A search over all decoded neurons; an empty query lists the most specialised ones."""
    arguments = "".join(f", {key}={value!r}" for key, value in table.items())
    code = snippets.opening(source) + f"table = wb.decode_neurons(model{arguments})\n"
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


def strongest(source: str, weights: str, text: str, how: dict[str, Any]) -> str:
    """The neurons that score a token highest; keyword arguments at their usual value are left out."""
    usual = {"scale": "raw", "sign": 1, "layers": None, "min_score": None}
    words = "".join(f", {key}={value!r}" for key, value in how.items() if key not in usual or value != usual[key])
    return snippets.opening(source) + (
        f"for feature, score in wb.neurons.neurons_writing(model, {text!r}, {weights!r}{words}):\n"
        "    print(feature, round(score, 3))\n"
    )


def card(source: str, feature: str, top: int, near: int) -> str:
    """One neuron: its tokens of both signs and its neighbours."""
    return snippets.opening(source) + (
        f"neuron = wb.Feature.parse({feature!r})\n"
        "scores = wb.neurons.token_scores(model, neuron)  # one score for every token the model knows\n"
        "for name, side in [('promoted', scores), ('suppressed', -scores)]:\n"
        f"    best = side.topk({top})\n"
        "    shares = side.softmax(-1)[best.indices]\n"
        "    for token, score, share in zip(model.token_texts(best.indices), best.values, shares):\n"
        "        print(name, repr(token), round(float(score), 3), f'{float(share):.4%}')\n\n"
        f"for other, cosine in wb.neurons.nearest_neurons(model, neuron, {near}):\n"
        "    print(other, round(cosine, 3))\n"
    )


def latent_search(folder: str, how: dict[str, Any]) -> str:
    """A search in a dictionary's feature index."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in how.items())
    scores = "[hit.score.precision, hit.score.recall], " if "regex" in how else ""
    return (
        "import workbench as wb\n\n"
        f"index = wb.open_index({snippets.place(folder)!r})\n"
        f"for hit in index.search({arguments}):\n"
        f"    print(hit.index, {scores}repr(hit.label), hit.activating[:6], hit.promoted[:6])\n"
    )
