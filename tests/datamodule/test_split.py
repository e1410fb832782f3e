"""The split is Keras's, file for file and in order."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodule.product_photos import ProductPhotos
from datamodule.split import (
    count_unlisted,
    find_class_names,
    keras_split,
    label_all,
    list_classes,
    list_photos,
    stratified_split,
)
from tests.conftest import SHARED
from tests.datamodule.keras_generator import ask_keras, needs_keras
from tests.datamodule.test_product_photos import draw_root

find_class_names_of_keras = find_class_names  # by this name also where a test puts another in its place

CLOTHING = SHARED / "data/clothing/train"


def touch(path: Path) -> Path:
    """Make an empty file: listing does not look inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def odd_root(tmp_path):
    """A root with everything that listing could trip over."""
    root = tmp_path / "photos"
    for name in (
        "b.jpg",
        "a.JPG",
        "B.Jpeg",
        "é.png",
        "e.png",
        "z.png",
        "_1.bmp",
        "10.jpg",
        "9.jpg",
        "ß.tif",
        "日.tiff",
    ):
        touch(root / "shoes" / name)
    for name in ("notes.txt", "anim.gif", "modern.webp", "scan-png", "Thumbs.db", ".hidden.jpg", "x.ppm", "x.jpg.part"):
        touch(root / "shoes" / name)
    # folders sort as whole paths: "a-b" before "a/..." before "ab"
    for name in ("a/1.jpg", "a/deep/2.jpg", "a-b/3.jpg", "ab/4.jpg", "A/5.jpg", "a.jpg/6.jpg"):
        touch(root / "Hats" / name)
    for number in range(11):
        touch(root / "t-shirt" / f"{number}.jpg")
    (root / "empty").mkdir()
    touch(root / "éclair" / "1.jpg")
    touch(root / "loose.jpg")
    # links: a file, a folder within a class (not followed), a class, a broken one
    outside = tmp_path / "outside"
    for number in range(7):
        touch(outside / f"{number}.png")
    (root / "t-shirt" / "linked.jpg").symlink_to(outside / "1.png")
    (root / "t-shirt" / "linked_folder").symlink_to(outside, target_is_directory=True)
    (root / "linked_class").symlink_to(outside, target_is_directory=True)
    (root / "t-shirt" / "broken.jpg").symlink_to(outside / "gone.jpg")
    return root


ENDINGS = ("png", "jpg", "jpeg", "bmp", "ppm", "tif", "tiff")
UNLISTED = ("gif", "webp", "jpe", "jfif", "tga", "pgm", "svg", "heic", "avif", "txt", "npy", "zip", "jpg_", "jpg ", "")


def make_every_ending(root: Path) -> None:
    """Each ending Keras lists and some it does not, in several cases; named so that the order mixes them."""
    for number, ending in enumerate((*ENDINGS, *UNLISTED)):
        for case in (str.lower, str.upper, str.title):
            touch(root / "photos" / f"{number % 4}_{case(ending)}.{case(ending)}")
    for number in range(10):
        touch(root / "other" / f"{number}.jpg")


def make_names_that_locales_sort(root: Path) -> None:
    """Names that a locale, a case-blind or a numeric sort would put in another order than code points do."""
    names = (
        "a",
        "A",
        "b",
        "B",
        "ä",
        "a\u0308",
        "Ä",
        "z",
        "é",
        "e\u0301",
        "ñ",
        "ß",
        "ss",
        "10",
        "9",
        "1 0",
        "1-0",
        "1_0",
    )
    names += (
        "I",
        "İ",
        "ı",
        "i",
        "\u200bx",
        "日本",
        "العربية",
        "\U0001f455",
        "-",
        "_",
        "~",
        "(1)",
        "&",
        "'",
        '"',
        "\\",
        "\n",
    )
    for name in names:
        touch(root / "names" / f"{name}.jpg")
        touch(root / f"class {name}" / "1.jpg")
        touch(root / "folders" / name / "1.jpg")
        touch(root / "folders" / f"{name}.jpg")


def make_names_that_are_not_text(root: Path) -> None:
    """Names that are not UTF-8, as old archives unpack to; Python shows them with surrogates."""
    for name in (b"caf\xe9.jpg", b"\xff.png", "café.jpg".encode(), b"a.jpg"):
        touch(Path(os.fsdecode(os.fsencode(root / "photos") + b"/" + name)))
    touch(Path(os.fsdecode(os.fsencode(root) + b"/\xfe/1.jpg")))


def make_links(root: Path) -> None:
    """Links to files, to folders, to each other, to nothing, out of the root and in a circle."""
    outside = root.parent / "outside"
    for number in range(6):
        touch(outside / "deep" / f"{number}.jpg")
        touch(root / "real" / f"{number}.jpg")
    (root / "class_link").symlink_to(outside, target_is_directory=True)
    (root / "class_link_to_link").symlink_to(root / "class_link", target_is_directory=True)
    (root / "broken_class").symlink_to(root / "gone", target_is_directory=True)
    (root / "file_link").symlink_to(outside / "deep" / "0.jpg")
    (root / "real" / "7.jpg").symlink_to("1.jpg")
    (root / "real" / "8.jpg").symlink_to("8.jpg")
    (root / "real" / "circle").symlink_to(root / "real", target_is_directory=True)
    (root / "real" / "folder.jpg").symlink_to(outside, target_is_directory=True)
    (root / "real" / "text.txt").symlink_to("1.jpg")
    (root / "real" / "photo.jpg").symlink_to("text.txt")


def make_empty_classes(root: Path) -> None:
    """Classes without photos, first, last and between, one with nothing but other files, one with empty folders."""
    for name in ("0", "m", "z"):
        (root / name).mkdir(parents=True)
    touch(root / "notes" / "readme.txt")
    (root / "hollow" / "a" / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for number in range(9):
        touch(root / "full" / f"{number}.jpg")
    for number in range(4):
        touch(root / "too_few_to_hold_one_out" / f"{number}.jpg")
        touch(root / ".hidden_with_photos" / f"{number}.jpg")


ROOTS = {
    "every_ending": make_every_ending,
    "locales": make_names_that_locales_sort,
    "not_text": make_names_that_are_not_text,
    "links": make_links,
    "empty_classes": make_empty_classes,
}


def relative(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def compare_with_keras(root: Path, validation_split: float, keras_split=keras_split) -> None:
    class_names = find_class_names(root)
    training, validation = keras_split(list_classes(root, class_names), validation_split)
    keras = ask_keras("split", root=str(root), validation_split=validation_split)
    assert class_names == keras["class_names"].tolist()
    for ours, name in ((training, "training"), (validation, "validation")):
        assert relative(ours.files, root) == keras[f"{name}_files"].tolist()
        assert ours.labels == keras[f"{name}_labels"].tolist()


def list_classes_by(key=None, pattern="*", suffixes=tuple(f".{ending}" for ending in ENDINGS)):
    """A listing that looks as good as Keras's."""

    def listing(root: Path, class_names: list[str]) -> list[list[Path]]:
        return [
            sorted((file for file in (root / name).rglob(pattern) if file.suffix.lower() in suffixes), key=key)
            for name in class_names
        ]

    return listing


WRONG_LISTINGS = {
    "case_blind": (make_names_that_locales_sort, "list_classes", list_classes_by(lambda file: str(file).lower())),
    "by_path": (make_names_that_locales_sort, "list_classes", list_classes_by()),
    "jpeg_and_png_only": (make_every_ending, "list_classes", list_classes_by(suffixes=(".jpg", ".jpeg", ".png"))),
    "lower_case_only": (make_every_ending, "list_classes", list_classes_by(pattern="*.[a-z]*")),
    "classes_with_photos_only": (
        make_empty_classes,
        "find_class_names",
        lambda root: [name for name in find_class_names_of_keras(root) if list_photos(root / name)],
    ),
    "no_linked_classes": (
        make_links,
        "find_class_names",
        lambda root: [name for name in find_class_names_of_keras(root) if not (root / name).is_symlink()],
    ),
}
WRONG_SPLITS = {
    "the_last_files": lambda classes, share: keras_split([files[::-1] for files in classes], share),
    "rounded": lambda classes, share: tuple(
        map(
            label_all,
            (
                [files[round(share * len(files)) :] for files in classes],
                [files[: round(share * len(files))] for files in classes],
            ),
        )
    ),
    "over_all_classes": lambda classes, share: keras_split([label_all(classes).files], share),
    "stratified": lambda classes, share: stratified_split(classes, share, seed=0),
}


class TestAgainstKeras:
    pytestmark = needs_keras

    @pytest.mark.parametrize("validation_split", [0.2, 0.29])
    def test_odd_root(self, odd_root, validation_split):
        compare_with_keras(odd_root, validation_split)

    @pytest.mark.parametrize("name", ROOTS)
    def test_roots(self, tmp_path, name):
        (tmp_path / "photos").mkdir()
        ROOTS[name](tmp_path / "photos")
        for validation_split in (0.2, 0.35):
            compare_with_keras(tmp_path / "photos", validation_split)

    def test_a_root_that_is_a_link(self, tmp_path, odd_root):
        (tmp_path / "link").symlink_to(odd_root, target_is_directory=True)
        compare_with_keras(tmp_path / "link", 0.2)

    @pytest.mark.parametrize("wrong", WRONG_LISTINGS)
    def test_another_order_is_noticed(self, monkeypatch, tmp_path, wrong):
        """Negative control: the roots above tell Keras's rules from others that look as good."""
        make, name, listing = WRONG_LISTINGS[wrong]
        (tmp_path / "photos").mkdir()
        make(tmp_path / "photos")
        monkeypatch.setitem(globals(), name, listing)
        for number in range(9):
            touch(tmp_path / "plain" / "class" / f"{number}.jpg")
        compare_with_keras(tmp_path / "plain", 0.2)
        with pytest.raises(AssertionError):
            compare_with_keras(tmp_path / "photos", 0.2)

    @pytest.mark.parametrize("wrong", WRONG_SPLITS)
    def test_another_split_is_noticed(self, odd_root, wrong):
        """Negative control: likewise for what is held out."""
        with pytest.raises(AssertionError):
            compare_with_keras(odd_root, 0.29, WRONG_SPLITS[wrong])

    def test_real_photos(self):
        if not CLOTHING.is_dir():
            pytest.skip("the shared clothing photos are not here")
        compare_with_keras(CLOTHING, 0.2)


def test_first_files_validate(odd_root):
    """By hand, so that a machine without Keras checks the rule too."""
    names = find_class_names(odd_root)
    assert names == ["Hats", "empty", "linked_class", "shoes", "t-shirt", "éclair"]
    training, validation = keras_split(list_classes(odd_root, names), 0.2)
    assert relative(validation.files, odd_root)[:2] == ["Hats/A/5.jpg", "linked_class/0.png"]
    hats = [file for file in relative(training.files, odd_root) if file.startswith("Hats")]
    assert hats == ["Hats/a/1.jpg", "Hats/a-b/3.jpg", "Hats/a.jpg/6.jpg", "Hats/a/deep/2.jpg", "Hats/ab/4.jpg"]


def test_the_product_is_cut_down_as_keras_does():
    # 0.29 * 100 is 28.999999999999996 in floating point: int() gives 28, rounding would give 29
    files = [Path(f"{number:03}.jpg") for number in range(100)]
    training, validation = keras_split([files], 0.29)
    assert (len(training.files), len(validation.files)) == (72, 28)


def test_every_file_is_in_exactly_one_set(odd_root):
    classes = list_classes(odd_root, find_class_names(odd_root))
    for training, validation in (keras_split(classes, 0.3), stratified_split(classes, 0.3, seed=1)):
        assert sorted(training.files + validation.files) == sorted(label_all(classes).files)
        assert not set(training.files) & set(validation.files)


def test_stratified_depends_on_the_seed_alone(odd_root):
    classes = list_classes(odd_root, find_class_names(odd_root))
    first = stratified_split(classes, 0.3, seed=1)
    assert first == stratified_split(classes, 0.3, seed=1)
    assert first != stratified_split(classes, 0.3, seed=2)
    assert first != keras_split(classes, 0.3)
    assert np.bincount(first[1].labels).tolist() == np.bincount(keras_split(classes, 0.3)[1].labels).tolist()


def test_unlisted_files_are_counted(odd_root):
    counts = count_unlisted(odd_root / "shoes")
    assert counts == {".txt": 1, ".gif": 1, ".webp": 1, ".db": 1, ".part": 1}


def test_a_folder_that_is_a_link_is_listed(tmp_path):
    Image.new("RGB", (2, 2)).save(touch(tmp_path / "real" / "1.png"))
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert list_photos(tmp_path / "link") == [tmp_path / "link" / "1.png"]


@pytest.mark.parametrize("split", ["stratified", "grouped"])
def test_a_new_class_that_is_named_last_moves_no_other_photos(tmp_path, split):
    root = draw_root(tmp_path, {"hat": 12, "tv": 12}, size=32)

    def validation(**settings) -> set:
        photos = ProductPhotos(str(root), image_size=12, split=split, validation_split=0.5, **settings)
        photos.setup("validate")
        return {file for file in photos.val_files if file.parent.name != "boots"}

    before = validation()
    draw_root(tmp_path, {"boots": 12}, seed=5000, size=32)
    assert validation(class_names=["hat", "tv", "boots"]) == before
    assert validation() != before  # as docs/data.md says
