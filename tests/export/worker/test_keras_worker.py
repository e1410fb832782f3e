"""What the worker does before it has a Keras; the rest is tested with real ones."""

import sys
from types import SimpleNamespace

import numpy as np
import PIL.features
import pytest
from PIL import Image, UnidentifiedImageError

from export.worker import keras_worker


def test_extras_cannot_be_imported_while_keras_is_and_can_be_afterwards(monkeypatch):
    monkeypatch.setattr(keras_worker, "_NOT_NEEDED", ("sndhdr_of_nobody", "json"))
    was = sys.modules["json"]
    with keras_worker.without_extras():
        with pytest.raises(ModuleNotFoundError, match="import of sndhdr_of_nobody halted"):
            __import__("sndhdr_of_nobody")
        assert sys.modules["json"] is was  # what is there stays
    assert "sndhdr_of_nobody" not in sys.modules
    assert sys.modules["json"] is was


@pytest.mark.parametrize("has_webp", [True, False])
def test_photos_of_a_format_that_pillow_was_built_without_are_no_difference(tmp_path, monkeypatch, has_webp):
    """A damaged photo is one; and so is a WebP that this Pillow should be able to read."""
    for name in ("a.png", "b.webp", "c.jpg"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "d.png").write_bytes(b"damaged")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "hidden.jpg", "WEBP")  # its content decides
    files = [str(each) for each in sorted(tmp_path.iterdir())]
    np.save(tmp_path / "expected.npy", np.zeros((5, 4, 4, 3), np.uint8))

    def load_img(path, **_):
        if b"WEBP" in open(path, "rb").read(16):  # noqa: SIM115, PTH123
            raise UnidentifiedImageError("cannot identify image file")
        return Image.open(path)

    check = PIL.features.check
    monkeypatch.setattr(PIL.features, "check", lambda name: has_webp if name == "webp" else check(name))
    monkeypatch.setattr(keras_worker, "predict", lambda *_: {})
    monkeypatch.setattr(keras_worker, "limit_pillow", lambda *_: None)
    task = {
        "files": files, "image_size": [4, 4], "interpolation": "nearest", "expected": str(tmp_path / "expected.npy"),
        "formats": ["PNG", "JPEG"], "most_pixels": 100, "pixels": str(tmp_path / "pixels.npy"),
    }  # fmt: skip
    found = keras_worker.files(SimpleNamespace(utils=SimpleNamespace(load_img=load_img)), None, task)
    webp = {"1": "WebP", "4": "WebP"}
    assert found["lacking"] == ({} if has_webp else webp)
    assert set(found["unreadable"]) == ({"1", "3", "4"} if has_webp else {"3"})
