"""Pixels are those of `keras.utils.load_img`; unreadable files are named."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, ImageOps

from datamodule.audit.inspection import inspect
from datamodule.audit.page import _thumbnail as audit_thumbnail
from datamodule.near_duplicates import perceptual_hashes
from datamodule.photo_store import BadPhoto, PhotoStore, load_photo, open_photo, read_file
from lightning_module.evaluation.report import _thumbnail as report_thumbnail
from models.choices import INTERPOLATIONS, MOST_PHOTO_BYTES, MOST_PIXELS, PHOTO_FORMATS
from tests.conftest import SHARED
from tests.datamodule.keras_generator import ask_keras, needs_keras
from tests.datamodule.odd_photos import draw_bad_photos, draw_odd_photos, noise

SIZE = (24, 40)
BILINEAR = Image.Resampling.BILINEAR
CLOTHING = SHARED / "data/clothing/train"


class TestAgainstKeras:
    pytestmark = needs_keras

    @pytest.mark.parametrize("interpolation", INTERPOLATIONS)
    def test_same_pixels(self, tmp_path, interpolation):
        photos = draw_odd_photos(tmp_path)
        keras = ask_keras(
            "load", paths=[str(path) for path in photos.values()], image_size=SIZE, interpolation=interpolation
        )
        for row, (name, path) in enumerate(photos.items()):
            ours = load_photo(path, SIZE, interpolation)
            assert ours.dtype == np.uint8
            assert ours.shape == (*SIZE, 3)
            np.testing.assert_array_equal(ours, keras[str(row)], err_msg=name)

    def test_same_pixels_of_real_photos(self):
        if not CLOTHING.is_dir():
            pytest.skip("the shared clothing photos are not here")
        paths = [path for folder in sorted(CLOTHING.iterdir()) for path in sorted(folder.glob("*.jpg"))[:2]]
        for interpolation in INTERPOLATIONS:
            keras = ask_keras(
                "load", paths=[str(path) for path in paths], image_size=[244, 244], interpolation=interpolation
            )
            for row, path in enumerate(paths):
                np.testing.assert_array_equal(load_photo(path, (244, 244), interpolation), keras[str(row)])

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda photo: ImageOps.exif_transpose(photo).convert("RGB").resize((40, 24), BILINEAR),
            lambda photo: photo.resize((40, 24), BILINEAR).convert("RGB"),
            lambda photo: ImageOps.fit(photo.convert("RGB"), (40, 24), BILINEAR),
            lambda photo: (photo.draft("RGB", (40, 24)), photo.convert("RGB").resize((40, 24), BILINEAR))[1],
        ],
        ids=["exif", "resized_first", "aspect_ratio_kept", "jpeg_decoded_small"],
    )
    def test_another_way_to_load_is_noticed(self, tmp_path, wrong):
        """Negative control: the odd photos tell Keras's way from others that look as good."""
        photos = list(draw_odd_photos(tmp_path).values())
        keras = ask_keras("load", paths=[str(path) for path in photos], image_size=SIZE, interpolation="bilinear")
        differ = []
        for row, path in enumerate(photos):
            with Image.open(path) as photo:
                differ.append(not np.array_equal(np.asarray(wrong(photo)), keras[str(row)]))
        assert any(differ)
        assert not all(differ)

    def test_interpolation_matters(self, tmp_path):
        """Negative control: the comparison above can fail."""
        path = draw_odd_photos(tmp_path)["plain"]
        keras = ask_keras("load", paths=[str(path)], image_size=SIZE, interpolation="nearest")["0"]
        assert not np.array_equal(load_photo(path, SIZE, "bilinear"), keras)

    def test_keras_cannot_read_them_either(self, tmp_path):
        bad = draw_bad_photos(tmp_path / "bad")
        paths = [str(path) for path in bad.values()]
        assert ask_keras("load", paths=paths, image_size=SIZE, interpolation="nearest") == {}


def test_exif_rotation_is_ignored(tmp_path):
    photos = draw_odd_photos(tmp_path)
    np.testing.assert_array_equal(load_photo(photos["exif_rotated"], SIZE), load_photo(photos["plain"], SIZE))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated", "cannot be read: image file is truncated"),
        ("only_header", "not an image"),
        ("zero_bytes", "is empty"),
        ("text", "not an image"),
        ("gone", "No such file"),
        ("bomb", "is too large, make it smaller: at most 64 megapixels are read$"),
    ],
)
def test_bad_photo_says_what_is_wrong(tmp_path, name, reason):
    path = draw_bad_photos(tmp_path / "bad")[name]
    with pytest.raises(BadPhoto, match=reason) as caught:
        load_photo(path, SIZE)
    assert caught.value.path == path


def test_truncated_is_refused_because_pillow_refuses(monkeypatch, tmp_path):
    """Negative control: with Pillow told to be lenient, the same file loads."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert load_photo(draw_bad_photos(tmp_path / "bad")["truncated"], SIZE).shape == (*SIZE, 3)


def test_store_names_all_bad_and_keeps_all_good(tmp_path):
    good = list(draw_odd_photos(tmp_path / "good").values())
    bad = list(draw_bad_photos(tmp_path / "bad").values())
    mixed = [good[0], *bad[:3], *good[1:], *bad[3:]]
    store = PhotoStore(SIZE)
    assert [photo.path for photo in store.add(mixed)] == bad
    assert len(store) == len(good)
    assert bad[0] not in store
    photos = store.photos_of(good)
    for row, path in enumerate(good):
        np.testing.assert_array_equal(photos[row], load_photo(path, SIZE))


def test_each_photo_is_decoded_once(tmp_path, monkeypatch):
    paths = list(draw_odd_photos(tmp_path).values())
    store = PhotoStore(SIZE)
    store.add(paths[:5] * 3)
    monkeypatch.setattr("datamodule.photo_store.load_photo", lambda *_: pytest.fail("decoded again"))
    assert store.add(paths[:5]) == []
    assert len(store.photos_of(paths[:5])) == 5


def test_changing_a_batch_leaves_the_store_alone(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(*SIZE)).save(path)
    store = PhotoStore(SIZE)
    store.add([path])
    store.photos_of([path])[:] = 0
    np.testing.assert_array_equal(store.photos_of([path])[0], noise(*SIZE))


def test_progress_sees_every_photo(tmp_path):
    paths = list(draw_odd_photos(tmp_path).values())
    seen = []

    def count(results, total):
        for result in results:
            seen.append((result, total))
            yield result

    PhotoStore(SIZE).add(paths, count)
    assert seen == [(None, len(paths))] * len(paths)


# A format that Pillow gives to another program --------------------------------------------------------------------


def draw_postscript(path: Path) -> Path:
    """A drawing in PostScript, whatever the file's name says."""
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill\nshowpage\n"
    )
    return path


@pytest.fixture
def ghostscript_ran(monkeypatch, tmp_path) -> Path:
    """A file that appears when Pillow starts Ghostscript, in whose place there is a script."""
    ran, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return ran


def readers_of_photos() -> dict[str, Callable[[Path], object]]:
    return {
        "training": lambda path: load_photo(path, SIZE),
        "store": lambda path: PhotoStore(SIZE).add([path]),
        "audit": inspect,
        "audit_page": lambda path: audit_thumbnail(path, 96),
        "near_duplicates": perceptual_hashes,
        "report": report_thumbnail,
    }


@pytest.mark.parametrize("reader", readers_of_photos())
def test_postscript_named_as_a_photo_starts_no_ghostscript(tmp_path, ghostscript_ran, reader):
    path = draw_postscript(tmp_path / "photo.jpg")
    with contextlib.suppress(BadPhoto):
        readers_of_photos()[reader](path)
    assert not ghostscript_ran.exists()


def test_postscript_is_told_what_is_read(tmp_path):
    with pytest.raises(BadPhoto, match=r"in a format that is read: JPEG, PNG, BMP, PPM, TIFF, GIF, WEBP or AVIF$"):
        load_photo(draw_postscript(tmp_path / "photo.jpg"), SIZE)


def test_pillow_alone_starts_ghostscript(tmp_path, ghostscript_ran):
    """Negative control of the test above."""
    with Image.open(draw_postscript(tmp_path / "photo.jpg")) as photo, contextlib.suppress(OSError):
        photo.load()
    assert ghostscript_ran.exists()


@pytest.mark.parametrize("limited", [True, False])
def test_keras_process_opens_only_photos_within_the_limits(tmp_path, limited):
    """In a process of its own, because Pillow's list of formats is changed for good. The second is the control."""
    photos = [*draw_odd_photos(tmp_path / "odd").values(), draw_postscript(tmp_path / "photo.jpg"), tmp_path / "l.png"]
    Image.new("1", (12_000, 8_000)).save(photos[-1])  # 96 megapixels
    code = f"""
import io, sys
from export.worker.keras_worker import limit_pillow
from PIL import Image
if {limited}:
    limit_pillow({list(PHOTO_FORMATS)}, {MOST_PIXELS})
for path in sys.argv[1:]:
    try:
        Image.open(io.BytesIO(open(path, "rb").read()))
    except (Image.UnidentifiedImageError, Image.DecompressionBombError):
        print(path)
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, photos)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ([str(each) for each in photos[-2:]] if limited else [])


def test_photos_are_opened_in_one_place():
    """Whoever opens a photo elsewhere must say there which formats it may have."""
    root = Path(__file__).parents[2]
    places = [
        f"{path.relative_to(root)}: {line.strip()}"
        for room in ("benchmarks", "datamodule", "export", "lightning_module", "models")
        for path in (root / room).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "Image.open(" in line and "formats=" not in line
    ]
    assert places == []


# What is too large, and what never ends ---------------------------------------------------------------------------


@pytest.fixture
def unopened(monkeypatch) -> Callable[[Path], Path]:
    """Marks a file that nobody may open."""
    usual, marked = open, set()

    def guarded(file, *arguments, **options):
        if str(file) in marked:
            pytest.fail(f"{file} is opened")  # not an `Exception`, so no reader takes it for a bad photo
        return usual(file, *arguments, **options)

    def mark(path: Path) -> Path:
        marked.add(str(path))
        for module in ("builtins", "io"):  # Pillow's and pathlib's
            monkeypatch.setattr(f"{module}.open", guarded)
        return path

    return mark


def draw_sparse(path: Path, size: int) -> Path:
    """A file that claims a size and has nothing on the disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("reader", readers_of_photos())
@pytest.mark.parametrize("target", ["of 3 GB", "/proc/kmsg", "/dev/zero"])
def test_what_is_too_large_or_never_ends_is_not_opened(tmp_path, unopened, target, reader):
    path = tmp_path / "photo.jpg"
    if target == "of 3 GB":
        draw_sparse(path, 3 << 30)
    else:
        path.symlink_to(target)
    with contextlib.suppress(BadPhoto):
        readers_of_photos()[reader](unopened(path))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/proc/kmsg", r"is empty \(0 bytes\)"),  # a plain file, by its own account; whoever reads it waits for ever
        ("/dev/zero", "is a pipe, a socket or a device"),
    ],
)
def test_link_to_a_device_is_named(tmp_path, target, reason):
    if not Path(target).exists():
        pytest.skip(f"this machine has no {target}")
    (tmp_path / "photo.jpg").symlink_to(target)
    with pytest.raises(BadPhoto, match=reason):
        load_photo(tmp_path / "photo.jpg", SIZE)


def test_limit_of_the_file(tmp_path):
    path = draw_sparse(tmp_path / "photo.jpg", MOST_PHOTO_BYTES + (1 << 20))
    with pytest.raises(BadPhoto, match="is too large, make it smaller: 257 MiB, at most 256 are read"):
        load_photo(path, SIZE)
    assert len(read_file(draw_sparse(path, MOST_PHOTO_BYTES))) == MOST_PHOTO_BYTES


def test_limit_of_the_pixels(tmp_path):
    """Opened, and not decoded, up to the limit; beyond it, refused by all who load a photo."""
    path = tmp_path / "photo.png"
    Image.new("1", (8000, MOST_PIXELS // 8000)).save(path)
    with open_photo(path) as photo:
        assert photo.size == (8000, 8000)
    for width, height in ((8001, 8000), (12_000, 8_000)):
        Image.new("1", (width, height)).save(path)
        with pytest.raises(
            BadPhoto, match=f"make it smaller: {width} x {height} pixels, at most 64 megapixels are read"
        ):
            load_photo(path, SIZE)
        assert perceptual_hashes(path) is None
        assert report_thumbnail(path) is None
        assert audit_thumbnail(path, 96) == ""
