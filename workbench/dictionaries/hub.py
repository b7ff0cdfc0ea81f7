"""Dictionaries on the Hugging Face hub: which files of a repository one needs, and their copies on this machine."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from workbench.core.progress import Progress
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.hub_names import Address
from workbench.dictionaries.recognition import (
    in_words,
    known_formats,
    lies_in,
    part_names,
    parts_of,
    recognised,
    titles,
)
from workbench.model.hub import why_unreachable
from workbench.model.hub_files import COMMIT, Listing, NoEntry, cached, download, list_files

SMALL = 2**20
"""Bytes up to which a file that is no tensor file is fetched before it is known which dictionaries there are."""
PLAIN = frozenset({".json", ".yaml", ".yml", ".txt"})
"""Endings of files that hold no tensors."""
_log = logging.getLogger("workbench")


def fetch(
    address: Address,
    *,
    several: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """The folder or file on this machine in which a dictionary of the hub lies, fetched if need be.

    The files that a format needs are fetched, and no others. A single dictionary of a commit that is on this machine
    already is not asked for. Where the hub can't be reached, what an earlier download left is taken; of a set, a
    warning says that it may be a part.

    Args:
        address: of a dictionary, or of a folder of several.
        several: fetch a folder of several dictionaries, which is refused otherwise.
        progress: called with the share of all bytes; without it `huggingface_hub` draws its bars.
        cancel: asked about ten times a second; what was fetched until then stays.

    Raises:
        DictionaryError: the hub can't be asked or has no such thing, it is no dictionary of a known format, it holds
            several, or `cancel` returned True.
    """
    here = _here(address)
    if here is not None and COMMIT.fullmatch(address.revision) and _is_whole(here):
        return here
    if why := why_unreachable():
        if here is not None:
            if not _is_whole(here):
                _log.warning("%s is taken as it is on this machine; more of it may be on the hub.", address.address)
            return here
        raise DictionaryError(f"{address.address} is not on this machine, and the hub can't be asked: {why}.")
    if progress:
        progress(0.0, f"Looking into {address.repository}")
    listing, inside = _listed(address)
    files = _needed(listing, address, inside, several=several)
    if not several:
        _check_single(listing, files, address, inside)
    return download(listing, files, DictionaryError, progress=progress, cancel=cancel) / address.inside


def _here(address: Address) -> Path | None:
    """Where a folder or file lies in the cache of the hub; None where it does not."""
    folder = cached(address.repository, address.revision)
    path = folder / address.inside if folder is not None else None
    return path if path is not None and path.exists() else None


def _is_whole(path: Path) -> bool:
    """Whether what is here has all files of a dictionary: of a set or of a file for each layer, that is not known."""
    if path.is_file():
        return bool(recognised(path))
    try:
        return any(parts_of(path, one) == [path] and "*" not in "".join(one.FILES) for one in recognised(path))
    except DictionaryError:
        return False


def _listed(address: Address) -> tuple[Listing, str]:
    """The files on the hub, and the folder that they are sought in: that of the address, or that of a single file."""
    try:
        return list_files(address.repository, address.inside, address.revision, DictionaryError), address.inside
    except NoEntry:
        folder = _text(PurePosixPath(address.inside).parent)
        try:
            beside = list_files(address.repository, folder, address.revision, DictionaryError, deep=False)
        except NoEntry:
            raise _missing(address) from None
        if address.inside in beside.sizes:
            return beside, folder
        raise _missing(address) from None


def _missing(address: Address) -> DictionaryError:
    """That a repository has no such folder or file, with what stands in the last folder that it has."""
    folder = PurePosixPath(address.inside)
    while folder.parts:
        folder = folder.parent
        try:
            there = list_files(address.repository, _text(folder), address.revision, DictionaryError)
        except NoEntry:
            continue
        depth = len(folder.parts)
        names = sorted({PurePosixPath(one).parts[depth] for one in there.sizes})
        where = f"{address.repository}/{folder}" if depth else address.repository
        return DictionaryError(f"The hub has no {address.address}; {where} holds {in_words(names) or 'nothing'}.")
    return DictionaryError(f"The hub has no {address.address}.")


def _needed(listing: Listing, address: Address, inside: str, *, several: bool) -> list[str]:
    """Of the files in a folder, those that a format reads: there, or where `several` are wanted in folders below."""
    known = list(known_formats())
    sets = [one for one in known if "parts" in vars(one)]
    by_folder: dict[str, list[str]] = {}
    for name in listing.sizes:
        for folder in _folders_above(name, inside):
            forms = sets if several and folder != inside else known
            if any(lies_in(str(PurePosixPath(name).relative_to(folder)), one.FILES) for one in forms):
                by_folder.setdefault(folder, []).append(name)
    own = by_folder.pop(inside, [])
    if address.inside != inside:  # a single file, and small ones beside it
        return [name for name in own if _is_plain(name, listing)] + [address.inside]
    holders = {one: files for one, files in by_folder.items() if not all(_is_plain(name, listing) for name in files)}
    if several:
        own = sorted({*own, *(name for files in holders.values() for name in files)})
        holders = {}
    if all(_is_plain(name, listing) for name in own):
        if holders:
            names = sorted(str(PurePosixPath(one).relative_to(inside)) for one in holders)
            raise DictionaryError(_several(address, names))
        there = sorted(str(PurePosixPath(name).relative_to(inside)) for name in listing.sizes)
        raise DictionaryError(
            f"{address.address} on the hub is not a dictionary of {titles()}: it holds {in_words(there) or 'nothing'}."
        )
    return own


def _folders_above(name: str, inside: str) -> Iterable[str]:
    """The folders from that of a file up to one."""
    for folder in PurePosixPath(name).parents:
        yield _text(folder)
        if _text(folder) == inside:
            return


def _text(folder: PurePosixPath) -> str:
    """A folder of a repository as a text; empty for the whole repository."""
    return str(folder) if folder.parts else ""


def _is_plain(name: str, listing: Listing) -> bool:
    return PurePosixPath(name).suffix in PLAIN and listing.sizes[name] <= SMALL


def _several(address: Address, names: list[str]) -> str:
    return (
        f"{address.repository}{address.inside and '/'}{address.inside} holds {len(names):,} "
        f"{'dictionaries' if len(names) > 1 else 'dictionary'}, {in_words(names)}; name one, as in "
        f'"{Address(address.repository, f"{address.inside}/{names[0]}".strip("/"), address.revision).address}".'
    )


def _check_single(listing: Listing, files: list[str], address: Address, inside: str) -> None:
    """Refuse what a format says are several dictionaries, before their weights are fetched.

    The formats are asked of a folder with the small files, and with empty ones in place of weights.
    """
    asking = [find for one in known_formats() if (find := vars(one).get("parts"))]
    if not asking or address.inside != inside:
        return
    small = [name for name in files if _is_plain(name, listing)]
    there = download(listing, small, DictionaryError, progress=lambda share, what: None)
    with tempfile.TemporaryDirectory(prefix="workbench-") as scratch:
        for name in files:
            copy = Path(scratch) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if name in small:
                shutil.copyfile(there / name, copy)
            else:
                copy.touch()
        for find in asking:
            try:
                names = part_names(Path(scratch) / inside, find(Path(scratch) / inside))
            except Exception:  # noqa: BLE001 - an empty file is none of its own: it is asked again when all is there
                continue
            if len(names) > 1:
                raise DictionaryError(_several(address, sorted(names)))
