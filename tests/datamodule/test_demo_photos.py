"""The drawn catalogue: the same each time, whole or not there."""

import numpy as np
import pytest
from PIL import Image

from datamodule import demo_photos
from datamodule.demo_photos import DEMO_CLASSES, draw_catalogue
from models.bad_input import BadInput


def contents(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def test_layout(tmp_path):
    draw_catalogue(tmp_path / "deep" / "photos", per_class=3, size=40)
    root = tmp_path / "deep" / "photos"
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == list(DEMO_CLASSES)
    photos = sorted(root.rglob("*.jpg"))
    assert len(photos) == 12
    with Image.open(photos[0]) as photo:
        assert (photo.size, photo.mode, photo.format) == ((40, 40), "RGB", "JPEG")
    assert [path.name for path in root.parent.iterdir()] == ["photos"]  # nothing unfinished is left


def test_the_seed_decides(tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        draw_catalogue(tmp_path / name, per_class=2, seed=seed, size=32)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert not set(contents(tmp_path / "first").values()) & set(contents(tmp_path / "other").values())


def test_photos_differ_and_are_not_flat(tmp_path):
    draw_catalogue(tmp_path / "photos", per_class=6, size=32)
    files = contents(tmp_path / "photos")
    assert len(set(files.values())) == 24
    for path in (tmp_path / "photos").rglob("*.jpg"):
        with Image.open(path) as photo:
            assert np.asarray(photo).std() > 3


def test_drawn_once(tmp_path, monkeypatch):
    draw_catalogue(tmp_path / "photos", per_class=2, size=32)
    monkeypatch.setattr(demo_photos, "draw_photo", lambda *_: pytest.fail("drawn again"))
    draw_catalogue(tmp_path / "photos", per_class=2, size=32)


def test_drawn_anew_with_other_settings(tmp_path):
    draw_catalogue(tmp_path / "photos", per_class=3, size=32)
    draw_catalogue(tmp_path / "photos", per_class=2, size=32)
    assert len(contents(tmp_path / "photos")) == 8


def test_killed_half_way_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def draw_then_fail(*arguments):
        drawn.append(arguments)
        if len(drawn) > 5:
            raise KeyboardInterrupt
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(demo_photos, "draw_photo", draw_then_fail)
    with pytest.raises(KeyboardInterrupt):
        draw_catalogue(tmp_path / "photos", per_class=3)
    assert list(tmp_path.iterdir()) == []


def test_another_process_was_faster(tmp_path, monkeypatch):
    draw = demo_photos.draw_photo
    root = tmp_path / "photos"

    def draw_while_another_finishes(*arguments):
        monkeypatch.setattr(demo_photos, "draw_photo", draw)
        draw_catalogue(root, per_class=1, size=32)
        return draw(*arguments)

    monkeypatch.setattr(demo_photos, "draw_photo", draw_while_another_finishes)
    draw_catalogue(root, per_class=1, size=32)
    assert len(contents(root)) == 4
    assert list(tmp_path.iterdir()) == [root]


def test_photos_of_others_are_not_replaced(tmp_path):
    (tmp_path / "precious.jpg").write_text("mine")
    with pytest.raises(BadInput, match=r"root: expected a folder that is empty .* received"):
        draw_catalogue(tmp_path, per_class=1)
    assert (tmp_path / "precious.jpg").read_text() == "mine"


def test_an_empty_folder_is_used(tmp_path):
    draw_catalogue(tmp_path, per_class=1, size=32)
    assert len(contents(tmp_path)) == 4


def test_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="can be written"):
        draw_catalogue(tmp_path / "file" / "photos", per_class=1)
