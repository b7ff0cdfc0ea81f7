"""A text, its layers and an open cell as a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared import snippets

from read.reading import Cell
from read.request import TextRequest

if TYPE_CHECKING:
    from workbench.interventions import InterventionKind


def firing(text: TextRequest, folders: Sequence[str], top: int) -> str:
    """The active features of some dictionaries on a text."""
    return (
        "from workbench.measures.firing import active_features\n"
        + text.code()
        + f"dictionaries = [wb.load_dictionary(folder) for folder in {list(map(snippets.place, folders))!r}]\n"
        "with model.intervening(edits):\n"
        f"    tokens = active_features(model, dictionaries, prompt, top={top})\n"
        "for token in tokens:\n"
        "    fired = zip(map(str, token.features), token.values)\n"
        "    print(repr(token.text), [(feature, round(value, 2)) for feature, value in fired])\n"
    )


def reading(cell: Cell) -> str:
    """The grid of a text, the doubt of its tokens, and the cell that is open."""
    return (
        cell.text.code() + f"grid = wb.read_lens(model, prompt{cell.lens.arguments()}, interventions=edits)\n"
        "for place, tokens, shares in zip(grid.places, grid.tokens, grid.probabilities):\n"
        "    print(place.label, [(cell[0], round(float(share[0]), 3)) for cell, share in zip(tokens, shares)])\n"
        "doubt = wb.lens.read_doubt(model, prompt, interventions=edits)\n"
        "for token, surprise, entropy, layer in zip(doubt.prompt, doubt.surprise, doubt.entropy, doubt.settled):\n"
        "    print(repr(token), f'surprise {surprise:.3f}, entropy {entropy:.3f}, stands from layer {layer}')\n\n"
        f"row, position, layer = {cell.row}, {cell.position}, {cell.layer}  # the open cell\n"
        "print(grid.tokens[row][position], grid.probabilities[row, position].tolist())\n"
        "sum_of_parts = wb.lens.attribute_logit(\n"
        f"    model, prompt, {cell.answer}, position=position, detail='heads', interventions=edits\n"
        ")  # the answer's logit\n"
        "print([(share.label, round(share.value, 3)) for share in sum_of_parts.shares if share.layer == layer])\n"
        "attention = wb.lens.read_attention(model, prompt, layers=[layer], interventions=edits)\n"
        "print([int(keys.argmax()) for keys in attention.patterns[0, :, position]])  # where each head looks most\n"
    )


def removal(cell: Cell, removals: Sequence[InterventionKind]) -> str:
    """The test of a part: its removal, which is the first, beside those of random others."""
    lines, names = snippets.loading([*cell.text.interventions, *removals])
    calls = "".join(f"    {snippets.intervention(one, names)},\n" for one in removals)
    return (
        cell.text.code()
        + lines
        + f"removals = [\n{calls}]  # the first is the one that was taken out\n\n\n"
        + "def score(*taken):\n"
        "    with model.intervening([*edits, *taken]):\n"
        f"        return float(model(prompt)[0, {cell.position}].float().log_softmax(-1)[{cell.answer}])\n\n\n"
        "plain = score()\n"
        "for one in removals:\n"
        "    print(one, round(score(one) - plain, 4))\n"
    )


def scan(cell: Cell, folders: Sequence[str]) -> str:
    """What matters for the answer of a cell."""
    return (
        cell.text.code()
        + f"dictionaries = [wb.load_dictionary(folder) for folder in {list(map(snippets.place, folders))!r}]\n"
        f"ids = {cell.reading.ids[: cell.position + 1]!r}  # the prompt up to the cell\n"
        "with model.intervening(edits):\n"
        f"    found = wb.scan(model, ids, {cell.answer}, dictionaries=dictionaries)\n"
        "for one in found:\n"
        "    print('stands out:' if one.test.stands_out else 'no more than random:', one.sentence)\n"
    )
