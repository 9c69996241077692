"""Where rows come from: JSONL, CSV and Parquet files, folders saved by `datasets`, and the hub."""

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from rft.data.json_lines import MAX_LINE_BYTES, decoded, jsonl_rows
from rft.data.rows import Row, RowError
from rft.errors import DataError
from rft.job.paths import with_home
from rft.job.places import one_line

NO_TEXT: Mapping[bytes, tuple[str, str]] = {
    b"\xff\xfe\0\0": ("UTF-32", "save it as UTF-8"),
    b"\0\0\xfe\xff": ("UTF-32", "save it as UTF-8"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    b"\x1f\x8b": ("compressed", "unpack it with gunzip"),
    b"PK\3\4": ("an archive", "unpack it with unzip, and name a file of it"),
}
"""By its first bytes: what a file is that holds no rows, and what to do with it."""


TOOL_KEYS = ("parameters", "arguments")
"""Of a tool and of its call: objects whose keys differ from one to the next."""


def read_rows(source: str, field: str) -> Iterator[Row]:
    """The rows of a source; `field` is the job's key for it.

    Raises DataError when the source as a whole cannot be read; a bad row is given as an error.
    """
    if source.startswith("hf://"):
        return _hub_rows(source, field)
    path, name = Path(with_home(source)), shown(source)
    if os.path.isdir(path):
        return _saved_rows(path, name, field)
    _check_readable(path, name, field)
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path, name, field)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(path, name, field)
    return jsonl_rows(path, name)


def shown(source: str) -> str:
    """A source as errors name it: relative to the current folder when it lies below, in one line."""
    path = Path(source)
    is_below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return one_line(str(path.relative_to(Path.cwd()) if is_below else source))


def _check_readable(path: Path, name: str, field: str) -> None:
    try:
        if path.exists() and not path.is_file():
            remedy = "name a JSONL file"
            raise DataError(f"{field}: not a regular file", where=name, remedy=remedy)
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        remedy = "check the path; it is relative to the job file"
        if re.fullmatch(r"file-\w+", path.name):
            remedy = "a file id of the hosted product: download the file and name its path"
        raise DataError(f"{field}: no such file", where=name, remedy=remedy) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what, remedy = f"{field}: cannot read it: {reason}", "check the path and its permissions"
        raise DataError(what, where=name, remedy=remedy) from None
    if not start:
        raise DataError(f"{field}: the file is empty", where=name, remedy="write rows into it")
    for mark, (kind, remedy) in NO_TEXT.items():
        if start.startswith(mark):
            raise DataError(f"{field}: the file is {kind}", where=name, remedy=remedy)


def _csv_rows(path: Path, name: str, field: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header; every value is text."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    _check_utf8(path, name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(MAX_LINE_BYTES)  # of 128 KiB by default
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                what = f"{field}: two columns have the same name"
                raise DataError(what, where=f"{name}:1", remedy="rename one of them")
            for values in reader:
                place = f"{name}:{reader.line_num}"
                if len(values) == len(header):
                    yield Row(place, dict(zip(header, values, strict=True)))
                elif values:
                    what = f"the row has {len(values)} values, the header {len(header)}"
                    yield Row(place, RowError(what, "put values with commas in quotes"))
    except csv.Error as error:
        what = one_line(f"{field}: not a CSV file: {error}")
        remedy = "put values with quotes or line breaks in quotes, and double the quotes in them"
        raise DataError(what, where=f"{name}:{reader.line_num}", remedy=remedy) from None


def _check_utf8(path: Path, name: str) -> None:
    """Raises DataError at the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                decoded(line)
            except RowError as error:
                raise DataError(error.problem(f"{name}:{number}")) from None


def _parquet_rows(path: Path, name: str, field: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        what = f"{field}: not a Parquet file: {_reason(error)}"
        raise DataError(what, where=name, remedy="write it anew") from None
    return _tabular_rows(rows, name, field)


def _saved_rows(path: Path, name: str, field: str) -> Iterator[Row]:
    """Rows of a folder that `Dataset.save_to_disk` wrote."""
    if not os.path.isfile(path / "state.json"):
        has_splits = os.path.isfile(path / "dataset_dict.json")
        remedy = "name the folder of one split" if has_splits else "name a file in it"
        raise DataError(f"{field}: a folder, not a file", where=name, remedy=remedy)
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
        rows.data.validate(full=True)  # offsets beyond its end would end the process
    except Exception as error:  # whatever a damaged folder makes it raise, the answer is the same
        what = f"{field}: not a saved data set: {_reason(error)}"
        raise DataError(what, where=name, remedy="save it anew") from None
    return _tabular_rows(rows, name, field)


def _hub_rows(source: str, field: str) -> Iterator[Row]:
    name, options = _hub_address(source, field)
    import datasets

    try:
        rows = datasets.load_dataset(name, options.pop("config", None), **options)
    except Exception as error:  # hub, network, cache and builder each raise their own
        what = f"{field}: cannot load the data set: {_reason(error)}"
        remedy = "check name, config and split, and the network or the local cache"
        raise DataError(what, where=shown(source), remedy=remedy) from None
    return _tabular_rows(rows, shown(source), field)


def _hub_address(source: str, field: str) -> tuple[str, dict[str, str]]:
    """Name and config, split, revision of `hf://owner/name?config=…&split=…`."""
    name, _, query = source.removeprefix("hf://").partition("?")
    options = {key: values[-1] for key, values in parse_qs(query).items()}
    unknown = [key for key in options if key not in ("config", "split", "revision")]
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        remedy = "write hf://owner/name?config=main&split=train"
        raise DataError(f"{field}: no name of a data set", where=shown(source), remedy=remedy)
    if unknown:
        what = one_line(f"{field}: unknown option `{unknown[0]}`")
        remedy = "legal: config, split, revision"
        raise DataError(what, where=shown(source), remedy=remedy)
    if "split" not in options:
        if field != "training_file":
            raise DataError(
                f"{field}: no split is named", where=shown(source), remedy="add split=test"
            )
        options["split"] = "train"
    return name, options


def _reason(error: Exception) -> str:
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0][:300])


def _tabular_rows(rows: Iterable[Any], name: str, field: str) -> Iterator[Row]:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield _tabular_row(row, f"{name} row {number}")
    except Exception as error:  # a date that no calendar has, a text that is not UTF-8 and the like
        what, place = f"{field}: cannot read the row: {_reason(error)}", f"{name} row {number + 1}"
        raise DataError(what, where=place, remedy="mend the row, or save the data anew") from None


def _tabular_row(row: Mapping[str, Any], place: str) -> Row:
    try:
        return Row(place, {key: _as_json(value, key) for key, value in row.items()})
    except RowError as error:
        return Row(place, error)


def _as_json(value: Any, column: str) -> Any:
    """A table's value as JSON has it: dates as ISO text, NaN as null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _as_json(float(value), column)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, dict):
        names = {key: _as_json(inner, column) for key, inner in value.items()}
        # of a tool or of its call: a column's structs have the keys of all its rows
        if "name" in names:
            names |= {key: _without_nulls(names[key]) for key in TOOL_KEYS if key in names}
        return names
    if isinstance(value, (list, tuple)):
        return [_as_json(inner, column) for inner in value]
    what = f"column `{column}` holds {type(value).__name__}, which graders cannot read"
    raise RowError(what, "drop the column, or turn it into text or numbers")


def _without_nulls(value: Any) -> Any:
    """The value without the keys of its objects that are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
