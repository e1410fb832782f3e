"""What is needed to run a fit again: `config.yaml` and `environment.json` in its folder."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lightning_module.commands.lightning_cli.finder_flags import FINDERS
from lightning_module.run.environment import describe_environment, note_resumption
from lightning_module.run.last_checkpoint import continues
from lightning_module.run.resumed_run import check_photos
from lightning_module.run.run_folder import run_folder_of, write_json
from models.atomic_write import write_text


class KeepConfig(SaveConfigCallback):
    """Writes what is needed to run a fit again: all settings to `config.yaml`, all else to `environment.json`."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write nothing yet: the data may turn out to be unusable, and then an earlier run's file should stay."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write both files.

        Raises:
            BadInput: the run is resumed with other photos than it began with, or a file cannot be written.
        """
        if not trainer.is_global_zero:
            return
        run, text = run_folder_of(trainer), settings_text(self.parser, self.config)
        settings, weights = yaml.safe_load(text), pl_module.hparams.get("weights")
        environment = describe_environment(trainer, settings, None if weights is None else Path(weights))
        if continues(trainer):
            check_photos(run, environment["data"])
            if changed := note_resumption(run, environment, run.last_checkpoint.name):
                trainer.print(f"Not as when the run began, so its weights may differ: {', '.join(changed)}.")
        else:
            write_json(run.environment, environment)
        write_text(run.config, text)


def settings_text(parser: LightningArgumentParser, settings: Any) -> str:
    """Return all settings of a fit as YAML, without its flags, which do not affect training and only `fit` has."""
    settings = settings.clone()
    for flag in ("resume", *FINDERS):
        settings.pop(flag, None)
    return parser.dump(settings, skip_none=False)
