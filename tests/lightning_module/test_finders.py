import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from lightning_module import finders
from lightning_module.classifier import ProductClassifier
from lightning_module.finders import MemoryGuard, find_batch_size, find_learning_rate, suggest_rate
from lightning_module.fine_tuning import Schedule
from models.bad_input import BadInput
from tests.conftest import lightning

ON_CPU = {"accelerator": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=12, seed=0)
    return root


def fit(photos: Path, run: Path, *more) -> int:
    return lightning(
        "fit", "--model.backbone=mobilenetv2_short", "--model.pretrained=false", "--model.hidden=[8]",
        "--data.image_size=32", "--data.validation_split=0.25", f"--data.root={photos}", "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2", f"--trainer.default_root_dir={run}", "--hand_over.enabled=false",
        "--data.augmentation={rotation_range: 20, horizontal_flip: true}", "--model.dropout=0.5", *more,
    )  # fmt: skip


def losses(run: Path) -> list[tuple[float, float]]:
    return [(row["train/loss"], row["val/loss"]) for row in json.loads((run / "metrics.json").read_text())["epochs"]]


def curve(seed: int = 0, noise: float = 0.05, depth: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss that is level, falls most steeply at 1e-3, and rises again from 1e-1 on."""
    rates = np.geomspace(1e-6, 1, 100)
    level = 2 - depth / (1 + np.exp(-3 * np.log10(rates / 1e-3))) + np.maximum(0, np.log10(rates / 1e-1)) * 5
    each = level + np.random.default_rng(seed).normal(size=100) * noise
    smooth = np.full(100, np.nan)
    smooth[4:-4] = np.convolve(each, np.ones(9) / 9, "valid")
    return rates, each, smooth


@pytest.mark.parametrize("seed", range(5))
def test_rate_is_where_the_loss_falls_most_steeply(seed):
    found = suggest_rate(*curve(seed, noise=0.02))
    assert 3e-4 < found < 3e-3
    assert found == float(f"{found:.1e}")


def test_loss_that_only_shakes_or_is_no_number_suggests_nothing():
    assert sum(suggest_rate(*curve(seed, depth=0)) is not None for seed in range(40)) <= 2
    rates, each, smooth = curve()
    assert suggest_rate(rates[:5], each[:5], smooth[:5]) is None
    assert suggest_rate(rates, np.full(100, np.nan), np.full(100, np.nan)) is None


def test_run_with_a_found_rate_is_the_run_with_that_rate_given(photos, tmp_path, capsys, monkeypatch):
    """Weights, order, augmentation, dropout: nothing of the fit depends on what was tried before it."""
    monkeypatch.setattr(finders, "suggest_rate", lambda *_: 3e-3)
    assert fit(photos, tmp_path / "found", "--data.batch_size=8", "--find_lr") == 0
    assert "--model.learning_rate 0.003: where the loss falls" in capsys.readouterr().out
    assert fit(photos, tmp_path / "given", "--data.batch_size=8", "--model.learning_rate=0.003") == 0
    assert losses(tmp_path / "found") == losses(tmp_path / "given")
    assert not (tmp_path / "given" / "learning_rates.png").exists()
    with Image.open(tmp_path / "found" / "learning_rates.png") as picture:
        assert min(picture.size) > 300
    config = tmp_path / "found" / "config.yaml"
    kept = yaml.safe_load(config.read_text())
    assert (kept["model"]["learning_rate"], kept.get("find_lr")) == (0.003, None)
    again = ["--config", config, f"--trainer.default_root_dir={tmp_path / 'again'}"]
    assert lightning("fit", *again) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "found")
    # the negative control: another rate is another run
    assert fit(photos, tmp_path / "other", "--data.batch_size=8", "--model.learning_rate=0.001") == 0
    assert losses(tmp_path / "other") != losses(tmp_path / "found")


def test_run_with_a_found_size_is_the_run_with_that_size_given(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finders, "MOST_ON_CPU", 16)
    assert fit(photos, tmp_path / "found", "--data.batch_size=4", "--find_batch_size") == 0
    assert "--data.batch_size 16: the largest that fits" in capsys.readouterr().out
    assert fit(photos, tmp_path / "given", "--data.batch_size=16") == 0
    assert losses(tmp_path / "found") == losses(tmp_path / "given")
    kept = yaml.safe_load((tmp_path / "found" / "config.yaml").read_text())
    assert (kept["data"]["batch_size"], kept.get("find_batch_size")) == (16, None)


def test_found_size_of_a_small_catalogue_is_called_what_it_is(photos, tmp_path, capsys):
    assert fit(photos, tmp_path / "run", "--data.batch_size=4", "--find_batch_size", "--trainer.max_epochs=1") == 0
    assert "--data.batch_size 36: as many as there are photos" in capsys.readouterr().out


def test_loss_that_does_not_fall_keeps_the_rate_that_was_given(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finders, "suggest_rate", lambda *_: None)
    assert fit(photos, tmp_path / "run", "--data.batch_size=8", "--model.learning_rate=0.004", "--find_lr") == 0
    assert "--model.learning_rate 0.004 stays" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["learning_rate"] == 0.004


def test_looking_needs_a_fit_from_the_beginning(photos, small_checkpoint, tmp_path, capsys):
    same = ["--model.hidden=[16]", "--data.image_size=48,40"]
    assert fit(photos, tmp_path / "run", *same, f"--ckpt_path={small_checkpoint}", "--find_lr") == 2
    assert "--find_lr: expected a fit from the beginning" in capsys.readouterr().err


@pytest.fixture
def data(photos) -> ProductPhotos:
    return ProductPhotos(str(photos), image_size=32, batch_size=4, validation_split=0.25)


def module_for(data: ProductPhotos, **settings) -> ProductClassifier:
    torch.manual_seed(0)
    return ProductClassifier(
        data.class_names, data.image_size, backbone="mobilenetv2_short", pretrained=False, hidden=[8], **settings
    )


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_module_and_random_numbers_are_left_alone(data, trainable, monkeypatch):
    monkeypatch.setattr(finders, "RATES", 12)
    module = module_for(data, trainable=trainable)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state, frozen, numpy_state = torch.get_rng_state(), module._frozen_backbone, np.random.get_state()[1].copy()
    found = find_learning_rate(module, data, ON_CPU)
    assert len(found.rates) == len(found.losses) == 12
    assert found.rates[0] == finders.LOWEST_RATE < found.rates[-1]
    assert find_batch_size(module, data, ON_CPU) == 36  # all there are
    assert data.batch_size == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module._frozen_backbone is frozen
    assert not frozen._passes
    assert frozen.compile == "auto"
    assert module._trainer is None
    assert "training_step" not in vars(module)


@pytest.mark.parametrize("find", [find_learning_rate, find_batch_size])
def test_what_is_tried_is_the_whole_network_though_the_fit_begins_with_the_head(data, monkeypatch, find):
    """configs/finetune.yaml: a size that fits the head's epoch alone would be too much for all others."""
    monkeypatch.setattr(finders, "RATES", 12)
    monkeypatch.setattr(finders, "MOST_ON_CPU", 8)
    with_gradient = []
    step = ProductClassifier.training_step

    def spy(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        (gradient,) = torch.autograd.grad(
            loss, self.network.backbone.conv_stem.weight, retain_graph=True, allow_unused=True
        )
        with_gradient.append(gradient is not None)
        return loss

    monkeypatch.setattr(ProductClassifier, "training_step", spy)
    module = module_for(data, trainable="all", schedule=Schedule(head_epochs=3))
    find(module, data, ON_CPU)
    assert with_gradient
    assert all(with_gradient)
    assert module.schedule.head_epochs == 3
    assert module.backbone_is_frozen


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate", "DefaultCPUAllocator: can't allocate memory"]
)
def test_largest_size_that_fits_is_found_whoever_is_out_of_memory(data, monkeypatch, words):
    step = ProductClassifier.training_step

    def small_memory(self, batch, batch_idx):
        if len(batch[1]) > 16:
            raise RuntimeError(words)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ProductClassifier, "training_step", small_memory)
    assert find_batch_size(module_for(data), data, ON_CPU) == 16


def test_memory_for_nothing_is_a_message_and_another_error_stays_one(data, monkeypatch):
    def no_memory(self, batch, batch_idx):
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(ProductClassifier, "training_step", no_memory)
    with pytest.raises(BadInput, match="at least one photo"):
        find_batch_size(module_for(data), data, ON_CPU)
    assert data.batch_size == 4

    def broken(self, batch, batch_idx):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ProductClassifier, "training_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        find_batch_size(module_for(data), data, ON_CPU)


def test_step_too_large_for_a_cpus_memory_is_not_tried(monkeypatch):
    peaks = iter([1e9, 2e9, 3e9])  # a gigabyte for 16 photos, two for 32
    monkeypatch.setattr(finders, "_peak_memory", lambda: next(peaks))
    monkeypatch.setattr(finders, "memory_size", lambda: 6e9)
    guard = MemoryGuard()
    guard.check(1 << 20)  # of the first nothing is known
    guard.note(16)
    guard.check(32)
    guard.note(32)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        guard.check(64)  # 5 of 6 gigabytes
    monkeypatch.setattr(finders, "memory_size", lambda: 7e9)
    guard.check(64)


def test_guard_ends_the_search_before_the_system_ends_the_process(data, monkeypatch):
    def note(self, photos):
        self.peak, self.photos = self.base + photos, photos  # a byte each

    monkeypatch.setattr(MemoryGuard, "note", note)
    monkeypatch.setattr(finders, "_peak_memory", lambda: 1000)
    monkeypatch.setattr(finders, "memory_size", lambda: 1020 / finders.MEMORY_SHARE)
    assert find_batch_size(module_for(data), data, ON_CPU) == 16


def test_several_processes_are_refused(data):
    settings = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    for find, flag in ((find_learning_rate, "--find_lr"), (find_batch_size, "--find_batch_size")):
        with pytest.raises(BadInput, match=f"{flag}: expected a single process"):
            find(module_for(data), data, settings)
