"""The data module: what loaders yield, what arrives in the steps, and which input is refused."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from datamodule.augment import Augmentation
from datamodule.photo_settings import parse_image_size
from datamodule.photo_store import load_photo
from datamodule.product_photos import ProductPhotos
from datamodule.split import find_class_names
from models.bad_input import BadInput
from tests.datamodule.keras_generator import ask_keras, needs_keras
from tests.datamodule.odd_photos import draw_bad_photos, draw_odd_photos, noise

TURN = Augmentation(rotation_range=90.0, horizontal_flip=True)


def draw_root(root: Path, counts: dict[str, int], size: int = 12, seed: int = 0) -> Path:
    """A root with noise for photos; another seed, other photos."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(noise(size, size, seed=seed + 100 * label + number)).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return draw_root(tmp_path / "photos", {"jeans": 10, "sofa": 15, "tv": 5})


class Recorder(L.LightningModule):
    """Keeps what arrives in each step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.seen = {}

    def record(self, name, batch):
        self.seen.setdefault((name, self.trainer.current_epoch), []).append([part.clone() for part in batch])

    def training_step(self, batch):
        self.record("train", batch)
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if not self.trainer.sanity_checking:
            self.record(self.trainer.datamodule.val_sets[dataloader_idx], batch)

    def test_step(self, batch):
        self.record("test", batch)

    def predict_step(self, batch):
        self.record("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def images(self, name, epoch=0) -> torch.Tensor:
        return torch.cat([images for images, _ in self.seen[name, epoch]])

    def labels(self, name, epoch=0) -> list[int]:
        return torch.cat([labels for _, labels in self.seen[name, epoch]]).tolist()


def trainer_of(tmp_path, **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"max_epochs": 2, **options},
    )


def fit(tmp_path, photos: ProductPhotos, **options) -> Recorder:
    recorder = Recorder()
    trainer_of(tmp_path, **options).fit(recorder, photos)
    return recorder


def unchanged(photos: ProductPhotos, files: list[Path]) -> torch.Tensor:
    """What Keras's `rescale=1/255` makes of files, as NCHW."""
    return torch.from_numpy(photos.photos_of(files) * np.float32(1 / 255)).permute(0, 3, 1, 2)


def test_known_before_setup(root):
    photos = ProductPhotos(str(root), image_size=[20, 16])
    assert photos.class_names == ["jeans", "sofa", "tv"]
    assert photos.image_size == (20, 16)
    assert photos.interpolation == "nearest"
    assert photos.val_sets == ["val"]
    with pytest.raises(RuntimeError, match="after setup"):
        _ = photos.train_files


@pytest.mark.parametrize("given", [8, [8], [8, 8], "8", "8,8", (8, 8)])
def test_image_size_square(given):
    assert parse_image_size(given) == (8, 8)


@pytest.mark.parametrize("given", [0, [], "8,9,10", "large", [8, -1], None])
def test_image_size_refused(given):
    with pytest.raises(BadInput, match=r"image_size: expected .* received"):
        parse_image_size(given)


def test_batches_of_a_fit(root, tmp_path):
    photos = ProductPhotos(str(root), image_size=[10, 8], batch_size=7)
    recorder = fit(tmp_path, photos)
    images, labels = recorder.seen["train", 0][0]
    assert images.shape == (7, 3, 10, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(photos.train_files) == 24
    assert recorder.images("train").shape[0] == 24
    # validation: in order, as Keras holds it out
    assert photos.val_labels == [0, 0, 1, 1, 1, 2] == recorder.labels("val")
    torch.testing.assert_close(recorder.images("val"), unchanged(photos, photos.val_files), rtol=0, atol=0)
    # training: shuffled, anew in each epoch, each photo with its label
    expected = unchanged(photos, photos.train_files).flatten(1)
    orders = []
    for epoch in range(2):
        rows = [int((expected == image).all(1).nonzero()) for image in recorder.images("train", epoch).flatten(1)]
        assert sorted(rows) == list(range(24))
        assert [photos.train_labels[row] for row in rows] == recorder.labels("train", epoch)
        orders.append(rows)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize(("epoch_photos", "repeats"), [(None, 1), (24, 1), (25, 2), (72, 3)])
def test_small_set_is_gone_through_several_times_an_epoch(root, tmp_path, epoch_photos, repeats):
    photos = ProductPhotos(str(root), image_size=10, batch_size=7, epoch_photos=epoch_photos)
    recorder = fit(tmp_path, photos, max_epochs=1)
    expected = unchanged(photos, photos.train_files).flatten(1)
    rows = [int((expected == image).all(1).nonzero()) for image in recorder.images("train").flatten(1)]
    assert sorted(rows) == sorted([*range(24)] * repeats)
    assert [photos.train_labels[row] for row in rows] == recorder.labels("train")
    assert len(recorder.labels("val")) == 6  # what is measured, each photo once


def test_repeated_photos_are_augmented_differently(root, tmp_path):
    photos = ProductPhotos(str(root), image_size=12, augmentation=TURN, epoch_photos=48)
    images = fit(tmp_path, photos, max_epochs=1).images("train").flatten(1)
    once = fit(tmp_path, ProductPhotos(str(root), image_size=12, augmentation=TURN), max_epochs=1).images("train")
    assert len(images) == 48
    assert len(images.unique(dim=0)) > len(once.flatten(1).unique(dim=0)) + 20


@pytest.mark.parametrize("count", [0, -5])
def test_epoch_photos_refused(root, count):
    with pytest.raises(BadInput, match="epoch_photos: expected 1 or more; received"):
        ProductPhotos(str(root), epoch_photos=count)


def scale_twice(monkeypatch):
    transferred = ProductPhotos.on_after_batch_transfer

    def twice(self, batch, dataloader_idx):
        images, labels = transferred(self, batch, dataloader_idx)
        return images / 255, labels

    monkeypatch.setattr(ProductPhotos, "on_after_batch_transfer", twice)
    return False, True


def load_bgr(monkeypatch):
    monkeypatch.setattr(
        "datamodule.photo_store.load_photo", lambda *arguments: load_photo(*arguments)[..., ::-1].copy()
    )
    return False, True


def load_squeezed_otherwise(monkeypatch):
    monkeypatch.setattr("datamodule.photo_store.load_photo", lambda file, size, *_: load_photo(file, size, "nearest"))
    return False, True


def reverse_classes(monkeypatch):
    monkeypatch.setattr("datamodule.sources.roots.find_class_names", lambda root: find_class_names(root)[::-1])
    return False, False


# Each plants one fault, and says whether images and labels are the same nevertheless.
WRONG_ARRAYS = {
    "divided_by_255_twice": scale_twice,
    "bgr": load_bgr,
    "other_interpolation": load_squeezed_otherwise,
    "other_class_order": reverse_classes,
}


class TestAgainstKeras:
    pytestmark = needs_keras

    @pytest.mark.parametrize("subset", ["training", "validation"])
    def test_same_arrays(self, root, subset):
        """Without augmentation, the arrays of `ImageDataGenerator(rescale=1/255)`, bit for bit."""
        photos = ProductPhotos(str(root), image_size=[9, 14], batch_size=99, interpolation="bilinear")
        photos.setup("fit")
        loader = photos.train_dataloader() if subset == "training" else photos.val_dataloader()[0]
        batch = loader.dataset.__getitems__(list(range(len(loader.dataset))))
        images, labels = photos.on_after_batch_transfer(batch, 0)
        keras = ask_batch(root, subset)
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), keras["images"])
        np.testing.assert_array_equal(labels.numpy(), keras["labels"])

    @pytest.mark.parametrize("wrong", WRONG_ARRAYS)
    def test_other_arrays_are_noticed(self, root, wrong, monkeypatch):
        """Negative control: what is often done wrong between a file and the network is not the same array."""
        same_images, same_labels = WRONG_ARRAYS[wrong](monkeypatch)
        photos = ProductPhotos(str(root), image_size=[9, 14], batch_size=99, interpolation="bilinear")
        photos.setup("fit")
        loader = photos.val_dataloader()[0]
        images, labels = photos.on_after_batch_transfer(
            loader.dataset.__getitems__(list(range(len(loader.dataset)))), 0
        )
        keras = ask_batch(root, "validation")
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), keras["images"]) == same_images
        assert np.array_equal(labels.numpy(), keras["labels"]) == same_labels

    def test_one_generator_for_both_subsets_augments_the_validation_photos(self, root):
        """Keras's habit that `augment_validation` mirrors: asked of Keras itself."""
        photos = ProductPhotos(str(root), image_size=[9, 14], interpolation="bilinear")
        photos.setup("validate")
        clean = unchanged(photos, photos.val_files).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(ask_batch(root, "validation")["images"], clean)
        changed = ask_batch(root, "validation", {"rotation_range": 90.0, "horizontal_flip": True})["images"]
        assert changed.shape == clean.shape
        same = [np.array_equal(one, other) for one, other in zip(changed, clean, strict=True)]
        assert not all(same)


def ask_batch(root: Path, subset: str, augmentation: dict | None = None) -> dict[str, np.ndarray]:
    """The arrays of Keras's generator."""
    return ask_keras(
        "batch",
        root=str(root),
        image_size=[9, 14],
        interpolation="bilinear",
        validation_split=0.2,
        subset=subset,
        augmentation=augmentation,
    )


@pytest.mark.parametrize("augment_validation", [False, True])
def test_what_is_augmented(root, tmp_path, augment_validation):
    photos = ProductPhotos(str(root), image_size=12, augmentation=TURN, augment_validation=augment_validation)
    recorder = fit(tmp_path, photos)
    clean = unchanged(photos, photos.val_files)
    assert photos.val_sets == (["val", "val_clean"] if augment_validation else ["val"])
    if augment_validation:
        assert not torch.equal(recorder.images("val"), clean)
        assert not torch.equal(recorder.images("val", 0), recorder.images("val", 1))
        torch.testing.assert_close(recorder.images("val_clean"), clean, rtol=0, atol=0)
    else:
        torch.testing.assert_close(recorder.images("val"), clean, rtol=0, atol=0)
    known = unchanged(photos, photos.train_files).flatten(1)
    changed = [not (known == image).all(1).any() for image in recorder.images("train").flatten(1)]
    assert sum(changed) > 20
    assert recorder.images("train").min() >= 0
    assert recorder.images("train").max() <= 1


def photos_by_content(recorder: Recorder, epoch: int) -> torch.Tensor:
    """The augmented training photos of an epoch, in an order that does not depend on the shuffling."""
    flat = recorder.images("train", epoch).flatten(1)
    return flat[sorted(range(len(flat)), key=lambda row: flat[row].tolist())]


def test_reproducible_whatever_the_batches_and_workers(root, tmp_path):
    def run(**options) -> Recorder:
        settings = {"image_size": 12, "augmentation": TURN, "batch_size": 5, **options}
        return fit(tmp_path, ProductPhotos(str(root), **settings))

    first, again, workers = run(), run(), run(num_workers=1)
    for other in (again, workers):
        for epoch in range(2):
            torch.testing.assert_close(first.images("train", epoch), other.images("train", epoch), rtol=0, atol=0)
    larger_batches = run(batch_size=24)
    torch.testing.assert_close(photos_by_content(first, 1), photos_by_content(larger_batches, 1), rtol=0, atol=0)
    assert not torch.equal(photos_by_content(first, 0), photos_by_content(first, 1))
    assert not torch.equal(photos_by_content(first, 0), photos_by_content(run(seed=1), 0))


@pytest.mark.slow
def test_two_processes_share_the_photos(root, tmp_path):
    """Under DDP each process gets its part, and a photo is changed as in one process."""
    photos = ProductPhotos(str(root), image_size=12, augmentation=TURN, batch_size=4)
    alone = photos_by_content(fit(tmp_path, photos, max_epochs=1), 0)
    shards = SavingRecorder(tmp_path)
    trainer_of(tmp_path, devices=2, strategy="ddp_spawn", max_epochs=1).fit(
        shards, ProductPhotos(str(root), image_size=12, augmentation=TURN, batch_size=4)
    )
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert [len(part) for part in parts] == [12, 12]
    together = torch.cat(parts).flatten(1)
    together = together[sorted(range(len(together)), key=lambda row: together[row].tolist())]
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


class SavingRecorder(Recorder):
    """Writes what each process saw."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        torch.save(self.images("train"), self.folder / f"rank{self.global_rank}.pt")


def test_separate_roots(root, tmp_path):
    val_root = draw_root(tmp_path / "val", {"jeans": 1, "sofa": 1, "tv": 2}, seed=1000)
    test_root = draw_root(tmp_path / "test", {"jeans": 2, "sofa": 1, "tv": 1}, seed=2000)
    predict_root = draw_root(tmp_path / "unsorted", {"some": 2, "more/deep": 3})
    photos = ProductPhotos(
        str(root), str(val_root), str(test_root), str(predict_root), image_size=12, batch_size=2, augmentation=TURN
    )
    recorder = Recorder()
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(recorder, photos)
    trainer.test(recorder, photos, verbose=False)
    trainer.predict(recorder, photos)
    assert len(photos.train_files) == 30
    assert recorder.labels("val", 0) == photos.val_labels == [0, 1, 2, 2]
    assert recorder.seen.keys() >= {("val", 0)}
    epoch = max(epoch for name, epoch in recorder.seen if name == "test")
    assert recorder.labels("test", epoch) == photos.test_labels == [0, 0, 1, 2]
    torch.testing.assert_close(recorder.images("test", epoch), unchanged(photos, photos.test_files), rtol=0, atol=0)
    epoch = max(epoch for name, epoch in recorder.seen if name == "predict")
    assert recorder.labels("predict", epoch) == [0, 1, 2, 3, 4]  # indices into predict_files
    assert [file.relative_to(predict_root).parts[0] for file in photos.predict_files] == ["more"] * 3 + ["some"] * 2


def test_without_test_root_the_validation_photos_are_tested(root):
    photos = ProductPhotos(str(root), image_size=12)
    photos.setup("test")
    photos.setup("validate")
    assert photos.test_files == photos.val_files


def test_indices_stay_on_the_host(root, tmp_path, monkeypatch):
    """The augmentation looks its parameters up there; on a GPU, asking for them would wait in each step."""
    photos = ProductPhotos(str(root), image_size=8, batch_size=4, augmentation=TURN)
    photos.setup("fit")
    batch = next(iter(photos.train_dataloader()))
    moved = photos.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert (moved.photos.device.type, moved.labels.device.type, moved.set_name) == ("meta", "meta", "train")
    assert moved.indices is batch.indices
    images, labels = photos.on_after_batch_transfer(moved, 0)
    assert (images.device.type, labels.device.type, images.shape) == ("meta", "meta", (4, 3, 8, 8))

    asked = []
    original = ProductPhotos.transfer_batch_to_device
    monkeypatch.setattr(
        ProductPhotos, "transfer_batch_to_device", lambda self, *rest: asked.append(rest) or original(self, *rest)
    )
    fit(tmp_path, photos, max_epochs=1, num_sanity_val_steps=0)
    assert len(asked) == 6 + 2  # it is this that Lightning moves batches by: 24 and 6 photos


def test_precision_of_the_trainer_is_kept(root, tmp_path):
    recorder = fit(tmp_path, ProductPhotos(str(root), image_size=12), max_epochs=1, precision="64-true")
    assert recorder.images("train").dtype == torch.float64


@pytest.mark.parametrize("most", [3, 100])
def test_training_batch_to_look_at_is_the_first_that_was_trained_on(root, tmp_path, most):
    photos = ProductPhotos(str(root), image_size=10, batch_size=4, augmentation=TURN)
    recorder = fit(tmp_path, photos, max_epochs=2)
    state = torch.get_rng_state()
    images, labels = photos.training_batch(most)
    expected, expected_labels = recorder.seen["train", 0][0]
    assert torch.equal(images, expected[:most])
    assert torch.equal(labels, expected_labels[:most])
    photos.augmentation = None
    assert not torch.equal(images, photos.training_batch(most)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_looking_at_a_training_batch_changes_nothing_that_is_trained_on(root, tmp_path):
    class Curious(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.datamodule.training_batch(2)

    seen = []
    for callbacks in ([], [Curious()]):
        photos = ProductPhotos(str(root), image_size=10, batch_size=4, augmentation=TURN)
        seen.append(fit(tmp_path, photos, max_epochs=2, callbacks=callbacks))
    for epoch in range(2):
        assert torch.equal(*(each.images("train", epoch) for each in seen))


def test_photos_of_files_in_no_set(root, tmp_path):
    photos = ProductPhotos(str(root), image_size=[6, 5])
    odd = list(draw_odd_photos(tmp_path / "odd").values())
    pixels = photos.photos_of(odd)
    assert pixels.shape == (len(odd), 6, 5, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[3], load_photo(odd[3], (6, 5)))
    with pytest.raises(BadInput, match=r"zero_bytes\.jpg: is empty"):
        photos.photos_of(list(draw_bad_photos(tmp_path / "bad").values()))


def test_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr("datamodule.product_photos.draw_catalogue", drawn.append)
    photos = ProductPhotos(demo=True, image_size=12)
    assert photos.class_names == ["jeans", "sofa", "tshirt", "tv"]
    assert not drawn
    photos.prepare_data()
    ProductPhotos(str(tmp_path / "mine"), demo=True).prepare_data()
    assert drawn == [Path("runs/demo_photos"), tmp_path / "mine"]


class TestCommandLine:
    """The settings as LightningCLI's parser reads them."""

    def parse(self, *arguments: str) -> ProductPhotos:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(ProductPhotos, "data")
        return parser.instantiate_classes(parser.parse_args(list(arguments))).data

    @pytest.mark.parametrize(("given", "size"), [("20", (20, 20)), ("20,16", (20, 16)), ("[20, 16]", (20, 16))])
    def test_image_size(self, root, given, size):
        assert self.parse("--data.root", str(root), "--data.image_size", given).image_size == size

    def test_augmentation(self, root):
        settings = "{rotation_range: 20, width_shift_range: 0.2, height_shift_range: 3, zoom_range: [0.8, 1.1]}"
        photos = self.parse("--data.root", str(root), "--data.augmentation", settings)
        assert photos.augmentation == Augmentation(20.0, 0.2, 3, zoom_range=[0.8, 1.1])

    def test_interpolation_order(self, root):
        photos = self.parse("--data.root", str(root), "--data.augmentation", "{interpolation_order: 0}")
        assert photos.augmentation == Augmentation(interpolation_order=0)

    def test_one_setting(self, root):
        photos = self.parse("--data.root", str(root), "--data.augmentation.rotation_range", "20")
        assert photos.augmentation == Augmentation(rotation_range=20.0)


class TestUnlabelled:
    @pytest.fixture
    def more(self, tmp_path, root):
        """Photos at two depths, and one copy each of photos to train on and to validate with."""
        folder = draw_root(tmp_path / "more", {"2025": 3, "2026/spring": 2}, seed=1000)
        for place, copied in enumerate((root / "jeans/00.png", root / "tv/04.png")):
            (folder / f"copy{place}.png").write_bytes(copied.read_bytes())
        return folder

    def test_are_trained_on_without_a_label_and_nowhere_else(self, root, more, tmp_path):
        photos = ProductPhotos(str(root), image_size=12, split="stratified", unlabelled=str(more))
        recorder = fit(tmp_path, photos, max_epochs=1)
        assert [file.parent.name for file in photos.unlabelled_files] == ["2025"] * 3 + ["spring"] * 2
        assert len(photos.train_files) == len(photos.train_labels) == 24
        assert sorted(recorder.labels("train")) == sorted([*photos.train_labels, *[-1] * 5])
        images, labels = recorder.images("train"), torch.tensor(recorder.labels("train"))
        expected = unchanged(photos, photos.unlabelled_files).flatten(1)
        found = images[labels < 0].flatten(1)
        assert torch.cdist(found, expected).min(dim=1).values.max() == 0
        assert min(recorder.labels("val")) == 0
        assert photos.describe_sets()["train"]["photos"] == 29

    def test_digest_is_of_their_names_in_the_folder(self, root, more, tmp_path):
        def digest(folder: Path) -> str:
            photos = ProductPhotos(str(root), image_size=12, unlabelled=str(folder))
            photos.setup("fit")
            return photos.describe_sets()["train"]["sha256"]

        before = digest(more)
        assert digest(more.rename(tmp_path / "moved")) == before
        (tmp_path / "moved/2025/00.png").rename(tmp_path / "moved/2025/other.png")
        assert digest(tmp_path / "moved") != before

    @pytest.mark.parametrize("name", ["missing", "empty"])
    def test_folder_without_photos_is_refused(self, root, tmp_path, name):
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadInput, match=r"unlabelled: expected"):
            ProductPhotos(str(root), image_size=12, unlabelled=str(tmp_path / name)).setup("fit")
