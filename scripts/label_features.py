"""Writes the labels by rule of the dictionaries that come with Workbench: `labels.parquet` beside each index.

The indexes that ship keep a few tokens of each latent. Rules are chosen and scored on whole indexes of more text, which
are built in one pass into a folder of work, where a build that was stopped goes on.

    python scripts/label_features.py --work ../runs/labels
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import workbench as wb
from workbench.core.shipped import shipped
from workbench.index.label_store import FILE


def main() -> None:
    """Print what was found for each dictionary, and the size of its file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where the whole indexes go")
    parser.add_argument("--names", nargs="*", help="of dictionaries; all that have an index without it")
    parser.add_argument("--corpus", default="stories")
    parser.add_argument("--tokens", type=int, default=500_000)
    chosen = parser.parse_args()
    places = {name: path for name, path in shipped("dictionaries", "*/cfg.json").items() if (path / "index").is_dir()}
    names = chosen.names or list(places)
    model = wb.load_model()
    wanted = {chosen.work / name: wb.load_dictionary(name) for name in names}
    wb.index.build_indexes(model, wanted, wb.Corpus.load(chosen.corpus), tokens=chosen.tokens)
    for name in names:
        print(name, wb.open_index(chosen.work / name).explain())
        file = places[name] / "index" / FILE
        shutil.copyfile(chosen.work / name / FILE, file)
        print(f"{file}: {file.stat().st_size:,} bytes, {len(wb.open_index(name).names()):,} labels")


if __name__ == "__main__":
    main()
