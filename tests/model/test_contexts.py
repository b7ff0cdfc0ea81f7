"""Blocks and generators that are used in odd orders: each call has exactly the edits that belong to it.

Every case compares tokens with a plain generation under explicit interventions.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.harvest import Buffer, Harvest
from workbench.model import LanguageModel
from workbench.model.in_force import InForce, in_force, uninterrupted

TOKENS = torch.tensor([61, 258, 12, 300, 77, 5, 190, 33, 261, 88, 7])
POINT = "blocks.1.hook_resid_post"
ONE = [wb.Clamp("neurons.1.gate:7", 3.0)]
OTHER = [wb.Steer("neurons.0.up:3", 5.0)]


def written(model: LanguageModel, edits: list[Any] | None = None) -> list[int]:
    return model.generate(TOKENS, 6, interventions=edits or [], stop=False).tokens


@pytest.fixture(scope="module")
def expected(zoo: Any) -> dict[str, list[int]]:
    """The tokens under each list of edits, given explicitly."""
    model = zoo["llama"]
    found = {"plain": written(model), "one": written(model, ONE), "other": written(model, OTHER)}
    found["both"] = written(model, [*ONE, *OTHER])
    assert len(set(map(str, found.values()))) == 4, "the edits hardly differ"
    return found


def in_thread(work: Callable[[], Any]) -> Any:
    """The result of work in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


@pytest.mark.parametrize("enter", [tuple, list, lambda blocks: dict.fromkeys(blocks, 0)])
def test_a_block_entered_in_a_generator_expression_is_the_callers(
    llama: LanguageModel, expected: dict[str, list[int]], enter: Callable[[Any], Any]
) -> None:
    """Each expression is at its end before the model is called."""

    def steered() -> Iterator[list[int]]:
        with contextlib.ExitStack() as inner:
            enter(inner.enter_context(llama.intervening([one])) for one in OTHER)
            yield written(llama)
            yield written(llama)

    with contextlib.ExitStack() as stack:
        enter(stack.enter_context(llama.intervening([one])) for one in ONE)
        assert written(llama) == expected["one"]
        inside = steered()
        assert next(inside) == expected["both"]
        assert written(llama) == expected["one"]
        inside.close()
    assert written(llama) == expected["plain"]
    alone = steered()
    assert next(alone) == expected["other"]
    assert written(llama) == expected["plain"]
    alone.close()


# ---- what the model hands out as an iterator


def test_a_stream_keeps_the_edits_of_where_it_was_made(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    with llama.intervening(ONE):
        inside = llama.stream(TOKENS, 6, stop=False)
        begun = llama.stream(TOKENS, 6, stop=False)
        first = next(begun).id
    outside = llama.stream(TOKENS, 6, stop=False)
    assert [token.id for token in inside] == expected["one"]
    assert [first, *(token.id for token in begun)] == expected["one"]
    with llama.intervening(OTHER):
        assert [token.id for token in outside] == expected["plain"]
        assert in_thread(lambda: [token.id for token in llama.stream(TOKENS, 6, stop=False)]) == expected["plain"]


def test_a_suspended_stream_edits_nothing_of_its_reader(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    stream = llama.stream(TOKENS, 6, interventions=ONE, stop=False)
    first = next(stream).id
    assert written(llama) == expected["plain"]
    with llama.intervening(OTHER):
        assert written(llama) == expected["other"]
        assert [first, *(token.id for token in stream)] == expected["one"]


def test_a_comparison_keeps_the_edits_of_where_it_was_made(
    llama: LanguageModel, expected: dict[str, list[int]]
) -> None:
    with llama.intervening(ONE):
        steps = wb.measures.compare_steps(llama, TOKENS, OTHER, 6, stop=False)
    found = []

    def read() -> Iterator[Any]:
        found.append((yield from steps))

    assert len(list(read())) == 6
    assert found[0].baseline.tokens == expected["one"]
    assert found[0].edited.tokens == expected["both"]


def test_a_harvest_and_a_buffer_read_under_the_edits_of_where_they_were_made(llama: LanguageModel) -> None:
    corpus = wb.Corpus(["The dog ran to the river.", "A cat sat in the house."] * 3)
    harvest = Harvest(llama, corpus, POINT, context=16, batch=2)
    plain = harvest.collect().values[POINT]
    with llama.intervening(ONE):
        edited = harvest.collect().values[POINT]
        run, parts = harvest.run(), iter(harvest)
        buffer = Buffer(harvest, batch_size=8, block=8)
        mixed = torch.cat([part.values[POINT] for part in Buffer(harvest, batch_size=8, block=8)])
    assert not torch.equal(plain, edited)
    assert torch.equal(torch.cat([part.values[POINT] for part in run]), edited)
    assert torch.equal(torch.cat([part.values[POINT] for part in parts]), edited)
    assert torch.equal(torch.cat([part.values[POINT] for part in buffer]), mixed)
    assert torch.equal(harvest.collect().values[POINT], plain)


# ---- blocks in a generator of a user's


def steering(model: LanguageModel, edits: list[Any]) -> Iterator[list[int]]:
    with model.intervening(edits):
        while True:
            yield written(model)


def test_a_block_in_a_generator_acts_while_it_runs(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    one, other = steering(llama, ONE), steering(llama, OTHER)
    for _ in range(2):
        assert next(one) == expected["one"]
        assert written(llama) == expected["plain"]
        assert next(other) == expected["other"]
        with llama.intervening(ONE):
            assert next(other) == expected["both"]
            assert written(llama) == expected["one"]
    one.close()
    assert next(other) == expected["other"]
    del other
    gc.collect()
    assert in_force() == InForce()


def test_a_generator_may_be_read_and_closed_by_another_thread(
    llama: LanguageModel, expected: dict[str, list[int]]
) -> None:
    generator = steering(llama, ONE)
    assert next(generator) == expected["one"]
    assert in_thread(lambda: next(generator)) == expected["one"]
    in_thread(generator.close)
    assert written(llama) == expected["plain"]
    begun_elsewhere = steering(llama, ONE)
    assert in_thread(lambda: next(begun_elsewhere)) == expected["one"]
    assert next(begun_elsewhere) == expected["one"]
    assert written(llama) == expected["plain"]
    begun_elsewhere.close()
    assert in_force() == InForce()


def test_a_generator_sets_aside_blocks_for_itself_alone(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    def measuring() -> Iterator[list[int]]:
        with uninterrupted():
            while True:
                yield written(llama)

    generator = measuring()
    with llama.intervening(ONE):
        assert next(generator) == expected["plain"]
        assert written(llama) == expected["one"]
        assert next(generator) == expected["plain"]
    generator.close()


def test_helpers_of_a_generator_enter_blocks_for_it(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    def enter(stack: contextlib.ExitStack, edits: list[Any]) -> None:
        stack.enter_context(llama.intervening(edits))

    def steered() -> Iterator[list[int]]:
        with contextlib.ExitStack() as stack:
            enter(stack, ONE)
            yield written(llama)
            with block(OTHER):
                yield written(llama)
            yield written(llama)

    @contextlib.contextmanager
    def block(edits: list[Any]) -> Iterator[None]:
        with llama.intervening(edits):
            yield

    for found, name in zip(steered(), ("one", "both", "one"), strict=True):
        assert found == expected[name]
        assert written(llama) == expected["plain"]


def test_a_thread_of_a_generator_takes_a_copy_of_its_context(
    llama: LanguageModel, expected: dict[str, list[int]]
) -> None:
    def steered() -> Iterator[list[int]]:
        with llama.intervening(ONE):
            context = contextvars.copy_context()
            yield in_thread(lambda: context.run(written, llama))

    generator = steered()
    assert next(generator) == expected["one"]
    generator.close()


def test_an_asynchronous_generator_steers_itself_and_its_threads(
    llama: LanguageModel, expected: dict[str, list[int]]
) -> None:
    async def steered() -> AsyncIterator[list[list[int]]]:
        with llama.intervening(ONE):
            for _ in range(2):
                task = asyncio.create_task(asyncio.to_thread(written, llama))
                yield [written(llama), await asyncio.to_thread(written, llama), await task]

    async def read() -> list[Any]:
        found = []
        async for one in steered():
            found.append((one, written(llama)))
        return found

    assert asyncio.run(read()) == [([expected["one"]] * 3, expected["plain"])] * 2
    assert in_force() == InForce()


# ---- blocks as context managers


@contextlib.contextmanager
def wrapped(model: LanguageModel, edits: list[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.intervening(edits))
        yield


@pytest.fixture
def steered_llama(llama: LanguageModel) -> Iterator[LanguageModel]:
    with llama.intervening(ONE):
        yield llama


def test_a_block_may_be_wrapped(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    with wrapped(llama, ONE), wrapped(llama, OTHER):
        assert written(llama) == expected["both"]
        with uninterrupted():
            assert written(llama) == expected["plain"]
    assert written(llama) == expected["plain"]

    @wrapped(llama, OTHER)
    def decorated() -> list[int]:
        return written(llama)

    assert decorated() == expected["other"]


def test_a_fixture_steers_its_test(steered_llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    assert written(steered_llama) == expected["one"]


def test_blocks_may_be_left_out_of_order(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    one, other = llama.intervening(ONE), llama.intervening(OTHER)
    one.__enter__()
    other.__enter__()
    assert written(llama) == expected["both"]
    one.__exit__(None, None, None)
    assert written(llama) == expected["other"]
    other.__exit__(None, None, None)
    assert written(llama) == expected["plain"]


def test_a_block_may_be_left_in_another_thread(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    block = llama.intervening(ONE)
    block.__enter__()
    with llama.intervening(OTHER):
        in_thread(lambda: block.__exit__(None, None, None))
        assert written(llama) == expected["other"]
    assert written(llama) == expected["plain"]


def test_splices_follow_the_same_rules(llama: LanguageModel) -> None:
    book = wb.Codebook(32, 8, hook_point=POINT, seed=0)
    with llama.spliced({POINT: book}):
        expected = written(llama)
        stream = llama.stream(TOKENS, 6, stop=False)
    plain = written(llama)
    assert plain != expected

    def through() -> Iterator[list[int]]:
        with llama.spliced({POINT: book}):
            while True:
                yield written(llama)

    generator = through()
    assert next(generator) == expected
    assert written(llama) == plain
    assert [token.id for token in stream] == expected
    assert in_thread(lambda: next(generator)) == expected
    in_thread(generator.close)
    assert written(llama) == plain


def test_two_threads_hand_each_other_their_streams(llama: LanguageModel, expected: dict[str, list[int]]) -> None:
    """Each thread reads, inside a block of its own, what the other made in another block."""
    meet, made = threading.Barrier(2), dict[str, Any]()

    def work(mine: str, edits: list[Any], theirs: str) -> tuple[list[int], list[int], Tensor]:
        with llama.intervening(edits):
            made[mine] = llama.stream(TOKENS, 6, stop=False)
            meet.wait(60)
            logits = llama(TOKENS)
            return [token.id for token in made[theirs]], written(llama), logits

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(work, "one", ONE, "other")
        other = pool.submit(work, "other", OTHER, "one")
        assert one.result(60)[:2] == (expected["other"], expected["one"])
        assert other.result(60)[:2] == (expected["one"], expected["other"])
    for edits, done in ((ONE, one), (OTHER, other)):
        with llama.intervening(edits):
            assert torch.equal(done.result()[2], llama(TOKENS))
