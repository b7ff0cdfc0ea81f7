"""Files of a repository on the Hugging Face hub: their list, and copies of some in the cache of `huggingface_hub`.

Downloads go through `hf_hub_download`, with its cache, its token, its resumption and, where nobody asks for progress,
its own bars.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.core.errors import WorkbenchError
from workbench.core.progress import Progress, remembering
from workbench.core.type_words import reason_of

EVERY = 0.1
"""Seconds between two questions whether to stop."""
MAIN = "main"
"""The branch that the hub takes where none is named."""
COMMIT = re.compile("[0-9a-f]{40}")
"""The hash of a commit, which names one state of a repository for ever."""


class NoEntry(WorkbenchError):
    """A repository has no folder of this name."""


@dataclass(frozen=True)
class Listing:
    """The files in a folder of a repository, at one commit."""

    repository: str
    revision: str
    """A branch, tag or commit."""
    commit: str
    """Its hash, of 40 digits."""
    sizes: dict[str, int]
    """Bytes of each file, by its path in the repository."""


def list_files(
    repository: str, folder: str, revision: str, error: type[WorkbenchError], *, deep: bool = True
) -> Listing:
    """The files of a folder on the hub, of folders in it too if `deep`.

    Args:
        repository: with its owner.
        folder: with "/"; empty for the whole repository.
        revision: a branch, tag or commit; empty for the main branch.
        error: what is raised.

    Raises:
        NoEntry: the repository has no such folder.
        WorkbenchError: of the given kind: the hub has no such repository or revision, or can't be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _explained(repository, revision, error):
        api = HfApi()
        commit = api.model_info(repository, revision=revision or MAIN, expand=["sha"]).sha
        entries = api.list_repo_tree(repository, folder or None, recursive=deep, revision=commit)
        sizes = {one.path: one.size for one in entries if isinstance(one, RepoFile) and _is_inside(one.path, folder)}
    if commit is None or not COMMIT.fullmatch(commit):
        raise error(f"The hub does not say at which commit {repository} is; try again later.")
    return Listing(repository, revision or MAIN, commit, sizes)


def download(
    listing: Listing,
    names: Iterable[str],
    error: type[WorkbenchError],
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """The folder of a commit in the cache of `huggingface_hub`, with these files in it, small ones fetched first.

    Args:
        listing: of `list_files`.
        names: paths in the repository, from the listing.
        error: what is raised.
        progress: called with the share of all bytes; without it `huggingface_hub` draws its bars.
        cancel: asked about ten times a second. What was fetched until then stays in the cache.

    Raises:
        WorkbenchError: of the given kind: a file can't be fetched, or `cancel` returned True.
    """
    sizes = {name: listing.sizes[name] for name in names}
    transfer = _Transfer(sum(sizes.values()), progress, remembering(cancel))
    folder = _storage(listing.repository) / "snapshots" / listing.commit
    with _explained(listing.repository, listing.revision, error):
        for number, name in enumerate(sorted(sizes, key=lambda one: (sizes[one], one))):
            # by the first file the cache learns which commit the revision is, for when the hub can't be reached
            if not transfer.fetch(listing.repository, listing.commit if number else listing.revision, name):
                raise error(f"The download of {listing.repository} was stopped; the same call goes on where it ended.")
            if not (folder / name).is_file():
                raise error(f"{listing.repository} has just changed on the hub; try again.")
            transfer.before += sizes[name]
            transfer.tell(PurePosixPath(name).name, 0)
    return folder


def cached(repository: str, revision: str) -> Path | None:
    """The folder of a revision in the cache of `huggingface_hub`, whole or not; None without one.

    Args:
        repository: with its owner.
        revision: a branch, tag or commit; empty for the main branch.
    """
    storage = _storage(repository)
    commit = revision
    if not COMMIT.fullmatch(revision):
        note = storage / "refs" / (revision or MAIN)
        if not note.is_file() or ".." in note.parts:
            return None
        commit = note.read_text().strip()
    folder = storage / "snapshots" / commit
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def _storage(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"


def _is_inside(path: str, folder: str) -> bool:
    """Whether a path that the hub names lies in a folder, and leads nowhere else."""
    parts = PurePosixPath(path).parts
    return (
        ".." not in parts
        and not path.startswith("/")
        and parts[: len(PurePosixPath(folder).parts)] == (PurePosixPath(folder).parts)
    )


class _Transfer:
    """Downloads of several files, each on a thread of its own, so that stopping does not wait for the network."""

    def __init__(self, total: int, progress: Progress | None, stops: Callable[[], bool]):
        self.total, self.stops = total, stops
        self.progress: Progress | None = progress
        self.before, self.now, self.stopped = 0, 0, False

    def fetch(self, repository: str, revision: str, name: str) -> bool:
        """Fetch a file; False where it was stopped."""
        from huggingface_hub import hf_hub_download

        failures: list[BaseException] = []
        self.now = 0
        bar = self._bar(PurePosixPath(name).name)

        def work() -> None:
            try:
                hf_hub_download(repository, name, revision=revision, tqdm_class=bar)
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

        thread = threading.Thread(target=work, daemon=True, name="download from the hub")
        thread.start()
        told = -1
        while thread.is_alive():
            self.stopped = self.stops()
            if self.stopped:
                return False
            if self.now != told:
                told = self.now
                self.tell(PurePosixPath(name).name, told)
            thread.join(EVERY)
        if failures:
            raise failures[0]
        return True

    def tell(self, name: str, now: int) -> None:
        """Report the bytes so far."""
        if self.progress:
            done = min(self.before + now, self.total)
            words = f"Downloading {name}, {_megabytes(done)} of {_megabytes(self.total)}"
            self.progress(done / max(self.total, 1), words)

    def _bar(self, name: str) -> type[Any]:
        """The class of bars that `hf_hub_download` makes: one that counts, and stops the work in its next update."""
        from huggingface_hub.utils import tqdm

        transfer, silent = self, self.progress is not None

        class Bar(tqdm):
            def __init__(self, *args: Any, initial: int = 0, **kwargs: Any):
                self.counted = initial
                if silent:
                    kwargs["disable"] = True
                super().__init__(*args, initial=initial, **kwargs)

            def update(self, n: float | None = 1) -> bool | None:
                self.counted += int(n or 0)
                transfer.now = max(transfer.now, self.counted)
                if transfer.stopped:
                    raise InterruptedError(f"the download of {name} was stopped")
                return super().update(n)

        return Bar


@contextmanager
def _explained(repository: str, revision: str, error: type[WorkbenchError]) -> Iterator[None]:
    """What the hub and its client raise becomes one sentence."""
    from huggingface_hub import constants
    from huggingface_hub import errors as theirs

    try:
        yield
    except (WorkbenchError, KeyboardInterrupt):
        raise
    except theirs.GatedRepoError as failure:
        raise error(
            f"The hub gives {repository} only to accounts that may read it; accept its terms on "
            f"{constants.ENDPOINT}/{repository} and log in by `hf auth login`."
        ) from failure
    except theirs.RepositoryNotFoundError as failure:
        raise error(f"The hub has no repository {repository}, or keeps it private; check the name.") from failure
    except theirs.RevisionNotFoundError as failure:
        raise error(f"{repository} has no revision {revision or MAIN}; name a branch, a tag or a commit.") from failure
    except theirs.EntryNotFoundError as failure:
        raise NoEntry(reason_of(failure)) from failure
    except Exception as failure:
        raise error(f"The hub did not give {repository} ({reason_of(failure)}); try again.") from failure


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"
