import csv
import json
import os
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from datamodule.demo_photos import draw_catalogue
from datamodule.layout import APPLE_DOUBLE
from datamodule.photo_store import load_photo
from export.checkpoint import read_checkpoint
from export.torch_to_keras import write_twin
from export.worker.keras_process import KerasFailed, KerasStream
from lightning_module.evaluation import decoding, labelling, top_labels
from lightning_module.evaluation.labellers import KerasFileLabeller
from lightning_module.evaluation.labelling import Labelling
from lightning_module.evaluation.prediction_files import CsvFile
from lightning_module.evaluation.torch_labeller import CheckpointLabeller
from models.choices import Loading
from models.spreadsheet_text import from_text
from tests.conftest import lightning, random_classifier, save_checkpoint
from tests.datamodule.odd_photos import draw_odd_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A shop's folder: folders in folders, odd photos, and some that cannot be read."""
    root = tmp_path_factory.mktemp("shop") / "photos"
    draw_catalogue(root / "sorted", per_class=4, seed=0)
    draw_odd_photos(root / "odd")
    (root / "sorted" / "tv" / "broken.jpg").write_bytes((root / "odd" / "plain.jpg").read_bytes()[:300])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("no photo")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    network = random_classifier(backbone="mobilenetv2_short", hidden=(16,), mean=0.5, std=0.5)
    with torch.no_grad():
        network.head.predictions.weight.mul_(5)  # some photos are sure, others not
    return save_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", network, (48, 40))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def predicted(checkpoint, photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "predictions.csv"
    assert lightning("predict", checkpoint, photos, "--out", out, "--device", "cpu") == 0
    return out


def test_every_photo_at_any_depth_has_its_label_and_the_next(predicted, checkpoint, photos):
    rows = rows_of(predicted)
    readable = {path for path in photos.rglob("*.*") if path.suffix not in (".json", ".txt")}
    readable -= {photos / "sorted" / "tv" / "broken.jpg", photos / "empty.png"}
    assert {row["file"] for row in rows} == {str(path) for path in readable}
    network = read_checkpoint(checkpoint).network
    for row in rows[::5]:
        pixels = torch.from_numpy(load_photo(Path(row["file"]), (48, 40))).permute(2, 0, 1)[None] / 255
        probabilities, order = network(pixels).softmax(dim=1)[0].detach().sort(descending=True)
        names = [["jeans", "sofa", "tshirt", "tv"][index] for index in order[:3]]
        assert [row["label"], row["label_2"], row["label_3"]] == names
        given = [float(row[column]) for column in ("probability", "probability_2", "probability_3")]
        assert given == pytest.approx(probabilities[:3].tolist(), abs=6e-4)


def test_what_programs_leave_gets_no_label(checkpoint, tmp_path, capsys):
    for folder in ("", "__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / "photos" / folder).mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / "photos" / folder / "1.jpg")
    (tmp_path / "photos" / "._1.jpg").write_bytes(APPLE_DOUBLE)
    out = tmp_path / "predictions.csv"
    assert lightning("predict", checkpoint, tmp_path / "photos", "--out", out, "--device", "cpu") == 0
    assert [row["file"] for row in rows_of(out)] == [str(tmp_path / "photos" / "1.jpg")]
    assert not out.with_name("predictions_bad.csv").exists()
    shown = capsys.readouterr().out
    assert "1 file in .ipynb_checkpoints, 1 file in __MACOSX, 1 file that a Mac adds" in shown


def test_photos_that_cannot_be_read_are_listed_and_not_fatal(predicted, photos, checkpoint, tmp_path, capsys):
    bad = rows_of(predicted.with_name("predictions_bad.csv"))
    names = [str(photos / "empty.png"), str(photos / "sorted" / "tv" / "broken.jpg")]
    assert [row["file"] for row in bad] == names
    assert bad[0]["reason"] == "is empty (0 bytes)"
    out = tmp_path / "a.csv"
    assert lightning("predict", checkpoint, photos, "--out", out) == 0
    said = capsys.readouterr().out
    assert f"{len(rows_of(out))} photos labelled: {out}\n2 that cannot be read: {tmp_path / 'a_bad.csv'}\n" in said
    assert all(name in said for name in names)
    assert said.endswith("\nleft out, as their names are no photos': 1 .txt\n")
    # a run without bad photos must not leave the list of another beside its labels
    assert lightning("predict", checkpoint, photos / "odd", "--out", out) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_names_with_ends_of_lines_are_one_row_for_whoever_reads_them(checkpoint, photos, tmp_path):
    names = ["car\rriage.jpg", "line\nfeed.jpg", 'quo"te, comma.jpg']
    (tmp_path / "photos").mkdir()
    for name in names:
        shutil.copy(photos / "odd" / "plain.jpg", tmp_path / "photos" / name)
    (tmp_path / "photos" / "emp\rty.jpg").touch()
    out = tmp_path / "p.csv"
    assert lightning("predict", checkpoint, tmp_path / "photos", "--out", out) == 0
    for table, expected in ((out, names), (tmp_path / "p_bad.csv", ["emp\rty.jpg"])):
        assert [Path(row["file"]).name for row in rows_of(table)] == sorted(expected)


def test_names_that_are_formulas_are_text_to_a_spreadsheet(checkpoint, photos, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    names = ["+a.jpg", "-b.jpg", "=1+1.jpg", "@c.jpg", "d=1.jpg"]
    for name in names:
        shutil.copy(photos / "odd" / "plain.jpg", name)
    Path("=bad.jpg").touch()
    assert lightning("predict", checkpoint, ".", "--out", "../p.csv") == 0
    cells = [row["file"] for row in rows_of(tmp_path / "p.csv")]
    assert cells == ["'+a.jpg", "'-b.jpg", "'=1+1.jpg", "'@c.jpg", "d=1.jpg"]
    assert [from_text(cell) for cell in cells] == names
    assert rows_of(tmp_path / "p_bad.csv")[0]["file"] == "'=bad.jpg"


def test_labels_that_are_formulas_are_text_to_a_spreadsheet(tmp_path):
    labeller = SimpleNamespace(class_names=["=a", "-b"], probabilities=lambda photos: np.array([[0.75, 0.25]]))
    rows = list(labelling.label(labeller, [Path("1.jpg")], np.zeros((1, 2, 2, 3), np.uint8)))
    with ExitStack() as stack:
        CsvFile(stack, tmp_path / "p.csv", Labelling().columns).write(rows)
    assert (tmp_path / "p.csv").read_text().splitlines()[1] == "1.jpg,'=a,0.750,'-b,0.250,,"
    assert rows == [["1.jpg", "=a", 0.75, "-b", 0.25, None, None]]  # other tables need no apostrophe


def test_nothing_labelled_is_exit_code_2(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    shutil.copy(photos / "empty.png", tmp_path / "photos")
    out = tmp_path / "p.csv"
    out.write_text("another run's labels")
    for given in (tmp_path / "photos", tmp_path / "photos" / "empty.png"):
        assert lightning("predict", checkpoint, given, "--out", out) == 2
        assert f"received none: {out} has no rows, and {tmp_path / 'p_bad.csv'} says why." in capsys.readouterr().err
        assert rows_of(out) == []
        assert len(rows_of(tmp_path / "p_bad.csv")) == 1


def test_pipe_is_named_and_not_waited_for(checkpoint, photos, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "p.csv"
    folder.mkdir()
    shutil.copy(photos / "odd" / "plain.jpg", folder)
    os.mkfifo(folder / "pipe.jpg")
    assert lightning("predict", checkpoint, folder, "--out", out) == 0
    assert len(rows_of(out)) == 1
    assert rows_of(tmp_path / "p_bad.csv")[0]["reason"] == "is a pipe, a socket or a device"


def test_own_files_among_the_photos_are_not_counted_and_others_not_deleted(checkpoint, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "odd", folder)
    (folder / "a_bad.csv").write_text("size,colour\n")
    for place in ("a.csv", "below/../b.csv"):
        (folder / "below").mkdir(exist_ok=True)
        assert lightning("predict", checkpoint, folder, "--out", folder / place) == 0
    said = capsys.readouterr().out
    assert (folder / "a_bad.csv").read_text() == "size,colour\n"  # somebody else's
    # by the second run, which finds those of the first
    assert re.findall(r"left out, as their names are no photos': (.*)", said) == ["2 .csv"]


def test_batches_change_nothing(predicted, checkpoint, photos, tmp_path):
    for size in (1, 7):
        out = tmp_path / f"{size}.csv"
        assert lightning("predict", checkpoint, photos, "--out", out, "--batch-size", size) == 0
        assert out.read_bytes() == predicted.read_bytes()


def test_single_photo(checkpoint, photos, tmp_path, capsys):
    photo, out = photos / "odd" / "plain.jpg", tmp_path / "one.csv"
    assert lightning("predict", checkpoint, photo, "--out", out) == 0
    assert [row["file"] for row in rows_of(out)] == [str(photo)]
    assert "1 photo labelled" in capsys.readouterr().out


def test_two_classes_leave_the_third_empty(photos, tmp_path):
    network = random_classifier(backbone="mobilenetv2_short", hidden=())
    network.head.predictions = torch.nn.Linear(network.head.predictions.in_features, 2)
    checkpoint = save_checkpoint(tmp_path / "two.ckpt", network, (32, 32), class_names=["a", "b"])
    assert lightning("predict", checkpoint, photos / "odd", "--out", tmp_path / "p.csv") == 0
    row = rows_of(tmp_path / "p.csv")[0]
    assert {row["label"], row["label_2"]} == {"a", "b"}
    assert row["label_3"] == row["probability_3"] == ""


def test_no_more_than_two_batches_are_decoded_at_once(photos, monkeypatch):
    begun = []

    def load(path, *_):
        begun.append(path)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(decoding, "load_photo", load)
    labeller = SimpleNamespace(image_size=(4, 4), interpolation="nearest", loading=Loading())
    taken = 0
    for batch in decoding.decoded(decoding.in_batches((Path(str(each)) for each in range(100)), 8), labeller):
        taken += len(batch)
        assert len(begun) <= taken + 8
    assert taken == 100


def test_interrupted_run_leaves_the_old_file_whole(checkpoint, photos, tmp_path, monkeypatch):
    out = tmp_path / "p.csv"
    out.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(labelling, "top_labels", interrupt)
    assert lightning("predict", checkpoint, photos, "--out", out) == 130
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("p.csv", "old")]


def test_network_that_diverged_labels_nothing(photos, tmp_path, capsys):
    network = random_classifier(backbone="mobilenetv2_short", hidden=())
    with torch.no_grad():
        network.head.predictions.bias.fill_(float("nan"))
    checkpoint = save_checkpoint(tmp_path / "nan.ckpt", network, (32, 32))
    assert lightning("predict", checkpoint, photos / "odd", "--out", tmp_path / "p.csv") == 2
    assert "expected probabilities" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_bad_input_is_refused_and_leaves_nothing(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n, but no more")
    (tmp_path / "text.h5").write_text("no HDF5")
    for arguments, words in (
        ([tmp_path / "none.ckpt", photos], "expected a checkpoint or a Keras .h5"),
        ([photos / "notes.txt", photos], "cannot be read as one"),
        ([tmp_path / "x.h5", photos], "expected a Keras .h5"),
        ([tmp_path / "text.h5", photos], "expected a Keras .h5, as its name says"),
        ([checkpoint, tmp_path / "nowhere"], "received 1 of 1 that are not"),
        ([checkpoint, tmp_path / "nothing"], "received none"),
        ([checkpoint, photos, "--batch_size=0"], "--batch_size"),
        ([checkpoint, photos, f"--out={tmp_path / 'nowhere' / 'p.csv'}"], "can be written"),
        ([checkpoint, photos, f"--out={checkpoint}"], "which is an input"),
        ([checkpoint, photos, f"--out={photos / 'a.JPG'}"], "photos are named so"),
        ([checkpoint, photos, f"--out={tmp_path / 'a.xlsx'}"], "Spreadsheets open .csv"),
        ([checkpoint, photos, f"--labels={checkpoint}"], "--labels: expected with a .h5 only"),
        ([checkpoint, photos, f"--keras-python={sys.executable}"], "--keras_python: expected with a .h5 only"),
        ([checkpoint, photos, "--device=tpu"], "--device"),
    ):
        assert lightning("predict", *arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said
    assert not list(Path.cwd().glob("predictions*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_a_message(checkpoint, photos, tmp_path, capsys):
    assert lightning("predict", checkpoint, photos, "--device=cuda", f"--out={tmp_path / 'p.csv'}") == 2
    assert "Use --device cpu" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("input_range", ["unit", "raw"])
def test_both_roads_write_the_same_file(predicted, checkpoint, photos, tmp_path, input_range):
    write_twin(checkpoint, tmp_path / "model.h5", input_range)
    out = tmp_path / "keras.csv"
    assert lightning("predict", tmp_path / "model.h5", photos, "--out", out, "--batch_size=5") == 0
    assert out.read_bytes() == predicted.read_bytes()
    assert (tmp_path / "keras_bad.csv").read_bytes() == predicted.with_name("predictions_bad.csv").read_bytes()


@pytest.mark.keras
@pytest.mark.slow
def test_foreign_file_needs_labels_and_a_changed_weight_changes_the_output(
    predicted, checkpoint, photos, tmp_path, capsys
):
    """The negative control of the same output: it is not the same for any file."""
    foreign = write_twin(checkpoint, tmp_path / "foreign.h5").path
    with h5py.File(foreign, "r+") as file:
        del file.attrs["shelftwin"]
        file["model_weights/predictions/predictions/bias:0"][2] += 0.05
    out = tmp_path / "p.csv"
    assert lightning("predict", foreign, photos / "odd", "--out", out) == 2
    assert "--labels" in capsys.readouterr().err
    facts = {"class_names": ["jeans", "sofa", "tshirt", "tv"], "input_range": "unit"}
    for wrong, words in (({"class_names": ["a", "b"]}, "4"), ({"image_size": [40, 48]}, "image_size")):
        (tmp_path / "labels.json").write_text(json.dumps(facts | wrong))
        assert lightning("predict", foreign, photos / "odd", "--out", out, "--labels", tmp_path / "labels.json") == 2
        assert words in capsys.readouterr().err
    (tmp_path / "labels.json").write_text(json.dumps(facts))
    assert lightning("predict", foreign, photos, "--out", out, "--labels", tmp_path / "labels.json") == 0
    ours, theirs = rows_of(predicted), rows_of(out)
    assert [row["file"] for row in ours] == [row["file"] for row in theirs]
    assert ours != theirs
    assert not (tmp_path / "p.csv.tmp").exists()


@pytest.mark.keras
@pytest.mark.slow
def test_labels_that_contradict_the_file_are_refused_and_float64_is_float64(checkpoint, photos, tmp_path, capsys):
    twin = write_twin(checkpoint, tmp_path / "model.h5").path
    (tmp_path / "labels.json").write_text(json.dumps(["tv", "tshirt", "sofa", "jeans"]))
    assert lightning("predict", twin, photos, "--labels", tmp_path / "labels.json") == 2
    assert "Leave --labels out" in capsys.readouterr().err
    pixels = np.stack([load_photo(path, (48, 40)) for path in sorted((photos / "sorted" / "tv").glob("tv_*.jpg"))[:3]])
    torch_road = CheckpointLabeller(checkpoint, "cpu")
    with KerasFileLabeller(twin) as keras_road:
        ours, theirs = torch_road.exact(pixels), keras_road.exact(pixels)
        assert ours.dtype == theirs.dtype == np.float64
        np.testing.assert_allclose(theirs, ours, rtol=1e-9)
        single = np.abs(keras_road.probabilities(pixels) - ours)
        assert 1e-12 < single.max() < top_labels.FLOAT32_ERROR


@pytest.mark.keras
@pytest.mark.slow
def test_layer_that_claims_more_than_the_file_has_is_a_message(checkpoint, photos, tmp_path, capsys):
    twin = write_twin(checkpoint, tmp_path / "model.h5").path
    with h5py.File(twin, "r+") as file:
        file.attrs["model_config"] = re.sub(r'"units": 4\b', '"units": 2000000000', file.attrs["model_config"])
    assert lightning("predict", twin, photos / "odd", "--out", tmp_path / "p.csv") == 2
    assert "layer predictions asks for weights of shape" in capsys.readouterr().err


@pytest.mark.keras
@pytest.mark.slow
def test_size_beyond_the_limit_is_a_message(checkpoint, photos, tmp_path, capsys):
    twin = write_twin(checkpoint, tmp_path / "model.h5").path
    with h5py.File(twin, "r+") as file:
        for name in ("model_config", "shelftwin"):
            file.attrs[name] = file.attrs[name].replace("48, 40", "65536, 65536")
    assert lightning("predict", twin, photos / "odd", "--out", tmp_path / "p.csv") == 2
    assert "at most 64 megapixels" in capsys.readouterr().err


def test_keras_process_that_fails_is_a_message(checkpoint, photos, tmp_path, capsys):
    twin = write_twin(checkpoint, tmp_path / "model.h5").path
    assert lightning("predict", twin, photos, "--keras-python", "/bin/false") == 3
    assert "ended without a reply" in capsys.readouterr().err
    assert lightning("predict", twin, photos, "--keras-python", tmp_path / "none") == 2
    assert lightning("predict", twin, photos, "--device=cuda") == 2
    assert "SHELFTWIN_KERAS_GPU" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_keras_process_that_hangs_is_ended(tmp_path):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with pytest.raises(KerasFailed, match="limit of 0 s"):
        KerasStream(tmp_path / "model.h5", slow, time_limit=0.3)


def test_file_is_known_by_its_content(checkpoint, photos, tmp_path):
    renamed = shutil.copy(checkpoint, tmp_path / "model.h5")
    assert lightning("predict", renamed, photos / "odd", "--out", tmp_path / "p.csv") == 0
