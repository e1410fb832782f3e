"""Input that a person can mend: each case is refused with what was expected, what came and what to do."""

import shutil
import warnings
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
    draw_root(tmp_path / "train2", {"jeans": 5, "tv": 5})  # two to train on: a person has to say
    assert "--data.val_root" in refused("one per set: Validation, train, train2", root=str(tmp_path))


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
    message = refused(f"{setting}: expected the classes", root=str(root), **{setting: str(other)})
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


def test_classes_of_webp_alone_say_so(tmp_path):
    root = tmp_path / "photos"
    for name in ("jeans", "tv"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            (root / name / f"{number}.webp").touch()
    message = refused(r"received none in jeans \(12 \.webp\), tv \(12 \.webp\)\.", root=str(root))
    assert "convert those with other endings" in message
    good = draw_root(tmp_path / "good", {"jeans": 5, "tv": 5})
    with pytest.raises(BadInput, match=r"which has none that ends in .* \(24 \.webp\)"):
        ProductPhotos(str(good), predict_root=str(root)).setup("predict")


def test_a_thousand_classes_do_not_fill_the_screen(tmp_path):
    root = draw_root(tmp_path / "photos", dict.fromkeys((f"class{number:03}" for number in range(1000)), 0))
    assert len(refused("received none in class000, .* and 980 more", root=str(root))) < 1000
    for name in ("class000", "other"):
        draw_root(tmp_path / "other", {name: 1})
    message = refused("expected the classes", root=str(root), val_root=str(tmp_path / "other"))
    assert "'class002', " in message
    assert len(message) < 2000


def test_files_without_ending_are_one_number(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    for number in range(200):
        (root / "tv" / f"scan of the day number {number}").touch()
        (root / "tv" / f"part.{number:03}").touch()
    with pytest.warns(UserWarning, match=r"left out files .* 200 without ending, 1 \.000.* and 191 more") as caught:
        ProductPhotos(str(root), image_size=12).setup("fit")
    assert len(str(caught[0].message)) < 500


def test_many_bad_photos_are_listed_once_and_not_all(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 200, "tv": 5})
    for file in sorted((root / "jeans").iterdir())[:100]:
        file.write_text("no photo")
    assert refused("received 100 that cannot be read", root=str(root)).count("is not an image") == 20
    photos = ProductPhotos(str(root), image_size=12, on_bad_photo="skip", validation_split=0.6)
    with pytest.warns(UserWarning, match="left out 100 photos that cannot be read(?s:.)*and 80 more"):
        photos.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos.setup("validate")


def test_validation_photos_that_are_trained_on_are_counted(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 50, "tv": 50})
    photos = ProductPhotos(str(root), image_size=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos.setup("fit")
    for file in photos.val_files[:2]:  # 2 of 20 are a tenth, and no more
        shutil.copy(file, file.with_name(f"x{file.name}"))
    with pytest.warns(
        UserWarning, match=r"2 of 20 validation photos are training photos, .*jeans/00\.png and .*x00\.png"
    ):
        ProductPhotos(str(root), image_size=12).setup("fit")
    third = photos.val_files[2]
    shutil.copy(third, root / "tv" / "of another class.png")
    message = refused("3 of 20 validation photos are training photos", root=str(root))
    assert "--data.split grouped" in message
    with pytest.warns(UserWarning, match="3 of 20"):
        ProductPhotos(str(root), image_size=12, on_copies="warn").setup("fit")
    ProductPhotos(str(root), image_size=12, split="grouped").setup("fit")


def test_val_root_the_same_as_root(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 5, "tv": 5})
    message = refused("10 of 10 validation photos are training photos", root=str(root), val_root=str(root))
    assert "--data.val_root" in message
    assert "--data.on_copies warn" in message
    ProductPhotos(str(root), val_root=str(root), image_size=12).setup("validate")


def test_copies_that_a_notebook_made_are_counted_where_keras_lists_them(tmp_path):
    root = draw_root(tmp_path / "photos", {"jeans": 10, "tv": 10})
    shutil.copytree(root / "tv", root / ".ipynb_checkpoints")
    refused("validation photos are training photos", root=str(root), listing="keras", split="stratified")
