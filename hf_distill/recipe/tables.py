"""Rows out of files: what they say, never what a reader would guess.

CSV, TSV, JSON, JSON lines (each also .gz) and parquet; a split may have files of several formats. Texts are texts and labels
are what is written, whatever they look like. What cannot be read is refused with its file and line. Files are read row by
row, once: `datasets` keeps the rows under the contents of the files.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow
import pyarrow.parquet
import xxhash
from datasets.exceptions import DatasetsError

from ..errors import DataError, in_a_line
from ..lookup import suggest
from ..rows.content import Content
from ..rows.texts import TEXTS

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")
"""The suffixes that say how a file is read."""

# Part of the key under which `datasets` keeps what was read: raise it whenever this module makes other rows.
_FORMAT = 1

_PIECE = 1 << 20
"""How much is read at once where lines say nothing."""

_ROWS, _LARGE_ROWS = 10_000, 200
"""How many rows are in memory at once, of text and of what may be larger."""


class Columns(NamedTuple):
    """Which columns are kept.

    Attributes:
        texts: Those that hold text; each row has them.
        label: The one that holds labels; rows, files and splits may lack it.
    """

    texts: tuple[str, ...]
    label: str


class _Row(NamedTuple):
    """A row as a file has it, and where.

    Attributes:
        where: "line 7" or "row 7".
        values: By column.
        names: Of the labels, where the file has them as ids with names.
    """

    where: str
    values: Mapping[str, Any]
    names: Sequence[str] | None = None


def format_of(name: str) -> tuple[str, bool]:
    """The suffix that says how a file is read, and whether the file is compressed.

    Example:
        >>> format_of("a.b/rows.CSV.gz"), format_of("rows.parquet"), format_of("rows")
        (('csv', True), ('parquet', False), ('', False))
    """
    plain = Path(name).name.lower()
    return Path(plain.removesuffix(".gz")).suffix.removeprefix("."), plain.endswith(".gz")


def known_format(name: str) -> str:
    """The suffix that says how a file is read.

    Raises:
        DataError: It says nothing.
    """
    kind, _ = format_of(name)
    if kind not in FORMATS:
        raise DataError(
            f"{name}: the format is known by the suffix, of csv, tsv, json, jsonl (each also .gz) and parquet."
        )
    return kind


def read_files(
    names: Sequence[str],
    columns: Columns,
    split: str,
    joined: Sequence[str] = (),
    content: Content = TEXTS,
) -> datasets.Dataset:
    """Read the rows of a split.

    Args:
        names: Its files.
        columns: Which columns are kept.
        split: Its name.
        joined: Columns of one label or score each, which become the label column together: a mapping of their texts.
        content: What the columns hold that models read.

    Returns:
        The content columns, text as strings, and the label column as strings, None where a row has none, if a file has it. Where
        all files are of parquet and agree, labels keep their type; lists stay lists, of strings or of floats.

    Raises:
        DataError: A file cannot be read, or is not what its suffix says.

    Example:
        >>> file = getfixture("tmp_path") / "rows.csv"
        >>> _ = file.write_text("text,label,other\\n007,True,x\\nNA,,y\\n")
        >>> read_files([str(file)], Columns(("text",), "label"), "train")[:]
        {'text': ['007', 'NA'], 'label': ['True', None]}
    """
    given = [_look(name, columns, split, joined) for name in names]
    features = {column: content.file_feature() for column in columns.texts}
    if joined:
        features[columns.label] = {column: datasets.Value("string") for column in joined}
    elif label := _label_feature(given):
        features[columns.label] = label
    # Rows are kept under the contents of the files: under their times and paths a file that was copied would be read again,
    # and one that was edited within its clock's tick would not.
    digest = xxhash.xxh3_128(repr((_FORMAT, columns, features)).encode())
    for name in names:
        digest.update(repr(format_of(name)).encode() + _digest(name) + _digest_beside(name, columns, content))
    builder = _Builder(
        tuple(names), columns, datasets.Features(features), split, digest.hexdigest(), tuple(joined), content
    )
    try:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
    except (DatasetsError, DataError, OSError, ValueError, pyarrow.ArrowException) as error:
        # `datasets` hides what was found behind "An error occurred while generating the dataset".
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__
        if cause is not None:
            raise DataError(str(cause)) from error
        raise DataError(
            f"data.files: {', '.join(names)} cannot be loaded: {in_a_line(error.__cause__ or error)}"
        ) from error
    rows._fingerprint = digest.hexdigest()
    return rows


def stream_files(
    names: Sequence[str],
    columns: Columns,
    split: str,
    joined: Sequence[str] = (),
    content: Content = TEXTS,
) -> datasets.IterableDataset:
    """As `read_files`, row after row as they are asked for: nothing is kept.

    Example:
        >>> file = getfixture("tmp_path") / "rows.csv"
        >>> _ = file.write_text("text,label\\na fine film,good\\n")
        >>> list(stream_files([str(file)], Columns(("text",), "label"), "train"))
        [{'text': 'a fine film', 'label': 'good'}]
    """
    given = [_look(name, columns, split, joined) for name in names]
    features = {column: content.file_feature() for column in columns.texts}
    label = {column: datasets.Value("string") for column in joined} if joined else _label_feature(given)
    if label:
        features[columns.label] = label
    # A tuple of names: lists are what `datasets` spreads over workers.
    return datasets.IterableDataset.from_generator(
        _generate,
        features=datasets.Features(features),
        gen_kwargs={
            "names": tuple(names),
            "columns": columns,
            "label_feature": label,
            "joined": tuple(joined),
            "content": content,
        },
    )


class _Builder(datasets.ArrowBasedBuilder):
    """Writes the rows of a split where `datasets` keeps what it loads, and finds them there again by the digest."""

    def __init__(
        self,
        names: Sequence[str],
        columns: Columns,
        features: datasets.Features,
        split: str,
        digest: str,
        joined: Sequence[str] = (),
        content: Content = TEXTS,
    ) -> None:
        self._content = content
        self._files, self._columns, self._features, self._split = names, columns, features, split
        self._joined = joined
        super().__init__(dataset_name="files", config_id=f"{split}-{digest}")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self._features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self._split)]

    def _generate_tables(self) -> Iterator[tuple[Any, pyarrow.Table]]:
        schema = self._features.arrow_schema
        label = self._features.get(self._columns.label)
        rows = _generate(self._files, self._columns, label, self._joined, self._content)
        most = _ROWS if self._content.of_tokens else _LARGE_ROWS
        for number, part in enumerate(iter(lambda: list(itertools.islice(rows, most)), [])):
            yield datasets.builder.Key(0, number), pyarrow.Table.from_pylist(part, schema=schema)


def _generate(
    names: Sequence[str],
    columns: Columns,
    label_feature: Any,
    joined: Sequence[str],
    content: Content = TEXTS,
) -> Iterator[dict[str, Any]]:
    as_text, items = label_feature == datasets.Value("string"), getattr(label_feature, "feature", None)
    for name in names:
        row = None
        for row in _rows(name, columns, joined):
            kept = {
                column: _content(row.values.get(column), name, row, column, content)
                for column in columns.texts
            }
            if joined:
                kept[columns.label] = {
                    column: _label(_blank_as_none(row.values.get(column)), name, row, column)
                    for column in joined
                }
            elif items is not None:
                kept[columns.label] = _list_of(row.values.get(columns.label), items, name, row, columns.label)
            elif label_feature is not None:
                label = row.values.get(columns.label)
                kept[columns.label] = _label(label, name, row, columns.label) if as_text else label
            yield kept
        if row is None:
            raise DataError(f"data.files: {name} has no rows.")


def _content(value: Any, name: str, row: _Row, column: str, content: Content) -> Any:
    where = f"data.files: {name}, {row.where}"
    if column not in row.values:
        raise DataError(
            f"{where}: it has no {column!r}{suggest(column, row.values)}, only {', '.join(map(repr, row.values)) or 'nothing'}: "
            f"each row needs its {content.keys[0]}."
        )
    try:
        kept = content.of_file(value, str(Path(name).parent))
    except ValueError as error:
        raise DataError(f"{where}, column {column!r}: {error}: remove the row or fill it in.") from error
    return _encodable(kept, where, column) if isinstance(kept, str) else kept


def _digest_beside(name: str, columns: Columns, content: Content) -> bytes:
    """What the files are known by that a file of rows names: their places, sizes and times."""
    if content.of_tokens:
        return b""
    digest, folder = xxhash.xxh3_128(), str(Path(name).parent)
    for row in _rows(name, columns._replace(label="")):
        for column in columns.texts:
            path = content.other_files(row.values.get(column), folder)
            if path is not None and os.path.isfile(path):
                found = os.stat(path)
                digest.update(repr((path, found.st_size, found.st_mtime_ns)).encode())
    return digest.digest()


def _label(value: Any, name: str, row: _Row, column: str) -> str | None:
    where = f"data.files: {name}, {row.where}"
    if value is None or value != value:  # null, NaN
        return None
    if row.names is not None:
        if value == -1:
            return None
        if not 0 <= value < len(row.names):
            raise DataError(
                f"{where}, column {column!r}: found {value}, but the file names {len(row.names)} classes."
            )
        return row.names[value]
    if isinstance(value, str):
        return _encodable(value, where, column)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise DataError(
        f"{where}, column {column!r}: found {_shown(value)}, expected a label: a name or a number."
    )


def _blank_as_none(value: Any) -> Any:
    """CSV's way to say nothing."""
    return None if value == "" else value


def _list_of(value: Any, items: Any, name: str, row: _Row, column: str) -> list[Any] | None:
    """A row's labels as a list, of texts or of floats; None where it has none."""
    if value is None or value != value:
        return None
    where = f"data.files: {name}, {row.where}, column {column!r}"
    if not isinstance(value, list):
        raise DataError(f"{where}: found {_shown(value)}, expected a list, as other rows have.")
    numbers = items == datasets.Value("float64")
    for item in value:
        fits = isinstance(item, (int, float)) if numbers else isinstance(item, (str, int))
        if isinstance(item, bool) or not fits:
            raise DataError(
                f"{where}: its list holds {_shown(item)}, expected {'numbers' if numbers else 'names or ids of labels'}."
            )
    if not (numbers or items == datasets.Value("string")):
        return value  # as a file of parquet types it
    return [float(item) if numbers else _encodable(str(item), where, column) for item in value]


def _encodable(value: str, where: str, column: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}, column {column!r}: it holds half a character ({value[error.start]!r}, a lone surrogate), which is "
                "no text: write the file again as UTF-8."
            ) from error
    return value


def _shown(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 80 else shown[:77] + "…"


# ---- Which columns a file has ----


class _Given(NamedTuple):
    """What a file has of the label column: whether it is there, and the type it keeps, None where it is to be text."""

    has_label: bool
    label: Any = None


def _look(name: str, columns: Columns, split: str, joined: Sequence[str] = ()) -> _Given:
    found = columns_of(name, columns._replace(label=joined[-1]) if joined else columns)
    _refuse_missing(found, columns, split, name)
    if joined:
        missing = [column for column in joined if column not in found]
        if missing and format_of(name)[0] not in ("json", "jsonl"):
            raise DataError(
                f"data.label_columns: the {split} rows have no column {missing[0]!r}{suggest(missing[0], found)}; their columns are: "
                f"{', '.join(map(str, found))} ({name})"
            )
        return _Given(True)
    if columns.label not in found:
        return _Given(False)
    kind = format_of(name)[0]
    if kind in ("json", "jsonl"):
        return _Given(True, _listed(name, kind, columns.label))
    parquet = kind == "parquet"
    return _Given(
        True, _parquet_label(_opened_parquet(name).schema_arrow, columns.label) if parquet else None
    )


def _listed(name: str, kind: str, column: str) -> Any:
    """The type of labels that are lists, by the first of them that says something; None where they are none."""
    rows, found = _json_rows(name, kind), None
    with contextlib.closing(rows):
        for row in rows:
            label = row.values.get(column)
            if isinstance(label, list) and label:
                whole = all(isinstance(item, (int, str)) for item in label)
                return datasets.Sequence(datasets.Value("string" if whole else "float64"))
            if isinstance(label, list):
                found = datasets.Sequence(datasets.Value("string"))
            elif label is not None:
                break
    return found


def columns_of(name: str, columns: Columns) -> list[str]:
    """The columns of a file; of JSON those of its rows until each column that is kept was seen.

    Raises:
        DataError: It cannot be read so far.
    """
    kind, _ = format_of(name)
    if kind == "parquet":
        return _opened_parquet(name).schema_arrow.names
    if kind in ("csv", "tsv"):
        with contextlib.closing(_delimited_lines(name, kind)) as lines:
            header = next(lines, None)
        if header is None:
            raise DataError(
                f"data.files: {name} is empty: its first line must name the columns, e.g. text and label."
            )
        return header[1]
    found: dict[str, None] = {}
    rows = _json_rows(name, kind)
    with contextlib.closing(rows):
        for row in rows:
            found |= dict.fromkeys(row.values)
            if {*columns.texts, columns.label} <= set(found):
                return list(found)
    if not found:
        raise DataError(f"data.files: {name} has no rows.")
    return list(found)


class Sample(NamedTuple):
    """The beginning of a file, with all its columns.

    Attributes:
        rows: By column.
        names: Of the classes, by the columns that the file has as ids with names.
    """

    rows: list[dict[str, Any]]
    names: dict[str, tuple[str, ...]]


def beginning(name: str, count: int) -> Sample:
    """What a file of rows begins with, for whoever has to find out which column is which.

    Args:
        name: The file.
        count: How many rows are looked at.

    Raises:
        DataError: It cannot be read.

    Example:
        >>> file = getfixture("tmp_path") / "rows.csv"
        >>> _ = file.write_text("text,label\\na fine film,good\\n")
        >>> beginning(str(file), 10).rows
        [{'text': 'a fine film', 'label': 'good'}]
    """
    kind = known_format(name)
    names: dict[str, tuple[str, ...]] = {}
    if kind == "parquet":
        schema = _opened_parquet(name).schema_arrow
        for column in schema.names:
            feature = _parquet_label(schema, column)
            if isinstance(feature, datasets.ClassLabel):
                names[column] = tuple(feature.names)
    # Of JSON all columns are kept anyway, and which there are only its last row says.
    columns = () if kind in ("json", "jsonl") else columns_of(name, Columns((), ""))
    rows = [dict(row.values) for row in itertools.islice(_rows(name, Columns(tuple(columns), "")), count)]
    if not rows:
        raise DataError(f"data.files: {name} has no rows.")
    return Sample(rows, names)


def _refuse_missing(found: Sequence[str], columns: Columns, split: str, name: str) -> None:
    for column in columns.texts:
        if column not in found:
            only = found[0] if len(found) == 1 else ""
            other = next((mark for mark in (";", "\t", ",", "|") if mark in only), None)
            hint = (
                f"; its fields seem to be separated by {other!r}: a .csv has commas between them, a .tsv tabs"
                if other
                else ""
            )
            raise DataError(
                f"data.text_columns: the {split} rows have no column {column!r}{suggest(column, found)}; "
                f"their columns are: {', '.join(map(str, found))} ({name}){hint}"
            )


def _label_feature(given: Sequence[_Given]) -> Any:
    """The type of the split's labels; None where no file has any."""
    types = [file.label for file in given if file.has_label]
    if not types:
        return None
    alike = types[0] is not None and all(kind == types[0] for kind in types)
    return types[0] if alike else datasets.Value("string")


# ---- Rows by format ----


def _rows(name: str, columns: Columns, joined: Sequence[str] = ()) -> Iterator[_Row]:
    kind, _ = format_of(name)
    if kind == "parquet":
        return _parquet_rows(name, columns, joined)
    if kind in ("csv", "tsv"):
        return _delimited_rows(name, kind, columns)
    return _json_rows(name, kind)


def _delimited_rows(name: str, kind: str, columns: Columns) -> Iterator[_Row]:
    lines = _delimited_lines(name, kind)
    _, header = next(lines)
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise DataError(
            f"data.files: {name}, line 1: the column {twice!r} stands more than once; rename or remove one."
        )
    for line, fields in lines:
        if len(fields) != len(header):
            fault = "field" if len(fields) == 1 else "fields"
            way_out = (
                'a text that holds commas, quotation marks or line ends stands between quotation marks ("…")'
                if kind == "csv"
                else "a text in a .tsv holds no tabs and no line ends"
            )
            raise DataError(
                f"data.files: {name}, line {line}: found {len(fields)} {fault}, but the header names {len(header)} "
                f"({', '.join(header)}): correct the row; {way_out}."
            )
        values: dict[str, Any] = dict(zip(header, fields, strict=True))
        if values.get(columns.label) == "":
            values[columns.label] = None
        yield _Row(f"line {line}", values)


def _delimited_lines(name: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line and fields, the header among them; empty lines are no rows."""
    with _Text(name, newline="") as text:
        yield from _tsv_lines(name, text) if kind == "tsv" else _csv_lines(name, text)


def _csv_lines(name: str, text: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text, strict=True)
    before = csv.field_size_limit(2**31 - 1)  # of the whole process; texts have no limit here
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"data.files: {name}, line {line}: a quotation mark opens or closes in the wrong place "
            f"({in_a_line(error)}): a text that holds one stands between quotation marks, and its own are doubled "
            '("a ""fine"" film").'
        ) from error
    finally:
        csv.field_size_limit(before)


def _tsv_lines(name: str, text: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    # In a TSV a quotation mark is a character like any other. Two things show that a file's writer quoted nevertheless, as
    # pandas does: a header in quotation marks, and a field within them whose own are all doubled.
    all_quoted = False
    for line, content in enumerate(text, 1):
        content = content.rstrip("\r\n")
        if not content:
            continue
        fields = content.split("\t")
        all_quoted = all_quoted or (line == 1 and all(map(_is_quoted, fields)))
        yield line, [_unquoted(field) if all_quoted or '""' in field[1:-1] else field for field in fields]


def _is_quoted(field: str) -> bool:
    inside = field[1:-1]
    return len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inside.replace('""', "")


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if _is_quoted(field) else field


def _json_rows(name: str, kind: str) -> Iterator[_Row]:
    with _Text(name, newline="\n") as text:
        first = text.first()
        rows = _array_items(name, text) if kind == "json" and first == "[" else _json_lines(name, text)
        for where, value in rows:
            if not isinstance(value, dict):
                raise DataError(
                    f'data.files: {name}, {where}: found {_shown(value)}, expected an object like {{"text": "…"}}.'
                )
            yield _Row(where, value)


def _json_lines(name: str, text: Iterator[str]) -> Iterator[tuple[str, Any]]:
    for line, content in enumerate(text, 1):
        if content.isspace():
            continue
        try:
            yield f"line {line}", json.loads(content, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"data.files: {name}, line {line}: it is no JSON ({in_a_line(error)}): each line must be one object, "
                "complete."
            ) from error


def _array_items(name: str, text: _Text) -> Iterator[tuple[str, Any]]:
    """The items of one JSON array, read piece by piece."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    rest, row = text.read(_PIECE).lstrip().removeprefix("["), 0

    def at_least_one_more() -> bool:
        # As much again as there is: an item is tried a number of times that grows with the logarithm of its length.
        nonlocal rest
        piece = text.read(max(_PIECE, len(rest)))
        rest += piece
        return bool(piece)

    def next_mark() -> str:
        nonlocal rest
        rest = rest.lstrip()
        while not rest and at_least_one_more():
            rest = rest.lstrip()
        return rest[:1]

    while next_mark() != "]":
        if row:
            if next_mark() != ",":
                found = repr(rest[:20]) if rest else "the end of the file"
                raise DataError(
                    f"data.files: {name}, after row {row}: it is no JSON (found {found}, expected a comma or the closing ])."
                )
            rest = rest[1:]
            next_mark()
        while True:
            try:
                value, end = decoder.raw_decode(rest)
                if end < len(rest) or not at_least_one_more():  # at the end of a piece, a number may go on
                    break
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not at_least_one_more():
                    raise DataError(
                        f"data.files: {name}, row {row + 1}: it is no JSON ({in_a_line(error)})."
                    ) from error
        row, rest = row + 1, rest[end:]
        yield f"row {row}", value
    rest = rest[1:]
    if next_mark():
        raise DataError(f"data.files: {name}: something follows after the closing ] of its {row} rows.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return made


def _opened_parquet(name: str) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(name)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"data.files: {name} cannot be loaded: {in_a_line(error)}") from error


def _parquet_rows(name: str, columns: Columns, joined: Sequence[str] = ()) -> Iterator[_Row]:
    file = _opened_parquet(name)
    schema = file.schema_arrow
    kept = [column for column in (*columns.texts, columns.label, *joined) if column in schema.names]
    label = _parquet_label(schema, columns.label) if columns.label in kept else None
    names = label.names if isinstance(label, datasets.ClassLabel) else None
    row = 0
    try:
        for batch in file.iter_batches(batch_size=1000, columns=kept):
            for values in batch.to_pylist():
                row += 1
                yield _Row(f"row {row}", values, names)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"data.files: {name}, after row {row}: it cannot be read: {in_a_line(error)}"
        ) from error


def _parquet_label(schema: pyarrow.Schema, column: str) -> Any:
    """The type that a parquet file's labels keep; None where they are to be text."""
    try:
        feature = datasets.Features.from_arrow_schema(schema).get(column)
    except (ValueError, pyarrow.ArrowException):  # another column's type is unknown to datasets
        return None
    kept = (
        isinstance(feature, datasets.ClassLabel)
        or hasattr(feature, "feature")  # a list
        or getattr(feature, "dtype", "").startswith(("int", "bool"))
    )
    return feature if kept else None


# ---- Bytes to text ----


class _Text:
    """The text of a file in UTF-8; what cannot be read as such is a sentence."""

    def __init__(self, name: str, newline: str) -> None:
        self.name = name
        self._refuse_other_text()
        self._text = io.TextIOWrapper(_opened(name), encoding="utf-8-sig", newline=newline)

    def __enter__(self) -> _Text:
        return self

    def __exit__(self, *_: Any) -> None:
        self._text.close()

    def __iter__(self) -> Iterator[str]:
        line = 0
        try:
            for line, content in enumerate(self._text, 1):  # noqa: B007
                yield content
        except _UNREADABLE as error:
            raise self._unreadable(error, f" after line {line}") from error

    def read(self, size: int) -> str:
        """The next characters; fewer only at the end."""
        try:
            return self._text.read(size)
        except _UNREADABLE as error:
            raise self._unreadable(error, "") from error

    def first(self) -> str:
        """The first character that is no space; "" where there is none."""
        try:
            found = ""
            while not found and (piece := self._text.read(_PIECE)):
                found = piece.lstrip()[:1]
            self._text.seek(0)
        except _UNREADABLE as error:
            raise self._unreadable(error, "") from error
        return found

    def _refuse_other_text(self) -> None:
        try:
            with _opened(self.name) as file:
                start = file.read(4096)
        except _UNREADABLE as error:
            raise self._unreadable(error, "") from error
        for mark, encoding in _MARKS:
            if start.startswith(mark):
                raise _other_encoding(self.name, f"it begins as {encoding} does", encoding)
        if b"\0" in start:
            raise _other_encoding(self.name, "it has bytes of zero", "UTF-16")

    def _unreadable(self, error: BaseException, where: str) -> DataError:
        if isinstance(error, UnicodeDecodeError):
            return _not_utf8(self.name)
        if isinstance(error, EOFError):
            return DataError(
                f"data.files: {self.name} breaks off{where}: it is a truncated .gz file; copy or download it again."
            )
        return DataError(f"data.files: {self.name} cannot be loaded{where}: {in_a_line(error)}")


_UNREADABLE = (UnicodeDecodeError, EOFError, OSError, zlib.error)
# UTF-32's mark begins as UTF-16's does.
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def _opened(name: str) -> Any:
    return gzip.open(name, "rb") if format_of(name)[1] else open(name, "rb")


def _other_encoding(name: str, why: str, encoding: str) -> DataError:
    plain = Path(name).name.removesuffix(".gz")
    return DataError(
        f"data.files: {name} is not in UTF-8 but, it seems, in {encoding} ({why}): save it as UTF-8 "
        f"(iconv -f {encoding} -t UTF-8 {plain} > utf8-{plain}; in Excel: CSV UTF-8)."
    )


def _not_utf8(name: str) -> DataError:
    """Where the text is no UTF-8, and what it probably is."""
    with _opened(name) as file:
        for line, content in enumerate(file, 1):  # noqa: B007
            try:
                content.decode()
            except UnicodeDecodeError as error:
                byte = content[error.start]
                text = content + file.read(1 << 16)
                break
        else:
            line, byte, text = 1, 0, b""
    foreign = [value for value in text if value > 127]
    # In languages of Western Europe most letters are ASCII; in others most bytes of a text in an encoding of theirs are not.
    western = len(foreign) < 0.2 * len(text) and not {0x81, 0x8D, 0x8F, 0x90, 0x9D} & set(foreign)
    why = f"line {line} has the byte 0x{byte:02X}"
    if western:
        return _other_encoding(name, why, "WINDOWS-1252")
    return DataError(
        f"data.files: {name} is not in UTF-8 ({why}): save it as UTF-8 (iconv -f ITS_ENCODING -t UTF-8, where that is "
        "e.g. WINDOWS-1251, GB18030, BIG5 or SHIFT_JIS)."
    )


def _digest(name: str) -> bytes:
    digest = xxhash.xxh3_128()
    with open(name, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()
