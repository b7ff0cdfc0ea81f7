"""Edits on tensors alone, with no model: which rows and positions they reach, in which order, and what is refused."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from reference import chosen
from torch import Tensor

from workbench.model.edits import Edit, EditError, Group, Run, check_edits, current_run, running
from workbench.model.positions import as_positions

HOOK = "blocks.0.hook_resid_post"
RULES = ["all", "prompt", "generated", (0,), (2, 5), (9,)]
POSITIONS = {  # absolute positions of the current pass, -1 for padding; and where each row's prompt ends
    "plain": (torch.arange(6).expand(3, -1), [4, 4, 4]),
    "one step": (torch.full((3, 1), 5), [4, 5, 6]),
    "left-padded": (torch.tensor([[0, 1, 2, 3, 4, 5], [-1, -1, 0, 1, 2, 3], [-1, -1, -1, -1, -1, 0]]), [4, 2, 1]),
    "later chunk": (torch.tensor([[4, 5, 6], [2, 3, 4], [0, 1, 2]]), [5, 3, 1]),
}


def selected(rule: str | tuple[int, ...], position: int, prompt: int) -> bool:
    """What a rule means, spelled out."""
    return position >= 0 and chosen(rule, position, prompt)


def edit(rule: object, change=lambda x: x * 2 + 1) -> Edit:
    return Edit(HOOK, change, as_positions(rule))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(1, 3)], ids=str)
def test_an_edit_reaches_exactly_its_rows_and_positions(where: str, rule: str, rows: slice) -> None:
    positions, prompts = POSITIONS[where]
    value = torch.randn(*positions.shape, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = value.clone()
    for row, column in itertools.product(range(positions.shape[0]), range(positions.shape[1])):
        if row in range(3)[rows] and selected(rule, int(positions[row, column]), prompts[row]):
            expected[row, column] = value[row, column] * 2 + 1
    run = Run([Group([edit(rule)], rows)], torch.tensor(prompts))
    run.enter(positions)
    before = value.clone()
    assert torch.equal(run.apply(HOOK, value), expected)
    assert torch.equal(value, before), "the tensor that the model holds was written into"


def test_without_a_prompt_length_everything_is_the_prompt() -> None:
    run = Run([Group([edit("prompt"), edit("generated", lambda x: x + 1000)])])
    run.enter(torch.arange(4)[None])
    assert torch.equal(run.apply(HOOK, torch.ones(1, 4, 2)), torch.full((1, 4, 2), 3.0))


def test_edits_act_in_order_and_see_what_the_earlier_left() -> None:
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    run = Run([Group([edit("all", lambda x: x + 1), edit((1,), lambda x: x * 10), edit("all", look)])])
    run.enter(torch.arange(3)[None])
    out = run.apply(HOOK, torch.zeros(1, 3, 1))
    assert out.flatten().tolist() == [1, 10, 1]
    assert torch.equal(seen[0], out)


def test_groups_are_applied_in_order_too() -> None:
    groups = [Group([edit("all", lambda x: x + 1)], slice(0, 2)), Group([edit("all", lambda x: x * 10)], slice(1, 3))]
    run = Run(groups)
    run.enter(torch.arange(1).expand(3, 1))
    assert run.apply(HOOK, torch.ones(3, 1, 1)).flatten().tolist() == [2, 20, 10]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_observing_gives_back_the_very_tensor(rule: str) -> None:
    value = torch.zeros(1, 6, 2)
    run = Run([Group([edit(rule, lambda x: x)])], torch.tensor([3]))
    run.enter(torch.arange(6)[None])
    assert run.apply(HOOK, value) is value


def test_watching_sees_the_tensor_after_the_edits() -> None:
    seen: list[Tensor] = []
    run = Run([Group([edit((0,))])], watch={HOOK: seen.append})
    run.enter(torch.arange(2)[None])
    out = run.apply(HOOK, torch.zeros(1, 2, 1))
    assert torch.equal(seen[0], out)
    assert out.flatten().tolist() == [1, 0]


def test_entering_another_pass_forgets_the_masks_of_the_last() -> None:
    run = Run([Group([edit((4,))])], torch.tensor([4]))
    for first in (0, 4, 8):
        run.enter(torch.arange(first, first + 4)[None])
        out = run.apply(HOOK, torch.zeros(1, 4, 1)).flatten().tolist()
        assert out == [float(position == 4) for position in range(first, first + 4)]


@pytest.mark.parametrize("rule", ["all", "prompt", "generated"])
def test_words_for_positions(rule: str) -> None:
    assert as_positions(rule) == rule


@pytest.mark.parametrize(("given", "kept"), [(3, (3,)), ([5, 1, 5], (1, 5)), (range(2), (0, 1)), ({7}, (7,))], ids=str)
def test_numbers_for_positions(given: object, kept: tuple[int, ...]) -> None:
    assert as_positions(given) == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", ["last", "", "ALL", [], (), -1, [0, -1], 1.0, [1.5], [True], True, None, ["0"], object], ids=str
)
def test_other_positions_are_refused(given: object) -> None:
    with pytest.raises(EditError):
        as_positions(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "computed", "prompt", "can_act"),
    [
        ("all", 5, None, True),
        ("prompt", 5, None, True),
        ("generated", 5, None, False),
        ("generated", 5, 5, False),
        ("generated", 5, 4, True),
        ((4,), 5, None, True),
        ((5,), 5, None, False),
        ((0, 5), 5, 3, False),
        ((0, 4), 5, 3, True),
    ],
    ids=str,
)
def test_edits_that_can_never_act_are_refused(rule: object, computed: int, prompt: int | None, can_act: bool) -> None:
    if can_act:
        check_edits([edit("all"), edit(rule)], computed, prompt)
        return
    with pytest.raises(EditError, match=r"^the edit at blocks\.0\.hook_resid_post [^\n]*\.$"):
        check_edits([edit("all"), edit(rule)], computed, prompt)


def test_the_current_run_belongs_to_the_block_and_the_thread() -> None:
    outer, inner = Run([]), Run([])
    elsewhere: list[Run | None] = []
    with running(outer):
        with running(inner):
            assert current_run() is inner
            other = threading.Thread(target=lambda: elsewhere.append(current_run()))
            other.start()
            other.join()
        assert current_run() is outer
        with running(None):
            assert current_run() is None
    assert current_run() is None
    assert elsewhere == [None]
    with pytest.raises(ZeroDivisionError), running(outer):
        raise ZeroDivisionError
    assert current_run() is None
