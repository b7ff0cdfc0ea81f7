"""The pages of Parquet files say how much room they take, whatever the footer says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lying_parquet import lying

import workbench as wb
from workbench.core.parquet import PageError, unfolded_size

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"use_dictionary": False, "compression": "none"},
    "zstd": {"compression": "zstd"},
    "gzip, pages of version 2": {"compression": "gzip", "data_page_version": "2.0"},
    "groups and small pages": {"row_group_size": 300, "data_page_size": 500},
    "checksums and an index": {"write_page_checksum": True, "write_page_index": True},
    "without statistics": {"write_statistics": False, "compression": "snappy"},
}
TABLE = pa.table(
    {
        "text": [f"text {number % 40} " * 5 for number in range(1000)],
        "lists": [list(range(number % 5)) for number in range(1000)],
        "numbers": np.linspace(0, 1, 1000),
        "none": pa.nulls(1000, pa.string()),
    }
)


@pytest.mark.parametrize("form", FORMS)
def test_the_pages_of_a_file_sum_to_what_its_writer_counted(form: str, tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet", **FORMS[form])
    about = pq.read_metadata(tmp_path / "t.parquet")
    columns = [about.row_group(group).column(place) for group in range(about.num_row_groups) for place in range(4)]
    counted = sum(column.total_uncompressed_size for column in columns)  # with their headers
    with open(tmp_path / "t.parquet", "rb") as opened:
        size = unfolded_size(opened, about)
        assert size == counted
        assert 0 < unfolded_size(opened, about, ["text"]) < size


def test_a_page_that_claims_more_than_its_footer_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "lying.parquet"
    path.write_bytes(lying(path))
    with pytest.raises(wb.WorkbenchError, match="unfolds to more than 200 times its size") as refused:
        wb.Corpus.load(path)
    assert str(path) in str(refused.value)


def test_damaged_headers_raise_one_error(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    content, about = (tmp_path / "t.parquet").read_bytes(), pq.read_metadata(tmp_path / "t.parquet")
    chance, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        start = about.row_group(0).column(chance.randrange(4)).data_page_offset
        for _ in range(4):
            damaged[start + chance.randrange(40)] = chance.randrange(256)
        (tmp_path / "d.parquet").write_bytes(damaged)
        with open(tmp_path / "d.parquet", "rb") as opened:
            try:
                unfolded_size(opened, about)
            except PageError:
                refused += 1
    assert refused > 50
