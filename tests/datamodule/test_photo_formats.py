"""Which files are photos: Keras's list, the web's formats, or all that are read."""

import os
from pathlib import Path

import pytest
from PIL import Image

from datamodule.photo_store import READ_FORMATS
from datamodule.product_photos import ProductPhotos
from datamodule.sources.photo_table import PhotoTable
from datamodule.split import list_photos
from models.bad_input import BadInput
from models.choices import FORMAT_ENDINGS, PHOTO_FORMATS
from tests.datamodule.odd_photos import noise

WEB = ("webp", "gif", "jfif", *(("avif",) if "AVIF" in READ_FORMATS else ()))
FORMAT_OF = {"jfif": "JPEG", "jpg": "JPEG", "": "WEBP", "jpe": "JPEG", "pgm": "PPM"}


def draw(root: Path, endings: tuple[str, ...]) -> Path:
    """Two classes with five photos of each ending; "" is a WebP without one."""
    for label, name in enumerate(("hat", "tv")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(5):
            for ending in endings:
                photo = Image.fromarray(noise(12, 12, seed=100 * label + number)).convert(
                    "L" if ending == "pgm" else "RGB"
                )
                file = root / name / (f"{number}.{ending}" if ending else f"{number}")
                photo.save(file, FORMAT_OF.get(ending, ending.upper()))
    return root


def endings_of(photos: ProductPhotos) -> set[str]:
    photos.setup("fit")
    return {file.suffix.lstrip(".") for file in photos.train_files + photos.val_files}


def test_what_each_choice_lists(tmp_path):
    root = draw(tmp_path, ("jpg", *WEB, "", "jpe", "pgm"))
    (root / "hat" / "notes").write_text("no photo")
    for formats, endings, said in (
        ("keras", {"jpg"}, r"files that Keras does not list as photos either: .* \.webp"),
        ("web", {"jpg", *WEB, ""}, r"files that are not listed as photos: 10 \.jpe, 10 \.pgm, 1 without ending"),
        ("all", {"jpg", *WEB, "", "jpe", "pgm"}, "photos: 1 without ending"),
    ):
        photos = ProductPhotos(str(root), image_size=12, on_copies="warn", formats=formats)
        with pytest.warns(UserWarning, match=said):
            assert endings_of(photos) == endings


def test_a_catalogue_of_webp_alone_says_what_to_do(tmp_path):
    root = draw(tmp_path, ("webp",))
    with pytest.raises(BadInput, match=r"received none in hat \(5 \.webp\).*--data.formats web") as caught:
        ProductPhotos(str(root), image_size=12).setup("fit")
    photos = ProductPhotos(str(root), image_size=12, formats="web")  # as it says
    photos.setup("fit")
    assert len(photos.train_files) == 8
    assert "--data.formats" in str(caught.value)
    (root / "tv" / "0.webp").write_bytes(b"no photo")
    with pytest.raises(BadInput, match="1 that cannot be read"):
        ProductPhotos(str(root), image_size=12, formats="web").setup("fit")


def test_a_table_follows_the_same_choice(tmp_path):
    root = draw(tmp_path, ("webp",))
    rows = [f"{name}/{number},{name}" for name in ("hat", "tv") for number in range(5)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(BadInput, match="10 photos that are not there"):
        PhotoTable(root / "labels.csv")
    assert len(PhotoTable(root / "labels.csv", formats="web").classes["train"][0]) == 5
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *(row.replace(",", ".webp,") for row in rows)]))
    with pytest.raises(BadInput, match="10 files that are not listed as photos"):
        PhotoTable(root / "labels.csv")


def test_every_ending_is_of_a_format_that_is_read():
    Image.init()
    known = Image.registered_extensions()
    assert {known[f".{ending}"] for ending in FORMAT_ENDINGS["all"]} <= {*PHOTO_FORMATS}
    assert {*FORMAT_ENDINGS["keras"]} < {*FORMAT_ENDINGS["web"]} < {*FORMAT_ENDINGS["all"]}


def test_first_frame_of_an_animation(tmp_path):
    first, second = (Image.fromarray(noise(12, 12, seed=seed)) for seed in (1, 2))
    for name in ("hat", "tv"):
        (tmp_path / name).mkdir()
        for number in range(5):
            frames = [Image.fromarray(noise(12, 12, seed=number)), second]
            frames[0].save(
                tmp_path / name / f"{number}.webp", save_all=True, append_images=frames[1:], lossless=True, duration=9
            )
    photos = ProductPhotos(str(tmp_path), image_size=12, formats="web", on_copies="warn")
    photos.setup("fit")
    assert (photos.photos_of([tmp_path / "hat" / "3.webp"])[0] == noise(12, 12, seed=3)).all()
    assert first != second


def test_a_pipe_without_ending_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert list_photos(tmp_path, "web") == []
