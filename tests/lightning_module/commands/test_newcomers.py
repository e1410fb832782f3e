"""A shop's photos as shops have them, by the commands of docs/data.md: two at most, and no file moved by hand."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from datamodule.demo_photos import draw_catalogue
from export.checkpoint import read_checkpoint
from tests.conftest import CLASS_NAMES, ROOT, lightning
from tests.datamodule.sources.test_addresses import bucket  # noqa: F401 - a fixture

QUICK = [
    f"--config={ROOT / 'configs' / 'demo.yaml'}", "--data.demo=false", "--data.image_size=32", "--data.batch_size=8",
    "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--hand_over.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Six photos of each of four classes."""
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    draw_catalogue(folder, per_class=6, size=32)
    return folder


@pytest.fixture
def fit(tmp_path, capsys, caplog):
    """Fit as a newcomer would, and return what was said; the run is `run` unless named."""

    def fitted(*given: object, run: str = "run", code: int = 0) -> str:
        caplog.set_level("INFO")
        caplog.clear()
        assert lightning("fit", *QUICK, f"--trainer.default_root_dir={tmp_path / run}", *given) == code
        return "".join(capsys.readouterr()) + caplog.text

    return fitted


def test_the_fashion_table(drawn, tmp_path, fit):
    """File ids without ending, labels in `articleType`, and columns that could be labels, too."""
    (tmp_path / "images").mkdir()
    with (tmp_path / "styles.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "gender", "masterCategory", "articleType", "year", "productDisplayName"])
        for number, photo in enumerate(sorted(drawn.rglob("*.jpg")), start=15000):
            shutil.copy(photo, tmp_path / "images" / f"{number}.jpg")
            kind = photo.parent.name
            rows.writerow([number, "Men" if number % 2 else "Women", "Apparel", kind, 2012, f"A {kind}, as sold"])
    said = fit("--data.table", tmp_path / "styles.csv", code=2)
    assert "Name it with --data.label_column" in said
    assert "articleType (4 different)" in said
    said = fit("--data.table", tmp_path / "styles.csv", "--data.label_column", "articleType")
    assert "files from its column 'id'" in said
    assert read_checkpoint(tmp_path / "run" / "best.ckpt").class_names == tuple(CLASS_NAMES)


def test_the_roboflow_layout(drawn, tmp_path, fit):
    """Sets in one root, with two text files beside them."""
    for seed, name in enumerate(("train", "valid", "test")):
        draw_catalogue(tmp_path / "shop" / name, per_class=4, seed=seed, size=32)
    for name in ("README.roboflow.txt", "README.dataset.txt"):
        (tmp_path / "shop" / name).write_text("exported")
    said = fit("--data.root", tmp_path / "shop")
    assert "which are taken as they are: training train, validation valid, test test." in said
    assert "16 training and 16 validation photos" in said


def test_a_catalogue_of_webp(drawn, tmp_path, fit):
    """The first command says the second."""
    for photo in drawn.rglob("*.jpg"):
        target = tmp_path / "shop" / photo.parent.name / f"{photo.stem}.webp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).save(target)
    said = fit("--data.root", tmp_path / "shop", code=2)
    assert "(6 .webp)" in said
    assert "give --data.formats web" in said
    assert "20 training and 4 validation photos" in fit("--data.root", tmp_path / "shop", "--data.formats", "web")
    assert read_checkpoint(tmp_path / "run" / "best.ckpt").formats == "web"


@pytest.mark.usefixtures("bucket")
def test_a_parquet_in_a_bucket(tmp_path, fit):
    """And the bucket's photos labelled with the model, which is called by their addresses."""
    given = ["--data.table", "s3://shop/labels.parquet", "--data.photos", "s3://shop/images"]
    assert "8 training and 2 validation photos" in fit(*given, "--data.store_dir", tmp_path / "store")
    best, out = tmp_path / "run" / "best.ckpt", tmp_path / "p.csv"
    assert lightning("predict", best, "s3://shop/labels.parquet", "--base", "s3://shop/images", "--out", out) == 0
    with out.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"s3://shop/images/{each}.png" for each in range(10)]


def test_four_classes_become_five(drawn, tmp_path, fit):
    """The fifth comes first, and in another format; the four keep their rows."""
    fit("--data.root", drawn, run="four")
    shutil.copytree(drawn, tmp_path / "shop")
    (tmp_path / "shop" / "boots").mkdir()
    for number in range(7):
        Image.new("RGB", (32, 32), (30 * number, 90, 10)).save(tmp_path / "shop" / "boots" / f"{number}.webp")
    given = ["--data.root", tmp_path / "shop", f"--ckpt_path={tmp_path / 'four' / 'best.ckpt'}"]
    assert "give --data.formats web" in fit(*given, code=2)
    said = fit(*given, "--data.formats", "web")
    assert "boots        -       0  added, with fresh weights" in said
    assert "tv           3       4  kept, moved" in said
    assert read_checkpoint(tmp_path / "run" / "best.ckpt").class_names == ("boots", *CLASS_NAMES)


def test_one_photo_left_for_the_last_batch(drawn, fit):
    """Of 32 pixels MobileNetV2 leaves one, and a variance takes two."""
    given = ["--data.root", drawn]
    said = fit(*given, "--data.batch_size=19", code=2)
    assert "received a last batch of one. Give another --data.batch_size" in said
    fit(*given, "--data.batch_size=18")
