"""`--data.kaggle`: only the download itself is replaced; Kaggle cannot be reached from where tests run."""

import socket
import sys
import time
from pathlib import Path

import pytest

from datamodule.product_photos import ProductPhotos
from datamodule.sources import kaggle_photos
from datamodule.sources.kaggle_photos import find_class_folders
from models.bad_input import BadInput
from tests.datamodule.test_product_photos import draw_root

HANDLE = "sunnykusawa/ecommerce-products-image-dataset"
CLASSES = {"jeans": 5, "sofa": 5, "tshirt": 5, "tv": 5}


@pytest.fixture(autouse=True)
def kagglehub(tmp_path, monkeypatch):
    """A cache of its own, and a Kaggle that answers."""
    module = pytest.importorskip("kagglehub")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kaggle_photos, "ask_kaggle", lambda: None)
    return module


def lay_out_as_kaggle(folder: Path) -> Path:
    """As kagglehub leaves that dataset: a folder with a space in its name around the class folders."""
    root = draw_root(folder / "ecommerce products", CLASSES)
    (root / "jeans" / "._00.png").write_bytes(b"what a Mac leaves")
    (folder / "__MACOSX" / "ecommerce products" / "jeans").mkdir(parents=True)
    (folder / "__MACOSX" / "ecommerce products" / "jeans" / "._00.png").touch()
    (folder / ".cache").mkdir()
    (folder / "readme.txt").touch()
    return root


@pytest.fixture
def downloads(kagglehub, tmp_path, monkeypatch):
    """What was asked for; each download is laid out as Kaggle's."""
    asked = []

    def download(handle):
        asked.append(handle)
        folder = tmp_path / "cache" / "datasets" / HANDLE / "versions" / "1"
        if not folder.exists():
            (lay_out_as_kaggle(folder) / "jeans" / "._00.png").unlink()
            (folder.parent.parent / "1.complete").touch()
        return str(folder)

    monkeypatch.setattr(kagglehub, "dataset_download", download)
    return asked


def test_the_way_after_the_download(downloads):
    photos = ProductPhotos(kaggle=HANDLE, image_size=8)
    assert photos.class_names == list(CLASSES)
    photos.setup("fit")
    assert (len(photos.train_files), len(photos.val_files)) == (16, 4)
    assert photos.train_files[0].parts[-3:-1] == ("ecommerce products", "jeans")
    assert downloads == [HANDLE]


def unreachable() -> None:
    import requests

    raise requests.ConnectionError("Kaggle cannot be reached from this machine.")


def test_unreachable_is_one_clear_message(monkeypatch):
    monkeypatch.setattr(kaggle_photos, "ask_kaggle", unreachable)
    with pytest.raises(BadInput, match=r"kaggle: expected .*received: Kaggle cannot be reached") as caught:
        ProductPhotos(kaggle=HANDLE)
    assert f"https://www.kaggle.com/datasets/{HANDLE}" in str(caught.value)
    assert "--data.root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kaggle_that_never_answers_is_given_up_soon(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(kaggle_photos, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr("kagglesdk.kaggle_env.get_endpoint", lambda _: f"http://127.0.0.1:{port}")
        start = time.monotonic()
        with pytest.raises(OSError, match="cannot be reached"):
            kaggle_photos.ask_kaggle()
    assert 0.4 < time.monotonic() - start < 5


def test_what_was_downloaded_before_needs_no_kaggle(downloads, monkeypatch):
    ProductPhotos(kaggle=HANDLE, image_size=8)
    monkeypatch.setattr(kaggle_photos, "ask_kaggle", unreachable)
    assert ProductPhotos(kaggle=HANDLE).class_names == list(CLASSES)
    assert ProductPhotos(kaggle=f"{HANDLE}/versions/1").class_names == list(CLASSES)
    with pytest.raises(BadInput, match="cannot be reached"):
        ProductPhotos(kaggle=f"{HANDLE}/versions/2")
    assert len(downloads) == 1


def test_a_half_finished_download_is_not_used(downloads, tmp_path, monkeypatch):
    lay_out_as_kaggle(tmp_path / "cache" / "datasets" / HANDLE / "versions" / "1")
    monkeypatch.setattr(kaggle_photos, "ask_kaggle", unreachable)
    with pytest.raises(BadInput, match="cannot be reached"):
        ProductPhotos(kaggle=HANDLE)


def test_a_refusal_says_why(kagglehub, monkeypatch):
    def refuse(handle):
        raise kagglehub.exceptions.BackendError("404 Client Error.\n\nResource not found")

    monkeypatch.setattr(kagglehub, "dataset_download", refuse)
    with pytest.raises(BadInput, match=r"received: 404 Client Error\. By hand"):
        ProductPhotos(kaggle=HANDLE)


@pytest.mark.parametrize("handle", ["jeans", "https://www.kaggle.com/datasets/a/b", "a/b/c", ""])
def test_bad_handle(handle):
    with pytest.raises(BadInput, match="kaggle: expected owner/dataset"):
        ProductPhotos(kaggle=handle)


@pytest.mark.parametrize("other", [{"root": "photos"}, {"demo": True}])
def test_one_source_only(other):
    with pytest.raises(BadInput, match="expected one source of photos"):
        ProductPhotos(kaggle=HANDLE, **other)


def test_without_kagglehub(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(BadInput, match="pip install kagglehub"):
        ProductPhotos(kaggle=HANDLE)


class TestClassFolders:
    @pytest.mark.parametrize("inside", [".", "one", "one/two/three"])
    def test_however_nested(self, tmp_path, inside):
        root = draw_root(tmp_path / "download" / inside, CLASSES)
        assert find_class_folders(tmp_path / "download") == root

    def test_classes_may_have_folders_of_their_own(self, tmp_path):
        root = draw_root(tmp_path / "all", {"jeans/blue": 2, "jeans/black": 2, "tv/flat": 2})
        assert find_class_folders(tmp_path) == root

    def test_as_kaggle_lays_it_out(self, tmp_path):
        root = lay_out_as_kaggle(tmp_path)
        assert find_class_folders(tmp_path) == root

    def test_no_photos(self, tmp_path):
        (tmp_path / "jeans").mkdir()
        with pytest.raises(BadInput, match="received none"):
            find_class_folders(tmp_path)

    def test_twice(self, tmp_path):
        draw_root(tmp_path, CLASSES)
        draw_root(tmp_path / "ecommerce products", CLASSES)
        with pytest.raises(BadInput, match=r"jeans, sofa, tshirt, tv in .* and again in"):
            find_class_folders(tmp_path)
