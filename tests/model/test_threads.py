"""Many threads, one shared model: each gets to the bit what it gets alone."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb

THREADS = 8
ROUNDS = 2
TOKENS = torch.tensor([[61, 258, 12, 300, 77, 5, 190, 33, 261, 88, 7]])


@pytest.fixture(autouse=True)
def _one_core_each() -> Any:
    """With several cores to a product, how its sums are split, and so their last bit, depends on who else is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def edits_of(number: int) -> list[Any]:
    """What each thread does: some nothing, some on one neuron, some on a place that only the bridge has."""
    direction = torch.linspace(-1, 1, 32)
    return [
        [],
        [wb.Clamp("neurons.1.gate:7", 9.0)],
        [wb.Clamp("neurons.1.gate:7", -9.0, positions="generated")],
        [wb.Scale("neurons.1.gate:7", 4.0), wb.Steer("neurons.0.up:3", 5.0, positions=[2, 5, 6])],
        [wb.Ablate("neurons.2.post:1", "mean"), wb.Clamp("neurons.0.post:11", 6.0, positions="prompt")],
        [wb.Steer.along("blocks.1.hook_resid_post", direction, 2.0)],
        [wb.Steer.along("blocks.1.attn.hook_rot_q", direction, 3.0)],
        [],
    ][number]


def everything(model: wb.model.LanguageModel, edits: list[Any]) -> list[Any]:
    """All that a person can ask for, in a form that can be compared exactly."""
    written = model.generate(TOKENS[0], 8, interventions=edits, stop=False)
    sampled = model.generate(TOKENS[0], 8, temperature=1.0, seed=2, interventions=edits, stop=False)
    streamed = [(token.id, token.logprob) for token in model.stream(TOKENS[0], 5, interventions=edits, stop=False)]
    compared = wb.compare(model, "The dog ran", edits, 5, stop=False).to_dict()
    name = "blocks.1.mlp.hook_post"
    with model.intervening(edits):
        logits = model(TOKENS, prompt_length=6)
        seen = model.capture(TOKENS, [name], prompt_length=6)[name]
    return [written, sampled, streamed, compared, logits, seen]


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run every job in a thread of its own, all starting together, again and again; a list of results for each."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> list[Any]:
        results = []
        for _ in range(ROUNDS):
            start.wait()
            results.append(job())
        return results

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


@pytest.mark.filterwarnings("ignore:A forward hook edited")
def test_eight_threads_steer_one_model(llama) -> None:
    alone = [everything(llama, edits_of(number)) for number in range(THREADS)]
    assert len({str(results[0].tokens) for results in alone}) >= 6, "the edits hardly differ"
    together = at_once([lambda n=n: everything(llama, edits_of(n)) for n in range(THREADS)])
    for number, rounds in enumerate(together):
        for results in rounds:
            for found, expected in zip(results, alone[number], strict=True):
                assert same(found, expected), f"thread {number}"


def test_the_first_use_of_a_hook_point_may_happen_at_once(tiny_cache) -> None:
    """A model just opened has no hook yet; threads that put the first ones in place do not disturb each other."""
    import tiny

    reference = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    alone = [everything(reference, edits_of(number)) for number in range(THREADS)]
    fresh = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    together = at_once([lambda n=n: everything(fresh, edits_of(n)) for n in range(THREADS)])
    for number, rounds in enumerate(together):
        for found, expected in zip(rounds[0], alone[number], strict=True):
            assert same(found, expected), f"thread {number}"


def test_a_failing_thread_does_not_disturb_the_others(llama) -> None:
    plain = llama.generate(TOKENS[0], 8, stop=False)

    def fail() -> str:
        try:
            llama.generate(TOKENS[0], 8, interventions=[wb.Clamp("neurons.1.gate:7", 9.0, positions=[999])])
        except wb.model.EditError as error:
            return str(error)
        return "no error"

    jobs: list[Callable[[], Any]] = [fail, lambda: llama.generate(TOKENS[0], 8, stop=False)] * 3
    for number, results in enumerate(at_once(jobs)):
        assert all("position 999" in result if number % 2 == 0 else result == plain for result in results)


def test_a_block_in_one_thread_is_not_in_force_in_another(llama) -> None:
    plain = llama(TOKENS)
    inside, done = threading.Event(), threading.Event()

    def hold() -> Tensor:
        with llama.intervening([wb.Clamp("neurons.1.gate:7", 9.0)]):
            inside.set()
            assert done.wait(60)
            return llama(TOKENS)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert inside.wait(60)
        assert torch.equal(llama(TOKENS), plain)
        done.set()
        assert not torch.allclose(held.result(), plain)


def test_tasks_of_one_thread_keep_their_edits_apart(llama) -> None:
    """Two tasks take turns inside their blocks, as the handlers of a web server do."""
    edits = [edits_of(1), edits_of(3)]
    alone = []
    for one in edits:
        with llama.intervening(one):
            alone.append(llama(TOKENS, prompt_length=6))

    async def steer(one: list[Any]) -> list[Tensor]:
        found = []
        with llama.intervening(one):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(llama(TOKENS, prompt_length=6))
        return found

    async def both() -> list[list[Tensor]]:
        return await asyncio.gather(*(steer(one) for one in edits))

    for found, expected in zip(asyncio.run(both()), alone, strict=True):
        assert all(torch.equal(one, expected) for one in found)


def test_interleaved_streams_keep_their_edits_apart(llama) -> None:
    """A page draws two answers by turns, a token of each."""
    edits = [edits_of(1), edits_of(2), []]
    alone = [[token.id for token in llama.stream(TOKENS[0], 8, interventions=one, stop=False)] for one in edits]
    streams = [llama.stream(TOKENS[0], 8, interventions=one, stop=False) for one in edits]
    assert [
        list(ids) for ids in zip(*([token.id for token in step] for step in zip(*streams, strict=True)), strict=True)
    ] == alone


def test_a_copied_context_takes_the_edits_along(llama) -> None:
    """Who starts a thread on purpose inside a block can hand the block on."""
    with llama.intervening([wb.Clamp("neurons.1.gate:7", 9.0)]):
        expected = llama(TOKENS)
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(context.run, llama, TOKENS).result(), expected)
            assert not torch.allclose(pool.submit(llama, TOKENS).result(), expected)


@pytest.mark.real
def test_eight_threads_steer_the_default_model(model) -> None:
    prompt = model.to_tokens("My favourite animal is a")
    dog, water = "neurons.29.gate:808", "neurons.23.up:1413"
    edits = [
        [],
        [wb.Clamp(dog, 20.0)],
        [wb.Clamp(dog, -20.0)],
        [wb.Clamp(water, 20.0)],
        [wb.Scale(dog, 9.0), wb.Clamp(water, -8.0, positions="prompt")],
        [wb.Steer("neurons.12.post:5", 6.0)],
        [wb.Clamp(dog, 20.0, positions="generated")],
        [],
    ]

    def ask(one: list[Any]) -> list[Any]:
        with model.intervening(one):
            logits = model(prompt, prompt_length=3)
        return [logits, model.generate(prompt, 3, interventions=one, stop=False)]

    alone = [ask(one) for one in edits]
    together = at_once([lambda one=one: ask(one) for one in edits])
    for number, rounds in enumerate(together):
        for results in rounds:
            for found, expected in zip(results, alone[number], strict=True):
                assert same(found, expected), f"thread {number}"
