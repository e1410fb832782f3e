"""Tables of every kind are read alike, cell for cell; what is no table is refused."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from datamodule.sources import table_file
from datamodule.sources.table_file import TableFile
from models.bad_input import BadInput

COLUMNS = ["file", "label", "name, as sold"]
ROWS = [["1.jpg", "Kleid", 'a "red", one'], ["2", "Hüte", "two\nlines"], ["ü.png", "10", ""]]


def separated(separator: str, encoding: str = "utf-8", line_end: str = "\n"):
    def write(path: Path) -> None:
        quoted = ('"{}"'.format(cell.replace('"', '""')) for row in [COLUMNS, *ROWS] for cell in row)
        cells = [*quoted]
        lines = [separator.join(cells[start : start + 3]) for start in range(0, len(cells), 3)]
        path.write_bytes((line_end.join(lines) + line_end).encode(encoding))

    return write


def as_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.table(dict(zip(COLUMNS, zip(*ROWS, strict=True), strict=True))), path)


def as_categories(path: Path) -> None:
    table = {
        name: pyarrow.array(cells).dictionary_encode()
        for name, cells in zip(COLUMNS, zip(*ROWS, strict=True), strict=True)
    }
    parquet.write_table(pyarrow.table(table), path, row_group_size=2)


def as_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n\n" for row in ROWS))


WRITERS = {
    "commas.csv": separated(","),
    "semicolons.csv": separated(";"),
    "bars.csv": separated("|"),
    "tabs.tsv": separated("\t"),
    "tabs.csv": separated("\t"),
    "Windows.CSV": separated(",", line_end="\r\n"),
    "Excel.csv": separated(";", "utf-8-sig", "\r\n"),
    "old Excel.csv": separated(";", "cp1252", "\r\n"),
    "utf-16.csv": separated("\t", "utf-16"),
    "plain.parquet": as_parquet,
    "categories.parquet": as_categories,
    "lines.jsonl": as_lines,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_has_the_same_cells(tmp_path, name):
    WRITERS[name](tmp_path / name)
    table = TableFile(tmp_path / name)
    assert table.columns == COLUMNS
    rows = [list(row) for piece in table.pieces(COLUMNS) for row in zip(*piece, strict=True)]
    assert rows == ROWS
    assert list(table.pieces(["label"])) == [[[row[1] for row in ROWS]]] or name == "categories.parquet"
    assert table.head(2)["file"] == ["1.jpg", "2"]


def test_said_is_how_text_was_read(tmp_path):
    WRITERS["old Excel.csv"](tmp_path / "old.csv")
    assert TableFile(tmp_path / "old.csv").how == "separated by semicolons, encoded as cp1252"


def test_pieces_are_the_whole_table(tmp_path, monkeypatch):
    monkeypatch.setattr(table_file, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(table_file, "LONGEST_ROW", 100)
    numbers = [str(number) for number in range(100)]
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{each},b\n" for each in numbers))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"x": {each}, "y": "b"}}\n' for each in numbers))
    parquet.write_table(pyarrow.table({"x": range(100), "y": ["b"] * 100}), tmp_path / "a.parquet", row_group_size=30)
    for ending in ("csv", "jsonl", "parquet"):
        pieces = list(TableFile(tmp_path / f"a.{ending}").pieces(["x"]))
        assert len(pieces) > 3
        assert [cell for (cells,) in pieces for cell in cells] == numbers


def test_numbers_truth_and_nothing_are_text(tmp_path):
    values = [10.0, 2.5, None, float("nan")]
    parquet.write_table(
        pyarrow.table({"a": values, "b": [True, False, None, True], "c": [1, 2, 3, 4]}), tmp_path / "a.parquet"
    )
    lines = [{"a": 10.0, "b": True, "c": 1}, {"a": 2.5, "b": False, "c": 2}, {"c": 3}, {"a": None, "b": True, "c": 4}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.parquet", "a.jsonl"):
        assert list(TableFile(tmp_path / name).pieces("abc")) == [
            [["10", "2.5", None, None], ["true", "false", None, "true"], ["1", "2", "3", "4"]]
        ]


def test_rows_with_other_cells_than_the_header_are_noted(tmp_path):
    (tmp_path / "a.csv").write_text("file,label\n" + "1,a\n" * 30 + "2,b,c\n3\n" + "4,d\n" * 30)
    table = TableFile(tmp_path / "a.csv")
    assert sum(len(piece[0]) for piece in table.pieces(["file"])) == 60
    assert table.crooked_count == 2
    assert table.crooked == ["row 32: 3 cells, the header has 2: '2,b,c'", "row 33: 1 cells, the header has 2: '3'"]


def test_the_line_that_tells_excel_the_separator_is_no_row(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\nfile;label\n1;a\n2;b;c\n3;d\n", encoding="utf-8-sig")
    table = TableFile(tmp_path / "a.csv")
    assert list(table.pieces(["file", "label"])) == [[["1", "3"], ["a", "d"]]]
    assert table.crooked == ["row 4: 3 cells, the header has 2: '2;b;c'"]
    assert [table.number_of(place) for place in (0, 1)] == [3, 5]


@pytest.mark.parametrize(("value", "said"), [(["a"], "received a list. Write a photo's one label"), ({}, "an object")])
def test_labels_that_are_lists_or_objects_are_refused(tmp_path, value, said):
    (tmp_path / "a.jsonl").write_text(json.dumps({"file": "1", "label": value, "tags": ["x"]}) + "\n")
    table = TableFile(tmp_path / "a.jsonl")
    assert table.head()["tags"] == ['["x"]']  # nobody has to look at it
    with pytest.raises(BadInput, match=said):
        table.column("label_column", "label")


BAD = {
    "empty.csv": (b"", r"is empty \(0 bytes\)"),
    "nul.csv": (b"file,label\n1,a\0b\n", "received NUL bytes"),
    "twice.csv": (b"file,label,label\n1,a,b\n", r"received \['label'\] more than once"),
    "no header.csv": (b"\n\n\n", "expected the columns' names in the first row"),
    "open.csv": (b'file,label\n"1,a\n' + b"x,y\n" * 50_000, "is a quotation mark left open"),
    "no.parquet": (b"file,label\n1,a\n", "cannot be read as one"),
    "cut.parquet": (b"PAR1" + bytes(100) + b"PAR1", "cannot be read as one"),
    "list.jsonl": (b'[{"file": 1}]', "Write it as lines, not as one list"),
    "text.jsonl": (b'{"file": 1}\nno\n', "line 2: expected one JSON object"),
    "latin.jsonl": ('{"file": "ü"}'.encode("latin-1"), "in UTF-8"),
    "deep.jsonl": (b'{"a":' * 10_000, "expected one JSON object"),
    "nothing.jsonl": (b"\n\n", "received none"),
    "twice.jsonl": (b'{"file": 1, "file": 2}', r"received \['file'\] twice"),
    "long.jsonl": (b'{"file": "' + b"x" * (1 << 17) + b'"}', "received a longer one"),
    "table.xlsx": (b"PK", "Save it in one of these formats"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr(table_file, "LONGEST_ROW", 1 << 16)
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        for _ in TableFile(tmp_path / name).pieces(["file"]):
            pass
    assert len(str(caught.value)) < 700


def test_missing_and_folder(tmp_path):
    with pytest.raises(BadInput, match="is not there"):
        TableFile(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        TableFile(tmp_path / "b.csv")


def test_photos_inside_a_parquet_are_not_read(tmp_path):
    photos = [{"bytes": b"x", "path": "1.jpg"}]
    parquet.write_table(pyarrow.table({"image": photos, "label": [1]}), tmp_path / "a.parquet")
    table = TableFile(tmp_path / "a.parquet")
    assert list(table.pieces(["image", "label"])) == [[[None], ["1"]]]
    with pytest.raises(BadInput, match="Photos inside a table are not read"):
        table.column("file_column", "image")


def test_a_small_parquet_that_claims_to_be_large_is_not_unpacked(tmp_path, monkeypatch):
    parquet.write_table(
        pyarrow.table({"file": ["x" * 10_000_000], "label": ["a"]}), tmp_path / "a.parquet", compression="zstd"
    )
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    monkeypatch.setattr(table_file, "LARGEST_CHUNK", 1_000_000)
    table = TableFile(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"in 'file'\. Write the table with smaller row groups"):
        next(table.pieces(["file"]))
    assert list(table.pieces(["label"])) == [[["a"]]]  # what is not asked for does not matter
