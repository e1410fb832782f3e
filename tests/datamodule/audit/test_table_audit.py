"""The audit of photos whose labels are in a table: no file is moved, a corrected copy of the table is written."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from datamodule.audit.survey import survey
from datamodule.sources.photo_table import PhotoTable
from datamodule.sources.table_file import TableFile
from models.bad_input import BadInput
from tests.datamodule.test_product_photos import draw_root


def no_features(photos):
    return np.stack([np.random.default_rng(int(photo.digest[:8], 16)).random(16) ** 4 for photo in photos])


@pytest.fixture
def shop(tmp_path) -> Path:
    """Photos 0 to 19 in one folder: ten hats, ten televisions, of which 12 is broken and 13 a copy of 3."""
    draw_root(tmp_path / "all", {"hat": 10, "tv": 10}, size=64)
    (tmp_path / "images").mkdir()
    for number, file in enumerate(sorted((tmp_path / "all").rglob("*.png"))):
        shutil.move(file, tmp_path / "images" / f"{number}.png")
    shutil.rmtree(tmp_path / "all")
    (tmp_path / "images" / "12.png").write_text("no photo")
    shutil.copy(tmp_path / "images" / "3.png", tmp_path / "images" / "13.png")
    return tmp_path


def write(folder: Path, ending: str) -> Path:
    table = folder / f"labels{ending}"
    rows = [{"id": number, "label": "hat" if number < 10 else "tv", "price": number / 2} for number in range(20)]
    if ending == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    elif ending == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    else:
        with table.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
    return table


def test_findings_have_the_tables_classes(shop):
    table = PhotoTable(write(shop, ".csv"), set_column="")
    found = survey(shop / "images", no_features, 32, 0.2, 0, lambda items, _: items, table=table)
    assert found.class_names == ["hat", "tv"]
    assert found.photos == 19
    broken = next(each for each in found.findings if each.kind == "unreadable")
    assert (broken.file, broken.class_name) == ("12.png", "tv")
    copies = next(each for each in found.findings if each.kind == "exact_duplicate")
    assert {copies.file, copies.related_file} == {"3.png", "13.png"}
    assert "in two classes: hat too" in copies.detail
    assert any("files from its column 'id'" in note for note in found.notes)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_a_corrected_copy_is_the_table_but_for_what_was_decided(shop, ending):
    table = PhotoTable(write(shop, ending))
    decided = {"12.png": None, "13.png": "hat"}
    copy = shop / "out" / f"copy{ending}"
    copy.parent.mkdir()
    assert table.write_corrected(copy, lambda photo: decided.get(photo.name, "")) == 2
    before, after = TableFile(table.file), TableFile(copy)
    assert (after.columns, after.how) == (before.columns, before.how)
    (cells,) = before.pieces(before.columns)
    rows = [list(row) for row in zip(*cells, strict=True) if row[0] != "12"]
    rows[12][1] = "hat"
    (cells,) = after.pieces(after.columns)
    assert [list(row) for row in zip(*cells, strict=True)] == rows
    assert sum(map(len, PhotoTable(copy, table.base).classes["train"])) == 19


def test_labels_that_are_numbers_stay_numbers(shop):
    rows = [{"id": str(number), "label": number // 10} for number in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), shop / "a.parquet")
    (shop / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("a.parquet", "a.jsonl"):
        table = PhotoTable(shop / name)
        table.write_corrected(shop / f"b{name}", lambda photo: "1" if photo.name == "3.png" else "")
        assert PhotoTable(shop / f"b{name}").classes["train"][1][-1].name == "3.png"
    assert parquet.read_table(shop / "ba.parquet").column("label").to_pylist() == [0, 0, 0, 1, *[0] * 6, *[1] * 10]
    assert json.loads((shop / "ba.jsonl").read_text().splitlines()[3]) == {"id": "3", "label": 1}
    with pytest.raises(BadInput, match="Write the column as text"):
        PhotoTable(shop / "a.parquet").write_corrected(shop / "c.parquet", lambda photo: "hat")
    assert not (shop / "c.parquet").exists()
