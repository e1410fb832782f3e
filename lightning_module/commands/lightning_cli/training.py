"""`lightning fit|validate|test`: LightningCLI with this project's model, data, callbacks and run folder."""

import errno
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ActionYesNo
from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodule.product_photos import ProductPhotos
from export.checkpoint import read_hyper_parameters
from lightning_module.callbacks import BestCheckpoint, ExportTwin, MetricsJournal, best_checkpoint_of
from lightning_module.classifier import ProductClassifier
from lightning_module.commands.cli import EXIT_MISMATCH, PARSING, parse
from lightning_module.commands.endings import keep_log_in
from lightning_module.commands.lightning_cli.configurations import OPTIONS, warn_of_foreign_code
from lightning_module.commands.lightning_cli.finder_flags import FINDERS, find_settings, take_found
from lightning_module.commands.lightning_cli.kept_settings import KeepConfig, settings_text
from lightning_module.commands.lightning_cli.monitors import check_monitors
from lightning_module.commands.lightning_cli.quiet_lightning import quieten
from lightning_module.commands.lightning_cli.short_help import shipped_configs
from lightning_module.evaluation.measured_photos import KeepLogits
from lightning_module.evaluation.report import report_fit, report_test
from lightning_module.publishing.model_card import write_model_card
from lightning_module.run.checkpoint_io import AtomicCheckpoints
from lightning_module.run.closing_table import print_closing_table
from lightning_module.run.environment import note_finish
from lightning_module.run.last_checkpoint import BatchSeed, LastCheckpoint
from lightning_module.run.resumed_run import (
    ContinuedCSVLogger,
    changed_settings,
    check_optimizer_settings,
    check_settings,
    differing,
    finished,
    last_checkpoint,
    progress_of,
)
from lightning_module.run.run_folder import RunFolder, run_folder_of
from lightning_module.run.stop_signals import requeued
from models.bad_input import BadInput
from models.choices import stated_formats, widest
from models.cores import use_threads
from models.foreign.checkpoint_file import is_ours
from models.timm_mobilenetv2 import ARCHITECTURE

DEFAULT_RUN = "runs/latest"


LOADING = ("image_size", "interpolation", "background", "deep_grey", "formats")
"""Settings of the data that say how photos are loaded; a checkpoint has them."""
LINKED = ("class_names", *LOADING)
"""Settings that the model takes from the data."""


def run(argv: list[str]) -> None:
    """Run a subcommand of LightningCLI.

    Args:
        argv: subcommand and its arguments.

    Raises:
        BadInput: some input cannot be used.
        SystemExit: 1 if the twin differs from its checkpoint.
    """
    quieten()
    # Lightning's MLFlowLogger writes files unless told otherwise, which MLflow 3 refuses to do without this.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    command, arguments, stack = argv[0], with_shipped_configs(argv), ExitStack()
    warn_of_foreign_code(arguments)

    class OneCommand(TrainingCLI):
        """Has the parser of this command alone: each takes a good while to make."""

        until_the_end = stack

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: TrainingCLI.subcommands()[command]}

    try:
        with stack:
            cli = OneCommand(
                ProductClassifier,
                ProductPhotos,
                save_config_callback=KeepConfig,
                # MetricsJournal prints one line in place of the table of Lightning's model summary
                trainer_defaults={"default_root_dir": DEFAULT_RUN, "max_epochs": 30, "enable_model_summary": False},
                seed_everything_default=0,
                parser_kwargs={"prog": "lightning", **PARSING, command: dict(PARSING)},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,  # the module saves plain hyperparameters itself
                args=arguments,
            )
    except OSError as error:
        # for example from a logger, which does not write through `atomic_write`
        if error.errno not in _NOT_WRITABLE:
            raise
        raise BadInput(
            f"expected to write {error.filename or 'to the run folder'}; received: {error.strerror}. What was written "
            "before is whole. Make room or mend the permissions; the same command with --resume continues."
        ) from error
    if cli.exit_code:
        raise SystemExit(cli.exit_code)


def with_shipped_configs(argv: list[str]) -> list[str]:
    """Replace names of the project's own configurations by their files, as in `--config demo`.

    Raises:
        BadInput: a name is neither a file nor such a configuration.
    """
    shipped = shipped_configs()
    placed: list[str] = []
    for each in argv:
        option, equals, value = each.partition("=")
        if placed and placed[-1] in OPTIONS:
            placed.append(_config_file(each, shipped))
        elif equals and option in OPTIONS:
            placed.append(f"{option}={_config_file(value, shipped)}")
        else:
            placed.append(each)
    return placed


def _config_file(given: str, shipped: dict[str, Path]) -> str:
    # files, and YAML given as text, are left to the parser
    if not re.fullmatch(r"[\w-]+", given) or Path(given).is_file():
        return given
    if given not in shipped:
        raise BadInput(
            f"--config: expected a YAML file, or one of {', '.join(shipped)}, which come along; received {given!r}."
        )
    return str(shipped[given])


_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""The system's error numbers for a full disk, a folder without write permission, or a broken disk."""


class TrainingCLI(LightningCLI):
    """LightningCLI whose `fit` can be resumed, and ends with an evaluation, the Keras twin and its proof.

    Attributes:
        exit_code: 1 if the twin differs from its checkpoint.
        resumes_from: the run's own last.ckpt, if the run is resumed.
        begins_anew: whether the checkpoint to go on from had other classes, so that only its weights were taken.
        until_the_end: holds what is given back when the command ends; None if this is used from Python.
    """

    until_the_end: ExitStack | None = None
    exit_code = 0
    resumes_from: Path | None = None
    begins_anew = False
    _steps_done = 0

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return LightningCLI's subcommands without `predict`, which is a separate command."""
        return {name: options for name, options in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data's classes and image size to the model, and add settings for the callbacks."""
        parser.add_argument(
            "--num_threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads, 1 or more; null for as many as there are cores, and in validate and test as there are "
            "cores with nothing else to do. Small steps are not worth sharing out.",
        )
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(MetricsJournal, "journal")
        parser.add_lightning_class_args(ExportTwin, "hand_over")
        parser.add_lightning_class_args(KeepLogits, "logits")
        parser.set_defaults(
            {
                "early_stopping.monitor": "val/loss",
                "early_stopping.patience": 5,
                # check_monitors checks the monitor beforehand; a fit that ends before any validation is no error
                "early_stopping.strict": False,
            }
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add the flags of `fit`."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            for flag, finder in FINDERS.items():
                parser.add_argument(f"--{flag}", action=ActionYesNo, nargs="?", default=False, help=finder.help)
            parser.add_argument(
                "--resume",
                action=ActionYesNo,
                nargs="?",
                default=False,
                help="go on with the run in --trainer.default_root_dir from its last.ckpt; begin it where there is "
                "none, and do nothing where it has finished. The same command can be given until it has.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments given to `main`; LightningCLI would warn that the process has arguments, too."""
        arguments = cast(list[str], args)
        self.config = parse(arguments[0], parser, arguments, self._parser(arguments[0]))

    def _parse_ckpt_path(self) -> None:
        """Let the checkpoint's own settings override the configuration's, for the model and for the photos' size.

        This replaces LightningCLI's method, which would also set `class_names`, although they come from the data here,
        and would not take over how photos were resized in training. In a fit, only the architecture is taken over from
        the model's settings.

        Raises:
            BadInput: there is no checkpoint; or a fit continues from one whose optimiser has other settings.
        """
        subcommand = self.config.subcommand
        given = self.config[subcommand].get("ckpt_path")
        if subcommand != "fit" and not given:
            raise BadInput(f"--ckpt_path: `lightning {subcommand}` needs a checkpoint, such as RUN/best.ckpt.")
        if subcommand == "fit" and given in (None, "best", "last", "hpc", "registry"):  # Lightning finds these itself
            given = self.config[subcommand].model.weights
            if given is None or not is_ours(Path(given)):
                return
        saved = read_hyper_parameters(Path(given))
        bound = {name: value for name, value in saved.items() if name not in LINKED}
        photos: dict[str, Any] = {name: saved[name] for name in LOADING if name in saved}  # older ones have but two
        # new photos may be of more formats, which changes nothing about how a photo is loaded
        photos["formats"] = widest(stated_formats(saved), self.config[subcommand].data.formats)
        if subcommand == "fit":
            own = self.config[subcommand]
            # The command line decides how to train, the checkpoint what is trained.
            architecture = {name: bound[name] for name in (*ARCHITECTURE, "graph") if name in bound}
            bound = (
                architecture if given == own.model.weights else architecture | {"pretrained": False, "weights": None}
            )
            kept = [*differing("model", architecture, own.model), *differing("data", photos, own.data)]
            if kept:
                print(f"As {given} has it, whatever the settings say: {', '.join(kept)}.")
        else:
            photos["class_names"] = list(saved["class_names"])  # the photos' classes are matched by name
        self.config = self.parser.parse_object({subcommand: {"model": bound, "data": photos}}, self.config)

    def _set_seed(self) -> None:
        """Do the same as LightningCLI.

        Raises:
            BadInput: it is not a valid seed.
        """
        try:
            super()._set_seed()
        except ValueError as error:
            raise BadInput(f"--seed_everything: expected a number from 0 to 4294967295. {error}") from error

    def before_instantiate_classes(self) -> None:
        """Check the run's folder and the monitors before anything is read, and set the number of threads."""
        # a fit takes what it may have and not what is free: it goes on when the others have finished, and gives the
        # same numbers every time
        use_threads(self._get(self.config, "num_threads"), share=self.subcommand != "fit")
        trainer = self._get(self.config, "trainer")
        if trainer.deterministic and trainer.benchmark:  # gpu.yaml sets it; it chooses algorithms by measured speed
            trainer.benchmark = False
        if self.subcommand in ("fit", "test"):
            run = RunFolder(Path(self._get(self.config, "trainer").default_root_dir))
            if self.until_the_end is not None and getattr(rank_zero_only, "rank", 0) == 0:
                self.until_the_end.enter_context(run.taken())
            else:
                run.check_writable()  # of several processes the first has taken it for all
            keep_log_in(run.path)
            if self.subcommand == "fit":
                check_monitors(self.config["fit"])
            if self.subcommand == "fit" and (self._get(self.config, "resume") or requeued()):
                self._find_run_to_resume(run)

    def _find_run_to_resume(self, run: RunFolder) -> None:
        """Decide where a fit with --resume continues.

        Raises:
            BadInput: the run in the folder cannot be resumed with these settings.
            SystemExit: the run has finished; with its exit code.
        """
        if self._get(self.config, "trainer").max_steps != -1:
            # From such a checkpoint, Lightning would end the same epoch once more.
            raise BadInput("--resume: expected a fit of --trainer.max_epochs, received --trainer.max_steps as well.")
        last = last_checkpoint(run)
        if last is None:
            return
        take_found(self.config["fit"], run)
        parser = self._parser("fit")
        today, defaults = (
            yaml.safe_load(settings_text(parser, each)) for each in (self.config["fit"], parser.get_defaults())
        )
        changed = changed_settings(run, today, defaults)
        check_settings(run, changed)
        epochs, steps, stopped = progress_of(last)
        then, now = changed.get("trainer.max_epochs", (None, None))
        longer = bool(then and now and 0 < then < now)
        if (outcome := finished(run)) and (not longer or stopped):
            verdict = f"; parity {outcome['parity']}" if outcome.get("parity") else ""
            if other := [name for name in changed if name.startswith("hand_over.")]:
                print(f"Not handed over again, though changed: {', '.join(other)}. `lightning export` does it.")
            print(f"The run in {run.path} has finished already, after {epochs} epochs{verdict}.")
            raise SystemExit(outcome.get("exit_code", 0))
        if longer and self._get(self.config, "model")["schedule"]["cosine"]:
            print(f"The learning rate falls to the end of {now} epochs now, not of {then}: it begins higher again.")
        print(f"Going on with the run in {run.path}: {epochs} epochs are done, {steps} steps in all.")
        self.resumes_from, self._steps_done = last, steps

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Send logs to the run's folder, and show a progress bar only in a terminal."""
        settings = self._get(self.config_init, "trainer")
        logs = RunFolder(Path(settings.default_root_dir)).logs
        if settings.logger is None or settings.logger is True:
            csv_logger = ContinuedCSVLogger(logs, "", "csv", steps=self._steps_done)
            # TensorBoard merges all files in a folder, so each run has its own; a resumed run continues in it.
            tensorboard = TensorBoardLogger(
                logs, "tensorboard", default_hp_metric=False, purge_step=self._steps_done or None
            )
            if self.resumes_from and tensorboard.version:
                tensorboard._version = int(tensorboard.version) - 1
            kwargs["logger"] = [csv_logger, tensorboard] if self.subcommand == "fit" else False
        callbacks = settings.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if self.subcommand == "fit":
            callbacks = kwargs["callbacks"] = [BatchSeed(), *callbacks]  # before all that draw random numbers
        if settings.enable_progress_bar is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
            kwargs["callbacks"] = [*callbacks, RichProgressBar()] if sys.stdout.isatty() else callbacks
        plugins = settings.plugins or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(each, CheckpointIO) for each in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpoints()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:  # such as a GPU that is not there
            wants_gpu = "gpu" in str(error).lower()
            hint = " Without a GPU leave out configs/gpu.yaml, or give --trainer.accelerator cpu." if wants_gpu else ""
            raise BadInput(f"--trainer: expected settings that fit together and this machine: {error}{hint}") from error
        if isinstance(trainer.strategy, DDPStrategy) and self.model.schedule.head_epochs:
            # While only the head is trained, the backbone's weights get no gradients, and DDP must not wait for them.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    @property
    def last_checkpoint(self) -> LastCheckpoint:
        """The callback that keeps last.ckpt and answers signals."""
        callback: LastCheckpoint = self._get(self.config_init, "last_checkpoint")
        return callback

    @property
    def hand_over(self) -> ExportTwin:
        """The callback that holds the verdict."""
        callback: ExportTwin = self._get(self.config_init, "hand_over")
        return callback

    def before_fit(self) -> None:
        """Read the pretrained weights before the photos, so that errors show early. A resumed run has its weights."""
        self.hand_over.at_fit_end = False  # after_fit does it
        self.model.check_fit(self.trainer.strategy.root_device, self.datamodule)
        if not self.resumes_from:
            self._take_weights()
        if not self.resumes_from:  # the picture may be an earlier run's
            run_folder_of(self.trainer).learning_rates.unlink(missing_ok=True)
        given, kept = self.config_init[self.subcommand], self.config[self.subcommand]
        find_settings(self.model, self.datamodule, self.trainer, given, kept)

    def _take_weights(self) -> None:
        """Read the pretrained weights; of a checkpoint to go on from that has other classes, its weights alone.

        Raises:
            BadInput: they do not fit; or the fit would continue with other settings than the checkpoint's optimiser.
        """
        given = self._get(self.config_init, "ckpt_path")
        if given in (None, "best", "last", "hpc", "registry"):
            if given is None:
                self.model.load_pretrained_weights()
            return
        saved = read_hyper_parameters(Path(given))
        if list(saved["class_names"]) == self.model.class_names:
            check_optimizer_settings(Path(given), saved, self._get(self.config, "model"))
            return
        self.model.take_checkpoint_weights(Path(given))
        self.begins_anew = True
        rank_zero_info("Training begins anew from these weights: epochs and optimiser were of other outputs.")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand; a fit handles signals, and ends cleanly when the cluster wants the machine back."""
        if subcommand != "fit":
            return super()._run_subcommand(subcommand)
        with self.last_checkpoint.signals.answered():
            return super()._run_subcommand(subcommand)

    def fit(self, **settings: Any) -> None:
        """Train, from the run's own last checkpoint if the run is resumed."""
        if self.resumes_from:
            settings["ckpt_path"] = str(self.resumes_from)
        elif self.begins_anew:
            settings["ckpt_path"] = None
        self.trainer.fit(**settings)

    def before_test(self) -> None:
        """Print a note if there are no test photos and the validation photos are measured."""
        if not self.datamodule.has_test_photos:
            self.trainer.print(
                "No test photos of their own (--data.test_root): measuring the validation photos, by which a fit may "
                "have chosen the checkpoint."
            )

    def after_test(self) -> None:
        """Write the report, and print where it is."""
        if page := report_test(self.trainer, self._get(self.config_init, "logits")):
            self.trainer.print(f"How good it is, and how sure that is: {page}")

    def after_fit(self) -> None:
        """Evaluate the best checkpoint on photos without augmentation, export and prove it, and print where files are.

        The verdict is the last line. If something fails, the table of files is printed before its error.
        """
        if getattr(self.trainer, "fast_dev_run", False):
            return
        best = best_checkpoint_of(self.trainer)
        try:
            self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
            if self.datamodule.has_test_photos:
                self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
            report_fit(self.trainer, self._get(self.config_init, "journal"), self._get(self.config_init, "logits"))
            self.hand_over.export_twin(self.trainer, self.model)
            if self.trainer.is_global_zero:
                write_model_card(run_folder_of(self.trainer))
        finally:
            self._close()
        if self.trainer.is_global_zero:
            report = self.hand_over.report
            self.exit_code = EXIT_MISMATCH if report is not None and report.verdict != "PASS" else 0
            note_finish(run_folder_of(self.trainer), self.exit_code, None if report is None else report.verdict)

    def _close(self) -> None:
        if self.trainer.is_global_zero:
            journal: MetricsJournal = self._get(self.config_init, "journal")
            print_closing_table(run_folder_of(self.trainer), journal.evaluations, self.hand_over.report)
