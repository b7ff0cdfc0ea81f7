"""Scripts that compute what a page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import streamlit as st
from shared.corpora import WALKS
from shared.session import DATA, DEFAULT

import workbench as wb
from workbench.dictionaries import Dictionary
from workbench.interventions.protocol import feature_of

SHIPPED = DATA / "dictionaries"

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind


def show(code: str) -> None:
    """Draw the script in an expander."""
    with st.expander("Copy as Python", icon=":material/code:"):
        st.code(code, language="python")


def opening(source: str) -> str:
    """The lines that every script starts with."""
    return f"import workbench as wb\n\nmodel = wb.load_model({'' if source == DEFAULT else repr(source)})\n"


def search(source: str, query: str, table: dict[str, Any], how: dict[str, Any]) -> str:
    """A search over all decoded neurons; an empty query lists the most specialised ones."""
    arguments = "".join(f", {key}={value!r}" for key, value in table.items())
    code = opening(source) + f"table = wb.decode_neurons(model{arguments})\n"
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
        f"for feature, score in wb.neurons.neurons_writing(model, {text!r}, {weights!r}{how}, top={top}):\n"
        "    print(feature, round(score, 3))\n"
    )


def card(source: str, feature: str, top: int, near: int) -> str:
    """One neuron: its tokens of both signs and its neighbours."""
    return opening(source) + (
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
        f"index = wb.open_index({_place(folder)!r})\n"
        f"for hit in index.search({arguments}):\n"
        f"    print(hit.index, {scores}repr(hit.label), hit.activating[:6], hit.promoted[:6])\n"
    )


def latent_card(folder: str, latent: int) -> str:
    """The card of a latent from its index."""
    return (
        "import workbench as wb\n\n"
        f"index = wb.open_index({_place(folder)!r})\n"
        f"card = index.feature({latent})\n"
        "print(repr(card.label), card.density, card.highest, card.mean)\n"
        "print('promoted  ', [(one.token, round(one.score, 3)) for one in card.promoted])\n"
        "print('suppressed', [(one.token, round(one.score, 3)) for one in card.suppressed])\n"
        "for example in card.top_examples:\n"
        "    print(round(example.value, 2), ''.join(example.tokens))\n"
        "print('nearest', [(one.index, round(one.cosine, 2)) for one in card.neighbours])\n"
        "print('active together', [(one.index, round(one.share, 2)) for one in card.cofiring])\n"
    )


def build_index(source: str, folder: str, corpus: str, tokens: int) -> str:
    """The index of a dictionary, from a corpus or from walks of the model's own state machine."""
    corpus_code = (
        'wb.synthetic.TokFSM(**model.about["machine"]).corpus()' if corpus == WALKS else f"wb.Corpus.load({corpus!r})"
    )
    return opening(source) + (
        f"dictionary = wb.load_dictionary({_place(folder)!r})\n"
        f"corpus = {corpus_code}\n"
        f"index = wb.build_index(model, dictionary, corpus, {_place(folder) + '/index'!r}, tokens={tokens})\n"
    )


def firing(source: str, folders: Sequence[str], text: str, top: int) -> str:
    """The active features of some dictionaries on a text."""
    return (
        "from workbench.measures.firing import active_features\n"
        + opening(source)
        + f"dictionaries = [wb.load_dictionary(folder) for folder in {list(map(_place, folders))!r}]\n"
        f"for token in active_features(model, dictionaries, {text!r}, top={top}):\n"
        "    fired = zip(map(str, token.features), token.values)\n"
        "    print(repr(token.text), [(feature, round(value, 2)) for feature, value in fired])\n"
    )


def states(source: str, walk: Sequence[int], target: int | None) -> str:
    """The next states that a state machine's model predicts after a run, with a target state's codes forced."""
    code = (
        "import torch\nfrom workbench.synthetic import count_codes, force_state, next_states\n"
        + opening(source)
        + "machine = wb.synthetic.TokFSM(**model.about['machine'])\n"
        + f"visited = torch.tensor([{list(walk)!r}])\nedits = ()\n"
    )
    if target is not None:
        code += (
            "counted = [count_codes(model, machine, written=n) for n in range(machine.digits)]\n"
            f"edits = force_state(model, machine, counted, {target}, visited.shape[1])\n"
        )
    return code + (
        "probabilities = next_states(model, machine, visited, edits)[0]\n"
        "for probability, state in zip(*probabilities.topk(12)):\n"
        "    print(int(state), f'{float(probability):.4f}')\n"
    )


def loading(interventions: Sequence[InterventionKind]) -> tuple[str, dict[str, str]]:
    """The lines that load the dictionaries that interventions need, and the variable of each by its name."""
    lines, names = "", {}
    for one in interventions:
        feature = feature_of(one)
        source = feature.source if feature is not None else None
        if isinstance(source, Dictionary) and source.name not in names:
            names[source.name] = f"dictionary{len(names) + 1}" if names else "dictionary"
            lines += f"{names[source.name]} = {_opened(source)}\n"
    return lines, names


def _opened(dictionary: Any) -> str:
    """The expression of a dictionary: from the model that runs through it, or from its folder."""
    folder = Path(dictionary.folder or dictionary.name)
    if (folder.parent.parent / "spliced.json").exists():
        return f"next(one for one in model.splices.values() if one.name == {dictionary.name!r})"
    return f"wb.load_dictionary({_place(str(folder))!r})"


def _place(folder: str) -> str:
    """A dictionary's folder for a script: the name of one that comes with Workbench, or the absolute path."""
    path = Path(folder).absolute()
    return path.name if path.parent == SHIPPED else str(path)


def training(source: str, building: str, call: str) -> str:
    """A training: the lines that build the dictionary, and the call of `train`."""
    return opening(source) + f"{building}\n{call}\n"


def fidelity(source: str, folders: Sequence[str], corpus: str, tokens: int) -> str:
    """The fidelity of dictionaries on the same tokens."""
    return opening(source) + (
        f"dictionaries = [wb.load_dictionary(folder) for folder in {list(map(_place, folders))!r}]\n"
        f"corpus = wb.Corpus.load({corpus!r})\n"
        f"for one in wb.measures.measure_fidelities(model, dictionaries, corpus, tokens={tokens}):\n"
        "    for name, (low, high) in one.intervals.items():\n"
        "        print(f'{name:15} {getattr(one, name):9.4f}  ({low:.4f} to {high:.4f})')\n"
        "    print(f'{\"dead\":15} {one.dead:9.4f}\\n')\n"
    )


def attribution(request: Any) -> str:
    """The graph of features behind a prediction, and its check by intervention."""
    opened = ", ".join(f"wb.load_dictionary({_place(folder)!r})" for folder in request.folders)
    return opening(request.source) + (
        f"transcoders = [{opened}]\n"
        f"graph = wb.attribute(\n    model, transcoders, {request.prompt!r}, {request.target!r}, "
        f"max_latents={request.latents}, mlps={request.mlps!r}\n)\n"
        "print(graph.target.label, graph.target.value, graph.shares, max(graph.completeness()))\n"
        "for edge in graph.prune(0.5, 0.9).edges:\n"
        "    source, target = graph.node(edge.source), graph.node(edge.target)\n"
        "    print(f'{edge.weight:+.3f}', source.label, source.position, '->', target.label, target.position)\n"
        "verification = wb.attribution.verify_graph(model, transcoders, graph, 10)\n"
        "print(verification.pearson)\n"
        "wb.attribution.save_graph(graph.prune(0.5, 0.9), 'graph.json')\n"
    )


def circuits(request: Any) -> str:
    """The heads of a task by every method of the request."""
    if request.name == "own prompts":
        code = "from workbench.circuits.tasks import from_jsonl\n" + opening(request.source)
        code += f"task = from_jsonl({request.own!r})\n"
    else:
        code = "from workbench.circuits.tasks_generated import TASKS\n" + opening(request.source)
        code += f"task = TASKS[{request.name!r}](model, {request.pairs}, {request.seed})\n"
    code += "print(wb.circuits.evaluate_task(model, task))\nscores = {}\n"
    calls = {
        "discrete": f"wb.find_heads_discrete(model, task.positives, task.corrupted, seed={request.seed})",
        "attribution": "wb.circuits.attribution_patching(model, task, mlps=False).heads",
    }
    for method in request.methods:
        call = calls.get(
            method, f"wb.circuits.patch_components(model, task, {method!r}, mlps=False, seed={request.seed}).heads"
        )
        code += f"scores[{method!r}] = {call}\n"
    return code + (
        "for method, score in scores.items():\n"
        "    best = score.abs().flatten().argsort(descending=True, stable=True)[:10]\n"
        "    print(method, [(int(one) // score.shape[1], int(one) % score.shape[1]) for one in best])\n"
    )


def intervention(one: InterventionKind, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """An intervention as a Python expression; `names` maps dictionaries' names to their variables."""
    feature, name = feature_of(one), type(one).__name__
    loaded = feature is not None and feature.dictionary in names
    first = [f"{names[feature.dictionary]}.feature({feature.index})"] if feature is not None and loaded else []
    call = one.to_python(*first)
    if name in wb.__all__:
        return f"wb.{call}"
    if hasattr(wb.interventions, name):
        return f"wb.interventions.{call}"
    return f"wb.interventions.INTERVENTIONS[{name.lower()!r}]{call.removeprefix(name)}"


def edit_list(interventions: Sequence[InterventionKind]) -> str:
    """Interventions as the value of a variable `edits`."""
    if not interventions:
        return "edits = []\n"
    lines, names = loading(interventions)
    return lines + "edits = [\n" + "".join(f"    {intervention(one, names)},\n" for one in interventions) + "]\n"
