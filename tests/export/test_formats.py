"""Other formats: each is the network that was trained, a planted difference is not written, old files survive.

The formats are made by three Keras processes for the whole file: floats, integers, and a planted difference.
"""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import export.formats
from datamodule.demo_photos import draw_catalogue
from datamodule.photo_store import PhotoStore
from datamodule.split import list_photos
from export.exported_facts import facts_of
from export.formats import (
    FORMATS,
    Photos,
    WrittenFormat,
    check_accuracy,
    last_line,
    places_of,
    print_formats,
    write_formats,
)
from export.proof.report import Check
from export.torch_to_keras import write_twin
from models import atomic_write
from models.atomic_write import replacing_folder
from models.bad_input import BadInput
from models.timm_mobilenetv2 import TimmClassifier
from tests.conftest import CLASS_NAMES, lightning, random_classifier, save_checkpoint

SIZE = (64, 64)
PLACES = ["model.h5", "model.onnx", "model.tflite", "model_float16.tflite", "model_int8.tflite", "model_saved_model"]


def fit_head(network: TimmClassifier, photos: Photos, logit: float) -> None:
    """Train the dense head alone, by ridge regression: the labels of a random one would hang on the last bit.

    Args:
        network: its head has no hidden layer.
        photos: to train on.
        logit: what each class's output is to be on its own photos, and minus that on the others. Small for floats, for
            the same reason as in `random_classifier`; large for integers, whose probabilities come in steps of 1/256.
    """
    pixels = torch.from_numpy(photos.pixels).permute(0, 3, 1, 2).float() / 255
    seen: list[torch.Tensor] = []
    watching = network.head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().double()))
    with torch.no_grad():
        network(pixels)
        watching.remove()
        mean = seen[0].mean(dim=0)
        features = seen[0] - mean
        wanted = logit * (2 * torch.eye(len(CLASS_NAMES))[photos.labels].double() - 1)
        products = features @ features.T
        ridge = 0.1 * products.diagonal().mean() * torch.eye(len(pixels)).double()
        weight = features.T @ torch.linalg.solve(products + ridge, wanted - wanted.mean(dim=0))
        network.head.predictions.weight.copy_(weight.T)
        network.head.predictions.bias.copy_(wanted.mean(dim=0) - mean @ weight)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("formats") / "photos"
    draw_catalogue(root, per_class=15, seed=0)
    return root


@pytest.fixture(scope="module")
def photos(catalogue) -> Photos:
    files = list_photos(catalogue)
    store = PhotoStore(SIZE)
    assert not store.add(files)
    labels = np.array([CLASS_NAMES.index(file.parent.name) for file in files])
    return Photos(store.photos_of(files), [str(file) for file in files], labels)


def fitted(path: Path, photos: Photos, logit: float) -> Path:
    network = random_classifier(backbone="mobilenetv2_short", hidden=(), pad_type="same", mean=0.5, std=0.5)
    fit_head(network, photos, logit)
    return save_checkpoint(path, network, SIZE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, photos) -> Path:
    return fitted(tmp_path_factory.mktemp("fitted") / "best.ckpt", photos, logit=0.4)


@pytest.fixture(scope="module")
def clear(tmp_path_factory, photos) -> Path:
    return fitted(tmp_path_factory.mktemp("clear") / "best.ckpt", photos, logit=2.0)


@pytest.fixture(scope="module")
def made(checkpoint, clear, photos, tmp_path_factory) -> tuple[Path, list[WrittenFormat], dict[str, str]]:
    folder = tmp_path_factory.mktemp("made")
    floats = [name for name, each in FORMATS.items() if not each.quantised]
    formats, versions = write_formats(checkpoint, folder / "model.h5", floats, "raw", photos)
    integers, _ = write_formats(clear, folder / "model.h5", ["tflite_int8"], "raw", photos)
    return folder, formats + integers, versions


@pytest.mark.keras
def test_every_format_is_the_network_and_in_its_place(made):
    folder, formats, versions = made
    assert [each.name for each in formats] == list(FORMATS)
    assert {each.name: [check.name for check in each.checks if not check.passed] for each in formats} == {
        name: [] for name in FORMATS
    }
    assert sorted(path.name for path in folder.iterdir()) == PLACES
    assert {"tensorflow", "keras", "tf2onnx", "onnxruntime"} <= versions.keys()
    floats = ["labels", "probabilities_synthetic", "probabilities_photos", "top1_photos"]
    for each in formats:
        quantised = FORMATS[each.name].quantised
        assert [check.name for check in each.checks] == (
            ["labels", "top1_photos", "accuracy_drop_photos"] if quantised else floats
        )
    # a quarter of float32, and what both say of their layers: it is not the float model under another name
    sizes = {each.name: each.size for each in formats}
    assert sizes["tflite_int8"] < 0.7 * sizes["tflite"]
    assert sizes["tflite_float16"] < 0.7 * sizes["tflite"]


@pytest.mark.keras
def test_class_names_are_where_each_format_keeps_such_things(made):
    onnx = pytest.importorskip("onnx")
    folder = made[0]
    properties = {each.key: each.value for each in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(properties["class_names"]) == CLASS_NAMES
    assert properties["input_range"] == "raw"
    extra = json.loads((folder / "model_saved_model" / "assets.extra" / "labels.json").read_text())
    for name in ("model.tflite", "model_float16.tflite"):
        with zipfile.ZipFile(folder / name) as archive:
            assert extra == json.loads(archive.read("labels.json"))
    assert extra["class_names"] == CLASS_NAMES
    facts = {
        kind: facts_of(folder / f"model{FORMATS[kind].ending}", kind) for kind in ("saved_model", "tflite", "onnx")
    }
    assert facts["saved_model"] == facts["tflite"] == extra
    told = ("class_names", "image_size", "interpolation", "input_range", "checkpoint_sha256")
    assert {name: facts["onnx"][name] for name in told} == {name: extra[name] for name in told}


def rows_of(model: Path, photos: Path, out: Path) -> list[dict[str, str]]:
    assert lightning("predict", model, photos, "--out", out, "--batch_size", 7) == 0
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.keras
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "keras"])
def test_predict_takes_each_and_gives_the_checkpoints_rows(made, checkpoint, clear, catalogue, tmp_path, name):
    of = FORMATS[name]
    right, wrong = (clear, checkpoint) if of.quantised else (checkpoint, clear)
    expected, other = (rows_of(each, catalogue, tmp_path / f"{each.parent.name}.csv") for each in (right, wrong))
    rows = rows_of(made[0] / f"model{of.ending}", catalogue, tmp_path / "rows.csv")
    assert [row["file"] for row in rows] == [row["file"] for row in expected]
    same = [row["label"] == its["label"] for row, its in zip(rows, expected, strict=True)]
    assert np.mean(same) >= of.agreement
    if not of.quantised:
        assert probability_gap(rows, expected) <= of.difference + 0.001  # as printed, with three decimals
    assert probability_gap(rows, other) > 0.1


def probability_gap(rows: list[dict[str, str]], others: list[dict[str, str]]) -> float:
    return max(abs(float(a["probability"]) - float(b["probability"])) for a, b in zip(rows, others, strict=True))


@pytest.mark.keras
def test_what_predict_cannot_take_is_a_message(made, catalogue, tmp_path, capsys):
    helper = pytest.importorskip("onnx.helper")
    onnx = pytest.importorskip("onnx")
    of_torch = tmp_path / "torch.onnx"
    sides = {"image": ["n", 3, 64, 64], "out": ["n", 3, 64, 64]}
    given, gives = (helper.make_tensor_value_info(name, 1, shape) for name, shape in sides.items())
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "graph", [given], [gives])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 15)]), of_torch)
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"class_names": CLASS_NAMES, "input_range": "unit", "image_size": [64, 64]}))
    damaged, stump, no_model, bare = (
        tmp_path / name for name in ("damaged.onnx", "stump.onnx", "no.tflite", "bare.tflite")
    )
    damaged.write_bytes((made[0] / "model.onnx").read_bytes()[:5000])
    stump.write_bytes(b"")
    no_model.write_bytes(b"no model at all")
    bare.write_bytes((made[0] / "model.tflite").read_bytes().partition(b"PK\x03\x04")[0][:2000])
    for given, message in (
        ([of_torch, catalogue], "expected class_names"),
        ([of_torch, catalogue, f"--labels={labels}"], "(N, height, width, 3), received one of [None, 3, 64, 64]"),
        ([damaged, catalogue], "whose facts cannot be read"),
        ([stump, catalogue, f"--labels={labels}"], "cannot be run as onnx"),
        ([no_model, catalogue], "begins as none"),
        ([bare, catalogue], "expected class_names"),
        ([made[0] / "model.onnx", catalogue, "--device=cuda"], "expected auto or cpu for model.onnx"),
        ([tmp_path / "none.onnx", catalogue], "No such file"),
        ([tmp_path, catalogue], "Is a directory"),
    ):
        assert lightning("predict", *given, "--out", tmp_path / "p.csv") == 2, given
        assert message in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.keras
def test_what_differs_is_not_written_and_the_old_files_survive(
    checkpoint, photos, catalogue, tmp_path, monkeypatch, capsys
):
    changed = random_classifier(seed=1, backbone="mobilenetv2_short", hidden=(), pad_type="same", mean=0.5, std=0.5)
    other = save_checkpoint(tmp_path / "other.ckpt", changed, SIZE)
    monkeypatch.setattr(export.formats, "write_twin", lambda _, *given: write_twin(other, *given))
    (tmp_path / "model_saved_model").mkdir()
    old = (
        "model.onnx",
        "model.tflite",
        "model_float16.tflite",
        "model_int8.tflite",
        "model_saved_model/saved_model.pb",
    )
    for name in old:
        (tmp_path / name).write_text(f"old {name}")

    names = "saved_model,onnx,tflite,tflite_float16,tflite_int8"
    given = ["export", checkpoint, tmp_path / "model.h5", "--format", names, "--photos", catalogue]
    results = []
    monkeypatch.setattr(
        export.formats, "print_formats", lambda made, versions: (results.extend(made), print_formats(made, versions))
    )
    assert lightning(*given) == 1

    failed = {each.name: {check.name for check in each.checks if not check.passed} for each in results}
    assert all({"probabilities_synthetic", "probabilities_photos"} <= failed[name] for name in names.split(",")[:4])
    assert {"top1_photos", "accuracy_drop_photos"} <= failed["tflite_int8"]
    assert all("labels" in checks for checks in failed.values())  # it names another checkpoint
    for name in old:
        assert (tmp_path / name).read_text() == f"old {name}"
    assert not (tmp_path / "model.h5").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("export FAIL: saved_model: labels at checkpoint_sha256")
    assert "was not written" in last


# What needs no Keras process ------------------------------------------------------------------------------------------


def test_places():
    out = Path("run/model.h5")
    assert {str(path) for path in places_of(out, list(FORMATS)).values()} == {f"run/{name}" for name in PLACES}
    assert places_of(out, ["onnx"]) == {"onnx": Path("run/model.onnx")}
    assert places_of(Path("run/shop.bin"), ["onnx"]) == {"onnx": Path("run/shop.bin")}
    with pytest.raises(BadInput, match=r"ends in \.h5"):
        places_of(Path("run/model.onnx"), ["onnx", "tflite"])


def test_lower_accuracy_fails_however_small_the_difference_of_floats():
    labels = np.array([0, 1, 0, 1, -1])
    right = np.array([[0.51, 0.49], [0.49, 0.51], [0.51, 0.49], [0.49, 0.51], [0.5, 0.5]])
    wrong = right.copy()
    wrong[0] = [0.49, 0.51]
    assert check_accuracy(labels, right, right, 0.02).passed
    lower = check_accuracy(labels, right, wrong, 0.02)
    assert (lower.passed, lower.figure) == (False, 0.25)
    assert check_accuracy(labels, wrong, right, 0.02).figure == -0.25
    at_the_limit = np.zeros(50, np.int64)
    all_right, one_wrong = np.tile([0.6, 0.4], (50, 1)), np.tile([0.6, 0.4], (50, 1))
    one_wrong[7] = [0.4, 0.6]
    assert check_accuracy(at_the_limit, all_right, one_wrong, 0.02).passed


def test_last_line_states_the_figure_and_its_threshold():
    check = Check("top1_photos", False, 0.8, 0.9, "share of labels equal", "", "a.jpg", True)
    failed = WrittenFormat("tflite_int8", Path("m_int8.tflite"), [check], 1, 0.0)
    assert last_line([failed]) == (
        "export FAIL: tflite_int8: top1_photos at a.jpg: 0.8 share of labels equal, expected >= 0.9; "
        "m_int8.tflite was not written"
    )
    assert not WrittenFormat("onnx", Path("m.onnx"), [], 1, 0.0).passed


def test_what_a_converter_said_and_names_are_printed_as_they_are_and_not_taken_for_markup(capsys):
    said = "no kernel on [/job:localhost/replica:0/task:0/device:CPU:0]"
    broken = WrittenFormat(
        "onnx", Path("[old]/m.onnx"), [Check("made", False, 1, 0, "steps failed", said, said)], 0, 0.0
    )
    worst = "12 images; largest for [red]dress.jpg"
    good = WrittenFormat("tflite", Path("[new]/m.tflite"), [Check("top1_photos", True, 1, 0.9, "", worst)], 10, 1.0)
    print_formats([good, broken], {"python": "3.11"})
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert said in lines[-1]
    assert "onnx: [old]/m.onnx: not written" in lines
    assert any(line.startswith("tflite: [new]/m.tflite: ") for line in lines)
    # the table folds its cells where they are full
    cells = "".join(line.split("\u2502")[-2].strip() for line in lines if line.count("\u2502") > 2)
    assert "[/job:localhost/replica:0/task:0/device:CPU:0]" in cells
    assert "[red]dress.jpg" in cells


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--format", "onnx,coreml"], "received 'coreml'"),
        (["--format", "tflite_int8"], "--photos"),
        (["--format", ","], "expected some of"),
        (["--format", "onnx", "--photos", "nowhere"], "--photos: expected a folder"),
        (["--photos", "."], "lightning parity"),  # of a single .h5 they would be ignored
    ],
)
def test_bad_input(small_checkpoint, tmp_path, capsys, given, words):
    assert lightning("export", small_checkpoint, tmp_path / "model.h5", *given) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_places_that_hold_something_else_are_refused(small_checkpoint, tmp_path, capsys):
    (tmp_path / "model_saved_model").mkdir()
    (tmp_path / "model_saved_model" / "holiday.jpg").write_text("mine")
    (tmp_path / "model.onnx").mkdir()
    assert lightning("export", small_checkpoint, tmp_path / "model.h5", "--format", "saved_model") == 2
    assert "is none, so it is not replaced" in capsys.readouterr().err
    assert lightning("export", small_checkpoint, tmp_path / "model.h5", "--format", "onnx") == 2
    assert "which is a folder" in capsys.readouterr().err
    assert lightning("export", small_checkpoint, small_checkpoint, "--format", "onnx") == 2
    assert "the checkpoint itself" in capsys.readouterr().err
    assert lightning("export", small_checkpoint, tmp_path / "no" / "model.h5", "--format", "onnx") == 2


# Folders are replaced whole -------------------------------------------------------------------------------------------


def folder_with(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text(text)
    return path


@pytest.mark.parametrize("swap", ["by the system", "by hand"])
def test_a_folder_is_replaced(tmp_path, monkeypatch, swap):
    if swap == "by hand":
        monkeypatch.setattr(atomic_write, "_swap", lambda *_: False)
    place = tmp_path / "place"
    for text in ("first", "second"):
        with replacing_folder(place) as temporary:
            folder_with(temporary, text)
        assert (place / "inner" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_an_old_folder_survives_a_failure(tmp_path, monkeypatch):
    place = folder_with(tmp_path / "place", "old")
    with pytest.raises(RuntimeError), replacing_folder(place) as temporary:  # noqa: PT012
        folder_with(temporary, "half")
        raise RuntimeError("the converter broke off")
    assert (place / "inner" / "file").read_text() == "old"

    monkeypatch.setattr(atomic_write, "_swap", lambda *_: False)
    rename = Path.rename

    def fail_to_take_the_place(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_take_the_place)
    with pytest.raises(BadInput, match="disk is gone"), replacing_folder(place) as temporary:
        folder_with(temporary, "new")
    assert (place / "inner" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
