import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.imports import RequirementCache
from PIL import Image

from datamodule.demo_photos import draw_catalogue
from datamodule.product_photos import ProductPhotos
from export.proof.report import Check, Report
from export.worker.keras_process import KerasFailed
from lightning_module.callbacks import BestCheckpoint, ExportTwin, MetricsJournal, best_epoch
from lightning_module.classifier import ProductClassifier
from lightning_module.commands import cli
from lightning_module.commands.endings import missing_package
from lightning_module.run.run_folder import RunFolder, write_json
from models.bad_input import BadInput
from tests.conftest import ROOT, lightning

TINY = [
    "--model.backbone=mobilenetv2_short",
    "--model.pretrained=false",
    "--model.hidden=[8]",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.validation_split=0.25",
    "--trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("catalogue") / "photos"
    draw_catalogue(root, per_class=8, seed=0)
    return root


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    """Whatever a command leaves in the working directory is seen there."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


def fit(photos: Path, run: Path, *more, epochs: int = 1, hand_over: bool = False) -> int:
    return lightning(
        "fit",
        *TINY,
        f"--data.root={photos}",
        f"--trainer.default_root_dir={run}",
        f"--trainer.max_epochs={epochs}",
        f"--hand_over.enabled={str(hand_over).lower()}",
        *more,
    )


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """A run of two epochs, without twin."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert fit(photos, run, "--data.augment_validation=true", epochs=2) == 0
    return run


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from lightning_module.commands.cli import main; main(['--help']); "
        "heavy = {'torch', 'lightning', 'timm', 'tensorflow', 'keras', 'matplotlib'}; "
        "print(*sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == ""
    lines = [line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")]
    assert lines == [
        "fit",
        "validate",
        "test",
        "predict",
        "export",
        "parity",
        "import",
        "upgrade",
        "audit",
        "serve",
        "publish",
    ]
    assert "1 they differ; 2 bad input; 3 Keras itself crashed" in shown.stdout
    assert shown.stdout.strip() in (ROOT / "docs" / "commands.md").read_text()


def test_module_is_the_same_command():
    shown = subprocess.run([sys.executable, "-m", "lightning_module"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == cli.help_text()


def without_a_reader(python, *arguments) -> subprocess.CompletedProcess:
    """Run the command with streams that are read to the end of the first line, or not at all."""
    command = [python, "-m", "lightning_module", *map(str, arguments)]
    source, sink = os.pipe()
    with subprocess.Popen(command, stdout=sink, stderr=subprocess.PIPE, text=True) as process:
        os.close(source)
        os.close(sink)
        _, said = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, "", said)


def test_help_that_nobody_reads_leaves_no_traceback():
    for arguments in ([], ["fit", "--help"]):
        done = without_a_reader(sys.executable, *arguments)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"]])
def test_output_that_cannot_be_written_is_bad_input_and_not_a_mismatch(arguments):
    command = [sys.executable, "-m", "lightning_module", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "expected room on the disk, received: No space left on device" in done.stderr
    assert "Traceback (" not in done.stderr


@pytest.mark.slow
def test_closed_pipe_neither_ends_a_training_nor_leaves_a_traceback(photos, command_python, tmp_path):
    run = tmp_path / "run"
    settings = [f"--data.root={photos}", f"--trainer.default_root_dir={run}", "--trainer.max_epochs=2"]
    done = without_a_reader(command_python, "fit", *TINY, *settings, "--hand_over.enabled=false")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr
    assert (run / "report.html").is_file()
    assert len(json.loads((run / "metrics.json").read_text())["epochs"]) == 2
    done = without_a_reader(command_python, "predict", run / "best.ckpt", photos, "--out", tmp_path / "p.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 33


def test_unknown_command_names_the_nearest(capsys):
    assert lightning("fitt") == 2
    assert "Did you mean 'fit'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "export", "parity"])
def test_each_command_has_help(command, capsys):
    assert lightning(command, "--help") == 0
    shown = capsys.readouterr().out
    assert {"fit": "--model.weights", "export": "--input_range", "parity": "--keras_python"}[command] in shown
    # argparse breaks the lines where they fit
    assert command == "fit" or " ".join(cli.EXIT_CODES.split()) in " ".join(shown.split())


def test_fit_leaves_its_files_in_the_run_and_none_elsewhere(finished):
    assert {"best.ckpt", "metrics.json", "config.yaml", "logs"} <= {path.name for path in finished.iterdir()}
    assert (finished / "logs" / "csv" / "metrics.csv").is_file()
    assert list((finished / "logs" / "tensorboard" / "version_0").glob("events.out.*"))
    assert not list(finished.rglob("*lightning_logs*"))
    assert not list(Path.cwd().iterdir())


def test_fit_names_the_classes_with_their_counts(photos, tmp_path, capsys):
    root = shutil.copytree(photos, tmp_path / "photos")
    for file in sorted((root / "sofa").iterdir())[4:]:
        file.unlink()
    assert fit(root, tmp_path / "run", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1") == 0
    said = "of each class, training + validation: jeans 6 + 2, sofa 3 + 1, tshirt 6 + 2, tv 6 + 2"
    assert said in capsys.readouterr().out.splitlines()


def test_fit_keeps_tensorflow_out_of_the_process(finished):
    assert "tensorflow" not in sys.modules
    assert "keras" not in sys.modules


def test_metrics_have_a_row_per_epoch_and_the_best_checkpoint_on_clean_photos(finished, photos):
    content = json.loads((finished / "metrics.json").read_text())
    assert [row["epoch"] for row in content["epochs"]] == [0, 1]
    for row in content["epochs"]:
        assert {f"{name}/{figure}" for name in ("train", "val", "val_clean") for figure in ("loss", "accuracy")} <= (
            row.keys()
        )
        assert row["images_per_second"] > 0
        assert row["seconds"] >= row["train_seconds"] > 0
    best, final = content["best"], content["final"]
    assert best["value"] == min(row["val/loss"] for row in content["epochs"])
    assert (final["checkpoint"], final["set"], final["photos"]) == ("best.ckpt", "val_clean", 8)
    assert final["loss"] == pytest.approx(content["epochs"][best["epoch"]]["val_clean/loss"], rel=1e-5)
    assert list(final["per_class"]) == ["jeans", "sofa", "tshirt", "tv"]
    assert all(figures["support"] == 2 for figures in final["per_class"].values())
    assert [sum(row) for row in final["confusion_matrix"]["counts"]] == [2, 2, 2, 2]


def test_augmented_validation_is_measured_beside_the_clean_and_taken_for_neither(photos, finished, tmp_path):
    """Both are of the same photos and the same network: they differ where the photos are changed, and only there."""
    augmentation = "--data.augmentation={rotation_range: 180, zoom_range: [0.3, 0.6], brightness_range: [0.2, 0.4]}"
    assert fit(photos, tmp_path / "run", augmentation, "--data.augment_validation=true") == 0
    row = json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"][0]
    assert row["val/loss"] != pytest.approx(row["val_clean/loss"], rel=1e-6)
    without_augmentation = json.loads((finished / "metrics.json").read_text())["epochs"]
    assert all(row["val/loss"] == pytest.approx(row["val_clean/loss"], rel=1e-6) for row in without_augmentation)
    with (tmp_path / "run" / "logs" / "csv" / "metrics.csv").open() as log:
        assert {"val/loss", "val_clean/loss", "val/accuracy", "val_clean/accuracy"} <= set(next(csv.reader(log)))
    assert fit(photos, tmp_path / "plain", augmentation, epochs=1) == 0
    assert not any(
        name.startswith("val_clean")
        for name in json.loads((tmp_path / "plain" / "metrics.json").read_text())["epochs"][0]
    )


def test_checkpoint_is_read_without_unpickling_and_is_the_best(finished):
    content = torch.load(finished / "best.ckpt", weights_only=True)
    best = json.loads((finished / "metrics.json").read_text())["best"]["epoch"]
    assert content["epoch"] == best
    assert content["hyper_parameters"]["class_names"] == ["jeans", "sofa", "tshirt", "tv"]
    ProductClassifier.load_from_checkpoint(finished / "best.ckpt")


def test_config_of_the_run_runs_again(finished, tmp_path):
    run = tmp_path / "again"
    config = finished / "config.yaml"
    assert lightning("fit", "--config", config, f"--trainer.default_root_dir={run}") == 0
    first, second = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (finished, run))
    assert first.pop("trainer")["max_epochs"] == second.pop("trainer")["max_epochs"] == 2
    assert first == second
    a, b = (json.loads((folder / "metrics.json").read_text())["epochs"] for folder in (finished, run))
    assert [row["val/loss"] for row in a] == [row["val/loss"] for row in b]


def test_evaluation_from_the_runs_own_config(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    config, checkpoint = finished / "config.yaml", finished / "best.ckpt"
    assert lightning("validate", "--config", config, "--ckpt_path", checkpoint) == 0
    assert "accuracy" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert not list(Path.cwd().iterdir())


def test_checkpoint_settings_win_over_the_command_line(finished, photos, capsys):
    checkpoint = finished / "best.ckpt"
    shape = ["--model.backbone=mobilenetv2_050", "--data.image_size=48", f"--data.root={photos}"]
    assert lightning("validate", *shape, "--data.validation_split=0.25", "--ckpt_path", checkpoint) == 0
    final = json.loads((finished / "metrics.json").read_text())["final"]
    assert f"{final['accuracy']:.4g}"[:4] in capsys.readouterr().out


@pytest.mark.keras
@pytest.mark.slow
def test_fit_hands_over_a_proved_twin(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(photos, run, "--hand_over.max_photos=3", hand_over=True) == 0
    said = capsys.readouterr().out
    assert "on 3 of 8 validation photos" in said
    assert said.strip().splitlines()[-1].startswith("parity PASS")
    assert json.loads((run / "parity.json").read_text())["verdict"] == "PASS"
    assert "Twins: PASS" in (run / "parity.html").read_text()
    assert json.loads((run / "labels.json").read_text()) == {
        "class_names": ["jeans", "sofa", "tshirt", "tv"],
        "image_size": [32, 32],
        "interpolation": "nearest",
        "background": None,
        "deep_grey": "clip",
        "formats": "keras",
        "input_range": "unit",
    }
    final = json.loads((run / "metrics.json").read_text())["final"]
    assert (final["checkpoint"], final["set"]) == ("best.ckpt", "val")


@pytest.mark.keras
@pytest.mark.slow
def test_export_and_parity_on_their_own_name_one_changed_weight_last_and_exit_1(finished, photos, tmp_path, capsys):
    content = torch.load(finished / "best.ckpt", weights_only=True)
    weight = content["state_dict"]["network.head.dense.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(float("inf")))
    torch.save(content, tmp_path / "other.ckpt")
    assert lightning("export", finished / "best.ckpt", tmp_path / "a.h5", "--input-range", "raw") == 0
    arguments = ["parity", tmp_path / "other.ckpt", tmp_path / "a.h5", "--photos", photos / "tv"]
    reports = ["--json", tmp_path / "p.json", "--html", tmp_path / "p.html"]
    assert lightning(*arguments, *reports, "--keras-python", sys.executable, f"--keras-python={sys.executable}") == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == "parity FAIL: under 0 of 2 interpreters"
    assert [line for line in lines if line.startswith("parity FAIL: labels")]
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["verdict"] == "FAIL"
    assert "FAIL" in (tmp_path / "p.html").read_text()
    first, second = content["reports"]
    assert first["versions"] == second["versions"]
    failed = {check["name"] for check in first["rungs"] if not check["passed"]}
    assert {"labels", "weights"} <= failed


def refused(*_, **__) -> Report:
    """A proof that a fit must not survive."""
    versions = {"torch": {"torch": "0"}, "keras": {"keras": "0", "backend": "none"}}
    check = Check("for the test", False, 1.0, 0.0, "faults", "planted")
    return Report({"path": "a", "sha256": "b"}, {"path": "c", "sha256": "d", "input_range": "unit"}, [check], versions)


def test_fit_with_a_failed_proof_says_so_last_and_exits_1(photos, tmp_path, monkeypatch, capsys):
    import export.proof.parity

    monkeypatch.setattr(export.proof.parity, "check_parity", refused)
    assert fit(photos, tmp_path / "run", hand_over=True) == 1
    assert capsys.readouterr().out.strip().splitlines()[-1] == "parity FAIL: for the test"
    assert (tmp_path / "run" / "model.h5").is_file()


@pytest.mark.parametrize("moment", ["on_fit_start", "on_train_epoch_start", "on_train_epoch_end"])
@pytest.mark.parametrize("gone", ["*", "[js]*/*_000[12].jpg"])  # all folders; a few photos, by which a split would move
def test_photos_that_vanish_in_training_cost_neither_checkpoint_nor_twin(
    photos, tmp_path, monkeypatch, capsys, moment, gone
):
    import export.proof.parity

    pairs = []

    def passed(pair, keras_python=None):
        pairs.append(pair)
        report = refused()
        return replace(report, checks=[replace(report.checks[0], passed=True)])

    def vanish(journal, *given):
        for root in (own, tests):
            for path in root.glob(gone):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return happens(journal, *given)

    own, tests = (Path(shutil.copytree(photos, tmp_path / name)) for name in ("own", "tests"))
    happens = getattr(MetricsJournal, moment)
    monkeypatch.setattr(MetricsJournal, moment, vanish)
    monkeypatch.setattr(export.proof.parity, "check_parity", passed)
    run = tmp_path / "run"
    assert fit(own, run, f"--data.test_root={tests}", hand_over=True) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "run/best.ckpt" in said.replace(" ", "")
    assert "of them are not there any more" in said
    assert (run / "model.h5").is_file()
    assert (run / "report.html").is_file()
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["final"]["photos"], metrics["test"]["photos"]) == (8, 32)
    held_out = ProductPhotos(photos, image_size=32, validation_split=0.25)
    held_out.setup("fit")
    assert pairs[0].photo_names == [str(own / file.relative_to(photos)) for file in held_out.val_files]
    assert (pairs[0].photos == held_out.photos_of(held_out.val_files)).all()
    assert all(file.is_file() for file in pairs[0].photo_files)


def test_photos_that_are_spoiled_in_training_cost_neither_checkpoint_nor_twin(photos, tmp_path, monkeypatch, capsys):
    """Their proof is a real one: it reads from their files only those that can still be read."""

    def spoil(journal, *given):
        for path in own.glob("jeans/*.jpg"):
            path.write_bytes(path.read_bytes()[:300])
        return happens(journal, *given)

    own = Path(shutil.copytree(photos, tmp_path / "own"))
    happens = MetricsJournal.on_train_epoch_end
    monkeypatch.setattr(MetricsJournal, "on_train_epoch_end", spoil)
    assert fit(own, tmp_path / "run", hand_over=True) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "These cannot be read any more, and are not loaded again:" in said
    assert "parity PASS" in said
    assert (tmp_path / "run" / "model.h5").is_file()


def test_a_crashing_keras_is_a_message_and_no_mismatch(finished, tmp_path, capsys):
    assert lightning("export", finished / "best.ckpt", tmp_path / "a.h5", "--fuse-batchnorm", "false") == 0
    arguments = [finished / "best.ckpt", tmp_path / "a.h5", "--keras-python", "/bin/false"]
    assert lightning("parity", *arguments) == 3
    error = capsys.readouterr().err
    assert "ended without a reply" in error
    assert "Traceback" not in error
    arguments = [tmp_path / "a.h5", tmp_path / "b.ckpt", "--keras-python", "/bin/false"]
    assert lightning("import", *arguments) == 3
    assert not (tmp_path / "b.ckpt").exists()


def test_parity_under_an_interpreter_without_packages_is_bad_input(finished, tmp_path, capsys):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    assert lightning("export", finished / "best.ckpt", tmp_path / "a.h5") == 0
    assert lightning("parity", finished / "best.ckpt", tmp_path / "a.h5", "--keras_python", bare) == 2
    error = capsys.readouterr().err
    assert "has no numpy" in error
    assert "Traceback" not in error


def judged(verdict: str) -> Report:
    versions = {"torch": {"torch": "0"}, "keras": {"keras": "0", "backend": "none"}}
    model = {"path": "c", "sha256": "d", "input_range": "unit"}
    return Report({"path": "a", "sha256": "b"}, model, [Check("weights", verdict == "PASS", 0, 0, "", "")], versions)


# What each interpreter does -> exit code, verdicts of the reports that are written, who is named as not checked
SEVERAL = [
    (["PASS", "PASS"], 0, ["PASS", "PASS"], {}),
    (["PASS", "FAIL"], 1, ["PASS", "FAIL"], {}),
    (["FAIL", "crash", "PASS"], 1, ["FAIL", "PASS"], {"py1": "planted crash"}),
    (["no Keras", "FAIL"], 1, ["FAIL"], {"py0": "planted no Keras"}),
    (["no Keras", "PASS", "crash"], 3, ["PASS"], {"py0": "planted no Keras", "py2": "planted crash"}),
    (["PASS", "no Keras"], 2, ["PASS"], {"py1": "planted no Keras"}),
    (["no Keras", "no Keras"], 2, None, None),
]


@pytest.mark.parametrize(("what", "code", "verdicts", "named"), SEVERAL, ids=["-".join(each[0]) for each in SEVERAL])
def test_of_several_kerases_one_that_fails_costs_no_other_its_report(
    finished, tmp_path, monkeypatch, capsys, what, code, verdicts, named
):
    import export.proof.parity

    def check(pair, python, **_) -> Report:
        happens = what[int(python.name[2:])]
        if happens in ("PASS", "FAIL"):
            return judged(happens)
        raise {"crash": KerasFailed, "no Keras": BadInput}[happens](f"planted {happens}")

    monkeypatch.setattr(export.proof.parity, "check_parity", check)
    arguments = [f"--keras_python=py{number}" for number in range(len(what))]
    reports = ["--json", tmp_path / "p.json", "--html", tmp_path / "p.html"]
    assert lightning("parity", finished / "best.ckpt", tmp_path / "a.h5", *arguments, *reports) == code
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(f"parity {'PASS' if code == 0 else 'FAIL'}: under ")
    if verdicts is None:
        assert not list(tmp_path.iterdir())
        return
    content = json.loads((tmp_path / "p.json").read_text())
    assert [report["verdict"] for report in content["reports"]] == verdicts
    assert content["verdict"] == ("PASS" if code == 0 else "FAIL")
    assert content["not_checked"] == named
    page = (tmp_path / "p.html").read_text()
    for name, reason in named.items():
        assert f"{name}: not checked: {reason}" in said.err
        assert f"Not checked by {name}: {reason}" in page


def test_whatever_breaks_off_the_second_keras_leaves_the_report_of_the_first(finished, tmp_path, monkeypatch):
    import export.proof.parity

    def check(pair, python, **_) -> Report:
        if python.name == "py1":
            raise KeyboardInterrupt
        return judged("PASS")

    monkeypatch.setattr(export.proof.parity, "check_parity", check)
    code = lightning(
        "parity", finished / "best.ckpt", tmp_path / "a.h5", "--keras_python=py0", "--keras_python=py1",
        "--json", tmp_path / "p.json",
    )  # fmt: skip
    assert code == 130
    content = json.loads((tmp_path / "p.json").read_text())
    assert (content["verdict"], content["not_checked"]) == ("FAIL", {"py1": "broken off before it had judged"})


def test_keras_failing_costs_no_figure(photos, tmp_path, monkeypatch, capsys):
    import export.proof.parity

    def fail(*_, **__):
        raise BadInput("Keras is not there")

    monkeypatch.setattr(export.proof.parity, "check_parity", fail)
    assert fit(photos, tmp_path / "run", hand_over=True) == 2
    assert "Keras is not there" in capsys.readouterr().err
    assert "final" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not (tmp_path / "run" / "parity.json").exists()


def test_diverged_training_is_named_and_handed_over_to_nobody(photos, tmp_path, capsys):
    assert fit(photos, tmp_path / "run", "--model.learning_rate=1e30", hand_over=True) == 2
    said = capsys.readouterr().err
    assert "expected a finite loss, received one that is none in epoch 1, step 2 of 3" in said
    assert "Nothing was written" in said
    assert not list((tmp_path / "run").glob("*.ckpt"))
    assert not (tmp_path / "run" / "model.h5").exists()


def test_python_users_get_the_twin_without_the_command(photos, tmp_path, monkeypatch):
    import lightning as L

    import export.proof.parity

    monkeypatch.setattr(export.proof.parity, "check_parity", refused)
    data = ProductPhotos(photos, image_size=32, validation_split=0.25)
    model = ProductClassifier(data.class_names, data.image_size, backbone="mobilenetv2_short", pretrained=False)
    hand_over = ExportTwin()
    L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[BestCheckpoint(), hand_over],
    ).fit(model, data)
    assert hand_over.report.verdict == "FAIL"
    assert (tmp_path / "model.h5").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.root=nowhere"], "root: expected a folder"),
        (["--model.backbone=mobilnetv2_100"], "Near matches"),
        (["--model.mean=[1,2]"], "--model.mean"),
        (["--model.pretrained=true", "--model.weights=none.safetensors"], "--model.weights"),
        (["--model.learning_rate=0"], "--model.learning_rate"),
        (["--checkpoint.monitor=val/f1"], "--checkpoint.monitor: expected one of train/loss"),
        (["--early_stopping.monitor=val_clean/loss"], "With --data.augment_validation true it is there"),
        (["--early_stopping.monitor=epoch"], "--early_stopping.monitor: expected one of train/loss"),
        (["--checkpoint.monitor=epoch"], "--checkpoint.mode: expected max"),
        (["--seed_everything=-5"], "--seed_everything: expected a number from 0"),
    ],
)
def test_bad_settings_exit_2_with_one_message_and_touch_no_finished_run(
    finished, photos, tmp_path, capsys, arguments, words
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert fit(photos, run, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["fit", "--data.bacth_size=3"],
            "unrecognized arguments: --data.bacth_size=3. Did you mean --data.batch_size?",
        ),
        (["fit", "--trainer.max_epoch=1"], "Did you mean --trainer.max_epochs?"),  # and is not taken for it
        (["fit", "--model.trainable=some"], "--model.trainable: Expected one of 'head', 'all'. Got value: some."),
        (["fit", "--config=nowhere.yaml"], "--config: File does not exist"),
        (["predict", "a", "b", "--outt=c"], "Did you mean --out?"),
        (["parity", "a", "b", "--jsn=c"], "Did you mean --json?"),
        (["audit", "a", "--seeed=1"], "Did you mean --seed?"),
    ],
)
def test_misspelt_command_line_is_one_message(photos, capsys, arguments, words):
    assert lightning(*arguments, *([f"--data.root={photos}"] if arguments[0] == "fit" else [])) == 2
    said = capsys.readouterr().err.splitlines()
    assert words in said[0]
    assert said[0].endswith(f"See `lightning {arguments[0]} --help`.")
    assert len(said) == 1


@pytest.mark.parametrize("more", [["--trainer.max_steps=1"], ["--trainer.check_val_every_n_epoch=5"]])
def test_fit_that_was_never_measured_says_so(photos, tmp_path, capsys, more):
    assert fit(photos, tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert "no epoch was measured for val/loss" in error
    assert "Traceback" not in error


def test_epochs_without_a_validation_have_no_figures_of_another(photos, tmp_path):
    assert fit(photos, tmp_path, "--trainer.check_val_every_n_epoch=2", epochs=3) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["epochs"]
    assert ["val/loss" in row for row in rows] == [False, True, False]


def test_last_epoch_is_kept_as_it_was_last_measured(photos, tmp_path):
    last = ["--checkpoint.monitor=epoch", "--checkpoint.mode=max"]
    assert fit(photos, tmp_path, *last, "--trainer.val_check_interval=0.5", "--data.batch_size=4", epochs=2) == 0
    best, end = (torch.load(tmp_path / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    assert best["global_step"] == end["global_step"]
    assert all(torch.equal(best["state_dict"][name], each) for name, each in end["state_dict"].items())


@pytest.mark.parametrize("command", ["fit", "test"])
def test_second_run_in_a_folder_is_refused_and_touches_nothing(finished, photos, tmp_path, capsys, command):
    run = shutil.copytree(finished, tmp_path / "run")
    given = [] if command == "fit" else [f"--ckpt_path={run / 'best.ckpt'}"]
    arguments = [command, *TINY, f"--data.root={photos}", f"--trainer.default_root_dir={run}", *given]
    with RunFolder(run).taken():
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        assert lightning(*arguments) == 2
        assert f"received {run}, where one is running" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert not (run / ".lock").exists()
    assert lightning(*arguments, *(["--trainer.max_epochs=1", "--hand_over.enabled=false"] if not given else [])) == 0
    assert not (run / ".lock").exists()


def test_folder_of_a_killed_run_is_free(tmp_path):
    code = f"""
import os
from pathlib import Path
from lightning_module.run.run_folder import RunFolder
with RunFolder(Path({str(tmp_path)!r})).taken():
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / ".lock").exists()
    with RunFolder(tmp_path).taken():
        pass
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch):
    def cannot(*_, **__):
        raise OSError("no locks available")

    monkeypatch.setattr("lightning_module.run.run_folder.FileLock.acquire", cannot)
    with pytest.warns(UserWarning, match="no locks available"), RunFolder(tmp_path).taken():
        (tmp_path / "best.ckpt").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("reason", ["a setting", "a folder", "a photo"])
def test_command_that_fails_leaves_no_folder_and_removes_nobody_elses(photos, tmp_path, reason):
    own = shutil.copytree(photos, tmp_path / "photos")
    if reason == "a photo":
        next((own / "tv").glob("*.jpg")).write_text("no photo")
    more = {"a setting": ["--model.learning_rate=0"], "a folder": ["--data.root=nowhere"]}.get(reason, [])
    assert fit(own, tmp_path / "runs" / "a" / "b", *more) == 2
    assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    assert fit(own, tmp_path / "mine", *more) == 2
    assert (tmp_path / "mine").is_dir()
    (tmp_path / "runs" / "other").mkdir(parents=True)
    assert fit(own, tmp_path / "runs" / "a" / "b", *more) == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_unexpected_error_is_70_and_its_traceback_in_the_runs_folder(photos, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("planted\nin two lines " + "x" * 1000)

    monkeypatch.setattr("lightning_module.commands.lightning_cli.training.report_fit", fail)
    assert fit(photos, tmp_path / "run") == 70
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("lightning: an error that is not expected, ZeroDivisionError: planted in two lines xxx")
    assert line.endswith(f"The traceback is in {tmp_path / 'run' / 'error.log'}.")
    assert len(line) < 500
    kept = (tmp_path / "run" / "error.log").read_text()
    assert "lightning fit --model.backbone=mobilenetv2_short" in kept
    assert "in fail" in kept
    assert "x" * 1000 in kept


def test_unexpected_error_of_a_help_is_70(monkeypatch):
    monkeypatch.setattr("lightning_module.commands.lightning_cli.short_help.short_help", lambda command: 1 / 0)
    assert lightning("fit", "--help") == 70


@pytest.mark.parametrize("log", ["in the temporary folder", "nowhere"])
def test_unexpected_error_of_a_command_without_a_run(finished, tmp_path, monkeypatch, capsys, log):
    import export.torch_to_keras

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(export.torch_to_keras, "write_twin", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path if log != "nowhere" else tmp_path / "gone"))
    assert lightning("export", finished / "best.ckpt", tmp_path / "a.h5") == 70
    said = capsys.readouterr().err
    if log == "nowhere":
        assert "in fail" in said
        assert said.endswith("lightning: an error that is not expected, RuntimeError. The traceback is above.\n")
        return
    (file,) = tmp_path.glob("lightning-*-error.log")
    assert said == f"lightning: an error that is not expected, RuntimeError. The traceback is in {file}.\n"
    assert "in fail" in file.read_text()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_cleans_up_at_sigterm(command, monkeypatch):
    ended = []

    def stopped(_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            ended.append(command)

    monkeypatch.setattr(cli, "_function", lambda place: stopped)
    assert lightning(command) == 143
    assert ended == [command]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_fit_that_is_stopped_before_it_trains_leaves_no_folder(photos, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("datamodule.product_photos.check_sources", stop)
    assert fit(photos, tmp_path / "new" / "run") == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_pillows_warnings_about_odd_photos_are_not_shown(command, tmp_path, monkeypatch, recwarn):
    image = Image.new("P", (4, 4))
    image.putpalette([0] * 768)
    image.save(tmp_path / "odd.png", transparency=bytes([0, 9]))

    def convert(_: object = None) -> None:
        Image.open(tmp_path / "odd.png").convert("RGB")

    convert()
    assert "Palette images" in str(recwarn.pop(UserWarning).message)
    monkeypatch.setattr(cli, "_function", lambda place: convert)
    assert lightning(command) == 0
    assert not recwarn.list


@pytest.mark.parametrize(
    ("available", "arguments", "package"),
    [
        ("loggers.wandb._WANDB_AVAILABLE", ["--trainer.logger=WandbLogger"], "wandb>=99999"),
        ("loggers.mlflow._MLFLOW_AVAILABLE", ["--trainer.logger=MLFlowLogger"], "mlflow>=99999"),
        ("loggers.comet._COMET_AVAILABLE", ["--trainer.logger=CometLogger"], "comet-ml>=99999"),
        ("accelerators.cpu._PSUTIL_AVAILABLE", ["--trainer.callbacks+=DeviceStatsMonitor"], "psutil>=99999"),
        ("strategies.deepspeed._DEEPSPEED_AVAILABLE", ["--trainer.strategy=deepspeed"], "deepspeed"),
    ],
)
def test_package_that_is_missing_is_one_line_with_the_command_that_installs_it(
    photos, tmp_path, monkeypatch, capsys, available, arguments, package
):
    # whether it is installed here or not
    for place in (available, *(["callbacks.device_stats_monitor._PSUTIL_AVAILABLE"] if "PSUTIL" in available else [])):
        monkeypatch.setattr(f"lightning.pytorch.{place}", RequirementCache(package))
    assert fit(photos, tmp_path / "run", *arguments) == 2
    *others, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("lightning: ")
    assert f"pip install {package}" in line.replace("'", "").replace("-U ", "")
    assert others in ([], ["INFO: Seed set to 0"])


def test_bad_setting_of_a_class_that_a_setting_names_is_a_message(photos, tmp_path, capsys):
    callback = '{"class_path": "lightning_module.fine_tuning.EmaOfWeights", "init_args": {"decay": 7}}'
    assert fit(photos, tmp_path / "run", f"--trainer.callbacks+={callback}") == 2
    assert "decay" in capsys.readouterr().err.strip().splitlines()[-1]


LOGGERS = {
    "wandb": ("WandbLogger", ["--trainer.logger.offline=true"], "wandb/offline-run-*/run-*.wandb"),
    "mlflow": ("MLFlowLogger", ["--trainer.logger.tracking_uri=file:mlruns"], "mlruns/*/*/metrics/val/loss"),
}


@pytest.mark.parametrize("package", LOGGERS)
def test_loggers_that_need_no_network(photos, tmp_path, package, monkeypatch, capsys):
    module = pytest.importorskip(package, reason=f"{package} is not installed (docs/training.md)")
    finish = getattr(module, "finish", lambda: None)  # another fit in this process would go on with W&B's run
    name, settings, written = LOGGERS[package]
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    more = [f"--trainer.logger=lightning.pytorch.loggers.{name}", *settings]
    run = tmp_path / "run"
    assert fit(photos, run, *more) == 0
    finish()
    assert len(list(Path().glob(written))) == 1
    assert name in (run / "config.yaml").read_text()
    assert fit(photos, run, *more, "--resume", epochs=2) == 0
    finish()
    assert "1 epochs are done" in capsys.readouterr().out
    assert len(json.loads((run / "metrics.json").read_text())["epochs"]) == 2
    assert len(list(Path().glob(written))) == 2
    assert (run / "report.html").is_file()


class Choosy(CSVLogger):
    """A logger that refuses its settings, as MLflow's does without a server."""

    def __init__(self, place: str = "") -> None:
        raise RuntimeError(f"no logs at {place!r}")


def test_logger_that_refuses_its_settings_is_bad_input(photos, tmp_path, capsys):
    more = [f"--trainer.logger={__name__}.Choosy", "--trainer.logger.place=here"]
    assert fit(photos, tmp_path / "run", *more) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("received from it: no logs at 'here'")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 2), (errno.EDQUOT, 2), (errno.EIO, 70)])
def test_full_disk_is_no_fault_of_the_program(monkeypatch, capsys, number, code):
    def full(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cli, "_function", lambda place: full)
    assert lightning("audit") == code
    assert ("expected room on the disk" in capsys.readouterr().err) == (code == 2)


def test_module_of_this_project_is_no_package_to_install():
    assert missing_package(ModuleNotFoundError("No module named 'export.x'", name="export.x")) is None
    assert missing_package(ImportError("cannot import name 'x' from 'torch'", name="torch")) is None


def test_ctrl_c_is_no_traceback(photos, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_module.commands.lightning_cli.training.report_fit", interrupted)
    assert fit(photos, tmp_path) == 130
    error = capsys.readouterr().err
    assert "lightning: interrupted" in error
    assert "Traceback" not in error


def test_new_run_has_logs_of_its_own_and_goes_on_with_them(photos, tmp_path):
    assert fit(photos, tmp_path) == 0
    assert fit(photos, tmp_path) == 0
    assert fit(photos, tmp_path, "--resume", epochs=2) == 0
    logs = tmp_path / "logs" / "tensorboard"
    files = {path.name: len([*path.glob("events*")]) for path in logs.iterdir()}
    assert files == {"version_0": files["version_0"], "version_1": 2 * files["version_0"]}
    assert (tmp_path / "previous" / "best.ckpt").is_file()  # without a twin, too, it had finished
    assert not (tmp_path / "interrupted").exists()


def test_hand_over_that_changed_after_the_end_is_not_passed_over_in_silence(photos, tmp_path, capsys):
    assert fit(photos, tmp_path) == 0
    assert fit(photos, tmp_path, "--resume") == 0
    assert "Not handed over again" not in capsys.readouterr().out
    assert fit(photos, tmp_path, "--resume", "--hand_over.temperature=fitted") == 0
    assert "Not handed over again, though changed: hand_over.temperature." in capsys.readouterr().out


def test_run_folder_on_a_file_system_that_cannot_be_written(photos, capsys):
    place = Path("/proc/shelftwin")  # read-only for root, too
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc here")
    assert fit(photos, place) == 2
    assert "expected a folder that can be written" in capsys.readouterr().err


def test_run_folder_that_cannot_be_written_is_refused_before_anything_else(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert fit(photos, tmp_path / "file" / "run") == 2
    assert "--trainer.default_root_dir" in capsys.readouterr().err


def test_evaluation_without_checkpoint_or_with_another_file_is_refused(photos, tmp_path, capsys):
    (tmp_path / "x.ckpt").write_bytes(b"not a checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "y.ckpt")
    for given, words in (
        ([], "needs a checkpoint"),
        (["--ckpt_path", tmp_path / "none.ckpt"], "does not exist"),
        (["--ckpt_path", tmp_path / "x.ckpt"], "cannot be read"),
        (["--ckpt_path", tmp_path / "y.ckpt"], "another model"),
    ):
        assert lightning("validate", *TINY, f"--data.root={photos}", *given) == 2
        assert words in capsys.readouterr().err


def test_two_reports_need_two_files(finished, tmp_path, capsys):
    both = ["--json", tmp_path / "p", "--html", tmp_path / "p"]
    assert lightning("parity", finished / "best.ckpt", tmp_path / "x.h5", *both) == 2
    assert "expected two files" in capsys.readouterr().err


def test_export_and_parity_refuse_bad_input(finished, tmp_path, capsys):
    (tmp_path / "x.h5").write_bytes(b"not HDF5")
    (tmp_path / "empty").mkdir()
    checkpoint = finished / "best.ckpt"
    for arguments in (
        ["export", tmp_path / "none.ckpt", tmp_path / "o.h5"],
        ["export", checkpoint, tmp_path / "nowhere" / "o.h5"],
        ["parity", checkpoint, tmp_path / "x.h5"],
        ["parity", checkpoint, tmp_path / "none.h5"],
        ["parity", checkpoint, tmp_path / "x.h5", "--photos", tmp_path / "empty"],
        ["parity", checkpoint, tmp_path / "x.h5", "--photos", tmp_path / "none"],
        ["export", checkpoint],
        ["export", checkpoint, tmp_path / "o.keras"],
        ["export", checkpoint, tmp_path / "o.onnx"],
    ):
        assert lightning(*arguments) == 2
        error = capsys.readouterr().err
        assert error
        assert "Traceback" not in error
    assert not list(tmp_path.glob("o.*"))


def test_new_run_in_the_folder_of_a_finished_one_shelves_it(tmp_path):
    run = RunFolder(tmp_path)
    old = {name: f"old {name}" for name in ("best.ckpt", "model.h5", "parity.json", "labels.json", "metrics.json")}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    tmp_path.chmod(0o755)
    assert run.shelve_previous() == tmp_path / "previous"
    assert (tmp_path / "previous").stat().st_mode & 0o777 == 0o755
    assert {path.name: path.read_text() for path in run.path.glob("previous/*")} == old
    # no verdict is left that could be taken for the new run's; the checkpoint stays until a better one replaces it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "previous"]

    # the new run dies before it hands over: the next one keeps the last finished run where it is
    (tmp_path / "best.ckpt").write_text("half")
    (tmp_path / "metrics.json").write_text("half")
    assert run.shelve_previous() is None
    assert (tmp_path / "previous" / "best.ckpt").read_text() == "old best.ckpt"
    assert not (tmp_path / "metrics.json").exists()


def test_writing_replaces_whole_or_not_at_all(tmp_path):
    target = tmp_path / "metrics.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text()) == {"a": 1}
    with pytest.raises(BadInput, match="can be written"):
        write_json(tmp_path / "nowhere" / "x.json", {})
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["metrics.json"]


def test_best_epoch_is_the_first_lowest():
    rows = [{"epoch": 0, "l": 2.0}, {"epoch": 1, "l": 1.0}, {"epoch": 2, "l": 1.0}, {"epoch": 3, "l": None}]
    assert best_epoch(rows, "l", "min") == {"epoch": 1, "monitor": "l", "value": 1.0}
    assert best_epoch([{"epoch": 0, "l": None}], "l", "min") is None


def test_callbacks_refuse_what_cannot_be():
    with pytest.raises(BadInput, match="max_photos"):
        ExportTwin(max_photos=-1)


def test_journal_takes_up_earlier_epochs_only_to_go_on_fitting():
    journal = MetricsJournal()
    journal.epochs = [{"epoch": 0}, {"epoch": 1}]
    journal.load_state_dict({"epochs": [{"epoch": 0}]})
    assert journal.epochs == [{"epoch": 0}, {"epoch": 1}]


def test_option_names_take_hyphens_and_their_values_keep_them(finished, tmp_path, capsys):
    place = tmp_path / "my-photos"
    assert lightning("parity", finished / "best.ckpt", tmp_path / "none.h5", f"--photos={place}") == 2
    assert str(place) in capsys.readouterr().err
    assert lightning("parity", finished / "best.ckpt", tmp_path / "none.h5", f"--keras-python={place}") == 2
    assert "none.h5" in capsys.readouterr().err


def test_report_in_the_place_of_an_input_is_refused_before_anything_else(finished, tmp_path, capsys):
    checkpoint = finished / "best.ckpt"
    before = checkpoint.read_bytes()
    assert lightning("parity", checkpoint, tmp_path / "none.h5", f"--json={checkpoint}") == 2
    assert "which is an input" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    assert lightning("parity", checkpoint, tmp_path / "none.h5", f"--json={tmp_path / 'nowhere' / 'report.json'}") == 2
    assert "can be written" in capsys.readouterr().err


def test_bad_test_photos_stop_a_fit_before_it_trains(photos, tmp_path, capsys):
    test_root = shutil.copytree(photos, tmp_path / "test")
    broken = next((test_root / "tv").glob("*.jpg"))
    broken.write_text("no photo")
    assert fit(photos, tmp_path / "run", f"--data.test_root={test_root}") == 2
    said = capsys.readouterr()
    assert broken.name in said.err
    assert "epoch 1" not in said.out


@pytest.mark.parametrize("given", ["best", "last"])
def test_evaluation_of_lightnings_own_placeholders_is_refused(photos, given, capsys):
    assert lightning("validate", *TINY, f"--data.root={photos}", f"--ckpt_path={given}") == 2
    assert "does not exist" in capsys.readouterr().err
