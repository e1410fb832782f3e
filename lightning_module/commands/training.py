"""`lightning fit|validate|test`: LightningCLI with this project's model, data, callbacks and run folder."""

import errno
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import yaml
from jsonargparse import ActionYesNo
from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodule.product_photos import ProductPhotos
from export.checkpoint import read_hyper_parameters
from lightning_module.callbacks import LAST_EPOCH, BestCheckpoint, ExportTwin, MetricsJournal, best_checkpoint_of
from lightning_module.classifier import ProductClassifier
from lightning_module.commands.cli import EXIT_MISMATCH, PARSING, parse
from lightning_module.evaluation.measured_photos import KeepLogits
from lightning_module.evaluation.report import report_fit, report_test
from lightning_module.run.checkpoint_io import AtomicCheckpoints
from lightning_module.run.closing_table import print_closing_table
from lightning_module.run.environment import describe_environment, note_finish, note_resumption
from lightning_module.run.last_checkpoint import BatchSeed, LastCheckpoint, continues
from lightning_module.run.resumed_run import (
    ContinuedCSVLogger,
    changed_settings,
    check_optimizer_settings,
    check_photos,
    check_settings,
    differing,
    finished,
    last_checkpoint,
    progress_of,
)
from lightning_module.run.run_folder import RunFolder, run_folder_of, write_json
from lightning_module.run.stop_signals import requeued
from models.atomic_write import replacing, write_text
from models.bad_input import BadInput
from models.timm_mobilenetv2 import ARCHITECTURE

if TYPE_CHECKING:
    from lightning_module.finders import FoundRate

DEFAULT_RUN = "runs/latest"


class Finder(NamedTuple):
    """A flag of `fit`: look for a setting first.

    Attributes:
        group: the setting's, `data` or `model`.
        name: of the setting.
        help: for `lightning fit --help`.
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
"""In the order in which they are followed: the rate depends on the size."""
FIGURES = ("loss", "accuracy", "f1_macro")
LINKED = ("class_names", "image_size", "interpolation")
"""What the model takes from the data."""


def run(argv: list[str]) -> None:
    """Run a subcommand of LightningCLI.

    Args:
        argv: subcommand and its arguments.

    Raises:
        BadInput: something given cannot be used.
        SystemExit: 1 where the twin does not agree with its checkpoint.
    """
    _quieten()
    _keep_tensorflow_out()
    try:
        cli = TrainingCLI(
            ProductClassifier,
            ProductPhotos,
            save_config_callback=KeepConfig,
            # MetricsJournal says in a line what Lightning's model summary would in a table
            trainer_defaults={"default_root_dir": DEFAULT_RUN, "max_epochs": 30, "enable_model_summary": False},
            seed_everything_default=0,
            parser_kwargs={
                "prog": "lightning",
                **PARSING,
                **{name: dict(PARSING) for name in TrainingCLI.subcommands()},
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module saves plain hyperparameters itself
            args=argv,
        )
    except OSError as error:
        # Such as a logger's, which writes in its own way.
        if error.errno not in _NOT_WRITABLE:
            raise
        raise BadInput(
            f"expected to write {error.filename or 'to the run folder'}; received: {error.strerror}. What was written "
            "before is whole. Make room or mend the permissions; the same command with --resume continues."
        ) from error
    if cli.exit_code:
        raise SystemExit(cli.exit_code)


_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""What the system says of a disk that is full, a folder that must not be written, or a disk that is broken."""


class KeepConfig(SaveConfigCallback):
    """Writes what it takes to run a fit again: all settings to `config.yaml`, all else to `environment.json`."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write nothing yet: the data may prove unusable, and an earlier run's file is still worth something."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write both files whole.

        Raises:
            BadInput: the run goes on, but not with the photos that it began with; or a file cannot be written.
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
    """Return all settings of a fit as YAML, but its flags: they are none of what is learnt, nor other commands'."""
    settings = settings.clone()
    for flag in ("resume", *FINDERS):
        settings.pop(flag, None)
    return parser.dump(settings, skip_none=False)


class TrainingCLI(LightningCLI):
    """LightningCLI whose `fit` survives, and ends with an evaluation, the Keras twin and its proof.

    Attributes:
        exit_code: 1 where the twin does not agree with its checkpoint.
        resumes_from: the run's own last.ckpt, where it goes on.
    """

    exit_code = 0
    resumes_from: Path | None = None
    _steps_done = 0

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """LightningCLI's, but `predict`, which is a command of its own."""
        return {name: options for name, options in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the model know the data's classes and size; give the callbacks settings of their own."""
        parser.add_argument(
            "--num_threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of torch, 1 or more; null for as many as there are cores. Small steps are not worth "
            "sharing out, least of all on a machine that is busy.",
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
                # what may be watched is looked at beforehand; a fit that ends before a validation just has not stopped
                "early_stopping.strict": False,
            }
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Give `fit` its flags."""
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
        """Parse what `main` was given; LightningCLI would warn that the process has arguments as well."""
        arguments = cast(list[str], args)
        self.config = parse(arguments[0], parser, arguments, self._parser(arguments[0]))

    def _parse_ckpt_path(self) -> None:
        """Let the checkpoint's own settings win over the configuration's, for the model and for the photos' size.

        In place of LightningCLI's: that would set `class_names` too, which the data decides here, and it would leave
        photos to be resized otherwise than in training. In a fit it is the network's architecture alone that wins.

        Raises:
            BadInput: there is no checkpoint; or a fit is to go on from one whose optimiser is set otherwise.
        """
        subcommand = self.config.subcommand
        given = self.config[subcommand].get("ckpt_path")
        if subcommand != "fit" and not given:
            raise BadInput(f"--ckpt_path: `lightning {subcommand}` needs a checkpoint, such as RUN/best.ckpt.")
        if subcommand == "fit" and given in (None, "best", "last", "hpc", "registry"):
            return  # Lightning finds these itself
        saved = read_hyper_parameters(Path(given))
        bound = {name: value for name, value in saved.items() if name not in LINKED}
        photos = {name: saved[name] for name in ("image_size", "interpolation")}
        if subcommand == "fit":
            own = self.config[subcommand]
            check_optimizer_settings(Path(given), saved, own.model)
            # How to train is the command's to say; what is trained is the checkpoint's.
            architecture = {name: bound[name] for name in ARCHITECTURE if name in bound}
            bound = {**architecture, "pretrained": False, "weights": None}
            kept = [*differing("model", architecture, own.model), *differing("data", photos, own.data)]
            if kept:
                print(f"As {given} has it, whatever the settings say: {', '.join(kept)}.")
        self.config = self.parser.parse_object({subcommand: {"model": bound, "data": photos}}, self.config)

    def _set_seed(self) -> None:
        """As LightningCLI's.

        Raises:
            BadInput: it is no seed.
        """
        try:
            super()._set_seed()
        except ValueError as error:
            raise BadInput(f"--seed_everything: expected a number from 0 to 4294967295. {error}") from error

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot be written or watched before anything is read; set the threads."""
        if threads := self._get(self.config, "num_threads"):
            torch.set_num_threads(threads)
        trainer = self._get(self.config, "trainer")
        if trainer.deterministic and trainer.benchmark:  # as gpu.yaml has it: it chooses by the speed of the day
            trainer.benchmark = False
        if self.subcommand in ("fit", "test"):
            run = RunFolder(Path(self._get(self.config, "trainer").default_root_dir))
            run.check_writable()
            if self.subcommand == "fit":
                check_monitors(self.config["fit"])
            if self.subcommand == "fit" and (self._get(self.config, "resume") or requeued()):
                self._find_run_to_resume(run)

    def _find_run_to_resume(self, run: RunFolder) -> None:
        """Decide where a fit with --resume goes on.

        Raises:
            BadInput: the run in the folder cannot be gone on with under these settings.
            SystemExit: it has finished; with the exit code that it had.
        """
        if self._get(self.config, "trainer").max_steps != -1:
            # Lightning would end the epoch of such a checkpoint once more.
            raise BadInput("--resume: expected a fit of --trainer.max_epochs, received --trainer.max_steps as well.")
        last = last_checkpoint(run)
        if last is None:
            return
        self._take_found(run)
        changed = changed_settings(run, yaml.safe_load(settings_text(self._parser("fit"), self.config["fit"])))
        check_settings(run, changed)
        epochs, steps, stopped = progress_of(last)
        then, today = changed.get("trainer.max_epochs", (None, None))
        longer = bool(then and today and 0 < then < today)
        if (outcome := finished(run)) and (not longer or stopped):
            verdict = f"; parity {outcome['parity']}" if outcome.get("parity") else ""
            if other := [name for name in changed if name.startswith("hand_over.")]:
                print(f"Not handed over again, though changed: {', '.join(other)}. `lightning export` does it.")
            print(f"The run in {run.path} has finished already, after {epochs} epochs{verdict}.")
            raise SystemExit(outcome.get("exit_code", 0))
        if longer and self._get(self.config, "model")["schedule"]["cosine"]:
            print(f"The learning rate falls to the end of {today} epochs now, not of {then}: it begins higher again.")
        print(f"Going on with the run in {run.path}: {epochs} epochs are done, {steps} steps in all.")
        self.resumes_from, self._steps_done = last, steps

    def _take_found(self, run: RunFolder) -> None:
        """Let a run keep what it found when it began, though the same command asks to look for it again."""
        own = self.config["fit"]
        wanted = [flag for flag in FINDERS if own.get(flag)]
        if wanted and run.config.is_file():
            kept = yaml.safe_load(run.config.read_text(encoding="utf-8"))
            for flag in wanted:
                group, name, _ = FINDERS[flag]
                own[flag], own[group][name] = False, kept[group][name]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Send logs to the run's folder, and show a progress bar only to a person."""
        settings = self._get(self.config_init, "trainer")
        logs = RunFolder(Path(settings.default_root_dir)).logs
        if settings.logger is None or settings.logger is True:
            csv_logger = ContinuedCSVLogger(logs, "", "csv", steps=self._steps_done)
            # TensorBoard lays the files of one folder over each other: each run has its own, which it goes on with.
            tensorboard = TensorBoardLogger(
                logs, "tensorboard", default_hp_metric=False, purge_step=self._steps_done or None
            )
            if self.resumes_from and tensorboard.version:
                tensorboard._version = int(tensorboard.version) - 1
            kwargs["logger"] = [csv_logger, tensorboard] if self.subcommand == "fit" else False
        callbacks = settings.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if self.subcommand == "fit":
            callbacks = kwargs["callbacks"] = [BatchSeed(), *callbacks]  # before whatever draws
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
            # While the head learns alone, the backbone's weights have no gradient that could be waited for.
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
        """Read the pretrained weights before the photos: that fails sooner. A resumed run has its own."""
        self.hand_over.at_fit_end = False  # after_fit does it
        self.model.check_device(self.trainer.strategy.root_device)
        if not self._get(self.config_init, "ckpt_path") and not self.resumes_from:
            self.model.load_pretrained_weights()
        self._find_settings()

    def _find_settings(self) -> None:
        """Look for the batch size and the learning rate, if asked; set them in this fit and in the kept settings.

        Raises:
            BadInput: the fit goes on from a checkpoint, whose optimiser has its learning rate.
        """
        wanted = [flag for flag in FINDERS if self._get(self.config_init, flag)]
        run = run_folder_of(self.trainer)
        if not self.resumes_from:  # an earlier run's
            run.learning_rates.unlink(missing_ok=True)
        if not wanted or getattr(self.trainer, "fast_dev_run", False):
            return
        if self._get(self.config_init, "ckpt_path"):
            raise BadInput(f"--{wanted[0]}: expected a fit from the beginning, received --ckpt_path. Leave one out.")
        from lightning_module.finders import find_batch_size, find_learning_rate

        kept = self.config[self.subcommand]
        settings = dict(self._get(self.config_init, "trainer"))
        if "find_batch_size" in wanted:
            size = find_batch_size(self.model, self.datamodule, settings)
            why = "as many as there are photos" if size == len(self.datamodule.train_files) else "the largest that fits"
            self.trainer.print(f"--data.batch_size {size}: {why}; the learning rate may want to follow")
            kept["data"]["batch_size"] = self.datamodule.batch_size = size
        if "find_lr" in wanted:
            self._use_rate(run, find_learning_rate(self.model, self.datamodule, settings))

    def _use_rate(self, run: RunFolder, found: "FoundRate") -> None:
        from lightning_module.evaluation.plots import learning_rate_png

        rate, picture = found.suggestion, run.learning_rates
        with replacing(picture) as temporary:
            temporary.write_bytes(learning_rate_png(*found))
        if rate is None:
            given = self.model.hparams["learning_rate"]
            self.trainer.print(
                f"--model.learning_rate {given:g} stays: the loss did not clearly fall at any ({picture})"
            )
            return
        self.trainer.print(f"--model.learning_rate {rate:g}: where the loss falls most steeply ({picture})")
        self.config[self.subcommand]["model"]["learning_rate"] = self.model.hparams["learning_rate"] = rate

    def _run_subcommand(self, subcommand: str) -> None:
        """Leave in an orderly way when the cluster wants the machine back, whatever a fit is at."""
        if subcommand != "fit":
            return super()._run_subcommand(subcommand)
        with self.last_checkpoint.signals.answered():
            return super()._run_subcommand(subcommand)

    def fit(self, **settings: Any) -> None:
        """Train, from the run's own last checkpoint if it goes on."""
        if self.resumes_from:
            settings["ckpt_path"] = str(self.resumes_from)
        self.trainer.fit(**settings)

    def before_test(self) -> None:
        """Say so where the figures to come are none of a test."""
        if self.datamodule.test_root is None:
            self.trainer.print(
                "No --data.test_root: measuring the validation photos, by which a fit may have chosen the checkpoint."
            )

    def after_test(self) -> None:
        """Write the report, and say where it is."""
        if page := report_test(self.trainer, self._get(self.config_init, "logits")):
            self.trainer.print(f"How good it is, and how sure that is: {page}")

    def after_fit(self) -> None:
        """Evaluate the best checkpoint on photos as they are, hand it over, and say where everything is.

        The verdict is the last line; an error of Keras's comes after what was achieved before it.
        """
        if getattr(self.trainer, "fast_dev_run", False):
            return
        best = best_checkpoint_of(self.trainer)
        self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
        try:
            if self.datamodule.test_root is not None:
                self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)
            report_fit(self.trainer, self._get(self.config_init, "journal"), self._get(self.config_init, "logits"))
            self.hand_over.export_twin(self.trainer, self.model)
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


def check_monitors(settings: Any) -> None:
    """Refuse to watch a figure that no epoch will have.

    Args:
        settings: of `fit`.

    Raises:
        BadInput: there is no such figure.
    """
    sets = ["train", "val", *(["val_clean"] if settings.data.augment_validation else [])]
    known = [f"{name}/{figure}" for name in sets for figure in FIGURES if (name, figure) != ("train", "f1_macro")]
    for group, watched in (("checkpoint", [*known, LAST_EPOCH]), ("early_stopping", known)):
        if (given := settings[group].monitor) not in watched:
            hint = " With --data.augment_validation true it is there." if given.startswith("val_clean/") else ""
            raise BadInput(f"--{group}.monitor: expected one of {', '.join(watched)}, received {given!r}.{hint}")
    if settings.checkpoint.monitor == LAST_EPOCH and settings.checkpoint.mode != "max":
        raise BadInput(
            f"--checkpoint.mode: expected max with --checkpoint.monitor {LAST_EPOCH}, which keeps the last, received "
            f"{settings.checkpoint.mode!r}. Give --checkpoint.mode max."
        )


def _keep_tensorflow_out() -> None:
    """Let TensorBoard's writer use its own stub, though TensorFlow is installed for the Keras process.

    Importing TensorFlow takes seconds and hundreds of megabytes, and on a GPU it would take the memory too. This
    module's mere presence is what TensorBoard looks at (tensorboard/compat/__init__.py, `tf`).
    """
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))


_UNASKED = (
    "litlogger", "litmodels",  # advertisements
    "TPU available", "to estimate number of stepping batches", "Found current_model_state in the checkpoint",
    "GPU available: False",  # one that is there and not used is worth a line
    "Restoring states from the checkpoint path", "Loaded model weights from the checkpoint at",  # said in our own words
)  # fmt: skip
"""What Lightning logs that nobody who runs this command needs."""


def _plain_where_ours(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format this project's warnings as its other messages: whom they are for does not look for a line of code."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[2]) and "site-packages" not in filename
    return f"lightning: {message}\n" if ours else _format_others(message, category, filename, lineno, line)


_format_others = warnings.formatwarning  # Lightning's own, which is imported by now


def _quieten() -> None:
    """Silence advice that does not fit here; everything else stays."""
    for message in (
        r".*in eval mode at the start of training.*",  # a frozen backbone is in eval mode on purpose
        r".*Checkpoint directory .* exists and is not empty.*",  # see RunFolder for what happens to old files
        r".*The dirpath has changed from.*",  # an evaluation in another folder than the run's
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*is smaller than the logging interval.*",  # figures are logged per epoch
        r".*does not have many workers.*",  # photos come from memory
        r".*isinstance\(treespec, LeafSpec\).*",  # between Lightning and torch
        r".*the following callbacks.*",  # of a checkpoint's that only a fit needs
        r".*find_unused_parameters=True was specified.*",  # there are some while the head learns alone
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _plain_where_ours
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in _UNASKED)
    )
