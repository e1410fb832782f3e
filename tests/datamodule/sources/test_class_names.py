"""Names that cannot be classes, names that may be one class, and places that were given in the wrong way."""

import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest

from datamodule.audit.survey import survey
from datamodule.product_photos import ProductPhotos
from datamodule.sources.class_names import say_alike
from datamodule.sources.photo_table import label_of
from models.bad_input import BadInput
from tests.datamodule.test_product_photos import draw_root


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["Hat", "dress", "hat"], "'Hat' and 'hat'"),
        (["hat", "hat "], "'hat' and 'hat '"),
        (["t-shirt", "t_shirt", "t shirt"], "'t-shirt' and 't_shirt' and 't shirt'"),
        (["caf\u00e9", "cafe\u0301"], r"'caf\xe9' and 'cafe\u0301'"),  # they look the same
        (["hat", "\u200bhat"], r"'hat' and '\u200bhat'"),
    ],
)
def test_two_spellings_of_a_class_are_said(names, said):
    assert say_alike(names) == f"Classes with nearly the same name, which may be one: {said}."


@pytest.mark.parametrize("names", [["hat", "hats"], ["caf\u00e9", "cafe"], ["1", "10", "1.0"], ["-", "_"]])
def test_names_of_different_classes(names):
    assert say_alike(names) == ""


def test_two_spellings_of_a_folder_are_said(tmp_path, caplog):
    ProductPhotos(draw_root(tmp_path, {"Hat": 2, "hat": 2, "tv": 2}), image_size=(8, 8))
    assert "may be one: 'Hat' and 'hat'." in caplog.text


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[31mb", b"caf\xe9", "a\u2028b".encode()])
def test_folders_whose_names_cannot_be_written(tmp_path, name):
    root = draw_root(tmp_path, {"hat": 2, "tv": 2})
    (root / "tv").rename(root / os.fsdecode(name))
    with pytest.raises(
        BadInput, match=r"can be written, in UTF-8 and on one line; received the folders .* Rename them"
    ):
        ProductPhotos(root, image_size=(8, 8))
    with pytest.raises(BadInput, match="received the folders"):
        survey(root, lambda *_: 1 / 0, 8, 0.2, 0, lambda items, total: items)
    assert label_of(os.fsdecode(name))[1].startswith("labels longer than")


def test_names_that_need_characters_nobody_sees_are_names(tmp_path):
    names = ["\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e", "tv"]
    assert set(ProductPhotos(draw_root(tmp_path, dict.fromkeys(names, 2))).class_names) == set(names)


def test_photo_in_two_classes_is_said(tmp_path):
    root = draw_root(tmp_path, {"hat": 5, "tv": 5})
    shutil.copy(root / "hat" / "03.png", root / "tv" / "04.png")
    shutil.copy(root / "hat" / "03.png", root / "hat" / "04.png")
    photos = ProductPhotos(root, image_size=(8, 8))
    said = rf"1 of 8 training photos are in another class, .*{root}/tv/04.png and {root}/hat/03.png: one of the labels"
    with pytest.warns(UserWarning, match=said):
        photos.setup("fit")


@pytest.fixture
def shop(tmp_path) -> Path:
    """One folder of photos and a table beside it."""
    folder = draw_root(tmp_path / "my shop", {"photos": 10})
    rows = [f"{file.name},{'hat' if number % 2 else 'tv'}" for number, file in enumerate(folder.rglob("*.png"))]
    (folder / "styles.csv").write_text("\n".join(["image,label", *rows]))
    return folder


def advised(message: str) -> dict[str, str]:
    """The settings that a message advises."""
    words = shlex.split(re.sub(r"\.( |$)", r"\1", message[message.index("--data.") :]))
    return dict(zip((word.removeprefix("--data.") for word in words[::2]), words[1::2], strict=True))


@pytest.mark.parametrize(
    "given", [{"root": "."}, {"root": "photos"}, {"root": "styles.csv"}, {"table": "."}], ids=lambda given: str(given)
)
def test_a_table_that_was_meant_is_advised(shop, given):
    with pytest.raises(BadInput) as caught:
        ProductPhotos(**{name: str(shop / place) for name, place in given.items()}, image_size=(8, 8))
    assert advised(str(caught.value)) == {"table": str(shop / "styles.csv")}
    assert ProductPhotos(**advised(str(caught.value)), image_size=(8, 8)).class_names == ["hat", "tv"]


def test_an_archive_that_was_meant_is_advised(tmp_path):
    root = draw_root(tmp_path / "photos", {"hat": 2, "tv": 2})
    with zipfile.ZipFile(tmp_path / "my photos.zip", "w") as archive:
        for file in root.rglob("*.png"):
            archive.write(file, file.relative_to(root))
    with pytest.raises(BadInput) as caught:
        ProductPhotos(tmp_path / "my photos.zip", image_size=(8, 8))
    assert ProductPhotos(**advised(str(caught.value)), image_size=(8, 8), store_dir=tmp_path / "store").class_names == [
        "hat", "tv",
    ]  # fmt: skip
    (tmp_path / "my photos.zip").write_bytes((tmp_path / "my photos.zip").read_bytes()[:-50])
    with pytest.raises(BadInput, match=r"not a zip file. Fetch the archive again, or unpack it and give its folder.$"):
        ProductPhotos(**advised(str(caught.value)), image_size=(8, 8), store_dir=tmp_path / "other store")


@pytest.mark.parametrize("setting", ["root", "table"])
def test_a_place_that_is_an_empty_text_is_not_the_working_folder(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(draw_root(tmp_path, {"hat": 2, "tv": 2}))
    with pytest.raises(BadInput, match=f"{setting}: expected a path; received an empty text"):
        ProductPhotos(**{setting: ""}, image_size=(8, 8))
