"""How a photo's colours become RGB: transparency on a background, 16-bit grey scaled; off, it is Keras's."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from datamodule.photo_store import PhotoStore, load_photo
from datamodule.product_photos import ProductPhotos
from export.checkpoint import read_checkpoint
from export.keras_file.read import DETAILS_ATTRIBUTE
from export.proof.parity import Pair, check_parity
from export.torch_to_keras import write_twin
from lightning_module.evaluation.labellers import KerasFileLabeller
from models.bad_input import BadInput
from models.choices import AS_KERAS, Loading
from tests.conftest import lightning, random_classifier, save_checkpoint
from tests.datamodule.odd_photos import noise
from tests.datamodule.test_product_photos import draw_root

WHITE, SCALED = Loading("#ffffff"), Loading(deep_grey="scale")
SIZE = (32, 32)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """Cut-outs in every way that a file may be transparent, and 16-bit grey."""
    folder = tmp_path_factory.mktemp("odd")
    rgba = np.dstack([noise(32, 32, seed=1), np.full((32, 32), 255, np.uint8)])
    rgba[:16] = 0  # black and transparent
    rgba[16:20, :, 3] = 100
    Image.fromarray(rgba).save(folder / "cutout.png")
    Image.fromarray(rgba).save(folder / "cutout.webp", lossless=True, exact=True)
    Image.fromarray(rgba).convert("LA").save(folder / "grey.png")
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    palette.save(folder / "palette.png", transparency=palette.getpixel((0, 0)))
    Image.fromarray(rgba[..., :3]).save(folder / "key.png", transparency=(0, 0, 0))
    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(rgba[..., :3]).save(folder / "plain.png")
    return folder


@pytest.mark.parametrize("name", ["cutout.png", "cutout.webp", "grey.png", "palette.png", "key.png"])
def test_transparent_photos_are_composed(odd, name):
    assert (load_photo(odd / name, SIZE)[:16] == 0).all()  # what Keras sees: what is hidden
    composed = load_photo(odd / name, SIZE, loading=WHITE)
    assert (composed[:16] == 255).all()
    assert (load_photo(odd / name, SIZE, loading=Loading("#102030"))[0, 0] == (0x10, 0x20, 0x30)).all()
    opaque = load_photo(odd / name, SIZE)[20:]
    changed = (opaque != composed[20:]).any(axis=-1).mean()
    assert changed < 0.1 if name == "palette.png" else changed == 0


def test_half_transparent_pixels_are_mixed(odd):
    below = load_photo(odd / "cutout.png", SIZE)[17].astype(float)
    mixed = load_photo(odd / "cutout.png", SIZE, loading=WHITE)[17]
    assert np.abs(mixed - (below * 100 + 255 * 155) / 255).max() <= 1


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_deep_grey_is_scaled(odd, name):
    values = np.arange(32 * 32).reshape(32, 32) * 64
    clipped, scaled = load_photo(odd / name, SIZE), load_photo(odd / name, SIZE, loading=SCALED)
    assert (clipped[..., 0] == np.minimum(values, 255)).all()
    assert (scaled == np.round(values / 257)[..., None]).all()


def test_what_is_neither_is_as_ever(odd):
    every = Loading("#ffffff", "scale")
    assert (load_photo(odd / "plain.png", SIZE, loading=every) == load_photo(odd / "plain.png", SIZE)).all()


def test_stored_pixels_are_kept_apart(odd, tmp_path):
    """Negative control: another background must not find the pixels of the first."""
    for loading in (AS_KERAS, WHITE, Loading("#000000"), SCALED):
        store = PhotoStore(SIZE, ram_share=0.0, folder=tmp_path, loading=loading)
        assert store.add([odd / "cutout.png"]) == []
        assert (store.photos_of([odd / "cutout.png"])[0] == load_photo(odd / "cutout.png", SIZE, loading=loading)).all()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("given", "kept"), [("white", "#ffffff"), ("#0a141e", "#0a141e"), ("rgb(10,20,30)", "#0a141e")]
)
def test_colours_by_name_and_number(tmp_path, given, kept):
    root = draw_root(tmp_path / "photos", {"a": 5, "b": 5})
    assert ProductPhotos(str(root), background=given).background == kept


@pytest.mark.parametrize("given", ["whyte", "#12", "", "1", "x" * 300])
def test_no_such_colour(tmp_path, given):
    root = draw_root(tmp_path / "photos", {"a": 5, "b": 5})
    with pytest.raises(BadInput, match="background: expected a colour such as white") as caught:
        ProductPhotos(str(root), background=given)
    assert len(str(caught.value)) < 200


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("twins")
    network = random_classifier(backbone="mobilenetv2_short", hidden=(), mean=0.5, std=0.5)
    checkpoint = save_checkpoint(
        folder / "best.ckpt", network, SIZE, background="#ffffff", deep_grey="scale", formats="all"
    )
    write_twin(checkpoint, folder / "model.h5")
    return checkpoint, folder / "model.h5"


def test_a_checkpoint_and_its_file_say_it(twins):
    checkpoint, h5 = twins
    assert read_checkpoint(checkpoint).loading == Loading("#ffffff", "scale")
    assert KerasFileLabeller(h5).loading == Loading("#ffffff", "scale")
    assert read_checkpoint(checkpoint).formats == KerasFileLabeller(h5).formats == "all"


def test_predict_looks_at_the_files_that_were_photos_in_training(twins, tmp_path, capsys):
    """At those of the web anyhow, and at all where the model was trained so."""
    (tmp_path / "shop").mkdir()
    for name in ("a.png", "b.webp", "c.jpeg"):
        Image.new("RGB", (20, 20)).save(tmp_path / "shop" / name)
    (tmp_path / "shop" / "c.jpeg").rename(tmp_path / "shop" / "c.jpe")
    older = save_checkpoint(tmp_path / "older.ckpt", read_checkpoint(twins[0]).network, SIZE)
    for model, extra, count in ((twins[0], [], 3), (older, [], 2), (twins[0], ["--formats", "keras"], 1)):
        assert lightning("predict", model, tmp_path / "shop", "--out", tmp_path / "p.csv", *extra) == 0
        assert f"{count} photo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [{"background": "white"}, {"background": 3}, {"deep_grey": "round"}, {"formats": "tv"}]
)
def test_a_checkpoint_that_was_edited_is_refused(tmp_path, wrong):
    network = random_classifier(backbone="mobilenetv2_short", hidden=())
    with pytest.raises(BadInput, match="expected settings that photos can be loaded with"):
        read_checkpoint(save_checkpoint(tmp_path / "x.ckpt", network, SIZE, **wrong))


@pytest.mark.keras
def test_both_twins_load_alike(twins, odd, tmp_path):
    checkpoint, h5 = twins
    files = sorted(odd.iterdir())
    report = check_parity(Pair(checkpoint, h5, None, [], files, load_photo))
    judged = {check.name: check.passed for check in report.checks}
    assert judged["file_pixels"]
    assert judged["file_labels"]
    assert report.verdict == "PASS"
    for model in (checkpoint, h5):
        assert lightning("predict", model, odd, "--out", tmp_path / f"{model.suffix}.csv") == 0
    assert (tmp_path / ".ckpt.csv").read_bytes() == (tmp_path / ".h5.csv").read_bytes()


@pytest.mark.keras
def test_a_file_that_says_otherwise_is_noticed(twins, odd, tmp_path):
    """Negative control: the same network, but its file does not speak of the background."""
    checkpoint, h5 = twins
    shutil.copy(h5, tmp_path / "silent.h5")
    with h5py.File(tmp_path / "silent.h5", "r+") as file:
        facts = json.loads(file.attrs[DETAILS_ATTRIBUTE])
        del facts["background"], facts["deep_grey"]
        file.attrs[DETAILS_ATTRIBUTE] = json.dumps(facts)
    report = check_parity(Pair(checkpoint, tmp_path / "silent.h5", None, [], sorted(odd.iterdir()), load_photo))
    judged = {check.name: check.passed for check in report.checks}
    assert not judged["labels"]
    assert not judged["file_pixels"]


def test_an_imported_file_keeps_it(twins, tmp_path):
    assert lightning("import", twins[1], tmp_path / "back.ckpt", "--check", "false") == 0
    assert read_checkpoint(tmp_path / "back.ckpt").loading == Loading("#ffffff", "scale")
    assert read_checkpoint(tmp_path / "back.ckpt").formats == "all"
