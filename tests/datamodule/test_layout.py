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


COPIES = ".*(validation photos are training photos|in another class), too.*"
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


TAKEN = {
    "as download sites have them": (
        ["train/CLASS", "valid/CLASS", "test/CLASS", "images to predict"],
        ("train", "valid", "test"),
        "training train, validation valid, test test. Left out: images to predict (no classes inside).",
    ),
    "nested": (
        ["seg_train/seg_train/CLASS", "seg_test/seg_test/CLASS", "seg_pred/seg_pred"],
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        "training seg_train/seg_train, test seg_test/seg_test. Left out: seg_pred (no classes inside).",
    ),
    "with spaces": (
        ["Training Set/CLASS", "Test Set/CLASS"],
        ("Training Set", None, "Test Set"),
        "training Training Set, test Test Set.",
    ),
    "one set unlabelled": (
        ["trainImages/CLASS", "testImages", "labels"],
        ("trainImages", None, None),
        "training trainImages. Left out: labels (no classes inside), testImages (no classes inside).",
    ),
    "among others": (
        ["docs", "labels", "notes", "train/CLASS", "val/CLASS", "augmented/CLASS"],
        ("train", "val", None),
        "training train, validation val. Left out: augmented, docs (no classes inside), labels (no classes inside), "
        "notes (no classes inside).",
    ),
}

SETS = {
    "by other names": (
        ["fold1/CLASS", "fold2/CLASS"],
        "--data.root ROOT/fold1 --data.val_root ROOT/fold2",
    ),
    "without folders": (["train", "val", "test"], "--data.root ROOT/train --data.val_root ROOT/val"),
    "one set twice": (["train1/CLASS", "train 2/CLASS", "test/CLASS"], "--data.root 'ROOT/train 2'"),
    "nothing to train on": (["test/CLASS", "val/CLASS"], "--data.val_root ROOT/val --data.test_root ROOT/test"),
}


def draw_sets(root: Path, folders: list[str]) -> None:
    for seed, folder in enumerate(folders):
        for name in CLASSES if "CLASS" in folder else [""]:
            place = folder.replace("CLASS", name)
            draw_root(root, {place: 5}, seed=1000 * seed + 100 * len(name))


@pytest.mark.parametrize("layout", TAKEN)
def test_sets_are_taken_as_they_are(tmp_path, layout, caplog):
    folders, sets, said = TAKEN[layout]
    root = tmp_path / "all"
    draw_sets(root, folders)
    with caplog.at_level("INFO"):
        photos = ProductPhotos(str(root), image_size=12)
    assert f"{root} has sets, which are taken as they are: {said}" in caplog.text
    given = (photos.root, photos.val_root, photos.test_root)
    assert given == tuple(None if each is None else root / each for each in sets)
    assert photos.class_names == list(CLASSES)
    photos.setup()
    alone = ProductPhotos(*(None if each is None else str(root / each) for each in sets), image_size=12)
    alone.setup()
    assert photos.train_files == alone.train_files
    assert photos.val_files == alone.val_files
    assert photos.test_files == alone.test_files


def test_sets_are_not_taken_where_others_are_given(tmp_path):
    """Negative control: what a person gave is not changed."""
    draw_sets(tmp_path / "all", ["train/CLASS", "test/CLASS", "other/CLASS"])
    with pytest.raises(BadInput, match="Give the sets apart"):
        ProductPhotos(str(tmp_path / "all"), test_root=str(tmp_path / "all" / "other"))


@pytest.mark.parametrize("layout", SETS)
def test_sets_are_refused_with_the_command_that_was_meant(tmp_path, layout):
    folders, meant = SETS[layout]
    root = tmp_path / "all"
    draw_sets(root, folders)
    with pytest.raises(BadInput, match=r"root: expected one folder per class in .*; received") as caught:
        ProductPhotos(str(root))
    expected = " ".join(
        each if each.startswith("--") else shlex.quote(each) for each in shlex.split(meant.replace("ROOT", str(root)))
    )
    assert f"Give the sets apart: {expected}" in str(caught.value)
    assert "--data.listing keras" in str(caught.value)
    assert len(ProductPhotos(str(root), listing="keras").class_names) == len(folders)


def test_validation_photos_may_lack_classes(tmp_path, caplog):
    root = draw_root(tmp_path / "train", {"dress": 5, "hat": 5, "watch": 1})
    other = draw_root(tmp_path / "val", {"hat": 3, "dress": 0}, seed=1000)
    with caplog.at_level("INFO"):
        photos = ProductPhotos(str(root), str(other), image_size=12)
    assert f"val_root {other}: lacks the classes ['watch'], and is measured over the others." in caplog.text
    photos.setup("fit")
    assert photos.train_labels == [0] * 5 + [1] * 5 + [2]
    assert photos.val_labels == [1] * 3


def test_foreign_classes_are_an_error_or_left_out(tmp_path, caplog):
    root = draw_root(tmp_path / "train", {"dress": 5, "hat": 5})
    other = draw_root(tmp_path / "val", {"hat": 3, "TV": 3, "radio": 3}, seed=1000)
    with pytest.raises(BadInput, match=r"foreign: \['TV', 'radio'\]\).*--data.foreign_classes skip"):
        ProductPhotos(str(root), str(other))
    with caplog.at_level("INFO"):
        photos = ProductPhotos(str(root), str(other), image_size=12, foreign_classes="skip")
    assert "classes that are not trained on are left out: ['TV', 'radio']" in caplog.text
    photos.setup("fit")
    assert photos.val_labels == [1] * 3
    shutil.rmtree(other / "hat")
    with pytest.raises(BadInput, match="val_root: expected the classes") as caught:
        ProductPhotos(str(root), str(other), foreign_classes="skip")  # none is left
    assert "--data.foreign_classes" not in str(caught.value)


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
