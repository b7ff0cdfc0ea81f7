"""Parquet files whose pages claim another size than they have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def lying(path: Path) -> bytes:
    """A file of one long text whose page says that it takes 2 GB."""
    pq.write_table(pa.table({"text": ["abc" * 1000]}), path, use_dictionary=False, compression="zstd")
    content = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(0)
    at, said = chunk.data_page_offset, varint(2 * true_size(content, chunk.data_page_offset))
    place = content.index(said, at, at + 12)
    longer = content[:place] + varint(2 * (2**31 - 1))
    gap = len(longer) - place - len(said)
    rest = content[place + len(said) :]
    pages_end = at + chunk.total_compressed_size - place - len(said)
    return longer + rest[: pages_end - gap] + rest[pages_end:]  # the page loses its end, and the footer keeps its place


def true_size(content: bytes, at: int) -> int:
    """The size in the second field of the header at a place, by hand: a type and one number in front of it."""
    assert content[at : at + 3] == b"\x15\x00\x15"  # field 1, a data page; field 2
    value = 0
    for shift, byte in enumerate(content[at + 3 : at + 8]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value >> 1
    raise AssertionError


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
