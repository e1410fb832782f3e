"""Input that a person can mend: each case is refused with what was expected, what came and what to do."""

from pathlib import Path

import pytest

from datamodule.product_photos import ProductPhotos
from models.bad_input import BadInput
from tests.datamodule.odd_photos import draw_bad_photos, draw_odd_photos
from tests.datamodule.test_product_photos import draw_root


def refused(match: str, **settings) -> str:
    """The message with which the settings are refused, at the latest when a fit is set up."""
    settings.setdefault("image_size", 12)
    with pytest.raises(BadInput, match=match) as caught:
        ProductPhotos(**settings).setup("fit")
    assert "expected" in str(caught.value)
    assert "received" in str(caught.value)
    return str(caught.value)


def test_no_root():
    assert "--data.demo" in refused("root: expected a folder .* received nothing")


def test_missing_root(tmp_path):
    refused("does not exist", root=str(tmp_path / "gone"))


def test_root_is_a_file(tmp_path):
    (tmp_path / "photos").touch()
    refused("is a file", root=str(tmp_path / "photos"))


def test_root_without_class_folders(tmp_path):
    (tmp_path / "1.jpg").touch()
    refused("received no folders", root=str(tmp_path))


def test_one_class(tmp_path):
    refused("received one, 'jeans'", root=str(draw_root(tmp_path / "photos", {"jeans": 5})))


def test_one_folder_too_high(tmp_path):
    draw_root(tmp_path / "outer" / "photos", {"jeans": 5, "tv": 5})
    assert f"Did you mean {tmp_path / 'outer' / 'photos'}?" in refused("two or more", root=str(tmp_path / "outer"))


def test_sets_instead_of_classes(tmp_path):
    for name in ("train", "Validation"):
        draw_root(tmp_path / name, {"jeans": 5, "tv": 5})
    assert "--data.val_root" in refused("one per set: Validation, train", root=str(tmp_path))


def test_a_class_may_be_called_test(tmp_path):
    """Negative control of the case above."""
    root = draw_root(tmp_path / "photos", {"train": 5, "test": 5})
    assert ProductPhotos(str(root)).class_names == ["test", "train"]


def test_empty_class(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5, "sofa": 0})
    (root / "sofa" / "photo.webp").touch()
    refused("received none in sofa", root=str(root))


def test_class_too_small_to_split(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 4})
    assert "at least 5" in refused(r"received tv \(4\)", root=str(root))
    ProductPhotos(str(root), validation_split=0.25, image_size=12).setup("fit")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 20.0])
def test_share_out_of_range(tmp_path, share):
    refused("validation_split", root=str(draw_root(tmp_path / "photos", {"a": 5, "b": 5})), validation_split=share)


@pytest.mark.parametrize("setting", ["val_root", "test_root"])
def test_other_classes(tmp_path, setting):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    other = draw_root(tmp_path / "other", {"jeans": 5, "TV": 5})
    message = refused(f"{setting}: expected the classes of root", root=str(root), **{setting: str(other)})
    assert "missing: ['tv'], foreign: ['TV']" in message


def test_nothing_to_predict(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="predict_root: expected photos; received"):
        ProductPhotos(str(root), predict_root=str(tmp_path / "empty")).setup("predict")


def test_unknown_interpolation(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    refused("interpolation: expected one of nearest", root=str(root), interpolation="cubic")


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A root with odd and bad photos among the good ones; bad ones fall into both sets."""
    root = draw_root(tmp_path / "photos", {"jeans": 10, "tv": 10})
    draw_odd_photos(root / "jeans" / "odd")
    draw_bad_photos(root / "jeans" / "bad")
    (root / "tv" / "00.png").write_bytes(b"")
    return root


def test_stop_names_all_bad_photos(mixed):
    message = refused("received 7 that cannot be read", root=str(mixed))
    for name in ("truncated", "only_header", "zero_bytes", "text", "gone", "bomb", "tv/00"):
        assert f"{name}." in message
    assert "--data.on_bad_photo skip" in message
    assert "odd" not in message


def test_skip_leaves_bad_photos_out_and_says_how_many(mixed):
    odd = len(list((mixed / "jeans" / "odd").iterdir()))
    photos = ProductPhotos(str(mixed), image_size=12, on_bad_photo="skip")
    with pytest.warns(UserWarning, match="left out 7 photos that cannot be read"):
        photos.setup("fit")
    # which photo is in which set is decided before: the others stay where Keras has them
    assert len(photos.train_files) + len(photos.val_files) == 10 + odd + 9
    assert photos.val_labels.count(1) == 1
    assert [file.name for file in photos.val_files if file.parts[-2] == "tv"] == ["01.png"]
    batches = [*photos.train_dataloader(), *photos.val_dataloader()[0]]
    assert sum(len(batch.photos) for batch in batches) == 10 + odd + 9
    assert len(photos.train_labels) == len(photos.train_files)


def test_skip_does_not_leave_a_class_without_photos(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    (root / "tv" / "00.png").write_text("no photo")
    with pytest.warns(UserWarning, match="left out 1"):
        refused("received none for tv among the val photos", root=str(root), on_bad_photo="skip")


def test_files_that_keras_does_not_list_are_counted(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    for number in range(3):
        (root / "tv" / f"{number}.webp").touch()
    with pytest.warns(UserWarning, match=r"left out files .* 3 \.webp"):
        ProductPhotos(str(root), image_size=12).setup("fit")
