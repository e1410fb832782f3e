"""The split is Keras's, file for file and in order."""

from pathlib import Path

import numpy as np
import pytest
from keras_generator import ask_keras, needs_keras
from PIL import Image

from datamodule.split import (
    count_unlisted,
    find_class_names,
    keras_split,
    label_all,
    list_classes,
    list_photos,
    stratified_split,
)

CLOTHING = Path(__file__).parents[2] / "shared/data/clothing/train"


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


def relative(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def compare_with_keras(root: Path, validation_split: float) -> None:
    class_names = find_class_names(root)
    training, validation = keras_split(list_classes(root, class_names), validation_split)
    keras = ask_keras("split", root=str(root), validation_split=validation_split)
    assert class_names == keras["class_names"].tolist()
    for ours, name in ((training, "training"), (validation, "validation")):
        assert relative(ours.files, root) == keras[f"{name}_files"].tolist()
        assert ours.labels == keras[f"{name}_labels"].tolist()


class TestAgainstKeras:
    pytestmark = needs_keras

    @pytest.mark.parametrize("validation_split", [0.2, 0.29])
    def test_odd_root(self, odd_root, validation_split):
        compare_with_keras(odd_root, validation_split)

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
