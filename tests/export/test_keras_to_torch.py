"""The way back: Keras files of every make become checkpoints, proved; ours come back bit for bit."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from datamodule.demo_photos import draw_catalogue
from export.checkpoint import read_checkpoint, read_hyper_parameters
from export.import_keras import ImportDiffers, write_import
from export.keras_file.read import read_keras_h5
from export.keras_to_torch import ImportSettings, read_keras_classifier
from export.proof.comparison import image_sets
from export.proof.import_proof import Import, check_imports
from export.proof.report import Report
from export.torch_to_keras import write_twin
from models.bad_input import BadInput
from tests.conftest import CLASS_NAMES, OTHER_KERAS, ROOT, lightning, random_classifier, save_checkpoint

NAMED = ImportSettings(class_names=CLASS_NAMES)
UNIT = ImportSettings(class_names=CLASS_NAMES, input_range="unit")
# Variants that can be imported, and what must be said of them.
SETTINGS = {
    "nested": NAMED,
    "sequential": ImportSettings(class_names=CLASS_NAMES, input_range="tf"),
    "flat": NAMED,
    "normalised": NAMED,
    "unsized": ImportSettings(class_names=CLASS_NAMES, input_range="unit", image_size=(64, 64)),
    "augmented": NAMED,
}
# One more Keras, of the second generation: its interpreter. `make test-keras2` names one.


# Our own files --------------------------------------------------------------------------------------------------------

WIDTHS = ["035", "050", "075", "100", "110d", "120d", "140"]
ROUND_TRIPS = [
    ("035", pad, size, ("unit", "raw")[index]) for index, pad in enumerate(("", "same")) for size in (48, 33)
]
ROUND_TRIPS += [
    pytest.param(width, ("", "same")[index % 2], 64, ("raw", "unit")[index % 2], marks=pytest.mark.slow)
    for index, width in enumerate(WIDTHS[1:])
]


def contents(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("width", "pad_type", "size", "input_range"), ROUND_TRIPS)
def test_round_trip_is_bit_for_bit(tmp_path, width, pad_type, size, input_range):
    network = random_classifier(
        backbone=f"mobilenetv2_{width}", hidden=(8, 6), dropout=0.1, pad_type=pad_type,
        bn_eps=1e-3 if pad_type else 1e-5, mean=(0.485, 0.4560000001, 1 / 3), std=(0.229, 0.224, 0.2250001),
    )  # fmt: skip
    for number, module in enumerate(each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        module.num_batches_tracked.fill_(number)
    facts = {
        "trainable": "all", "learning_rate": 0.00123, "interpolation": "bilinear",
        "schedule": {"batch_norm": "frozen" if pad_type else "train"},
    }  # fmt: skip
    checkpoint = save_checkpoint(tmp_path / "a.ckpt", network, (size, size), **facts)
    first = write_twin(checkpoint, tmp_path / "a.h5", input_range).path
    back = tmp_path / "b.ckpt"
    write_import(read_keras_classifier(first), back, check=False)
    before, after = contents(checkpoint), contents(back)
    assert before["state_dict"].keys() == after["state_dict"].keys()
    for name, tensor in before["state_dict"].items():
        assert tensor.dtype == after["state_dict"][name].dtype
        assert tensor.numpy().tobytes() == after["state_dict"][name].numpy().tobytes(), name
    assert before["hyper_parameters"].items() <= after["hyper_parameters"].items()
    own, returned = (read_checkpoint(path).network.normalise for path in (checkpoint, back))
    assert torch.equal(own.scale, returned.scale)
    assert torch.equal(own.offset, returned.offset)
    again = read_keras_h5(write_twin(back, tmp_path / "b.h5", input_range).path)
    file = read_keras_h5(first)
    assert (again.config, again.training_config) == (file.config, file.training_config)
    assert all(
        np.array_equal(a, b)
        for name in file.weights
        for a, b in zip(file.weights[name], again.weights[name], strict=True)
    )


def test_constants_are_recovered_without_the_details_that_keras_drops(tmp_path, small_checkpoint):
    """A twin that Keras trained on and saved has only its layers left."""
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        del file.attrs["shelftwin"]
    read = read_keras_classifier(twin, NAMED)
    own = read_checkpoint(small_checkpoint).network
    assert read.network.architecture == {**own.architecture, "pad_type": ""}
    assert read.input_range == "unit"
    assert torch.equal(read.network.normalise.offset, own.normalise.offset)


def test_size_beyond_the_limit_is_refused_before_anything_is_made_of_it(tmp_path, small_checkpoint):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    change_layer(twin, "image", batch_input_shape=[None, 65536, 65536, 3])
    with pytest.raises(BadInput, match="at most 64 megapixels, got a model for 65536 x 65536"):
        read_keras_classifier(twin)


def change_details(path: Path, **changes) -> None:
    with h5py.File(path, "r+") as file:
        details = json.loads(file.attrs["shelftwin"])
        details["architecture"] |= changes
        file.attrs["shelftwin"] = json.dumps(details).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": [0.1, 0.1, 0.1]}, "normalisation with offset"),
        ({"bn_eps": 1e-3}, "bn_eps"),
        ({"pad_type": "same"}, "padding"),
        ({"hidden": [17]}, "hidden"),
        ({"backbone": "mobilenetv2_050"}, "backbone"),
    ],
    ids=str,
)
def test_description_that_the_layers_belie_is_refused(tmp_path, small_checkpoint, change, said):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    change_details(twin, **change)
    with pytest.raises(BadInput, match=said):
        read_keras_classifier(twin)


def change_layer(path: Path, name: str, **changes) -> None:
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        next(layer for layer in config["config"]["layers"] if layer["name"] == name)["config"].update(changes)
        file.attrs["model_config"] = json.dumps(config).encode()


@pytest.mark.parametrize(
    ("layer", "change", "said"),
    [
        ("Conv1_pad", {"padding": [[0, 2], [0, 2]]}, "Conv1: expected the padding"),
        ("block_4_expand_BN", {"epsilon": 1e-3}, "expected one epsilon"),
        ("block_1_expand_relu", {"max_value": 1.0}, "block_1_expand_relu"),
        ("block_2_depthwise", {"dilation_rate": [2, 2]}, "block_2_depthwise"),
        ("predictions", {"activation": "sigmoid"}, "predictions: expected classes that exclude each other"),
        ("Conv1", {"filters": 24}, "Conv1/kernel: expected float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layer_that_timm_does_not_have_is_named(tmp_path, small_checkpoint, layer, change, said):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    change_layer(twin, layer, **change)
    with pytest.raises(BadInput, match=said):
        read_keras_classifier(twin)


def test_array_that_is_left_over_is_named(tmp_path, small_checkpoint):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with h5py.File(twin, "r+") as file:
        group = file["model_weights/Conv1_relu"]
        group.create_dataset("Conv1_relu/kernel:0", data=np.zeros(3, np.float32))
        group.attrs["weight_names"] = np.array([b"Conv1_relu/kernel:0"])
    with pytest.raises(BadInput, match="Conv1_relu"):
        read_keras_classifier(twin)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "c"], ["a", "b", "c", ""]], ids=str)
def test_class_names_must_be_as_many_as_the_outputs(tmp_path, small_checkpoint, names):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    with pytest.raises(BadInput, match="expected 4 different class names"):
        read_keras_classifier(twin, ImportSettings(class_names=names))


def test_file_with_folded_batchnorm_is_refused(tmp_path, small_checkpoint):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5", fuse_batchnorm=True).path
    with pytest.raises(BadInput, match="folded"):
        read_keras_classifier(twin)


# Files of others: (folder of one Keras) -------------------------------------------------------------------------------


def saved_by(python: str, folder: Path) -> Path:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTHONPATH", None)
    script = Path(__file__).with_name("keras_variants.py")
    done = subprocess.run([python, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


GENERATIONS = [pytest.param(sys.executable, id="here"), OTHER_KERAS]


@pytest.fixture(scope="module", params=GENERATIONS)
def keras_python(request) -> Path:
    """Whose Keras saves the files, and judges them: Keras 3 cannot load what Keras 2 saves."""
    return Path(request.param)


@pytest.fixture(scope="module")
def saved(keras_python, tmp_path_factory) -> Path:
    return saved_by(str(keras_python), tmp_path_factory.mktemp("saved"))


def one_ulp(file: h5py.File) -> None:
    base = next(name for name in file["model_weights"] if name.startswith("mobilenetv2"))
    kernel = _dataset(file["model_weights"][base], "block_5_expand/kernel")
    values = kernel[()]
    values.flat[0] = np.nextafter(values.flat[0], np.float32(np.inf))
    kernel[...] = values


def swapped_statistics(file: h5py.File) -> None:
    base = next(name for name in file["model_weights"] if name.startswith("mobilenetv2"))
    left, right = (_dataset(file["model_weights"][base], f"block_{n}_expand_BN/moving_mean") for n in (4, 5))
    left[...], right[...] = right[()], left[()]


def _dataset(group: h5py.Group, ending: str) -> h5py.Dataset:
    names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
    return group[next(name for name in names if name.partition(":")[0].endswith(ending))]


CONTROLS = {"a weight off by one ulp": one_ulp, "statistics of two layers swapped": swapped_statistics}


@pytest.fixture(scope="module")
def proofs(saved, keras_python, tmp_path_factory) -> dict[str, Report]:
    """Of every variant, and of files that were changed after they had been read."""
    folder = tmp_path_factory.mktemp("imported")
    photos = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    imports, names = [], []
    for name, settings in SETTINGS.items():
        classifier = read_keras_classifier(saved / f"{name}.h5", settings)
        write_import(classifier, folder / f"{name}.ckpt", check=False)
        fitting = photos[:, : classifier.image_size[0], : classifier.image_size[1]]
        sets = image_sets(classifier.image_size, fitting, [])
        imports.append(Import(folder / f"{name}.ckpt", saved / f"{name}.h5", sets))
        names.append(name)
    for name, change in CONTROLS.items():
        changed = Path(shutil.copy(saved / "nested.h5", folder / f"{len(imports)}.h5"))
        with h5py.File(changed, "r+") as file:
            change(file)
        imports.append(Import(folder / "nested.ckpt", changed, image_sets((64, 64), photos, [])))
        names.append(name)
    return dict(zip(names, check_imports(imports, {}, keras_python), strict=True))


EXPECTED = {
    "nested": {"hidden": [16, 8], "dropout": 0.25, "mean": [0.5] * 3, "std": [0.5] * 3},
    "sequential": {"hidden": [], "dropout": 0.2, "mean": [0.5] * 3, "std": [0.5] * 3},
    "flat": {"hidden": [16], "dropout": 0.0},
    "normalised": {"hidden": [], "dropout": 0.0},
    "unsized": {"hidden": [], "dropout": 0.0, "mean": [0.0] * 3, "std": [1.0] * 3},
    "augmented": {"hidden": [16], "dropout": 0.25, "mean": [0.5] * 3, "std": [0.5] * 3},
}


@pytest.mark.keras
def test_architecture_is_read_from_the_layers(saved):
    for name, expected in EXPECTED.items():
        read = read_keras_classifier(saved / f"{name}.h5", SETTINGS[name])
        architecture = read.network.architecture
        assert {key: architecture[key] for key in expected} == expected, name
        assert (architecture["backbone"], architecture["pad_type"], architecture["bn_eps"]) == (
            "mobilenetv2_035", "same", 1e-3,
        )  # fmt: skip
        assert read.trainable == ("head" if name == "nested" else "all")
        assert read.learning_rate == 5e-4
        assert bool(read.notes) == (name in ("flat", "augmented"))  # flat's Dropout stands before the hidden layer


@pytest.mark.keras
def test_augmentation_inside_is_left_out_and_said(saved):
    note = " ".join(read_keras_classifier(saved / "augmented.h5", SETTINGS["augmented"]).notes)
    for layer in ("random_flip", "random_rotation", "random_zoom", "random_translation", "random_contrast"):
        assert f"augmentation/{layer}" in note
    assert "gaussian_noise" in note
    assert "--data.augmentation" in note


@pytest.mark.keras
def test_every_variant_passes_the_ladder(proofs):
    for name in SETTINGS:
        assert proofs[name].verdict == "PASS", (name, proofs[name].failed)
        assert [check.name for check in proofs[name].checks] == [
            "labels", "weights", "layers_float64", "probabilities_synthetic", "top1_synthetic", "probabilities_photos",
            "top1_photos",
        ]  # fmt: skip
        assert len(proofs[name].layers) > 145
        assert proofs[name].skipped.keys() == {"file_pixels", "file_labels", "training_steps"}
        assert "3 skipped" in proofs[name].last_line()
        assert len(proofs[name].photos) == 3
        assert len(proofs[name].class_names) == len(proofs[name].photos[0].torch)


@pytest.mark.keras
def test_planted_differences_are_caught_and_named(proofs):
    for name, layer in zip(CONTROLS, ("block_5_expand", "block_4_expand_BN"), strict=True):
        failed = {check.name: check for check in proofs[name].failed}
        assert {"labels", "weights"} <= failed.keys()
        assert failed["labels"].first_divergence == "imported_from"
        assert layer in failed["weights"].first_divergence
        assert proofs[name].likely_cause is None  # the checkpoint was imported: nobody saved a twin again
    assert "layers_float64" in {check.name for check in proofs["statistics of two layers swapped"].failed}


@pytest.mark.keras
def test_what_timm_does_not_have_is_built_from_the_file(saved):
    for name in ("flattened", "operations", "wide"):
        classifier = read_keras_classifier(saved / f"{name}.h5", UNIT)
        assert ("graph" in classifier.network.architecture) == (name != "operations"), name


@pytest.mark.keras
def test_what_has_no_counterpart_is_refused_and_named(saved):
    for name, said in {
        "with_lambda": "Lambda",
    }.items():
        with pytest.raises(BadInput, match=said):
            read_keras_classifier(saved / f"{name}.h5", NAMED)


@pytest.mark.keras
def test_what_the_file_does_not_say_must_be_given(saved):
    with pytest.raises(BadInput, match="names of the 4 classes"):
        read_keras_classifier(saved / "nested.h5")
    with pytest.raises(BadInput, match="--input_range"):
        read_keras_classifier(saved / "sequential.h5", NAMED)
    with pytest.raises(BadInput, match="--image_size"):
        read_keras_classifier(saved / "unsized.h5", NAMED)
    # Keras pads as if every size were even where it does not know it, and timm has no such network
    odd = ImportSettings(class_names=CLASS_NAMES, input_range="unit", image_size=(61, 61))
    assert "graph" in read_keras_classifier(saved / "unsized.h5", odd).network.architecture


READERS = sorted((ROOT / "export" / "keras_file" / "readers").glob("*.py"))
OF_THE_WAY_BACK = [
    ROOT / "export" / f"{name}.py"
    for name in ("keras_to_torch", "import_keras", "upgrade_keras", "keras_file/architecture", "keras_file/read")
]
OF_THE_WAY_BACK += [
    ROOT / "export" / "keras_file" / f"{name}.py" for name in ("flat_layers", "layer_readers", "weights_alone")
]
OF_THE_WAY_BACK += [path for path in READERS if "BadInput(" in path.read_text()]
OF_THE_WAY_BACK += [ROOT / "lightning_module" / "commands" / f"{name}.py" for name in ("import_keras", "options")]


def messages_of(source: str) -> list[str]:
    """Texts of all BadInput in a source, what is put into them in braces."""
    raised = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.Call)]
    raised = [each.args[0] for each in raised if getattr(each.func, "id", "") == "BadInput"]
    parts = [each.values if isinstance(each, ast.JoinedStr) else [each] for each in raised]
    return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in each) for each in parts]


def without_remedy(messages: list[str]) -> list[str]:
    return [text for text in messages if not re.search(r"expected .*(\. |\n)\S", text, re.DOTALL)]


@pytest.mark.parametrize("path", OF_THE_WAY_BACK, ids=lambda path: path.stem)
def test_every_error_has_a_remedy_after_what_came(path):
    messages = messages_of(path.read_text())
    assert messages
    assert not without_remedy(messages)


def test_error_without_remedy_would_be_noticed():
    said = messages_of('raise BadInput(f"expected a, got {b}.")\nraise BadInput("expected a, got b. Do c.")')
    assert without_remedy(said) == ["expected a, got {}."]


# The command ----------------------------------------------------------------------------------------------------------


def test_fit_goes_on_from_an_import(tmp_path, monkeypatch, capsys):
    """The foreign architecture wins over the configuration's, and the first step starts from the imported weights."""
    photos, run = tmp_path / "photos", tmp_path / "run"
    draw_catalogue(photos, per_class=8, seed=0)
    network = random_classifier(
        backbone="mobilenetv2_035", hidden=(8,), pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5
    )
    twin = write_twin(save_checkpoint(tmp_path / "a.ckpt", network, (32, 32)), tmp_path / "a.h5").path
    imported = tmp_path / "imported.ckpt"
    assert lightning("import", twin, imported, "--check=false") == 0
    started = {}

    def remember(self) -> None:
        started.update({name: tensor.clone() for name, tensor in self.network.state_dict().items()})

    monkeypatch.setattr("lightning_module.classifier.ProductClassifier.on_train_start", remember)
    monkeypatch.chdir(tmp_path)
    code = lightning(
        "fit", "--config", ROOT / "configs" / "mobilenetv2.yaml", "--ckpt_path", imported,
        "--data.root", photos, "--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        "--trainer.default_root_dir", run, "--hand_over.enabled=false", "--model.compile=never",
        "--model.learning_rate=0.004",
    )  # fmt: skip
    assert code == 0
    # what is trained is the checkpoint's, how it is trained the command's
    said = capsys.readouterr().out
    assert (
        f"As {imported} has it, whatever the settings say: --model.backbone mobilenetv2_035, --model.hidden [8" in said
    )
    settings = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert (settings["trainable"], settings["learning_rate"], settings["hidden"]) == ("head", 0.004, [8])
    assert started.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, started[name]) for name, tensor in network.state_dict().items())
    trained = read_checkpoint(run / "best.ckpt")
    assert trained.network.architecture == network.architecture
    assert torch.equal(trained.network.backbone.conv_stem.weight, network.backbone.conv_stem.weight)  # frozen
    assert not torch.equal(trained.network.head.predictions.weight, network.head.predictions.weight)


def test_import_is_fine_tuned_by_our_recipe(tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    draw_catalogue(photos, per_class=8, seed=0)
    network = random_classifier(backbone="mobilenetv2_035", hidden=(), pad_type="same", bn_eps=1e-3, mean=0.5, std=0.5)
    twin = write_twin(save_checkpoint(tmp_path / "a.ckpt", network, (48, 48)), tmp_path / "a.h5").path
    imported = tmp_path / "imported.ckpt"
    assert lightning("import", twin, imported, "--check=false") == 0
    given = [
        "--config", ROOT / "configs" / "finetune.yaml", "--data.root", photos,
        "--model.train_size=null", "--data.batch_size=8", "--data.epoch_photos=null", "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu", "--trainer.default_root_dir", run, "--hand_over.enabled=false",
    ]  # fmt: skip
    assert lightning("fit", *given, "--ckpt_path", imported) == 0
    settings = read_hyper_parameters(run / "best.ckpt")
    assert (settings["trainable"], settings["schedule"]["batch_norm"]) == ("all", "frozen")
    trained = read_checkpoint(run / "best.ckpt").network
    assert not torch.equal(trained.backbone.conv_stem.weight, network.backbone.conv_stem.weight)


def test_optimiser_that_goes_on_is_not_set_otherwise(tmp_path, capsys):
    photos = tmp_path / "photos"
    draw_catalogue(photos, per_class=8, seed=0)
    network = ["--model.backbone=mobilenetv2_035", "--model.pretrained=false", "--model.hidden=[]"]
    given = [
        "fit",
        f"--data.root={photos}",
        *network,
        "--data.image_size=32",
        "--trainer.accelerator=cpu",
        "--hand_over.enabled=false",
    ]
    assert lightning(*given, f"--trainer.default_root_dir={tmp_path / 'a'}", "--trainer.max_epochs=1") == 0
    given += ["--ckpt_path", tmp_path / "a" / "last.ckpt", "--trainer.max_epochs=2"]
    for other in ("--model.learning_rate=0.002", "--model.trainable=all", "--model.schedule.warmup_epochs=1"):
        assert lightning(*given, f"--trainer.default_root_dir={tmp_path / 'b'}", other) == 2
        assert f"{other.partition('=')[0].removesuffix('.warmup_epochs')}: expected" in capsys.readouterr().err
    assert lightning(*given, f"--trainer.default_root_dir={tmp_path / 'b'}") == 0


def test_import_without_proof_says_so_and_takes_names_from_labels(tmp_path, small_checkpoint, capsys):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    (tmp_path / "labels.json").write_text(json.dumps({"class_names": list("abcd"), "interpolation": "bicubic"}))
    out = tmp_path / "o.ckpt"
    assert lightning("import", twin, out, "--labels", tmp_path / "labels.json", "--check", "false") == 0
    assert "not proved" in capsys.readouterr().out.splitlines()[-1]
    settings = read_hyper_parameters(out)
    assert (settings["class_names"], settings["interpolation"]) == (list("abcd"), "bicubic")


@pytest.mark.parametrize("name", ["cubic", "", 3, ["nearest"]], ids=str)
def test_interpolation_of_labels_or_of_the_file_must_be_known(tmp_path, small_checkpoint, capsys, name):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"class_names": list("abcd"), "interpolation": name}))
    assert lightning("import", twin, tmp_path / "o.ckpt", "--labels", labels, "--check=false") == 2
    assert "--interpolation or that of --labels: expected one of nearest, bilinear" in capsys.readouterr().err
    with h5py.File(twin, "r+") as file:
        details = json.loads(file.attrs["shelftwin"])
        file.attrs["shelftwin"] = json.dumps({**details, "interpolation": name}).encode()
    assert lightning("import", twin, tmp_path / "o.ckpt", "--check=false") == 2
    assert "the file's own interpolation: expected one of nearest, bilinear" in capsys.readouterr().err
    assert not (tmp_path / "o.ckpt").exists()


def test_spaces_around_class_names_are_no_part_of_them(tmp_path, small_checkpoint):
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    names = "--class_names= a, b c,d ,e"
    assert lightning("import", twin, tmp_path / "o.ckpt", names, "--check=false") == 0
    assert read_hyper_parameters(tmp_path / "o.ckpt")["class_names"] == ["a", "b c", "d", "e"]
    assert lightning("import", twin, tmp_path / "o.ckpt", "--class_names=a,b,c, ", "--check=false") == 2


def test_mismatch_exits_1_and_leaves_no_file(tmp_path, small_checkpoint, monkeypatch):
    """Keras is made to see another file than the one that was read."""
    twin = write_twin(small_checkpoint, tmp_path / "m.h5").path
    classifier = read_keras_classifier(twin)
    out = tmp_path / "o.ckpt"
    failing = [Report({}, {})]
    monkeypatch.setattr("export.import_keras.check_imports", lambda *given: failing)
    with pytest.raises(ImportDiffers):
        write_import(classifier, out)
    assert lightning("import", twin, out) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.h5", "o.ckpt"], "does not exist"),
        (["m.h5", "m.h5", "--check=false"], "the Keras file itself"),
        (["m.h5", "nowhere/o.ckpt", "--check=false"], "folder that is there"),
        (["m.h5", "o.ckpt", "--image_size=33"], "--image_size"),
        (["m.h5", "o.ckpt", "--image_size=big"], "--image_size"),
        (["m.h5", "o.ckpt", "--labels=nowhere.json"], "--labels"),
        (["m.h5", "o.ckpt", "--interpolation=cubic"], "expected one of nearest, bilinear"),
        (["m.h5", "o.ckpt", "--class_names=a,b"], "expected 4 different class names"),
        (["m.h5", "o.ckpt", "--input_range=raw"], "--input_range"),
    ],
    ids=str,
)
def test_what_cannot_be_used_exits_2(tmp_path, small_checkpoint, monkeypatch, capsys, arguments, said):
    write_twin(small_checkpoint, tmp_path / "m.h5")
    monkeypatch.chdir(tmp_path)
    assert lightning("import", *arguments) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]
