"""Where rows come from: JSONL, CSV and Parquet files, folders saved by `datasets`, and the hub."""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from rft.data.json_lines import jsonl_rows
from rft.data.rows import Row, RowError
from rft.errors import DataError


def read_rows(source: str, field: str) -> Iterator[Row]:
    if source.startswith("hf://"):
        return _hub_rows(source, field)
    path = Path(source).expanduser()
    if path.is_dir():
        return _saved_rows(path, source, field)
    _check_readable(path, source, field)
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path, source, field)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(path, source, field)
    return jsonl_rows(path, source)


def _check_readable(path: Path, source: str, field: str) -> None:
    if not path.exists():
        remedy = "check the path; it is relative to the job file"
        if re.fullmatch(r"file-\w+", path.name):
            remedy = "this is a file id of the hosted product: download the file and name its path"
        raise DataError(f"{field}: no such file", where=source, remedy=remedy)
    if not path.is_file():
        raise DataError(f"{field}: not a regular file", where=source, remedy="name a JSONL file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{field}: cannot read it: {error.strerror}", where=source) from None
    if not start:
        raise DataError(f"{field}: the file is empty", where=source, remedy="write rows into it")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        remedy = "save it as UTF-8"
        raise DataError(f"{field}: the file is UTF-16", where=source, remedy=remedy)


def _csv_rows(path: Path, source: str, field: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header; every value is text."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for row in reader:
                place = f"{source}:{reader.line_num}"
                if None in row or None in row.values():
                    remedy = f"give the {len(reader.fieldnames or ())} values of the header"
                    yield Row(place, RowError("the row does not fit the header", remedy))
                else:
                    yield Row(place, row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{field}: not a CSV file: {error}", where=source) from None


def _parquet_rows(path: Path, source: str, field: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{field}: not a Parquet file: {error}", where=source) from None
    return _tabular_rows(rows, source)


def _saved_rows(path: Path, source: str, field: str) -> Iterator[Row]:
    """Rows of a folder that `Dataset.save_to_disk` wrote."""
    if not (path / "state.json").is_file():
        remedy = "name the JSONL file in it"
        raise DataError(f"{field}: a folder, not a file", where=source, remedy=remedy)
    import datasets

    try:
        return _tabular_rows(datasets.load_from_disk(str(path)), source)
    # Whatever the library raises on a damaged folder, the person needs the folder's name.
    except Exception as error:
        raise DataError(f"{field}: not a saved data set: {error}", where=source) from None


def _hub_rows(source: str, field: str) -> Iterator[Row]:
    name, options = _hub_address(source, field)
    import datasets

    try:
        rows = datasets.load_dataset(name, options.pop("config", None), **options)
    # Hub, network, cache and builder each raise their own; the person needs the address and the reason.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        remedy = "check the name, config and split, and the network or the local cache"
        raise DataError(
            f"{field}: cannot load the data set: {reason}", where=source, remedy=remedy
        ) from None
    return _tabular_rows(rows, source)


def _hub_address(source: str, field: str) -> tuple[str, dict[str, str]]:
    """The name, and the config, split and revision, of `hf://owner/name?config=…&split=…`."""
    parts = urlsplit(source)
    name = unquote(parts.netloc + parts.path).strip("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        remedy = "write hf://owner/name?config=main&split=train"
        raise DataError(f"{field}: no name of a data set", where=source, remedy=remedy)
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if unknown := [key for key in options if key not in ("config", "split", "revision")]:
        what = f"{field}: unknown option `{unknown[0]}`"
        raise DataError(what, where=source, remedy="legal: config, split, revision")
    if "split" not in options:
        if field != "training_file":
            raise DataError(f"{field}: no split is named", where=source, remedy="add ?split=test")
        options["split"] = "train"
    return name, options


def _tabular_rows(rows: Any, source: str) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        place = f"{source} row {number}"
        try:
            yield Row(place, {key: _as_json(value, key) for key, value in row.items()})
        except RowError as error:
            yield Row(place, error)


def _as_json(value: Any, column: str) -> Any:
    """A table's value as JSON has it: dates as ISO text, NaN as null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _as_json(inner, column) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner, column) for inner in value]
    what = f"column `{column}` holds {type(value).__name__}, which graders cannot read"
    raise RowError(what, "drop the column, or turn it into text or numbers")
