"""Exports of features that users opened: each is browsed by an index made from it, without its dictionary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import caching
from shared.dictionaries import Known

from workbench.core.cache import cache_folder
from workbench.index.export_index import export_identity
from workbench.index.export_reading import is_export, open_export
from workbench.index.layout import DATA, NOTE, FeatureIndexError

if TYPE_CHECKING:
    from workbench.index import FeatureIndex


def recognised(path: Path) -> bool:
    """Whether a path is an export, or the folder of an index alone, as of one that was made from an export."""
    return is_export(path) or (path / DATA / NOTE).is_file()


def opening(path: Path) -> Callable[..., Path]:
    """The work that makes an index from an export, in the cache; its result is the index's folder."""

    def work(tell: Callable[[float, str], None], cancelled: Callable[[], bool]) -> Path:
        import workbench as wb

        if (path / DATA / NOTE).is_file():
            return path
        tell(0.0, "Reading the export")
        export = open_export(path)
        folder = cache_folder() / "indexes" / f"export-{export_identity(export)[:32]}"
        tell(0.5, "Writing its index")
        wb.index.build_from_export(export, folder)
        return folder

    return work


def add(folder: Path) -> Known:
    """Add the index of an export to the known ones.

    Raises:
        FeatureIndexError: it can't be read, or is the index of a dictionary.
    """
    index = caching.exported_index(str(folder), _stamp(folder))
    about = index.about["dictionary"]
    if not index.exported:
        raise FeatureIndexError(f"{folder} is the index of {about['name']}; open the folder of that dictionary.")
    made_for = about["provenance"]["model_name"]
    count = int(index.statistics["held"].sum())
    one = Known(str(folder), about["name"], "export", "", about["writes"], count, "", made_for, exported=True)
    caching.typed_exports()[one.name] = one
    return one


def known() -> list[Known]:
    """The exports that were opened."""
    return list(caching.typed_exports().values())


def called(name: str) -> Known | None:
    """The export of this name; None where none was opened."""
    return caching.typed_exports().get(name)


def index_of(one: Known) -> FeatureIndex:
    """The index of an export; raises `FeatureIndexError` where it can't be read any more."""
    folder = Path(one.folder)
    return caching.exported_index(str(folder), _stamp(folder))


def _stamp(folder: Path) -> tuple[int, ...]:
    try:
        now = (folder / DATA / NOTE).stat()
    except OSError as error:
        raise FeatureIndexError(f"{folder} holds no index any more; open the export again.") from error
    return now.st_mtime_ns, now.st_size
