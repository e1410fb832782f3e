from pathlib import Path

import pytest
import torch

from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from lightning_module.classifier import ProductClassifier
from lightning_module.commands.lightning_cli.training import TrainingCLI
from tests.conftest import ROOT, lightning

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=5, seed=0)
    return root


@pytest.fixture(autouse=True)
def _keep_settings_of_torch(monkeypatch):
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Lightning sets it where a trainer is deterministic
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)


def laid_over(config: Path) -> list[str]:
    """The arguments that a user of a configuration gives: some are laid over a recipe."""
    below = [config.with_name("finetune.yaml")] if config.name in ("distil.yaml", "gpu.yaml") else []
    return [f"--config={each}" for each in (*below, config)]


def parse(config: Path, photos: Path, run: Path, *more: str) -> TrainingCLI:
    """Everything `lightning fit --config` does up to the training itself."""

    class Parsed(TrainingCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Stop here."""

    given = ["--data.demo=false", f"--data.root={photos}", "--trainer.accelerator=cpu", *more]
    return Parsed(
        ProductClassifier,
        ProductPhotos,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=["fit", *laid_over(config), *given, f"--trainer.default_root_dir={run}"],
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_builds_model_data_and_trainer(config, photos, tmp_path):
    cli = parse(config, photos, tmp_path)
    assert cli.model.class_names == cli.datamodule.class_names
    assert tuple(cli.model.hparams["image_size"]) == cli.datamodule.image_size
    assert cli.trainer.max_epochs > 0
    kinds = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert {"EarlyStopping", "BestCheckpoint", "MetricsJournal", "ExportTwin"} <= kinds


def test_the_recipe_is_the_keras_notebooks(photos, tmp_path):
    cli = parse(CONFIGS[0].with_name("mobilenetv2.yaml"), photos, tmp_path)
    settings = cli.model.hparams
    assert (settings["backbone"], settings["pretrained"], settings["trainable"]) == ("mobilenetv2_100", True, "head")
    assert (settings["hidden"], settings["learning_rate"], settings["dropout"]) == ([128], 1e-3, 0.0)
    data = cli.datamodule
    assert (data.image_size, data.interpolation, data.batch_size) == ((244, 244), "nearest", 32)
    assert (data.validation_split, data.split, data.val_sets) == (0.2, "keras", ["val", "val_clean"])
    augmentation = data.augmentation
    assert (augmentation.rotation_range, augmentation.shear_range, augmentation.zoom_range) == (20, 0.2, 0.2)
    assert (augmentation.width_shift_range, augmentation.height_shift_range) == (0.2, 0.2)
    assert (augmentation.horizontal_flip, augmentation.fill_mode) == (True, "nearest")
    assert cli.trainer.max_epochs == 30
    stopping, best = cli.trainer.early_stopping_callback, cli.trainer.checkpoint_callback
    assert (stopping.monitor, stopping.patience, best.monitor, best.mode) == ("val/loss", 5, "val/loss", "min")


def test_a_config_with_a_misspelt_setting_is_refused(photos, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("model:\n  backbon: mobilenetv2_100\n")
    with pytest.raises(SystemExit):
        parse(wrong, photos, tmp_path / "run")


def test_gpu_settings_are_laid_over_the_recipe_and_leave_it_what_it_is(photos, tmp_path):
    plain, laid = (parse(CONFIGS[0].with_name(name), photos, tmp_path) for name in ("finetune.yaml", "gpu.yaml"))
    assert laid.model.hparams == plain.model.hparams
    assert laid.datamodule.augmentation == plain.datamodule.augmentation
    assert laid.datamodule.batch_size > plain.datamodule.batch_size
    assert (plain.trainer.precision, laid.trainer.precision) == ("32-true", "bf16-mixed")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_gpu_settings_without_a_gpu_are_a_message(photos, tmp_path, capsys):
    gpu = CONFIGS[0].with_name("gpu.yaml")
    assert lightning("fit", *laid_over(gpu), f"--data.root={photos}", f"--trainer.default_root_dir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert "lightning: --trainer: expected settings that fit together and this machine: No supported gpu" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("deterministic", ["true", "warn", "false"])
def test_what_is_deterministic_lets_no_algorithm_be_chosen_by_its_speed(photos, tmp_path, recwarn, deterministic):
    gpu = CONFIGS[0].with_name("gpu.yaml")
    cli = parse(gpu, photos, tmp_path, f"--trainer.deterministic={deterministic}")
    chosen = deterministic == "false"
    assert cli.config["fit"]["trainer"]["benchmark"] is chosen  # what config.yaml keeps
    assert torch.backends.cudnn.benchmark is chosen
    assert torch.are_deterministic_algorithms_enabled() is not chosen
    assert not [each for each in recwarn if "benchmark=True" in str(each.message)]
