import json
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from export.checkpoint import read_checkpoint
from lightning_module.classifier import ProductClassifier
from lightning_module.evaluation.figures import evaluate
from lightning_module.evaluation.measured_photos import KeepLogits, MeasuredPhotos, in_order
from lightning_module.evaluation.plots import confusion_png, curves_png, drawn_names
from lightning_module.evaluation.report import _caption, _training_batch, render_report
from lightning_module.fine_tuning import Regularisation
from tests.conftest import lightning

LOOKS_AT_PLOTS = True
TINY = [
    "--model.backbone=mobilenetv2_short",
    "--model.pretrained=false",
    "--model.hidden=[8]",
    "--data.image_size=32",
    "--data.batch_size=5",  # the last batch is a smaller one
    "--data.validation_split=0.25",
    "--trainer.accelerator=cpu",
    "--hand_over.enabled=false",
    "--trainer.max_epochs=2",
]
TURNED = "--data.augmentation={rotation_range: 180, zoom_range: [0.3, 0.6], brightness_range: [0.2, 0.4]}"
PICTURES = {
    "curves.png",
    "training_batch.png",
    "validation_confusion.png",
    "validation_coverage.png",
    "validation_reliability.png",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=12, seed=0)
    return root


@pytest.fixture(scope="module")
def kept_apart(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "test"
    draw_catalogue(root, per_class=5, seed=7)
    return root


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """A run whose validation photos are changed at random, but not in its evaluation."""
    run = tmp_path_factory.mktemp("finished") / "run"
    settings = [TURNED, "--data.augment_validation=true", f"--trainer.default_root_dir={run}"]
    assert lightning("fit", *TINY, f"--data.root={photos}", *settings) == 0
    return run


class Links(HTMLParser):
    """Whatever a page loads or points to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.targets += [value for name, value in attributes if name in ("src", "href", "srcset")]


def test_page_is_one_file_that_loads_nothing(finished):
    page = (finished / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.targets) > 3
    assert all(target.startswith("data:image/") for target in links.targets)
    assert not re.search(r"https?://|url\(|@import", page)


def test_pictures_are_in_the_folder_and_in_the_page(finished):
    assert PICTURES | {"validation.npz"} == {path.name for path in (finished / "evaluation").iterdir()}
    for name in PICTURES:
        with Image.open(finished / "evaluation" / name) as picture:
            assert min(picture.size) > 300
            assert picture.convert("L").getextrema()[0] < 100  # not empty
    assert (finished / "report.html").read_text().count("data:image/png;base64,") == len(PICTURES)


def regularised(photos: Path | None, **settings) -> SimpleNamespace:
    """A trainer whose fit is over, as far as the picture of its photos needs one."""
    data = None
    if photos is not None:
        data = ProductPhotos(str(photos), image_size=32, validation_split=0.25)
        data.setup("fit")
    module = ProductClassifier(
        ["jeans", "sofa", "tshirt", "tv"], (32, 32), backbone="mobilenetv2_short", pretrained=False,
        trainable="all", train_size=24, regularisation=Regularisation(**settings),
    )  # fmt: skip
    return SimpleNamespace(datamodule=data, lightning_module=module)


def test_training_batch_is_drawn_as_the_network_gets_it_and_leaves_the_generators_alone(photos, monkeypatch):
    drawn = []
    monkeypatch.setattr("lightning_module.evaluation.plots.batch_png", lambda *given: drawn.append(given) or b"picture")
    plain, mixed = regularised(photos), regularised(photos, mixup=1.0, label_smoothing=0.1, random_erasing=0.5)
    for trainer in (plain, mixed, mixed):
        random.seed(len(drawn))
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert _training_batch(trainer) == b"picture"
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    (images, names), (mixed_images, mixed_names), again = drawn
    assert images.shape == (16, 3, 24, 24)
    expected = plain.datamodule.training_batch(16)[1]
    assert names == [plain.lightning_module.class_names[label] for label in expected]
    assert not np.allclose(images, mixed_images)
    assert any(re.fullmatch(r"\d+% \w+\n\d+% \w+", name) for name in mixed_names)
    np.testing.assert_array_equal(mixed_images, again[0])


def test_caption_names_what_is_in_a_photo():
    names = ["a", "b", "c"]
    assert _caption([0.0, 1.0, 0.0], names) == "b"
    assert _caption([0.25, 0.0, 0.75], names) == "25% a\n75% c"


def test_without_photos_there_is_no_training_batch():
    assert _training_batch(regularised(None)) is None
    assert _training_batch(SimpleNamespace(datamodule=L.LightningDataModule(), lightning_module=None)) is None


def test_page_says_which_photos_and_that_they_are_optimistic(finished):
    page = (finished / "report.html").read_text()
    assert "12 validation photos" in page
    assert "optimistic" in page
    assert "--data.test_root" in page
    assert "cross-fitted" in page
    assert "Wilson" in page


def test_page_of_the_last_epoch_says_that_no_photos_chose_it(photos, tmp_path):
    place = [f"--data.root={photos}", f"--trainer.default_root_dir={tmp_path}"]
    last = ["--checkpoint.monitor=epoch", "--checkpoint.mode=max", "--trainer.max_epochs=3"]
    assert lightning("fit", *TINY, *place, *last) == 0
    page, content = ((tmp_path / name).read_text() for name in ("report.html", "metrics.json"))
    assert "nor in choosing the epoch" in page
    assert "optimistic" not in page
    best, epochs, final = (json.loads(content)[name] for name in ("best", "epochs", "final"))
    assert best == {"epoch": 2, "monitor": "epoch", "value": 2}
    elsewhere = tmp_path / "elsewhere"  # where no metrics.json says by what the epoch was chosen
    given = [f"--data.root={photos}", f"--trainer.default_root_dir={elsewhere}", "--ckpt_path", tmp_path / "best.ckpt"]
    assert lightning("test", *TINY, *given) == 0
    assert "nor in choosing the epoch" in (elsewhere / "report.html").read_text()
    assert final["loss"] == pytest.approx(epochs[-1]["val/loss"], rel=1e-5)


def test_page_of_a_fit_that_validation_photos_ended_says_that_they_did(photos, tmp_path):
    place = [f"--data.root={photos}", f"--trainer.default_root_dir={tmp_path}"]
    last = ["--checkpoint.monitor=epoch", "--checkpoint.mode=max", "--trainer.max_epochs=30"]
    assert lightning("fit", *TINY, *place, *last, "--early_stopping.patience=1", "--model.learning_rate=0.5") == 0
    assert len(json.loads((tmp_path / "metrics.json").read_text())["epochs"]) < 30
    assert "optimistic" in (tmp_path / "report.html").read_text()


def test_figures_are_of_the_photos_as_they_are_in_the_order_of_their_files(finished, photos):
    """Computed once more by hand, photo by photo, from the checkpoint alone."""
    measured = MeasuredPhotos.load(finished / "evaluation" / "validation.npz")
    data = ProductPhotos(str(photos), image_size=32, validation_split=0.25)
    data.setup("validate")
    assert measured.files == [str(file) for file in data.val_files]
    assert measured.labels.tolist() == data.val_labels
    pixels = torch.from_numpy(data.photos_of(data.val_files)).permute(0, 3, 1, 2) / 255
    logits = read_checkpoint(finished / "best.ckpt").network(pixels).detach().numpy()
    np.testing.assert_allclose(measured.logits, logits, atol=1e-4)
    final = json.loads((finished / "metrics.json").read_text())["final"]
    assert final["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == measured.labels))
    assert final["loss"] == pytest.approx(evaluate(measured).loss, rel=1e-4)


def test_metrics_have_the_new_figures(finished):
    final = json.loads((finished / "metrics.json").read_text())["final"]
    assert final["set"] == "val_clean"
    low, high = final["accuracy_interval"]
    assert low < final["accuracy"] < high
    assert final["f1_macro_interval"][0] <= final["f1_macro"] <= final["f1_macro_interval"][1]
    assert 0 <= final["ece"] <= 1
    assert final["temperature"] > 0
    assert final["temperature_fitted_on"] == "validation"


def test_test_photos_come_first_and_use_the_validation_photos_temperature(photos, kept_apart, tmp_path, capsys):
    run = tmp_path / "run"
    place = [f"--data.root={photos}", f"--data.test_root={kept_apart}", f"--trainer.default_root_dir={run}"]
    assert lightning("fit", *TINY, *place) == 0
    page = (run / "report.html").read_text()
    assert 0 < page.index("20 test photos") < page.index("12 validation photos")
    content = json.loads((run / "metrics.json").read_text())
    assert content["test"]["temperature"] == content["final"]["temperature"]
    assert content["test"]["temperature_fitted_on"] == "validation"
    assert {"test.npz", "test_confusion.png"} <= {path.name for path in (run / "evaluation").iterdir()}
    assert "(95%: " in capsys.readouterr().out
    assert "None of these photos is a training or validation photo" in page


def test_test_photos_that_were_trained_on_are_counted(photos, kept_apart, tmp_path):
    mixed = shutil.copytree(kept_apart, tmp_path / "mixed")
    for name in ("jeans", "tv"):
        shutil.copy(next((photos / name).iterdir()), mixed / name / "another_name.jpg")
    place = [f"--data.root={photos}", f"--data.test_root={mixed}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert lightning("fit", *TINY, *place) == 0
    assert "2 of these 22 photos are training or validation photos, too" in (tmp_path / "run/report.html").read_text()


def test_report_of_a_part_of_the_validation_photos(photos, tmp_path):
    place = [f"--data.root={photos}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert lightning("fit", *TINY, *place, "--trainer.limit_val_batches=2") == 0
    measured = MeasuredPhotos.load(tmp_path / "run" / "evaluation" / "validation.npz")
    assert len(measured.files) == len(measured.labels) == 10


def test_lightning_test_adds_its_photos_and_changes_nothing_else(finished, kept_apart, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "report.html"}
    given = ["--config", run / "config.yaml", f"--trainer.default_root_dir={run}", "--ckpt_path", run / "best.ckpt"]
    assert lightning("test", *given, f"--data.test_root={kept_apart}") == 0
    assert str(run / "report.html") in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "20 test photos" in page
    assert "12 validation photos" in page
    assert "Training" in page
    assert "What it learnt from" in page
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before
    fitted = json.loads((run / "metrics.json").read_text())["final"]["temperature"]
    assert f"dividing its logits by {fitted:.3f}, fitted on the validation photos" in page


def test_lightning_test_elsewhere_says_that_it_has_the_test_photos_only(finished, kept_apart, tmp_path):
    given = ["--config", finished / "config.yaml", "--ckpt_path", finished / "best.ckpt"]
    out = tmp_path / "out"
    assert lightning("test", *given, f"--data.test_root={kept_apart}", f"--trainer.default_root_dir={out}") == 0
    page = (out / "report.html").read_text()
    assert "fitted on the test photos" in page
    assert "--hand_over.temperature" not in page  # that is fitted on the validation photos
    assert "Given as photos that had no part in training" in page
    assert "cross-fitted" in page
    assert "validation photos" not in page
    assert "Training" not in page
    assert not (out / "evaluation" / "curves.png").exists()
    assert not (out / "evaluation" / "training_batch.png").exists()


def test_report_of_another_checkpoint_is_not_replaced(finished, photos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["state_dict"]["network.head.predictions.bias"][0] += 5
    torch.save(content, run / "other.ckpt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    given = ["--config", run / "config.yaml", f"--trainer.default_root_dir={run}", "--ckpt_path", run / "other.ckpt"]
    assert lightning("test", *given) == 0
    assert {path: path.read_bytes() for path in before} == before
    page = (run / "test-other" / "report.html").read_text()
    assert "other.ckpt" in page
    assert "optimistic" in page  # without test_root it is the validation photos that are tested


def test_new_fit_takes_the_old_report_away(photos, tmp_path):
    run = tmp_path / "run"
    (run / "evaluation").mkdir(parents=True)
    for name in ("report.html", "calibrated.ckpt", "evaluation/test.npz"):
        (run / name).write_text("old")
    assert lightning("fit", *TINY, f"--data.root={photos}", f"--trainer.default_root_dir={run}") == 0
    assert not (run / "calibrated.ckpt").exists()
    assert not (run / "evaluation" / "test.npz").exists()
    assert "How good" in (run / "report.html").read_text()


def test_names_are_text_and_no_markup_and_missing_photos_are_no_fault(tmp_path):
    names = ["<b>a</b>", "b&c"]
    measured = MeasuredPhotos(
        "test", names, [str(tmp_path / f"<i>{number}.jpg") for number in range(4)], np.array([0, 1, 0, 1]),
        np.array([[0, 3], [3, 0], [1, 0], [0, 1]], np.float32), "run/<u>.ckpt", "0" * 64, (32, 32), "nearest",
    )  # fmt: skip
    page = render_report([evaluate(measured)], {})
    assert not re.search("<b>a|<i>[0-9]|<u>", page)
    assert "&lt;b&gt;a" in page
    assert page.count("cannot be read any more") == 2


def test_classes_without_photos_are_named_and_not_judged():
    names = ["a", "<b>", "c"]
    labels, logits = np.array([0, 0, 2, 2]), np.eye(3, dtype=np.float32)[[0, 1, 2, 2]] * 3
    files = [f"gone/{number}.jpg" for number in range(4)]
    measured = MeasuredPhotos("test", names, files, labels, logits, "best.ckpt", "", (8, 8), "nearest")
    page = render_report([evaluate(measured)], {})
    assert "There are no test photos of 1 of the 3 classes: <bdi>&lt;b&gt;</bdi>." in page
    assert page.count(3 * '<td class="number">-</td>') == 1
    whole = render_report([evaluate(replace(measured, labels=np.array([0, 1, 2, 2])))], {})
    assert "There are no" not in whole
    assert 3 * '<td class="number">-</td>' not in whole


NAMES = ["電視", "كنبة", "जींस", "🧥 مع", "ספה", "caf\udce9", "Größe", "a$_$b"]  # the last two can be drawn
NUMBERED = [f"class {number}" for number in range(1, 7)] + NAMES[6:]


def evaluation_of(names):
    logits = np.eye(len(names), dtype=np.float32)[::-1] * 3
    files = [f"gone/{number}.jpg" for number in range(len(names))]
    labels = np.arange(len(names))
    return evaluate(MeasuredPhotos("test", names, files, labels, logits, "best.ckpt", "", (8, 8), "nearest"))


@pytest.mark.filterwarnings("error:Glyph")
def test_class_names_that_cannot_be_drawn_are_numbers_there_and_text_in_the_page():
    assert drawn_names(NAMES) == NUMBERED
    drawn = confusion_png(evaluation_of(NAMES))
    assert drawn == confusion_png(evaluation_of(NUMBERED))
    assert drawn != confusion_png(evaluation_of([*NUMBERED[:5], "class 7", *NAMES[6:]]))
    page = render_report([evaluation_of(NAMES[:5])], {})
    for name, number in zip(NAMES[:5], NUMBERED[:5], strict=True):
        assert f'<bdi>{name}</bdi> <span class="small">({number} in the pictures)</span>' in page
    assert "in the pictures" not in render_report([evaluation_of(NAMES[6:])], {})


def test_one_epoch_has_no_fractions_on_its_axis(monkeypatch):
    figures = []
    monkeypatch.setattr("lightning_module.evaluation.plots._png", lambda figure: figures.append(figure) or b"")
    curves_png([{"epoch": 0, "train/loss": 1.0, "val/loss": 2.0, "train/accuracy": 0.5, "val/accuracy": 0.4}], 0)
    for panel in figures[0].axes:
        low, high = panel.get_xlim()
        assert [tick for tick in panel.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.filterwarnings("error:Glyph")
def test_captions_of_a_training_batch_can_be_drawn(photos, monkeypatch):
    captions = []
    monkeypatch.setattr(
        "lightning_module.evaluation.plots.batch_png", lambda images, given: captions.extend(given) or b""
    )
    data = ProductPhotos(str(photos), image_size=32, validation_split=0.25)
    data.setup("fit")
    module = ProductClassifier(NAMES[:4], (32, 32), backbone="mobilenetv2_short", pretrained=False)
    _training_batch(SimpleNamespace(datamodule=data, lightning_module=module))
    assert captions
    assert {*captions} <= {*NUMBERED}


@pytest.mark.parametrize("wrong", [0, 4, 5])
def test_few_mistakes_are_no_ground_for_a_temperature(tmp_path, wrong):
    labels = np.arange(30) % 2
    logits = np.eye(2, dtype=np.float32)[np.where(np.arange(30) < wrong, 1 - labels, labels)] * 3
    files = [str(tmp_path / "gone.jpg")] * 30
    measured = MeasuredPhotos("validation", ["a", "b"], files, labels, logits, "best.ckpt", "", (8, 8), "nearest")
    page = render_report([evaluate(measured)], {"validation_reliability": "data:"})
    assert ("There are too few mistakes to tell how sure the network should be" in page) == (wrong < 5)
    assert ("--hand_over.temperature fitted" in page) == (wrong >= 5)
    assert ("photos that are all right do not tell" in page) == (wrong == 0)


def test_module_that_does_not_compute_by_its_call_is_a_fault(photos, tmp_path):
    class Sly(ProductClassifier):
        def forward(self, images):
            return self.network(images)[:, :, None].squeeze(2)[:1]

        def _shared_step(self, batch, name):
            self(batch[0])
            return torch.tensor(0.0)

    data = ProductPhotos(str(photos), image_size=32, validation_split=0.25, batch_size=3)
    module = Sly(data.class_names, data.image_size, backbone="mobilenetv2_short", pretrained=False)
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[KeepLogits()]
    )
    with pytest.raises(RuntimeError, match="did not compute its logits"):
        trainer.validate(module, data, verbose=False)
    assert not module._forward_hooks


def test_two_processes_photos_come_in_the_order_of_the_files(monkeypatch):
    """As a DistributedSampler gives them out: in turn, and the first once more so that both have as many."""
    logits = torch.arange(10.0).reshape(5, 2)
    rows = {0: [0, 2, 4], 1: [1, 3, 0]}

    def gather(parts, own):
        parts[:] = [(torch.tensor(each), logits[each], torch.tensor(each) * 7) for each in rows.values()]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    trainer, loader = SimpleNamespace(world_size=2), SimpleNamespace(sampler=rows[0])
    ordered, labels = in_order(trainer, loader, logits[rows[0]], torch.tensor(rows[0]) * 7)
    assert torch.equal(ordered, logits)
    assert labels.tolist() == [0, 7, 14, 21, 28]
