"""The Hugging Face hub: whether it can be reached, and which models are on this machine already.

Without a network `huggingface_hub` retries each file of a model for 23 s, and transformers asks for several. One short
request beforehand tells whether it is worth asking.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from workbench.core.cache import cache_folder
from workbench.core.errors import WorkbenchError
from workbench.core.forms import read_json
from workbench.core.type_words import reason_of

PATIENCE = 3.0
"""Seconds to wait for a connection to the hub; `HF_HUB_ETAG_TIMEOUT` replaces it where it is set."""
NAMED = 8
"""Models on this machine that a sentence names."""


def send_no_telemetry() -> None:
    """Keep huggingface_hub from asking the hub, even for files of its cache, how to describe this process to it."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def is_repository(name: str) -> bool:
    """Whether the hub could have a model of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def why_unreachable() -> str | None:
    """Why the hub can't be asked, in a few words; None if it can.

    The request goes through the client of `huggingface_hub`, so that its endpoint (`HF_ENDPOINT`), the proxies of the
    environment and a client set by `set_client_factory` count; every answer counts, whatever its status. A connection
    that stands within `PATIENCE` seconds counts too, however slow the answer is.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    endpoint = constants.ENDPOINT
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    patience = PATIENCE if timeout == constants.DEFAULT_ETAG_TIMEOUT else float(timeout)
    settled, connected, failures = threading.Event(), threading.Event(), []

    def trace(event: str, info: object) -> None:
        if event == "connection.connect_tcp.complete":
            connected.set()

    def ask() -> None:
        try:
            request = {"timeout": 2 * patience, "follow_redirects": False, "extensions": {"trace": trace}}
            get_session().request("HEAD", endpoint, **request)
        except Exception as error:  # noqa: BLE001 - a user's own client may raise anything
            failures.append(error)
        settled.set()

    threading.Thread(target=ask, daemon=True, name="probe of the hub").start()  # names are resolved without a timeout
    if settled.wait(patience):
        return f"{endpoint} can't be reached ({_first_line(failures[0])})" if failures else None
    if connected.is_set():
        return None
    return f"{endpoint} can't be reached (no connection within {patience:g} s; HF_HUB_ETAG_TIMEOUT sets another limit)"


def is_gated(error: BaseException) -> bool:
    """Whether an error, or what caused it, is the hub's refusal of a model that needs a permission."""
    from huggingface_hub.errors import GatedRepoError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GatedRepoError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def models_here() -> list[str]:
    """Names of the models in Hugging Face's cache folder and in ours, sorted."""
    from huggingface_hub import constants

    theirs = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/config.json")
    names = {path.parents[2].name.removeprefix("models--").replace("--", "/") for path in theirs}
    for note in (cache_folder() / "models").glob("*/workbench.json"):
        with contextlib.suppress(WorkbenchError):  # a damaged note names nothing
            names.add(str(read_json(note, dict[str, Any], WorkbenchError, "a note on a model").get("model", "")))
    return sorted(names - {""})


def in_words(names: list[str]) -> str:
    """Names of models as a part of a sentence: "gpt2 and SmolLM2-135M-Instruct"."""
    if not names:
        return "no model in its caches"
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _first_line(error: BaseException) -> str:
    return reason_of(error)
