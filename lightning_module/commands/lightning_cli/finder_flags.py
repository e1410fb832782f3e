"""`--find_batch_size` and `--find_lr` of `lightning fit`: search for a setting first, use it, and save it."""

from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from lightning.pytorch import Trainer

from lightning_module.classifier import ProductClassifier
from lightning_module.run.run_folder import RunFolder, run_folder_of
from models.atomic_write import replacing
from models.bad_input import BadInput

if TYPE_CHECKING:
    from datamodule.product_photos import ProductPhotos
    from lightning_module.finders import FoundRate


class Finder(NamedTuple):
    """A flag of `fit`.

    Attributes:
        group: group of the setting, `data` or `model`.
        name: name of the setting.
        help: text for `lightning fit --help_all`.
    """

    group: str
    name: str
    help: str


FINDERS = {
    "find_batch_size": Finder(
        "data", "batch_size", "look for the largest data.batch_size that fits into memory, and use it"
    ),
    "find_lr": Finder(
        "model", "learning_rate", "look for the model.learning_rate at which the loss falls most steeply, and use it"
    ),
}
"""In the order in which they run: the learning rate depends on the batch size."""


def take_found(settings: Any, run: RunFolder) -> None:
    """Let a resumed run keep the settings found when it began, although the same command asks for a search.

    Args:
        settings: settings of `fit`; changed in place.
        run: the run that is resumed.
    """
    wanted = [flag for flag in FINDERS if settings.get(flag)]
    if wanted and run.config.is_file():
        kept = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        for flag in wanted:
            group, name, _ = FINDERS[flag]
            settings[flag], settings[group][name] = False, kept[group][name]


def find_settings(
    model: ProductClassifier, datamodule: "ProductPhotos", trainer: Trainer, given: Any, kept: Any
) -> None:
    """Search for the settings that are asked for; set them in the model, in the data and in the saved settings.

    Args:
        model: the model to train; the search uses a copy.
        datamodule: its photos.
        trainer: knows the run's folder.
        given: settings of this fit, including the flags.
        kept: settings for config.yaml; changed in place.

    Raises:
        BadInput: the fit continues from a checkpoint, whose optimiser already has a learning rate.
    """
    wanted = [flag for flag in FINDERS if given[flag]]
    if not wanted or getattr(trainer, "fast_dev_run", False):
        return
    if given["ckpt_path"]:
        raise BadInput(f"--{wanted[0]}: expected a fit from the beginning, received --ckpt_path. Leave one out.")
    from lightning_module.finders import find_batch_size, find_learning_rate

    settings = dict(given["trainer"])
    if "find_batch_size" in wanted:
        size = find_batch_size(model, datamodule, settings)
        why = "as many as there are photos" if size == len(datamodule.train_files) else "the largest that fits"
        trainer.print(f"--data.batch_size {size}: {why}; the learning rate may want to follow")
        kept["data"]["batch_size"] = datamodule.batch_size = size
    if "find_lr" in wanted:
        rate = _shown(find_learning_rate(model, datamodule, settings), model, trainer)
        if rate is not None:
            kept["model"]["learning_rate"] = model.hparams["learning_rate"] = rate


def _shown(found: "FoundRate", model: ProductClassifier, trainer: Trainer) -> float | None:
    """Plot the learning rates, print the suggestion and return it; None if there is none."""
    from lightning_module.evaluation.plots import learning_rate_png

    rate, picture = found.suggestion, run_folder_of(trainer).learning_rates
    with replacing(picture) as temporary:
        temporary.write_bytes(learning_rate_png(*found))
    if rate is None:
        given = model.hparams["learning_rate"]
        trainer.print(f"--model.learning_rate {given:g} stays: the loss did not clearly fall at any ({picture})")
    else:
        trainer.print(f"--model.learning_rate {rate:g}: where the loss falls most steeply ({picture})")
    return rate
