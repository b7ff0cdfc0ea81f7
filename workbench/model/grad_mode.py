"""Gradients and lasting tensors, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from workbench.model.weights import ModelError

F = TypeVar("F", bound=Callable[..., Any])

_taking: ContextVar[bool] = ContextVar("workbench_gradients", default=False)


@contextmanager
def taking_gradients() -> Iterator[None]:
    """Take gradients inside the block, also where the caller is in inference mode.

    Raises:
        ModelError: weights that were made in inference mode.
    """
    token = _taking.set(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved for backward" not in str(error):
            raise
        raise ModelError(
            "The weights were made inside torch.inference_mode(), so no gradients can be taken; load them outside."
        ) from error
    finally:
        _taking.reset(token)


def gradients_are_taken() -> bool:
    """Whether this is inside a block of `taking_gradients`."""
    return _taking.get()


def lasting(function: F) -> F:
    """A decorator: what a function makes can be learned from later, also where its caller is in inference mode."""
    return torch.inference_mode(False)(function)
