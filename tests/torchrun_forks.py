"""Two forks of the tests' own process in place of those that `torchrun` starts: they need not import anything."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch


def forked_as_by_torchrun(work: Callable[[], None]) -> None:
    """Run a piece of work in two forks with the environment of `torchrun`; both have to end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
        processor: Any = lambda *_: torch.device("cpu")  # noqa: E731 - not the device that other tests emulate
        torch._C._get_accelerator = processor
        torch.set_num_threads(1)  # a fork has no other threads
        work()

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(200)
    assert [one.exitcode for one in processes] == [0, 0]
