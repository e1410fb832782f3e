"""Tables as people have them, read piece by piece with every cell as text: .csv, .tsv, .parquet and .jsonl."""

import codecs
import csv
import io
import itertools
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from models.atomic_write import replacing
from models.bad_input import BadInput, quoted, some_of

TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SNIFFED_BYTES = 1 << 18
"""How much of a text is looked at to find its separator."""
ROWS_AT_ONCE = 1 << 16
LONGEST_ROW = 1 << 22
"""Bytes of a row of text at most: what is longer is no table of photos, or has an open quotation mark."""
LARGEST_CHUNK = 1 << 30
"""Bytes of a column in a part of a .parquet file at most, unpacked: a small file may claim any size."""

Cell = str | None
"""A cell as text; None where there is none."""
Row = list[Cell]


def is_table(path: Path) -> bool:
    """Return whether a path is named as a table is."""
    return path.suffix.lower() in TABLE_ENDINGS


def advise_tables(folder: Path) -> str:
    """Return which tables in a folder may be the labels', as advice after a message; empty if there are none."""
    tables = sorted(shlex.quote(str(each)) for each in folder.iterdir() if is_table(each) and each.is_file())
    return f" If a table has the labels: --data.table {' or '.join(tables[:3])}" if tables else ""


class TableFile:
    """A table whose rows are read anew with every call, so that it may be larger than the memory.

    Args:
        path: a file with one of `TABLE_ENDINGS`; a .csv or .tsv has its columns' names in the first row.

    Attributes:
        path: as given.
        columns: names of the columns, in order.
        how: how its text is read, such as "separated by semicolons, encoded as cp1252"; empty where that is not told.
        first_row: the number that people give to the first row of data: 2 below a header, else 1.
        crooked: rows, as text, that have more or fewer cells than the header; known once all have been read.

    Raises:
        BadInput: there is no such table, or it cannot be read as one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.crooked: list[str] = []
        self.crooked_count = 0
        self._crooked_rows: list[int] = []
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            inside = advise_tables(path) if path.is_dir() else ""
            raise BadInput(f"expected a table, received {path}, which {what}. Check the path.{inside}")
        if not is_table(path):
            raise BadInput(
                f"expected a table ({', '.join(TABLE_ENDINGS)}), received {path}. Save it in one of these formats."
            )
        if not path.stat().st_size:
            raise BadInput(f"expected a table, received {path}, which is empty (0 bytes). Save it again.")
        self._reader: _Text | _Parquet | _JsonLines
        kind = path.suffix.lower()
        self._reader = _Parquet(path) if kind == ".parquet" else _JsonLines(path) if kind == ".jsonl" else _Text(path)
        self.columns, self.how, self.first_row = self._reader.columns, self._reader.how, self._reader.first_row
        twice = [name for place, name in enumerate(self.columns) if name in self.columns[:place]]
        if twice:
            raise BadInput(
                f"{path}: expected columns with names of their own, received {quoted(sorted({*twice}))} more than "
                f"once among {quoted(self.columns)}. Rename them."
            )

    @property
    def is_text(self) -> bool:
        """Whether it is a .csv or a .tsv, which spreadsheets read."""
        return isinstance(self._reader, _Text)

    def column(self, option: str, name: str) -> str:
        """Return the name of a column as the table has it.

        Raises:
            BadInput: it has none of that name.
        """
        if name not in self.columns:
            raise BadInput(
                f"{option}: expected a column of {self.path}, {quoted(self.columns)}, received {name!r}. Name one of "
                "those."
            )
        if not isinstance(self._reader, _Text):
            self._reader.check_plain(name)
        return name

    def pieces(self, columns: Sequence[str]) -> Iterator[list[list[Cell]]]:
        """Yield the table in pieces of some ten thousand rows: for each of `columns` its cells.

        Raises:
            BadInput: the table turns out to be damaged.
        """
        self.crooked, self.crooked_count, self._crooked_rows = [], 0, []
        yield from self._reader.pieces(columns, self._note_crooked)

    def write_copy(self, target: Path, file: str, label: str, new_label: Callable[[str], str | None]) -> int:
        """Write a copy of the same kind, without some rows and with other labels.

        Rows that have other cells than the header are left out.

        Args:
            target: where it is written, completely or not at all.
            file: the column of files.
            label: the column of labels.
            new_label: takes a cell of `file` and returns the row's label, "" for the one it has, None for no row.

        Returns:
            How many rows differ.

        Raises:
            BadInput: it cannot be written, or a label does not fit the column's type.
        """
        with replacing(target) as temporary:
            return self._reader.write_copy(temporary, file, label, new_label)

    def head(self, rows: int = 1000) -> dict[str, list[Cell]]:
        """Return the first cells of every column, up to `rows` of each."""
        for piece in self.pieces(self.columns):
            return {name: cells[:rows] for name, cells in zip(self.columns, piece, strict=True)}
        return {name: [] for name in self.columns}

    def number_of(self, place: int) -> int:
        """Return the number that people give to a row: the header counts, and so do rows that were left out.

        Args:
            place: how many rows `pieces` has given before it.
        """
        number = self.first_row + place
        for crooked in self._crooked_rows:
            if crooked > number:
                break
            number += 1
        return number

    def _note_crooked(self, row: int | None, expected: int, received: int, text: str) -> None:
        self.crooked_count += 1
        if row is not None:
            self._crooked_rows.append(row)
        if len(self.crooked) < 20:
            where = "a row" if row is None else f"row {row}"
            self.crooked.append(f"{where}: {received} cells, the header has {expected}: {text[:60]!r}")


class _Text:
    """A .csv or .tsv; its separator and encoding are found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoding = find_encoding(path)
        with path.open("rb") as file:
            start = file.read(SNIFFED_BYTES)
        text = codecs.getincrementaldecoder(self.encoding)("replace").decode(start)
        if len(start) == SNIFFED_BYTES:
            text = text[: text.rfind("\n") + 1] or text
        text = text.removeprefix("\ufeff")
        self._skipped = 0
        if named := re.match(r"\"?sep=([,;\t|])\"?\r?\n", text):  # what Excel writes for Excel
            self._skipped, text = 1, text[named.end() :]
        self.first_row = 2 + self._skipped
        self.separator, self.header = find_separator(text)
        self.columns = [name.strip() for name in self.header]
        if not any(self.columns):
            raise BadInput(f"{path}: expected the columns' names in the first row, received an empty one. Add them.")
        # nameless columns, such as pandas's index, cannot be asked for
        self.columns = [name or f"(column {place})" for place, name in enumerate(self.columns, start=1)]
        self.how = f"separated by {SEPARATORS[self.separator]}" if len(self.columns) > 1 else ""
        if self.encoding not in ("utf-8", "utf-8-sig"):
            self.how += f"{', ' if self.how else ''}encoded as {self.encoding}"

    def pieces(self, columns: Sequence[str], crooked: Any) -> Iterator[list[list[Cell]]]:
        import pyarrow
        from pyarrow import csv as arrow_csv

        names = [str(place) for place in range(len(self.columns))]  # their own may be there twice
        wanted = [names[self.columns.index(name)] for name in columns]

        def skip(row: Any) -> str:
            crooked(row.number, row.expected_columns, row.actual_columns, row.text)
            return "skip"

        read = arrow_csv.ReadOptions(
            use_threads=False,  # so that a row has a number
            block_size=LONGEST_ROW,
            encoding="utf8" if self.encoding.startswith("utf-8") else self.encoding,
            column_names=names,
            skip_rows=self._skipped,
        )
        parse = arrow_csv.ParseOptions(delimiter=self.separator, newlines_in_values=True, invalid_row_handler=skip)
        convert = arrow_csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
        )
        try:
            first = True
            with arrow_csv.open_csv(self.path, read, parse, convert) as batches:
                for batch in batches:
                    cells = [column.to_pylist() for column in batch.columns]
                    if first and cells and cells[0]:  # the header
                        cells, first = [column[1:] for column in cells], False
                    yield cells
        except (pyarrow.ArrowException, OSError, UnicodeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "straddling" in reason or "block" in reason:
                reason = f"a row longer than {LONGEST_ROW >> 20} MiB: is a quotation mark left open?"
            raise BadInput(f"{self.path}: expected rows of a table, received: {reason[:200]}. Mend it.") from error

    def write_copy(self, target: Path, file: str, label: str, new_label: Callable[[str], str | None]) -> int:
        places = self.columns.index(file), self.columns.index(label)
        changed = 0
        with target.open("w", encoding=self.encoding, newline="") as text:
            writer = csv.writer(text, delimiter=self.separator, lineterminator="\n")
            writer.writerow(self.header)
            for piece in self.pieces(self.columns, lambda *_: None):
                for row in zip(*piece, strict=True):
                    new = new_label(row[places[0]] or "")
                    changed += new != ""
                    if new is not None:
                        writer.writerow([new if new and place == places[1] else cell for place, cell in enumerate(row)])
        return changed


class _Parquet:
    """A .parquet file: those of its columns that hold text, numbers or truth values."""

    first_row, how = 1, ""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        self.path = path
        try:
            self.file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise BadInput(
                f"expected a .parquet file, received {path}, which cannot be read as one: "
                f"{str(error).splitlines()[0][:200].rstrip('.')}. Write it again."
            ) from error
        self.columns = list(self.file.schema_arrow.names)

    def pieces(self, columns: Sequence[str], crooked: Any) -> Iterator[list[list[Cell]]]:
        import pyarrow

        schema = self.file.schema_arrow
        plain = [name for name in columns if _is_plain(schema.field(name).type)]
        metadata = self.file.metadata
        for group in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(place)
                name = chunk.path_in_schema.partition(".")[0]
                if (chunk.path_in_schema in plain or name in plain) and chunk.total_uncompressed_size > LARGEST_CHUNK:
                    raise BadInput(
                        f"{self.path}: expected at most {LARGEST_CHUNK >> 30} GiB of a column in one part of the "
                        f"file, received {chunk.total_uncompressed_size / 2**30:.1f} GiB in {name!r}. Write the table "
                        "with smaller row groups, or without what is no text."
                    )
        try:
            for batch in self.file.iter_batches(ROWS_AT_ONCE, columns=plain):
                cells = {name: _as_texts(batch.column(name)) for name in plain}
                yield [cells.get(name, [None] * batch.num_rows) for name in columns]
        except (pyarrow.ArrowException, OSError) as error:
            raise BadInput(
                f"{self.path}: expected a whole .parquet file, received a damaged one: "
                f"{str(error).splitlines()[0][:200]}. Write it again."
            ) from error

    def write_copy(self, target: Path, file: str, label: str, new_label: Callable[[str], str | None]) -> int:
        import pyarrow
        from pyarrow import parquet

        place, changed = self.file.schema_arrow.names.index(label), 0
        field = self.file.schema_arrow.field(place)
        with parquet.ParquetWriter(target, self.file.schema_arrow) as writer:
            for batch in self.file.iter_batches(ROWS_AT_ONCE):
                given = [new_label(cell or "") for cell in _as_texts(batch.column(file))]
                changed += sum(new != "" for new in given)
                cells = [new or cell for new, cell in zip(given, _as_texts(batch.column(label)), strict=True)]
                try:
                    labels = pyarrow.array(cells, pyarrow.string()).cast(field.type)
                except pyarrow.ArrowException as error:
                    raise BadInput(
                        f"{self.path}: expected labels that its column {label!r} can hold, {field.type}; received: "
                        f"{error}. Write the column as text."
                    ) from error
                table = pyarrow.Table.from_batches([batch]).set_column(place, field, labels)
                writer.write_table(table.filter(pyarrow.array([new is not None for new in given])))
        return changed

    def check_plain(self, name: str) -> None:
        """Refuse a column of something else than text, numbers or truth values, such as photos themselves."""
        kind = self.file.schema_arrow.field(name).type
        if not _is_plain(kind):
            raise _not_plain(self.path, name, str(kind))


def _not_plain(path: Path, name: str, received: str) -> BadInput:
    remedy = (
        "Write a photo's one label as text"
        if "list" in received
        else "Photos inside a table are not read: write them to files, and their names into a column; names and labels "
        "as text"
    )
    return BadInput(f"{path}: expected text or numbers in the column {name!r}, received {received[:80]}. {remedy}.")


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating)
    return any(test(kind) for test in (*tests, types.is_boolean, types.is_decimal, types.is_date, types.is_null))


def _as_texts(column: Any) -> list[Cell]:
    """Return cells as text: 1.0 as "1", since pandas stores whole numbers beside missing ones so; NaN as None."""
    return [each if isinstance(each, str) else _as_text(each) for each in column.to_pylist()]


def _as_text(value: Any) -> Cell:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


class _JsonLines:
    """A .jsonl: an object in every line; its columns are the keys of the first thousand."""

    first_row, how = 1, ""

    def __init__(self, path: Path) -> None:
        self.path = path
        columns: dict[str, None] = {}
        for number, row in enumerate(self._rows(no_duplicates=True)):
            columns |= dict.fromkeys(row)
            if number == 999:
                break
        self.columns = list(columns)
        if not columns:
            raise BadInput(f'{path}: expected objects such as {{"file": ..., "label": ...}}, received none. Add them.')

    def _rows(self, no_duplicates: bool = False) -> Iterator[dict[str, Any]]:
        hook = self._without_duplicates if no_duplicates else None
        with self.path.open("rb") as file:
            for number, line in enumerate(_lines(file, self.path), start=1):
                try:
                    row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=hook) if line.strip() else None
                except BadInput:
                    raise
                except (ValueError, RecursionError) as error:
                    raise BadInput(
                        f"{self.path}, line {number}: expected one JSON object in a line, in UTF-8; received "
                        f"{type(error).__name__}: {str(error)[:100]}. Mend that line."
                    ) from error
                if row is None:
                    continue
                if not isinstance(row, dict):
                    raise BadInput(
                        f"{self.path}, line {number}: expected one JSON object in a line, received "
                        f"{line[:60].decode(errors='replace')!r}. Write it as lines, not as one list."
                    )
                yield row

    def check_plain(self, name: str) -> None:
        """Refuse a column that has lists or objects in one of the first thousand rows."""
        for row in itertools.islice(self._rows(), 1000):
            if isinstance(row.get(name), dict | list):
                raise _not_plain(self.path, name, f"a {type(row[name]).__name__}".replace("a dict", "an object"))

    def _without_duplicates(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise BadInput(f"{self.path}: expected keys of their own, received {quoted(twice)} twice. Rename them.")
        return row

    def pieces(self, columns: Sequence[str], crooked: Any) -> Iterator[list[list[Cell]]]:
        cells: list[list[Cell]] = [[] for _ in columns]
        for row in self._rows():
            for name, column in zip(columns, cells, strict=True):
                column.append(_as_text(row.get(name)))
            if len(cells[0]) == ROWS_AT_ONCE:
                yield cells
                cells = [[] for _ in columns]
        if cells[0]:
            yield cells

    def write_copy(self, target: Path, file: str, label: str, new_label: Callable[[str], str | None]) -> int:
        changed = 0
        with target.open("w", encoding="utf-8") as text:
            for row in self._rows():
                new = new_label(_as_text(row.get(file)) or "")
                changed += new != ""
                if new:
                    number = isinstance(row.get(label), int | float) and not isinstance(row.get(label), bool)
                    row[label] = json.loads(new) if number and re.fullmatch(r"-?\d+", new) else new
                if new is not None:
                    text.write(json.dumps(row, ensure_ascii=False) + "\n")
        return changed


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    while line := file.readline(LONGEST_ROW + 1):
        if len(line) > LONGEST_ROW:
            raise BadInput(
                f"{path}: expected lines of at most {LONGEST_ROW >> 20} MiB, received a longer one. Write one object "
                "in a line."
            )
        yield line


def find_encoding(path: Path) -> str:
    """Return a text's encoding: by its byte order mark; else UTF-8 where all of it is; else that of old spreadsheets.

    Raises:
        BadInput: it has NUL bytes, so it is no text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, undefined = True, False
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith(codecs.BOM_UTF8):
            marked = "utf-8-sig"
        elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        else:
            marked = ""
        file.seek(0)
        while block := file.read(1 << 20):
            if b"\0" in block:
                raise BadInput(
                    f"{path}: expected text, received NUL bytes, so it is damaged or something else that is named "
                    f"{path.suffix}. Save it again as CSV in UTF-8."
                )
            try:
                if is_utf8:
                    decoder.decode(block)
            except UnicodeDecodeError:
                is_utf8 = False
            undefined = undefined or bool(re.search(rb"[\x81\x8d\x8f\x90\x9d]", block))
    if is_utf8:
        return marked or "utf-8"
    return "latin-1" if undefined else "cp1252"


def find_separator(text: str) -> tuple[str, list[str]]:
    """Return the separator that gives the most columns, as many in every row, and the first row.

    Args:
        text: the beginning of a table, whole rows.
    """
    best: tuple[bool, int] = (False, 0)
    found = ",", [text.split("\n", 1)[0].strip()]
    for separator in SEPARATORS:
        rows = list(_first_rows(text, separator))
        widths = [len(row) for row in rows]
        if not rows or widths[0] < 2:
            continue
        # a few rows may have a separator in a name that nobody quoted
        even = sum(width == widths[0] for width in widths) * 10 >= 9 * len(widths)
        if (even, widths[0]) > best:
            best, found = (even, widths[0]), (separator, rows[0])
    return found


def _first_rows(text: str, separator: str) -> Iterator[list[str]]:
    with suppress(csv.Error):  # a cell that goes on and on: a quotation mark is left open further down
        for row in csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=separator):
            if row:
                yield row


def shown_columns(head: dict[str, list[Cell]]) -> str:
    """Return columns as text with how many different cells each begins with."""
    return some_of([f"{name} ({len({*cells})} different)" for name, cells in head.items()])
