"""Labels from a table: which photos there are, in which class and set, and which rows are refused."""

import os
import shutil
import warnings
from pathlib import Path

import pytest

from datamodule.product_photos import ProductPhotos
from datamodule.sources.photo_table import PhotoFinder, PhotoTable, label_of
from models.bad_input import BadInput
from tests.datamodule.test_product_photos import draw_root

CLASSES = {"hat": 10, "jeans": 10, "tv": 10}


@pytest.fixture
def flat(tmp_path) -> Path:
    """One folder of photos, 0.png to 29.png, ten of each class after the other."""
    root = draw_root(tmp_path / "by class", CLASSES)
    (tmp_path / "images").mkdir()
    for label, name in enumerate(CLASSES):
        for number in range(10):
            shutil.copy(root / name / f"{number:02}.png", tmp_path / "images" / f"{10 * label + number:02}.png")
    shutil.rmtree(root)
    return tmp_path


def rows_of(ending: str = ".png") -> list[str]:
    return [f"{number:02}{ending},{list(CLASSES)[number // 10]}" for number in range(30)]


def write(folder: Path, rows: list[str], header: str = "file,label", name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


def refused(match: str, table: Path, **settings) -> str:
    with pytest.raises(BadInput, match=match) as caught:
        ProductPhotos(table=str(table), image_size=12, **settings).setup("fit")
    message = str(caught.value)
    assert "expected" in message
    assert "received" in message
    assert len(message) < 3000
    return message


@pytest.mark.parametrize("split", ["keras", "stratified", "grouped"])
def test_split_as_the_same_photos_in_folders(tmp_path, split):
    root = draw_root(tmp_path / "photos", {"b": 11, "a-b": 10, "a/x": 10, "a/y-z": 6, "a/y": 5}, size=40)
    folders = ProductPhotos(str(root), image_size=12, split=split)
    folders.setup("fit")
    rows = [f"{file.relative_to(tmp_path)},{file.relative_to(root).parts[0]}" for file in root.rglob("*.png")]
    table = ProductPhotos(table=str(write(tmp_path, sorted(rows, key=hash))), image_size=12, split=split)
    table.setup("fit")
    assert table.class_names == folders.class_names == ["a", "a-b", "b"]
    for name in ("train_files", "train_labels", "val_files", "val_labels"):
        assert getattr(table, name) == getattr(folders, name)


@pytest.mark.parametrize("names", ["with ending", "without", "relative to the table", "absolute", "from Windows"])
def test_how_files_are_named(flat, names):
    before = {"relative to the table": "images/", "absolute": f"{flat}/images/", "from Windows": "images\\"}
    ending = "" if names == "without" else ".png"
    rows = [before.get(names, "") + row for row in rows_of(ending)]
    for photos in (None, flat / "images") if "relative" not in names and "Windows" not in names else (None, flat):
        table = PhotoTable(write(flat, rows), photos)
        assert table.class_names == list(CLASSES)
        files = [file for each in table.classes["train"] for file in each]
        assert files == [flat / "images" / f"{number:02}.png" for number in range(30)]


def test_columns_are_found_by_what_is_in_them(flat):
    """As the fashion table has it: ids without an ending, and columns that are no labels."""
    rows = [f"{number:02},{'Men'},{list(CLASSES)[number // 10]},{number},a {number}" for number in range(30)]
    table = PhotoTable(write(flat, rows, "id,gender,articleType,year,title"))
    assert table.class_names == list(CLASSES)
    assert table.said == [
        f"{flat}/labels.csv (separated by commas): files from its column 'id', in {flat}/images; labels from "
        "'articleType'."
    ]


def test_what_is_guessed_is_printed(flat, caplog):
    with caplog.at_level("INFO"):
        ProductPhotos(table=str(write(flat, rows_of())))
    assert f"files from its column 'file', in {flat}/images; labels from 'label'." in caplog.text


def test_sets_of_the_table(flat):
    sets = ["train"] * 6 + ["valid"] * 2 + ["TEST", "unlabelled"]
    rows = [f"{row},{sets[number % 10]}" for number, row in enumerate(rows_of())]
    photos = ProductPhotos(table=str(write(flat, rows, "image,category,split")), image_size=12)
    photos.setup()
    assert [len(files) for files in (photos.train_files, photos.val_files, photos.test_files)] == [18, 6, 3]
    assert [file.name for file in photos.val_files] == ["06.png", "07.png", "16.png", "17.png", "26.png", "27.png"]
    assert photos.test_labels == [0, 1, 2]
    assert photos.has_validation_photos
    assert photos.has_test_photos
    assert photos.table.said[1] == "3 rows of photos to predict are left out."
    # negative control: without them the photos are split as those of folders
    plain = ProductPhotos(table=str(flat / "labels.csv"), image_size=12, set_column="")
    plain.setup()
    assert [len(files) for files in (plain.train_files, plain.val_files, plain.test_files)] == [24, 6, 6]
    assert not plain.has_test_photos


def test_a_rows_label_counts_for_the_digest(flat):
    """A run is not resumed with other labels of the same photos."""
    photos = ProductPhotos(table=str(write(flat, rows_of())), image_size=12)
    photos.setup("fit")
    rows = [row.replace("hat", "x").replace("tv", "hat").replace("x", "tv") for row in rows_of()]
    other = ProductPhotos(table=str(write(flat, rows)), image_size=12)
    other.setup("fit")
    assert sorted(photos.train_files) == sorted(other.train_files)
    assert photos.describe_sets()["train"] != other.describe_sets()["train"]


def test_every_row_that_cannot_be_used_is_named_at_once(flat):
    (flat / "images" / "07.jpg").touch()
    (flat / "images" / "note.txt").touch()
    (flat / "images" / "folder").mkdir()
    bad = [
        "gone.png,hat", "folder,hat", "01,tv", ",hat", "02.png,", "03.png,NaN", "04.png, ", f"05.png,{'x' * 300}",
        "07,hat", "note.txt,hat", '"a\tb",hat', "18,watch", "a,b,c",
    ]  # fmt: skip
    table = write(flat, [*rows_of(), *bad])
    message = refused("one label in every row", table, photos=str(flat / "images"))
    for kind in (
        "4 photos that are not there: row 32: 'gone.png', row 33: 'folder', row 35: '', row 42: 'a\\tb'",
        "2 photos named twice with two labels or sets: row 34: '01', labels 'hat' and 'tv', row 43: '18', labels "
        "'jeans' and 'watch'",
        "3 rows without a label: row 36: '', row 37: 'NaN', row 38: ' '",
        f"1 labels longer than 200 characters, or with line ends and the like: row 39: '{'x' * 57}...'",
        "1 photos of which there are several with different endings: row 40: '07'",
        "1 files that are not listed as photos (see formats): row 41: 'note.txt'",
        "1 rows with other cells than the header: row 44: 3 cells, the header has 2: 'a,b,c'",
    ):
        assert kind in message
    assert message.endswith("leave these out with --data.on_bad_photo skip.")
    photos = ProductPhotos(table=str(table), photos=str(flat / "images"), on_bad_photo="skip", image_size=12)
    photos.setup("fit")
    # of a photo with two labels nobody knows which is right
    assert {file.name for file in photos.train_files + photos.val_files} == {
        f"{number:02}.png" for number in range(30) if number not in (1, 18)
    }
    assert any("4 photos that are not there" in each for each in photos.table.said)


def test_rows_keep_their_numbers_behind_crooked_ones(flat):
    rows = ["a,b,c", *rows_of(), "gone.png,hat", "a", "gone,tv"]
    message = refused("2 rows with other cells than the header: row 2: 3 cells", write(flat, rows))
    assert "row 33: 'gone.png', row 35: 'gone'" in message
    assert "row 34: 1 cells" in message


def test_a_thousand_unknown_files_are_a_few_lines(flat):
    table = write(flat, rows_of() + [f"unknown{number}.png,hat" for number in range(1000)])
    message = refused("1000 photos that are not there: row 32: 'unknown0.png'", table)
    assert "and 980 more" in message
    assert len(message) < 1500


def test_rows_that_say_the_same_again_count_once(flat):
    table = PhotoTable(write(flat, rows_of() + rows_of("") + ["./../images/00.png,hat"]))
    assert sum(map(len, table.classes["train"])) == 30
    assert "31 rows say again what others say, and count once." in table.said


def test_a_class_too_small(flat):
    table = write(flat, [*rows_of()[:-7]])
    message = refused(r"1 classes too small .*\(at least 5 photos\): tv \(3\)", table)
    assert "skip" in message
    photos = ProductPhotos(table=str(table), on_bad_photo="skip", image_size=12)
    assert photos.class_names == ["hat", "jeans"]
    # with validation photos of its own a table's classes may be small
    sets = [f"{row},{'val' if number % 5 else 'train'}" for number, row in enumerate(rows_of())]
    photos = ProductPhotos(table=str(write(flat, sets, "file,label,set")), image_size=12)
    photos.setup("fit")
    assert photos.train_labels == [0, 0, 1, 1, 2, 2]


def test_a_class_without_training_photos(flat):
    rows = [f"{row},{'test' if row.endswith('tv') or number % 2 else 'train'}" for number, row in enumerate(rows_of())]
    table = write(flat, rows, "file,label,set")
    refused(r"10 test photos of classes without training photos \(--data.foreign_classes skip.*: tv", table)
    photos = ProductPhotos(table=str(table), foreign_classes="skip", image_size=12)
    photos.setup()
    assert photos.class_names == ["hat", "jeans"]
    assert photos.test_labels == [0] * 5 + [1] * 5
    assert "test photos of classes that are not trained on are left out: ['tv']." in photos.table.said


@pytest.mark.parametrize("name", ["10", "true", "None", "1e3", "a/b", "..", "x" * 200, "Hüte 👒", "=1+1"])
def test_any_text_may_name_a_class(flat, name):
    rows = [row.replace("hat", f'"{name}"') for row in rows_of()]
    assert name in PhotoTable(write(flat, rows)).class_names


@pytest.mark.parametrize("name", ["", "  ", "NaN", "nan", "null", "NULL", "<NA>", "x" * 201, "a\nb", "a\0b"])
def test_what_names_no_class(name):
    assert label_of(name)[1]


def test_names_alike(flat):
    accents = {"jeans": "Caf\u00e9", "tv": "Cafe\u0301"}  # composed, and in two parts as a Mac writes it
    rows = rows_of()
    for then, now in accents.items():
        rows = [row.replace(then, now) for row in rows]
    table = PhotoTable(write(flat, [*rows[:15], *(row.replace("Caf", "caf") for row in rows[15:20]), *rows[20:]]))
    assert table.class_names == ["Caf\u00e9", "caf\u00e9", "hat"]
    assert "Classes with nearly the same name, which may be one: 'Caf\u00e9' and 'caf\u00e9'." in table.said


REFUSED = {
    "no header": (rows_of()[1:], rows_of()[0], {}, r"received a photo's, '00.png'. Add a first row"),
    "a header alone": ([], "file,label", {}, "received a header alone"),
    "no such column": (rows_of(), "file,label", {"label_column": "Label"}, r"received 'Label'. Name one of those"),
    "columns of the same name": (rows_of(), "file,file", {}, r"received \['file'\] more than once"),
    "no labels": (["00.png", "01.png"], "file", {}, "received no column besides the files"),
    "one class": (rows_of()[:10], "file,label", {}, r"expected two or more classes .* received \['hat'\]"),
    "two may be labels": (
        [f"{row},{'red' if number % 2 else 'blue'}" for number, row in enumerate(rows_of())], "file,kind,colour", {},
        r"received kind \(3 different\), colour \(2 different\). Name it with --data.label_column",
    ),
    "no photos": (["a,hat", "b,tv"], "x,label", {}, "received none whose files are in .* Name it with"),
    "photos elsewhere": (["a,hat", "b,tv"], "file,label", {}, "2 photos that are not there"),
    "no such folder": (rows_of(), "file,label", {"photos": "gone"}, "received gone, which does not exist. Check"),
    "a line above the header": (["file,label", *rows_of()], "# our shop", {}, "Remove what is above the header"),
    "a column for each class": (
        [f"{row[:6]},{number % 2},{1 - number % 2}" for number, row in enumerate(rows_of())], "file,hat,tv", {},
        r"received one of ones and zeros for each of \['hat', 'tv'\]. Write each photo's class",
    ),
    "photos on the web": (
        [f"https://shop.example/{row}" for row in rows_of()], "file,label", {},
        "30 addresses, which are not fetched .download those photos, and name the files.: row 2: 'https://",
    ),
    "sets without training photos": (
        [f"{row},valid" for row in rows_of()], "file,label,set", {},
        "received val photos alone, by its column 'set'. .* take no sets from it: --data.set_column",
    ),
    "unknown sets": (
        [f"{row},{'train' if number % 2 else 'other'}" for number, row in enumerate(rows_of())], "file,label,set",
        {"set_column": "set"}, "15 rows of unknown sets in 'set': row 2: 'other'",
    ),
}  # fmt: skip


def test_the_advice_about_sets_is_true(flat):
    table = write(flat, [f"{row},valid" for row in rows_of()], "file,label,set")
    assert PhotoTable(table, set_column="").class_names == sorted(CLASSES)


def test_labels_that_may_be_none_are_said(flat):
    """R writes NA for a label that is missing, and Python None; a shop may have such a class all the same."""
    rows = [row.replace("hat", "NA").replace("tv", "None") for row in rows_of()]
    table = PhotoTable(write(flat, rows))
    assert table.class_names == ["NA", "None", "jeans"]
    assert "Taken for classes, though they may mean that there is no label: ['NA', 'None']." in table.said


@pytest.mark.parametrize("name", ["1", "NaN", "null", "true", "1.0", "~", "[a]", "x" * 200])
def test_a_folder_of_any_name_is_a_class(tmp_path, name):
    """Unlike in a table, a folder is there."""
    photos = ProductPhotos(str(draw_root(tmp_path / "photos", {name: 5, "tv": 5})), image_size=12)
    assert photos.class_names == sorted([name, "tv"])


def test_names_and_labels_from_our_own_csv(flat):
    """Without the apostrophe that keeps a spreadsheet from computing them."""
    (flat / "images" / "00.png").rename(flat / "images" / "=0.png")
    rows = [row.replace("00.png", "'=0.png").replace("hat", "'=hat") for row in rows_of()]
    photos = PhotoTable(write(flat, rows))
    assert photos.class_names == ["=hat", "jeans", "tv"]
    assert "=0.png" in {file.name for file in photos.classes["train"][0]}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(flat, case):
    rows, header, settings, said = REFUSED[case]
    refused(said, write(flat, rows, header), **settings)


def test_the_named_columns_are_taken(flat):
    rows = [f"{row},{'red' if number % 2 else 'blue'}" for number, row in enumerate(rows_of())]
    table = write(flat, rows, "file,kind,colour")
    assert ProductPhotos(table=str(table), label_column="colour").class_names == ["blue", "red"]
    assert ProductPhotos(table=str(table), label_column="kind").class_names == list(CLASSES)


def test_one_source_of_photos(flat):
    table = write(flat, rows_of())
    refused("received root .* and table .*. Leave one out; .* --data.root null", table, root=str(flat))
    refused("received table .* and demo. Leave one out", table, demo=True)
    with pytest.raises(BadInput, match="received 'label' without one"):
        ProductPhotos(str(flat), label_column="label")
    sets = write(flat, [f"{row},{'val' if number % 2 else 'train'}" for number, row in enumerate(rows_of())], "a,b,c")
    refused("val_root: expected none, as .* has photos of that set", sets, val_root=str(flat))


def test_validation_folder_beside_a_table(flat):
    root = draw_root(flat / "val", CLASSES, seed=1000)
    photos = ProductPhotos(table=str(write(flat, rows_of())), val_root=str(root), image_size=12)
    photos.setup("fit")
    assert (len(photos.train_files), len(photos.val_files)) == (30, 30)
    (root / "tv").rename(root / "radio")
    refused(r"val_root: expected the classes \[", flat / "labels.csv", val_root=str(root))


def test_bad_photos_of_a_table(flat):
    (flat / "images" / "03.png").write_text("no photo")
    refused("received 1 that cannot be read", write(flat, rows_of()))
    photos = ProductPhotos(table=str(flat / "labels.csv"), image_size=12, on_bad_photo="skip")
    with pytest.warns(UserWarning, match="left out 1 photos"):
        photos.setup("fit")


def test_each_folder_is_read_once(flat, monkeypatch):
    """However many photos it has: asking for each of a million would take minutes on a network's disk."""
    asked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: asked.append(folder) or scandir(folder))
    finder = PhotoFinder([flat / "images", flat])
    assert [finder.find(name)[0] for name in ("00", "01.png", "images/02", "gone")] == [
        *(f"{flat}/images/{name}.png" for name in ("00", "01", "02")), "",
    ]  # fmt: skip
    assert sorted(asked) == [f"{flat}/", f"{flat}/images/", f"{flat}/images/images/"]


def test_nothing_is_said_that_need_not_be(flat):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ProductPhotos(table=str(write(flat, rows_of())), image_size=12).setup("fit")
