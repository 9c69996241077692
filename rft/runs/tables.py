"""Samples and evaluations as parquet files: one row per completion."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from rft.errors import RunError
from rft.runs import disk
from rft.runs.documents import finite, json_bytes

JSON_COLUMNS = frozenset({"messages", "sub_rewards", "errors", "item"})
"""Columns whose values are kept as JSON text. `errors` holds details by flag by the part of a multi
grader that raised it, or by the name of the job's grader where that did: {"code": {"other_error": …}}."""

WITH_ERRORS = [("errors", "!=", "{}")]

_COMPLETION = [
    ("row", pa.int64()),
    ("sample", pa.int64()),
    ("prompt", pa.string()),
    ("messages", pa.string()),
    ("completion", pa.string()),
    ("output_text", pa.string()),
    ("finish_reason", pa.string()),
    ("ends_in_thinking", pa.bool_()),
    ("num_tokens", pa.int64()),
    ("reward", pa.float64()),
    ("sub_rewards", pa.string()),
    ("errors", pa.string()),
]
SAMPLES_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("ordinal", pa.int64()),
        *_COMPLETION,
        ("advantage", pa.float64()),
        ("item", pa.string()),
    ]
)
EVALUATION_SCHEMA = pa.schema([("step", pa.int64()), *_COMPLETION, ("item", pa.string())])


def write_table(path: Path, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows whole or not at all; a value that is absent or not finite is null.

    Raises ValueError when a row has a column the schema lacks, DiskError when the disk refuses.
    """
    unknown = sorted({key for row in rows for key in row} - set(schema.names))
    if unknown:
        raise ValueError(f"columns {unknown} are not among {schema.names}")
    columns = {name: [_stored(name, row.get(name)) for row in rows] for name in schema.names}
    table = pa.table(columns, schema=schema)
    content = io.BytesIO()
    parquet.write_table(table, content, compression="zstd")
    disk.replace(path, content.getvalue())


def count_rows(path: Path) -> int:
    """How many rows a file has. Raises RunError when it is damaged."""
    with _readable(path):
        return int(parquet.read_metadata(path).num_rows)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, JSON columns decoded. Raises RunError when it is damaged."""
    with _readable(path):
        return _decoded(parquet.read_table(path))


def read_failing(path: Path) -> list[dict[str, Any]]:
    """The rows over which a grader raised an error. Raises RunError when the file is damaged."""
    with _readable(path):
        return _decoded(parquet.read_table(path, filters=WITH_ERRORS))


def _decoded(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row.update({key: json.loads(row[key]) for key in JSON_COLUMNS if row.get(key)})
    return rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns a failure to read a file into a RunError."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"the file cannot be read: {reason}",
            where=str(path),
            remedy="it was changed or copied in part; take another step",
        ) from error


def _stored(name: str, value: Any) -> Any:
    if name in JSON_COLUMNS and value is not None and not isinstance(value, str):
        return json_bytes(value).decode()
    if isinstance(value, str):
        # a lone surrogate has no place in UTF-8
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return finite(value)
