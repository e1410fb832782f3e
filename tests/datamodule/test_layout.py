"""What programs leave among photos is no class and no photo, and sets are no classes."""

import shlex
import shutil
import warnings
from pathlib import Path

import pytest

from datamodule.layout import APPLE_DOUBLE, kind_of_junk, role_of
from datamodule.product_photos import ProductPhotos
from models.bad_input import BadInput
from tests.datamodule.test_product_photos import draw_root

CLASSES = {"dress": 10, "hat": 10}


@pytest.fixture
def root(tmp_path) -> Path:
    return draw_root(tmp_path / "photos", CLASSES)


def names_of(files: list[Path], root: Path) -> list[str]:
    return sorted(file.relative_to(root).as_posix() for file in files)


def notebook_folder_beside(root: Path) -> str:
    shutil.copytree(root / "hat", root / ".ipynb_checkpoints")
    return "10 files in .ipynb_checkpoints"


def notebook_folder_empty(root: Path) -> str:
    (root / ".ipynb_checkpoints").mkdir()
    return "0 files in .ipynb_checkpoints"


def notebook_folder_inside(root: Path) -> str:
    (root / "hat" / "a" / ".ipynb_checkpoints").mkdir(parents=True)
    shutil.copy(root / "hat" / "00.png", root / "hat" / "a" / ".ipynb_checkpoints" / "00-checkpoint.png")
    return "1 file in .ipynb_checkpoints"


def notebook_copy(root: Path) -> str:
    shutil.copy(root / "hat" / "03.png", root / "hat" / "03-checkpoint.png")
    return "1 file that a notebook copied"


def mac_folder(root: Path) -> str:
    (root / "__MACOSX" / "hat").mkdir(parents=True)
    (root / "__MACOSX" / "hat" / "._00.png").write_bytes(APPLE_DOUBLE + bytes(100))
    return "1 file in __MACOSX"


def mac_files(root: Path) -> str:
    for file in [*root.glob("*/*.png")]:
        file.with_name(f"._{file.name}").write_bytes(APPLE_DOUBLE + bytes(100))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "hat" / name).touch()
    return r"20 files that a Mac adds .*1 \.db, 1 \.ini"


def thumbnails_of_a_storage_box(root: Path) -> str:
    (root / "hat" / "@eaDir" / "00.png").mkdir(parents=True)
    shutil.copy(root / "hat" / "00.png", root / "hat" / "@eaDir" / "00.png" / "SYNOPHOTO_THUMB_M.jpg")
    return "1 file in @eaDir"


def waste_bin(root: Path) -> str:
    shutil.copytree(root / "hat", root / "$RECYCLE.BIN")
    return r"10 files in \$RECYCLE.BIN"


JUNK = (
    notebook_folder_beside, notebook_folder_empty, notebook_folder_inside, notebook_copy, mac_folder, mac_files,
    thumbnails_of_a_storage_box, waste_bin,
)  # fmt: skip


@pytest.mark.parametrize("leave", JUNK)
def test_what_programs_leave_is_neither_class_nor_photo(root, leave):
    clean = ProductPhotos(str(root), image_size=12)
    clean.setup("fit")
    said = leave(root)
    photos = ProductPhotos(str(root), image_size=12)
    with pytest.warns(UserWarning, match=f"left out .*{said}") as caught:
        photos.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the photos are listed again for every stage
        photos.setup("validate")
    assert len([each for each in caught if "left out" in str(each.message)]) == 1
    assert photos.class_names == ["dress", "hat"]
    # the split is as if it had never been there
    assert (photos.train_files, photos.val_files) == (clean.train_files, clean.val_files)


COPIES = ".*validation photos are training photos, too.*"
"""What is said of the copies that these tests make."""


@pytest.mark.parametrize("leave", [notebook_folder_beside, notebook_folder_inside, notebook_copy])
def test_keras_reading_has_them(root, leave):
    """Negative control: with the option, all that Keras lists is there."""
    leave(root)
    photos = ProductPhotos(str(root), image_size=12, listing="keras", on_copies="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=COPIES)
        photos.setup("fit")
    listed = names_of(photos.train_files + photos.val_files, root)
    assert listed == names_of([*root.rglob("*.png")], root)
    assert len(listed) > 20


def test_photos_with_names_like_those_are_photos(root):
    """Negative control: it is the content, or the file beside it, that tells."""
    for name in ("._00.png", "border-checkpoint.png", ".hidden.png"):
        shutil.copy(root / "hat" / "00.png", root / "hat" / name)
    photos = ProductPhotos(str(root), image_size=12, on_copies="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=COPIES)
        photos.setup("fit")
    assert len(photos.train_files + photos.val_files) == 23


def test_the_folder_itself_may_be_hidden(tmp_path):
    root = draw_root(tmp_path / ".cache" / "__MACOSX", CLASSES)
    photos = ProductPhotos(str(root), image_size=12)
    photos.setup("fit")
    assert len(photos.train_files + photos.val_files) == 20
    assert kind_of_junk(root / "hat" / "00.png", root) == ""


def test_class_with_nothing_but_what_a_mac_adds(root):
    for file in (root / "hat").iterdir():
        file.with_name(f"._{file.name}").write_bytes(APPLE_DOUBLE)
        file.unlink()
    with pytest.raises(BadInput, match="received none in hat"):
        ProductPhotos(str(root), image_size=12).setup("fit")


def test_archive_from_a_mac_around_a_folder(tmp_path):
    """Two folders, photos and __MACOSX, are no two classes."""
    root = draw_root(tmp_path / "unpacked" / "photos", CLASSES)
    mac_folder(tmp_path / "unpacked")
    with pytest.raises(BadInput, match=f"received one, 'photos'. Did you mean {root}?"):
        ProductPhotos(str(tmp_path / "unpacked"))


SETS = {
    "as download sites have them": (
        ["train/CLASS", "valid/CLASS", "test/CLASS", "images to predict"],
        "--data.root ROOT/train --data.val_root ROOT/valid --data.test_root ROOT/test",
    ),
    "nested": (
        ["seg_train/seg_train/CLASS", "seg_test/seg_test/CLASS", "seg_pred/seg_pred"],
        "--data.root ROOT/seg_train/seg_train --data.test_root ROOT/seg_test/seg_test",
    ),
    "with spaces": (
        ["Training Set/CLASS", "Test Set/CLASS"],
        "--data.root 'ROOT/Training Set' --data.test_root 'ROOT/Test Set'",
    ),
    "by other names": (
        ["fold1/CLASS", "fold2/CLASS"],
        "--data.root ROOT/fold1 --data.val_root ROOT/fold2",
    ),
    "one set unlabelled": (["trainImages/CLASS", "testImages", "labels"], "--data.root ROOT/trainImages"),
    "among others": (
        ["docs", "labels", "notes", "train/CLASS", "val/CLASS"],
        "--data.root ROOT/train --data.val_root ROOT/val",
    ),
    "without folders": (["train", "val", "test"], "--data.root ROOT/train --data.val_root ROOT/val"),
}


@pytest.mark.parametrize("layout", SETS)
def test_sets_are_refused_with_the_command_that_was_meant(tmp_path, layout):
    folders, meant = SETS[layout]
    root = tmp_path / "all"
    for folder in folders:
        for name in CLASSES if "CLASS" in folder else [""]:
            draw_root(root / folder.replace("CLASS", name), {"": 2}) if name else draw_root(root, {folder: 2})
    with pytest.raises(BadInput, match=r"root: expected one folder per class in .*; received") as caught:
        ProductPhotos(str(root))
    expected = " ".join(
        each if each.startswith("--") else shlex.quote(each) for each in shlex.split(meant.replace("ROOT", str(root)))
    )
    assert f"Give the sets apart: {expected}" in str(caught.value)
    assert "--data.listing keras" in str(caught.value)
    assert len(ProductPhotos(str(root), listing="keras").class_names) == len(folders)


@pytest.mark.parametrize(
    "folders",
    [
        ["dress/images", "hat/images", "pants/images"],
        ["dress/red", "dress/blue", "hat/straw", "hat/felt"],
        ["train", "bus", "car"],
        ["steam train/a", "freight train/b", "electric train/c", "tram/d"],
        ["training shoes", "training pants", "test kit"],
        ["train", "test"],
    ],
)
def test_classes_are_no_sets(tmp_path, folders):
    """Negative control: what has a set's name, or folders inside, may well be a class."""
    root = draw_root(tmp_path / "photos", dict.fromkeys(folders, 2))
    assert ProductPhotos(str(root)).class_names == sorted({folder.partition("/")[0] for folder in folders})


def test_the_classes_once_more_in_one_of_them(root):
    shutil.copytree(root, root / "photos")
    with pytest.raises(BadInput, match=f"dress, hat there and again in {root / 'photos'}"):
        ProductPhotos(str(root))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "root"), ("seg_train", "root"), ("Training Set", "root"), ("trainImages", "root"),
        ("train_2", "root"), ("VALID", "val_root"), ("my-dev-data", "val_root"), ("test (1)", "test_root"),
        ("images to predict", "predict"), ("trainers", ""), ("training shoes", ""), ("photos", ""), ("日本", ""),
    ],
)  # fmt: skip
def test_names_of_sets(name, role):
    assert role_of(name) == role
