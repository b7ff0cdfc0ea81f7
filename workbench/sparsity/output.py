"""Results of a measurement of sparsity as JSON or Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.checks import checked
from workbench.core.files import replacing
from workbench.sparsity.masking import SparsityError
from workbench.sparsity.outcome import SparsityOutcome
from workbench.sparsity.result import Sparsity


@checked(SparsityError)
def save_sparsities(results: Sequence[Sparsity], path: str | Path) -> None:
    """Write results to a `.json` or `.parquet` file, whole or not at all.

    JSON holds `to_dict` of each result in a list, one for each p. Parquet holds `layer_rows`, and the provenance in its
    metadata.

    Args:
        results: from `measure_sparsities`.
        path: its suffix names the format.

    Raises:
        SparsityError: another kind of file, no results, or a file that can't be written or holds something else.
    """
    path = Path(path)
    if path.suffix not in (".json", ".parquet"):
        raise SparsityError(f"Results are saved as .json or .parquet, not as {path.name}.")
    if not results:
        raise SparsityError("There are no results to save.")
    with replacing(path, SparsityError) as temporary:
        if path.suffix == ".json":
            temporary.write_text(json.dumps([one.to_dict() for one in results], indent=1, allow_nan=False) + "\n")
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([row for one in results for row in layer_rows(one)])
        metadata = {"provenance": json.dumps(results[0].provenance)}
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def layer_rows(result: Sparsity) -> list[dict[str, Any]]:
    """One row for each layer and measure (`cett` and the baselines), as plain data."""
    measures: dict[str, tuple[SparsityOutcome, Sequence[float | None], list[float]]] = {
        "cett": (result.reported, result.thresholds, result.cett_by_layer)
    }
    for name, baseline in result.baselines.items():
        thresholds = [baseline.setting if name == "fixed" else None] * len(baseline.reported.by_layer)
        measures[name] = baseline.reported, thresholds, []
    rows = []
    for name, (outcome, thresholds, cett) in measures.items():
        for layer, share in enumerate(outcome.by_layer):
            low, high = outcome.by_layer_intervals[layer]
            rows.append(
                {
                    "asked": result.asked,
                    "measure": name,
                    "layer": layer,
                    "sparsity": share,
                    "low": low,
                    "high": high,
                    "threshold": thresholds[layer],
                    "cett": cett[layer] if cett else None,
                    "ppl_increase": outcome.ppl_increase,
                }
            )
    return rows
