"""Runs that survive: what is interrupted goes on as if it had not been, and what cannot go on says why."""

import errno
import json
import os
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping

import datamodule.photo_store
import lightning_module.run.last_checkpoint
from datamodule.demo_photos import draw_catalogue
from lightning_module.callbacks import MetricsJournal
from lightning_module.commands.lightning_cli import training
from lightning_module.evaluation.measured_photos import KeepLogits
from lightning_module.run.checkpoint_io import AtomicCheckpoints
from lightning_module.run.last_checkpoint import BatchSeed, LastCheckpoint
from lightning_module.run.resumed_run import changed_settings
from lightning_module.run.run_folder import RunFolder
from lightning_module.run.stop_signals import Preempted, StopSignals, requeued
from models.bad_input import BadInput
from tests.conftest import ROOT, flip_in_archive, lightning, load_script

kill_and_resume = load_script(ROOT / "benchmarks" / "training" / "kill_and_resume.py")
TINY = [
    "--model.backbone=mobilenetv2_short",
    "--model.pretrained=false",
    "--model.hidden=[8]",
    "--model.dropout=0.3",
    "--model.trainable=all",
    "--data.image_size=32",
    "--data.batch_size=4",
    "--data.validation_split=0.25",
    "--data.augmentation.rotation_range=20",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3",
    "--hand_over.enabled=false",
]
STEPS = 6
"""Of an epoch."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=8, seed=0)
    return root


def fit(photos: Path, run: Path, *more) -> int:
    return lightning("fit", *TINY, f"--data.root={photos}", f"--trainer.default_root_dir={run}", *more)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    """A run that nobody interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert fit(photos, run) == 0
    return run


class Interruption(Callback):
    """Does something at the end of a step, or in an epoch's validation."""

    def __init__(self, action, epoch: int, step: int | None) -> None:
        self.action, self.epoch, self.step = action, epoch, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.step):
            self.action()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.step is None and trainer.current_epoch == self.epoch and not trainer.sanity_checking:
            self.action()


@pytest.fixture
def interrupt(monkeypatch):
    """Interrupt the next fits at a moment, or no more."""

    def at(epoch: int, step: int | None, action=lambda: os.kill(os.getpid(), signal.SIGTERM)) -> None:
        def instantiate(self, **kwargs):
            trainer = original(self, **kwargs)
            trainer.callbacks.insert(0, Interruption(action, epoch, step))
            return trainer

        monkeypatch.setattr(training.TrainingCLI, "instantiate_trainer", instantiate)

    original = training.TrainingCLI.instantiate_trainer
    at.off = lambda: monkeypatch.setattr(training.TrainingCLI, "instantiate_trainer", original)
    return at


def crash() -> None:
    raise SystemExit(77)


def progress(run: Path) -> tuple[int, int]:
    content = torch.load(run / "last.ckpt", weights_only=True)
    return content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"], content["global_step"]


def test_sigterm_saves_and_leaves_and_the_same_command_goes_on(photos, whole, tmp_path, interrupt, capsys):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run, "--resume") == 143
    assert progress(run) == (1, STEPS + 3)
    said = capsys.readouterr().err
    assert f"SIGTERM: {run / 'last.ckpt'} is of epoch 2, step 3. The same command with --resume continues." in said
    assert "Traceback" not in said
    interrupt(2, 0)
    assert fit(photos, run, "--resume") == 143
    assert f"Going on with the run in {run}: 1 epochs are done, 9 steps in all." in capsys.readouterr().out
    interrupt.off()
    assert fit(photos, run, "--resume=true") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []
    assert RunFolder(run).training_batch.read_bytes() == RunFolder(whole).training_batch.read_bytes()
    assert fit(photos, run, "--resume") == 0
    assert f"The run in {run} has finished already, after 3 epochs" in capsys.readouterr().out


def test_damaged_last_checkpoint_is_refused_and_a_fit_without_resume_begins_anew(photos, tmp_path, interrupt, capsys):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    moments = max(zipfile.ZipFile(run / "last.ckpt").infolist(), key=lambda each: each.header_offset * each.file_size)
    flip_in_archive(run / "last.ckpt", moments.filename.partition("/")[2])
    before = (run / "last.ckpt").read_bytes()
    capsys.readouterr()
    assert fit(photos, run, "--resume") == 2
    assert f"{run / 'last.ckpt'}, which is damaged" in capsys.readouterr().err
    assert (run / "last.ckpt").read_bytes() == before
    assert fit(photos, run) == 0


@pytest.mark.parametrize("part", ["loader", "seed", "figures"])
def test_each_part_is_needed(photos, whole, tmp_path, interrupt, monkeypatch, part):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    if part == "loader":
        from datamodule.photo_order import ResumableLoader

        monkeypatch.setattr(ResumableLoader, "load_state_dict", lambda *_: None)
    elif part == "seed":
        monkeypatch.setattr(BatchSeed, "on_train_batch_start", lambda *_: None)
    else:
        monkeypatch.setattr(lightning_module.run.last_checkpoint, "_add_figures", lambda *_: None)
    assert fit(photos, run, "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, run)


def test_sigterm_in_a_validation_does_not_wait_for_its_end(photos, whole, tmp_path, interrupt, capsys, monkeypatch):
    monkeypatch.setattr(lightning_module.run.last_checkpoint, "BEFORE_VALIDATION", 0.0)
    run = tmp_path / "run"
    interrupt(1, None)
    assert fit(photos, run) == 143
    assert "is of epoch 2, step 5." in capsys.readouterr().err
    assert progress(run) == (1, 2 * STEPS - 1)
    interrupt.off()
    assert fit(photos, run, "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


def test_crash_before_the_first_checkpoint_begins_anew(photos, whole, tmp_path, interrupt):
    run = tmp_path / "run"
    interrupt(0, 3, crash)
    assert fit(photos, run, "--resume") == 77
    assert not (run / "last.ckpt").exists()
    interrupt.off()
    assert fit(photos, run, "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


def test_crash_after_training_goes_on_with_the_evaluation(photos, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingCLI, "after_fit", lambda _: crash())
        assert fit(photos, run) == 77
    before = (run / "last.ckpt").read_bytes()
    assert fit(photos, run, "--resume") == 0
    assert (run / "last.ckpt").read_bytes() == before
    assert kill_and_resume.differences_of_runs(whole, run) == []
    assert "final" in json.loads((run / "metrics.json").read_text())


def test_early_stopping_stays_stopped(photos, tmp_path, monkeypatch, capsys):
    run, settings = tmp_path / "run", ["--early_stopping.patience=1", "--early_stopping.min_delta=10"]
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingCLI, "after_fit", lambda _: crash())
        assert fit(photos, run, *settings) == 77
    assert progress(run) == (2, 2 * STEPS)
    for more in ([], ["--trainer.max_epochs=9"]):
        assert fit(photos, run, *settings, "--resume", *more) == 0
        assert progress(run) == (2, 2 * STEPS)
        assert len(json.loads((run / "metrics.json").read_text())["epochs"]) == 2
    assert "has finished already" in capsys.readouterr().out
    assert not (run / "previous").exists()


def test_state_of_early_stopping_and_journal_travel(photos, tmp_path, interrupt):
    run = tmp_path / "run"
    interrupt(2, 1)
    assert fit(photos, run) == 143
    states = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]
    stopping = next(state for name, state in states.items() if name.startswith("EarlyStopping"))
    assert float(stopping["best_score"]) < float("inf")
    journal = states[MetricsJournal().state_key]
    assert [row["epoch"] for row in journal["epochs"]] == [0, 1]
    assert journal["begun"]["images"] == 8  # of the third epoch


def test_other_settings_are_refused_and_those_of_the_machine_are_not(photos, whole, tmp_path, interrupt, capsys):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    assert fit(photos, run, "--resume", "--model.learning_rate=0.01", "--data.seed=3") == 2
    said = capsys.readouterr().err
    assert "--data.seed 0 (now 3), --model.learning_rate 0.001 (now 0.01)" in said
    elsewhere = shutil.copytree(photos, tmp_path / "elsewhere")
    assert fit(elsewhere, run, "--resume", "--early_stopping.patience=9") == 2  # Lightning keeps the old one
    assert fit(elsewhere, run, "--resume", "--data.store_ram_share=0.4") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


NEW_SETTINGS = ("data.deep_grey", "data.formats", "data.foreign_classes", "data.class_names", "data.table",
                "model.classes", "model.schedule", "model.regularisation.random_erasing")  # fmt: skip
"""Settings that runs of older versions do not have in their config.yaml, and a whole group of them."""


def as_of_an_older_version(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name in NEW_SETTINGS:
        *groups, last = name.split(".")
        place = settings
        for group in groups:
            place = place[group]
        del place[last]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def test_run_of_an_older_version_goes_on(photos, whole, tmp_path, interrupt, capsys):
    """What a setting's default does is what that version did; whoever sets it otherwise changes the run."""
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    as_of_an_older_version(run)
    capsys.readouterr()
    assert fit(photos, run, "--resume", "--data.deep_grey=scale", "--model.schedule.warmup_epochs=1") == 2
    said = capsys.readouterr().err
    assert "began with, --data.deep_grey clip (now scale), --model.schedule.warmup_epochs 0.0 (now 1.0)." in said
    assert fit(photos, run, "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


def test_what_an_older_run_had_as_null_is_not_new(tmp_path):
    run = RunFolder(tmp_path)
    run.config.write_text("data: {augmentation: null, root: a}\nmodel: {dropout: 0.5}\n")
    today = {
        "data": {"augmentation": {"cval": 1.0}, "root": "a"},
        "model": {"hidden": [8], "gone": None, "dropout": 0.5},
    }
    defaults = {"data": {"augmentation": {"cval": 1.0}, "root": None}, "model": {"hidden": [8]}}
    assert changed_settings(run, today, defaults) == {"data.augmentation.cval": (None, 1.0)}


def test_more_epochs_for_a_finished_run(photos, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("model.h5", "parity.json"):
        (run / name).write_text("of three epochs")
    assert fit(photos, run, "--resume", "--trainer.max_epochs=4") == 0
    assert len(json.loads((run / "metrics.json").read_text())["epochs"]) == 4
    assert not (run / "model.h5").exists()
    assert (run / "previous" / "model.h5").read_text() == "of three epochs"
    assert progress(run / "previous") == (3, 3 * STEPS)
    assert progress(run) == (4, 4 * STEPS)
    before = (run / "config.yaml").read_bytes()
    assert fit(photos, run, "--resume", "--trainer.max_epochs=2") == 0  # fewer are done already
    assert progress(run) == (4, 4 * STEPS)
    assert (run / "config.yaml").read_bytes() == before


def test_other_photos_are_refused(photos, tmp_path, interrupt, capsys):
    own, run = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "run"
    interrupt(1, 2)
    assert fit(own, run) == 143
    interrupt.off()
    shutil.copy2(next((own / "tv").glob("*.jpg")), next((own / "sofa").glob("*7.jpg")))
    assert fit(own, run, "--resume") == 2
    assert "expected the train photos that the run in" in capsys.readouterr().err


def test_folder_may_be_moved(photos, whole, tmp_path, interrupt):
    interrupt(1, 2)
    assert fit(photos, tmp_path / "here") == 143
    interrupt.off()
    (tmp_path / "here").rename(tmp_path / "there")
    assert fit(photos, tmp_path / "there", "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, tmp_path / "there") == []


def test_logs_are_those_of_a_run_left_in_peace(photos, whole, tmp_path, interrupt):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    assert fit(photos, run, "--resume") == 0
    logs = [(each / "logs" / "csv" / "metrics.csv").read_text() for each in (whole, run)]
    assert logs[0] == logs[1]
    assert logs[0].count("\n") > 3


def test_run_that_is_begun_anew_keeps_the_unfinished_one(photos, tmp_path, interrupt, capsys):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    assert fit(photos, run, "--trainer.max_epochs=1") == 0
    assert progress(run) == (1, STEPS)
    assert progress(run / "interrupted") == (1, STEPS + 3)
    # the one in the shelf can be taken up
    assert fit(photos, run / "interrupted", "--resume") == 0


def test_run_that_slurm_has_queued_again_goes_on_without_the_flag(photos, whole, tmp_path, interrupt, monkeypatch):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeued()
    assert fit(photos, run) == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


def test_slurms_signal_saves_and_queues_the_job_again(photos, tmp_path, interrupt, monkeypatch, capsys):
    calls = []
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(StopSignals, "_numbers", staticmethod(lambda: [signal.SIGTERM, signal.SIGUSR1]))
    original = subprocess.run

    def run_command(command, **settings):
        if command[0] != "scontrol":
            return original(command, **settings)
        calls.append(command)

    monkeypatch.setattr(subprocess, "run", run_command)
    run = tmp_path / "run"
    interrupt(1, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert fit(photos, run) == 128 + signal.SIGUSR1
    assert calls == [["scontrol", "requeue", "77"]]
    assert progress(run) == (1, STEPS + 3)


def test_settings_of_the_epoch_are_restored_in_its_middle(photos, tmp_path, interrupt):
    more = ["--model.schedule.head_epochs=1", "--model.regularisation.mixup=0.5", "--model.schedule.cosine=true"]
    assert fit(photos, tmp_path / "whole", *more) == 0
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run, *more) == 143
    interrupt.off()
    assert fit(photos, run, *more, "--resume") == 0
    assert kill_and_resume.differences_of_runs(tmp_path / "whole", run) == []


def test_second_run_with_the_same_seed_has_the_same_weights_and_another_seed_has_not(photos, whole, tmp_path):
    assert fit(photos, tmp_path / "again", "--trainer.deterministic=true") == 0
    assert kill_and_resume.differences_of_runs(whole, tmp_path / "again") == []
    assert fit(photos, tmp_path / "other", "--seed_everything=1") == 0
    assert kill_and_resume.differences_of_runs(whole, tmp_path / "other")


def test_environment_says_what_it_takes_to_run_it_again(whole, photos):
    content = json.loads((whole / "environment.json").read_text())
    assert content["python"]
    assert content["packages"]["torch"] == torch.__version__.split("+")[0]
    assert content["seeds"] == {"seed_everything": 0, "data.seed": 0}
    assert {name: each["photos"] for name, each in content["data"].items()} == {"train": 24, "val": 8}
    assert len({each["sha256"] for each in content["data"].values()}) == 2
    assert content["finished"]["exit_code"] == 0
    assert content["processes"] == 1
    assert set(content["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}
    assert yaml.safe_load((whole / "config.yaml").read_text())["data"]["root"] == str(photos)


def test_digest_of_the_photos_hangs_on_names_and_contents_alone(photos, tmp_path):
    from datamodule.product_photos import ProductPhotos

    def digests(root: Path) -> dict:
        data = ProductPhotos(str(root), image_size=32, validation_split=0.25)
        data.setup("fit")
        return data.describe_sets()

    own = shutil.copytree(photos, tmp_path / "photos")
    assert digests(own) == digests(photos)
    last = sorted((own / "tv").glob("*.jpg"))[-1]
    renamed = last.rename(last.with_name("zz.jpg"))
    assert digests(own)["train"] != digests(photos)["train"]
    assert digests(own)["val"] == digests(photos)["val"]
    renamed.rename(last)
    last.write_bytes(last.read_bytes() + b"\0")
    assert digests(own)["train"] != digests(photos)["train"]


def test_resuming_elsewhere_says_what_has_changed(photos, tmp_path, interrupt, capsys):
    run = tmp_path / "run"
    interrupt(1, 2)
    assert fit(photos, run) == 143
    interrupt.off()
    content = json.loads((run / "environment.json").read_text())
    content["packages"]["torch"] = "1.0"
    (run / "environment.json").write_text(json.dumps(content))
    assert fit(photos, run, "--resume") == 0
    assert "Not as when the run began, so its weights may differ: torch." in capsys.readouterr().out
    (resumption,) = json.loads((run / "environment.json").read_text())["resumed"]
    assert list(resumption["changed"]) == ["torch"]


def poison(run: Path) -> None:
    """Make the next loss no number."""
    raise AssertionError("replaced")


def test_loss_that_is_no_number_stops_at_once_and_keeps_the_last_checkpoint(photos, tmp_path, monkeypatch, capsys):
    from lightning_module.classifier import ProductClassifier

    original = ProductClassifier.training_step

    def step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if (self.trainer.current_epoch, batch_idx) == (1, 3) else loss

    monkeypatch.setattr(ProductClassifier, "training_step", step)
    run = tmp_path / "run"
    assert fit(photos, run, "--last_checkpoint.minutes=0") == 2
    said = capsys.readouterr().err
    assert "received one that is none in epoch 2, step 4 of 6" in said
    assert f"{run / 'last.ckpt'} is of epoch 2, step 3 and sound" in said
    assert "Traceback" not in said
    for name in ("last.ckpt", "best.ckpt"):
        weights = torch.load(run / name, weights_only=True)["state_dict"].values()
        assert all(each.isfinite().all() for each in weights)


def test_weights_that_are_no_numbers_are_not_written_though_the_loss_was_one(photos, tmp_path, interrupt, capsys):
    run = tmp_path / "run"
    trainers = []

    def spoil():
        with torch.no_grad():
            next(trainers[0].lightning_module.network.head.parameters()).fill_(float("nan"))

    original = lightning_module.run.last_checkpoint.LastCheckpoint.on_fit_start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            lightning_module.run.last_checkpoint.LastCheckpoint,
            "on_fit_start",
            lambda self, trainer, module: trainers.append(trainer) or original(self, trainer, module),
        )
        interrupt(0, STEPS - 1, spoil)
        assert fit(photos, run) == 2
    assert "in epoch 1, step 6 of 6" in capsys.readouterr().err
    assert not list(run.glob("*.ckpt"))


def test_missing_gpu_is_a_message(photos, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert fit(photos, tmp_path / "run", "--trainer.accelerator=gpu") == 2
    said = capsys.readouterr().err
    assert "lightning: --trainer: expected settings that fit together and this machine: No supported gpu" in said
    assert "--trainer.accelerator cpu" in said
    assert "Traceback" not in said


class FullDisk:
    """Writes as `torch.save` does, until there is no room."""

    def __init__(self, files: int) -> None:
        self.files, self.save = files, torch.save

    def __call__(self, content, file) -> None:
        self.files -= 1
        if self.files < 0:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.save(content, file)


def test_full_disk_is_a_message_and_the_last_checkpoint_is_whole(photos, whole, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", FullDisk(files=2))
        assert fit(photos, run) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert progress(run) == (1, STEPS)
    assert not list(run.glob(".*"))
    assert fit(photos, run, "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


def test_error_of_a_logger_is_a_message(photos, tmp_path, monkeypatch, capsys):
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")

    monkeypatch.setattr(training.ContinuedCSVLogger, "save", full)
    assert fit(photos, tmp_path / "run") == 2
    assert "expected to write metrics.csv; received: No space left on device" in capsys.readouterr().err


def test_real_write_error_within_torchs_own_file_format(tmp_path):
    checkpoints = AtomicCheckpoints()
    checkpoints.save_checkpoint({"a": torch.ones(3)}, tmp_path / "x.ckpt")
    code = (
        "import resource, signal, sys, torch; from lightning_module.run.checkpoint_io import AtomicCheckpoints;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY));"
        "content = {name: torch.ones(1 << 16) for name in 'abc'};"
        "AtomicCheckpoints().save_checkpoint(content, sys.argv[1])"
    )
    ended = subprocess.run(
        [os.sys.executable, "-c", code, tmp_path / "x.ckpt"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "BadInput: expected a place where" in ended.stderr
    assert "File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["a"].sum() == 3


def test_checkpoint_that_cannot_be_read_is_named(photos, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.ckpt").write_bytes(b"half")
    assert fit(photos, run, "--resume") == 2
    assert f"{run / 'last.ckpt'}" in capsys.readouterr().err


def test_half_written_files_of_a_killed_run_are_swept(photos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".last.ckpt.99.tmp").write_bytes(b"half")
    (run / "mine.tmp").write_bytes(b"somebody's")
    RunFolder(run).sweep()
    assert [path.name for path in run.iterdir()] == ["mine.tmp"]


def test_minutes_are_checked():
    with pytest.raises(BadInput, match="0 or more, received -1"):
        LastCheckpoint(-1)


def test_signals_are_answered_at_once_or_noted_and_given_back():
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    forwarded = []
    with signals.answered():
        signals.forward = forwarded.append
        signals.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert forwarded == [signal.SIGTERM]
        signals.release()
        with pytest.raises(Preempted) as leaving:
            os.kill(os.getpid(), signal.SIGTERM)
        assert leaving.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_interrupt_of_the_keyboard_does_not_wait():
    signals = StopSignals()
    with signals.answered():
        signals.hold()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def press_ctrl_c(times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_training_saves_and_a_second_one_leaves_at_once_and_both_are_130(
    photos, whole, tmp_path, interrupt, capsys
):
    """Lightning itself exits with 1, which is the code of twins that differ."""
    run = tmp_path / "run"
    interrupt(1, 2, press_ctrl_c)
    assert fit(photos, run) == 130
    said = capsys.readouterr().err
    assert f"SIGINT: {run / 'last.ckpt'} is of epoch 2, step 3. The same command with --resume continues." in said
    interrupt(2, 2, lambda: press_ctrl_c(2))
    assert fit(photos, run, "--resume") == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "lightning: interrupted. The same command with --resume continues."
    assert "Traceback" not in said
    interrupt.off()
    assert fit(photos, run, "--resume") == 0
    assert kill_and_resume.differences_of_runs(whole, run) == []


@pytest.mark.parametrize("moment", ["a photo is decoded", "the last validation", "the last evaluation"])
def test_ctrl_c_at_any_moment_of_a_fit_is_130_and_names_resume(photos, tmp_path, monkeypatch, capsys, moment):
    run = tmp_path / "run"
    if moment == "a photo is decoded":
        original = datamodule.photo_store.load_photo

        def load(*arguments):
            monkeypatch.setattr(datamodule.photo_store, "load_photo", original)
            press_ctrl_c()
            return original(*arguments)

        monkeypatch.setattr(datamodule.photo_store, "load_photo", load)
    elif moment == "the last validation":
        monkeypatch.setattr(KeepLogits, "on_validation_batch_end", lambda self, trainer, *_: (
            press_ctrl_c() if trainer.state.fn == "validate" else None
        ))  # fmt: skip
    else:
        monkeypatch.setattr(training, "report_fit", lambda *_: press_ctrl_c())
    assert fit(photos, run, "--trainer.max_epochs=1") == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "lightning: interrupted. The same command with --resume continues."
    assert "Traceback" not in said
    monkeypatch.undo()
    assert fit(photos, run, "--trainer.max_epochs=1", "--resume") == 0


def test_ctrl_c_in_an_evaluation_is_130_too(photos, whole, monkeypatch, capsys):
    monkeypatch.setattr(KeepLogits, "on_validation_batch_end", lambda *_: press_ctrl_c())
    checkpoint = ["--config", whole / "config.yaml", "--ckpt_path", whole / "best.ckpt"]
    assert lightning("validate", *checkpoint) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "lightning: interrupted"


def test_without_the_command_line_too(photos, tmp_path):
    """Whoever writes Python gets last.ckpt, and goes on by its path."""
    from datamodule.product_photos import ProductPhotos
    from lightning_module.callbacks import BestCheckpoint
    from lightning_module.classifier import ProductClassifier

    def train(run: Path, interruption: Callback | None, checkpoint: Path | None = None) -> dict:
        L.seed_everything(0)
        data = ProductPhotos(str(photos), image_size=32, validation_split=0.25, batch_size=4)
        module = ProductClassifier(
            data.class_names, [32, 32], backbone="mobilenetv2_short", pretrained=False, trainable="all", dropout=0.3
        )
        callbacks = [BatchSeed(), BestCheckpoint(), LastCheckpoint(), EarlyStopping("val/loss")]
        trainer = L.Trainer(
            default_root_dir=run,
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=[*callbacks, *([interruption] if interruption else [])],
            plugins=[AtomicCheckpoints()],
        )
        trainer.fit(module, data, ckpt_path=checkpoint)
        return module.state_dict()

    peace = train(tmp_path / "a", None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        train(tmp_path / "b", Interruption(lambda: os.kill(os.getpid(), signal.SIGTERM), 1, 1))
    resumed = train(tmp_path / "b", None, tmp_path / "b" / "last.ckpt")
    assert kill_and_resume.differences(peace, resumed) == []
    assert signal.getsignal(signal.SIGTERM) is before
