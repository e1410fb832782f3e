"""The files of `lightning predict`: rows as .csv, .parquet or .jsonl, written as they come, and in place when whole."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, get_args

from lightning_module.evaluation.top_labels import DECIMALS
from models.atomic_write import replacing
from models.spreadsheet_text import as_text

PredictionFormat = Literal["csv", "parquet", "jsonl"]
PREDICTION_FORMATS: tuple[PredictionFormat, ...] = get_args(PredictionFormat)
NUMBER = "probability"
"""Columns that begin so hold numbers, with `DECIMALS` decimals; all others hold text."""
ROWS_AT_ONCE = 1 << 14
"""Rows of a part of a .parquet, which are in memory until it is written."""

Row = list[Any]
"""A row's cells in the order of the columns: text, a number, or None for none."""


class RowsFile:
    """A file that is written row by row under a temporary name, and renamed when complete.

    Without rows and without a call of `begin`, no file is written.

    Args:
        stack: renames the file if it exits without an error.
        path: final path of the file.
        columns: names of the columns.

    Attributes:
        count: number of rows so far.
    """

    def __init__(self, stack: ExitStack, path: Path, columns: list[str]) -> None:
        self.stack, self.path, self.columns = stack, path, columns
        self.count = 0
        self._begun = False

    def begin(self) -> None:
        """Make the temporary file, unless it is there."""
        if not self._begun:
            self._begun = True
            self._open(self.stack.enter_context(replacing(self.path)))

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows."""
        for row in rows:
            self.begin()
            self._write(row)
            self.count += 1

    def _open(self, temporary: Path) -> None:
        raise NotImplementedError

    def _write(self, row: Row) -> None:
        raise NotImplementedError


class CsvFile(RowsFile):
    """A .csv whose text no spreadsheet takes for a formula. A file name that is not UTF-8 keeps its bytes."""

    _file: IO[str]

    def _open(self, temporary: Path) -> None:
        file = temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._file = self.stack.enter_context(file)
        self._write_cells(self.columns)

    def _write(self, row: Row) -> None:
        self._write_cells([as_text(each) if isinstance(each, str) else _decimal(each) for each in row])

    def _write_cells(self, cells: list[str]) -> None:
        # csv quotes only its own line ending, but for readers of the file a carriage return also ends a line
        ends_lines = any("\r" in cell for cell in cells)
        writer = csv.writer(self._file, lineterminator="\n", quoting=csv.QUOTE_ALL if ends_lines else csv.QUOTE_MINIMAL)
        writer.writerow(cells)


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.{DECIMALS}f}"


class JsonLinesFile(RowsFile):
    r"""A .jsonl: an object in every line, null for no label. Bytes that are not UTF-8 are `\udc..`, as in Python."""

    _file: IO[str]

    def _open(self, temporary: Path) -> None:
        self._file = self.stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))

    def _write(self, row: Row) -> None:
        values = {
            name: round(value, DECIMALS) if isinstance(value, float) else value
            for name, value in zip(self.columns, row, strict=True)
        }
        text = json.dumps(values, ensure_ascii=False)
        self._file.write((text if _is_utf8(text) else json.dumps(values)) + "\n")


class ParquetFile(RowsFile):
    r"""A .parquet of text and float64. Bytes of a file name that are not UTF-8 are written as `\xff`."""

    _WHOLE: ClassVar = {"compression": "zstd"}

    def _open(self, temporary: Path) -> None:
        from pyarrow import parquet

        self._rows: list[Row] = []
        schema = parquet_table(self.columns, []).schema
        self._writer = self.stack.enter_context(parquet.ParquetWriter(temporary, schema, **self._WHOLE))
        self.stack.push(lambda kind, *_: self._flush() if kind is None else None)  # before the writer is closed

    def _write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(parquet_table(self.columns, self._rows))
            self._rows = []


def parquet_table(columns: list[str], rows: Sequence[Row]) -> Any:
    r"""Return rows as a pyarrow.Table of text and float64.

    Args:
        columns: their names.
        rows: their cells. Bytes of a file name that are not UTF-8 become `\xff`.
    """
    import pyarrow

    kinds = [pyarrow.float64() if name.startswith(NUMBER) else pyarrow.string() for name in columns]
    cells = [[_parquet_cell(row[place]) for row in rows] for place in range(len(columns))]
    arrays = [pyarrow.array(each, kind) for each, kind in zip(cells, kinds, strict=True)]
    return pyarrow.Table.from_arrays(arrays, names=columns)


def _parquet_cell(value: Any) -> Any:
    if isinstance(value, str):
        return value if _is_utf8(value) else os.fsencode(value).decode("utf-8", "backslashreplace")
    return value if value is None else round(value, DECIMALS)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


FILES: dict[PredictionFormat, type[RowsFile]] = {"csv": CsvFile, "parquet": ParquetFile, "jsonl": JsonLinesFile}
