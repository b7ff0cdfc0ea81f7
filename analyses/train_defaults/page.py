"""The report on the dictionaries that ship: a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analyses.shared.report import Page, table


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html`."""
    source, measured = results["provenance"], results["measured_on"]
    page = Page(
        folder,
        "The dictionaries that ship",
        f"An SAE on the residual stream of {source['model']} and transcoders of its MLPs, trained on "
        f"{source['training_tokens']:,} tokens and measured on {measured['tokens']:,} tokens of "
        f"{measured['texts']:,} held-out texts.",
    )
    rows = []
    for name, row in results["dictionaries"].items():
        low, high = row["intervals"]["loss_recovered"]
        linear = row.get("linear_path_alone")
        rows.append(
            [
                name,
                row["width"],
                f"{row['l0']:.1f}",
                f"{row['fvu']:.3f}",
                f"{row['loss_recovered']:.3f} ({low:.3f} to {high:.3f})",
                f"{linear['loss_recovered']:.2f}" if linear else "",
            ]
        )
    page.section("Fidelity", "Each dictionary spliced in alone; the last column has a transcoder's linear path alone.")
    page.add(table(["dictionary", "latents", "L0", "FVU", "loss recovered", "linear path alone"], rows))
    without_plan = {key: value for key, value in source.items() if key != "plan"}
    return page.write(without_plan | {"plan": json.dumps(source["plan"])})
