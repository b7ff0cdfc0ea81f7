"""Products of float32 matrices into memory that is there already, in the form that is fastest on this machine.

Fresh memory for a large result costs a quarter of the product that is written to it. Which library multiplies fastest
differs from one processor to another: where a product is large, each form computes it a few times at its first use,
and the choice is kept for the machine. Forms agree within rounding. On cards, in other types and for small products
there is one form, torch's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.core.cache import cache_folder, in_use, optional
from workbench.core.errors import WorkbenchError
from workbench.core.files import replacing
from workbench.core.forms import read_json
from workbench.core.hashing import hash_of

LEAST = 1 << 28
"""Multiplications of a product from which on a form is chosen; smaller ones take less than a few milliseconds."""
TURNS = 3
"""Times that each form computes a product while one is chosen."""
WORTH = 0.9
"""Share of torch's time that another form must stay below."""
PLAIN = "torch"
WHOLE = "whole"
"""What trainings did before there were forms: one product of torch's for all rows of a batch."""


def _torch(rows: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    return torch.mm(rows, weights.T, out=out)


def _numpy(rows: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    np.matmul(rows.detach().numpy(), weights.detach().numpy().T, out=out.detach().numpy())
    return out


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {PLAIN: _torch, "numpy": _numpy}
"""The forms by name; each computes `rows @ weights.T` in `out`."""

_THREADS = torch.get_num_threads()
"""Threads that torch begins with, which are those that numpy's library takes too."""
_LOCK = threading.Lock()
_CHOSEN: dict[tuple[str, str], str] = {}
"""Forms by machine and class of sizes, of this process."""


def product(rows: Tensor, weights: Tensor, out: Tensor, form: str | None = None) -> Tensor:
    """The products of rows and weights, `rows @ weights.T`, in `out`.

    Args:
        rows: `[n, width]`.
        weights: `[m, width]`.
        out: memory for the result, `[n, m]`; its last axis is contiguous. No gradient flows through it.
        form: one of `FORMS`, for plain float32 in a computer's memory; None for the one that is fastest here.

    Returns:
        `out`.
    """
    if form is None:
        form = form_of(rows, weights, out)
    elif form != PLAIN and not all(map(_plain, (rows, weights, out))):  # a form that was chosen on another machine
        form = PLAIN
    return FORMS[form](rows, weights, out)


def memory(like: Tensor, *sizes: int) -> Tensor:
    """Memory for results of these sizes, in the type and on the device of a tensor; its values are anything.

    In a computer's memory it lies in large pages where the system has them: a first use then costs a fifth.
    """
    if not _plain(like):
        return like.new_empty(sizes)
    return torch.from_numpy(np.empty(sizes, np.float32))  # numpy asks the system for large pages


def form_of(rows: Tensor, weights: Tensor, out: Tensor) -> str:
    """The name of the form in which such a product is fastest here; arguments as `product`, which `out` holds after
    the first use."""
    if len(rows) * weights.numel() < LEAST or not all(map(_plain, (rows, weights, out))):
        return PLAIN
    if torch.get_num_threads() != _THREADS:  # numpy's library has as many as before
        return PLAIN
    key = machine(), _class(len(rows), *weights.shape)
    if key not in _CHOSEN:
        with _LOCK:
            if key not in _CHOSEN:
                _CHOSEN[key] = _kept(key) or _measured(key, rows, weights, out)
    return _CHOSEN[key]


def _plain(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and type(tensor) in (Tensor, torch.nn.Parameter)
    )


def _class(n: int, m: int, width: int) -> str:
    """The class of a product's sizes: between two powers of two each is alike."""
    return "x".join(str(size.bit_length()) for size in (n, m, width))


def _measured(key: tuple[str, str], rows: Tensor, weights: Tensor, out: Tensor) -> str:
    """The fastest form, which is kept in the cache."""
    best = dict.fromkeys(FORMS, float("inf"))
    for _ in range(TURNS):
        for name, form in FORMS.items():
            begun = time.perf_counter()
            form(rows, weights, out)
            best[name] = min(best[name], time.perf_counter() - begun)
    fastest = min(best, key=best.__getitem__)
    chosen = fastest if best[fastest] < WORTH * best[PLAIN] else PLAIN
    file = _file(key[0])
    with optional(file), replacing(file, owned=True) as temporary:
        temporary.write_text(json.dumps(_read(file) | {key[1]: chosen}))
    return chosen


def _kept(key: tuple[str, str]) -> str | None:
    """The form that this machine's file names for a class of sizes; None where it names none."""
    form = _read(_file(key[0])).get(key[1])
    return form if form in FORMS else None


def _read(file: Path) -> dict[str, str]:
    with contextlib.suppress(WorkbenchError):
        if file.exists():
            forms = read_json(file, dict[str, str], WorkbenchError, "the forms of products")
            in_use(file)
            return forms
    return {}


def _file(key: str) -> Path:
    return cache_folder() / "products" / f"{key}.json"


@functools.cache
def machine() -> str:
    """What the choice depends on, as a hash: the processor, the number of threads and the libraries."""
    about: dict[str, Any] = {
        "processor": [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()],
        "cores": os.cpu_count(),
        "threads": _THREADS,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        about["about"] = re.findall(r"^(?:vendor_id|cpu family|model|model name|stepping|flags)\s*:.*$", first, re.M)
    return hash_of(about)
