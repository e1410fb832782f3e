"""`lightning predict` with many arguments, and what it writes: formats, number of labels, "unsure", temperatures."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from datamodule.demo_photos import draw_catalogue
from datamodule.photo_store import load_photo
from export.checkpoint import read_checkpoint
from export.import_keras import write_import
from export.keras_to_torch import read_keras_classifier
from export.torch_to_keras import write_twin
from lightning_module.evaluation import decoding, labelling
from lightning_module.evaluation.calibration import probabilities_of
from lightning_module.evaluation.torch_labeller import CheckpointLabeller
from models.digests import file_digest
from tests.conftest import CLASS_NAMES, lightning, random_classifier, save_checkpoint
from tests.foreign_networks import CODE, random_net, state_of
from tests.lightning_module.commands.test_predict import rows_of

TEMPERATURE = 0.4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with a temperature, and a shop's photos with a table of them."""
    folder = tmp_path_factory.mktemp("made")
    network = random_classifier(backbone="mobilenetv2_short", hidden=(16,), mean=0.5, std=0.5)
    with torch.no_grad():
        network.head.predictions.weight.mul_(20)  # some photos are sure, others not
    (folder / "run").mkdir()
    checkpoint = save_checkpoint(folder / "run" / "best.ckpt", network, (48, 40))
    figures = {"temperature": TEMPERATURE, "temperature_mistakes": 9, "checkpoint_sha256": file_digest(checkpoint)}
    (folder / "run" / "metrics.json").write_text(json.dumps({"final": figures}))
    draw_catalogue(folder / "shop", per_class=4, seed=0)
    photos = sorted((folder / "shop").rglob("*.jpg"))
    rows = [f"{place};{each.relative_to(folder).with_suffix('')};x" for place, each in enumerate(photos)]
    (folder / "table.csv").write_text("\n".join(["number;picture;note", *reversed(rows), "99;shop/none;x", ""]))
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch) -> Path:
    """The same, with a working folder of its own beside; links to all that was made are in it."""
    for name in ("run", "shop", "table.csv"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    return lightning("predict", "run/best.ckpt", *arguments, *([] if "--device" in arguments else ["--device", "cpu"]))


def files(out: str = "predictions.csv") -> list[str]:
    return [row["file"] for row in rows_of(Path(out))]


def test_arguments_of_all_kinds_in_their_order(there, monkeypatch, capsys):
    Path("list.txt").write_text("shop/tv/tv_0001.jpg\nshop/none.jpg\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"shop/tv/tv_0004.jpg\n"))))
    photo, folder = "shop/tv/tv_0002.jpg", [str(each) for each in sorted(Path("shop/sofa").iterdir())]
    assert run(photo, "shop/sofa", "shop/**/*_0003.jpg", "table.csv", "list.txt", "-", photo) == 0
    table = [str(each.resolve()) for each in sorted(Path("shop").rglob("*.jpg"), reverse=True)]
    pattern = [str(each) for each in sorted(Path("shop").glob("*/*_0003.jpg"))]
    mine = [photo, *folder, *pattern, *table, "shop/tv/tv_0001.jpg", "shop/tv/tv_0004.jpg", photo]
    assert [str(Path(each).resolve()) for each in files()] == [str(Path(each).resolve()) for each in mine]
    assert [row["reason"] for row in rows_of(Path("predictions_bad.csv"))] == ["is not there"] * 2
    assert "2 that cannot be read: predictions_bad.csv\n  shop/none: is not there\n" in capsys.readouterr().out


def test_many_missing_files_are_all_listed_and_some_named(there, capsys):
    Path("list.txt").write_text("".join(f"none/{number}.jpg\n" for number in range(25)))
    assert run("list.txt", "--out", "p.csv") == 2
    said = capsys.readouterr()
    assert "  and 5 more\n" in said.out
    assert said.out.count("none/") == 20
    assert "received none: p.csv has no rows" in said.err
    assert len(rows_of(Path("p_bad.csv"))) == 25


def test_formats_have_the_same_rows(there):
    for place, arguments in (("predictions.csv", []), ("a.parquet", ["--out=a.parquet"]), ("a.x", ["--format=jsonl"])):
        assert run("shop", *arguments, *(["--out", place] if place == "a.x" else [])) == 0
    assert run("shop", "--format=jsonl") == 0  # predictions.jsonl
    assert Path("a.x").read_bytes() == Path("predictions.jsonl").read_bytes()
    rows = rows_of(Path("predictions.csv"))
    table = parquet.read_table("a.parquet")
    assert [str(kind) for kind in table.schema.types] == ["string", *["string", "double"] * 3]
    assert table.to_pylist() == [json.loads(line) for line in Path("a.x").read_text().splitlines()]
    for row, other in zip(rows, table.to_pylist(), strict=True):
        assert row == {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in other.items()}


def test_large_tables_are_written_in_parts(there, monkeypatch):
    monkeypatch.setattr("lightning_module.evaluation.prediction_files.ROWS_AT_ONCE", 5)
    assert run("shop", "--format", "parquet") == 0
    assert parquet.ParquetFile("predictions.parquet").metadata.num_row_groups == 4
    assert parquet.read_table("predictions.parquet").num_rows == 16


def test_names_of_any_bytes_and_formulas_in_each_format(there):
    Path("odd").mkdir()
    for name in (b"caf\xe9.png", "é.png".encode(), b"=1.png"):
        Image.new("RGB", (5, 5)).save(Path("odd", os.fsdecode(name)))
    os.chdir("odd")
    for form in ("csv", "parquet", "jsonl"):
        assert lightning("predict", "../run/best.ckpt", ".", "--out", f"../o.{form}") == 0
    os.chdir("..")
    names = [json.loads(line)["file"] for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(map(os.fsencode, names)) == sorted([b"caf\xe9.png", "é.png".encode(), b"=1.png"])
    assert {*parquet.read_table("o.parquet")["file"].to_pylist()} == {r"caf\xe9.png", "é.png", "=1.png"}
    assert b"\n'=1.png," in Path("o.csv").read_bytes()
    assert b"\ncaf\xe9.png," in Path("o.csv").read_bytes()


@pytest.mark.parametrize("top", [1, 2, 4])
def test_as_many_labels_as_are_asked_for(there, top):
    assert run("shop", "--top", top) == 0
    assert run("shop", "--top", 4, "--out", "all.csv") == 0
    for row, whole in zip(rows_of(Path("predictions.csv")), rows_of(Path("all.csv")), strict=True):
        assert [*row.items()] == [*whole.items()][: 1 + 2 * top]
    assert {row[f"label_{place}"] for row in [whole] for place in (2, 3, 4)} | {whole["label"]} == {*CLASS_NAMES}
    assert sum(float(whole[name]) for name in whole if name.startswith("prob")) == pytest.approx(1, abs=0.002)


def test_less_than_the_probability_is_unsure_at_the_fitted_temperature(there, capsys):
    assert run("shop") == 0
    plain = rows_of(Path("predictions.csv"))
    assert "probabilities:" not in capsys.readouterr().out
    assert run("shop", "--min_probability", 0.6) == 0
    assert f"calibrated, the logits divided by {TEMPERATURE:.4f}, which lightning fit fitted" in capsys.readouterr().out
    labelled = rows_of(Path("predictions.csv"))
    assert [row["likeliest"] for row in labelled] == [row["label"] for row in plain]  # a temperature keeps the order
    for row in labelled:
        assert row["label"] == ("unsure" if float(row["probability"]) < 0.6 else row["likeliest"])
    assert 0 < sum(row["label"] == "unsure" for row in labelled) < len(labelled)
    torch_side = CheckpointLabeller(Path("run/best.ckpt"), "cpu")
    pixels = np.stack([load_photo(Path(row["file"]), (48, 40)) for row in labelled])
    expected = probabilities_of(np.log(torch_side.exact(pixels)), TEMPERATURE).max(axis=1)
    assert [float(row["probability"]) for row in labelled] == pytest.approx(expected.tolist(), abs=5.1e-4)
    shown = Path("predictions.csv").read_bytes()
    for same in (
        ["--min_probability=0.6", "--temperature", TEMPERATURE],
        ["--min_probability=.6", "--temperature=fitted"],
    ):
        assert run("shop", *same) == 0
        assert Path("predictions.csv").read_bytes() == shown
    assert run("shop", "--min_probability=0.6", "--temperature=none") == 0
    assert [row["probability"] for row in rows_of(Path("predictions.csv"))] == [row["probability"] for row in plain]
    exactly = labelled[0]["probability"]
    assert run(labelled[0]["file"], "--min_probability", exactly) == 0
    assert rows_of(Path("predictions.csv"))[0]["label"] == labelled[0]["likeliest"]  # as printed: no less


def test_without_a_fitted_temperature_it_is_said(there, capsys):
    Path("alone.ckpt").write_bytes(Path("run/best.ckpt").read_bytes())
    assert lightning("predict", "alone.ckpt", "shop", "--min_probability", 0.5) == 0
    assert "as alone.ckpt gives them; no metrics.json" in capsys.readouterr().out
    assert lightning("predict", "alone.ckpt", "shop", "--temperature", "fitted") == 2
    assert "expected metrics.json to have the one fitted to alone.ckpt" in capsys.readouterr().err
    other = {"final": {"temperature": 3.0, "temperature_mistakes": 9, "checkpoint_sha256": "0" * 64}}
    Path("metrics.json").write_text(json.dumps(other))
    assert lightning("predict", "alone.ckpt", "shop", "--temperature", "fitted") == 2
    assert "received one of another checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shop", "--top=5"], "--top: expected 1 to 4"),
        (["shop", "--top=0"], "--top: expected 1 to 4"),
        (["shop", "--min_probability=1.1"], "--min_probability: expected a number from 0 to 1"),
        (["shop", "--min_probability=-0.1"], "--min_probability: expected a number from 0 to 1"),
        (["shop", "--min_probability=.nan"], "--min_probability: expected a number from 0 to 1"),
        (["shop", "--min_probability=much"], "--min_probability"),
        (["shop", "--temperature=0"], "--temperature: expected a number from 0.05 to 20"),
        (["shop", "--temperature=.nan"], "--temperature: expected a number from 0.05 to 20"),
        (["shop", "--temperature=warm"], "--temperature"),
        (["shop", "--format=parquet", "--out=p.csv"], "Name it p.parquet, or leave --format out"),
        (["shop", "--format=csv", "--out=p.PARQUET"], "Name it p.csv"),
        (["shop", "--format=xlsx"], "--format"),
        (["table.csv", "--out=table.csv"], "which is an input"),
        (["shop/*.gif"], "matches none"),
        (["shop", "none", "shop/*.jpg"], "received 1 of 3 that are not: none"),
        (["shop", "--file_column=picture"], "--file_column: expected with a table"),
        (["table.csv", "--file_column=none"], "file_column: expected a column of table.csv"),
        (["a\0b"], "received 1 of 1 that are not"),
        ([], "photos"),
    ],
)
def test_refusals_leave_nothing(there, arguments, words, capsys):
    before = sorted(there.iterdir())
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert sorted(there.iterdir()) == before


def test_class_that_is_called_unsure_is_refused(there, capsys):
    network = random_classifier(backbone="mobilenetv2_short", hidden=())
    save_checkpoint(Path("a.ckpt"), network, (32, 32), class_names=["a", "b", "c", "unsure"])
    assert lightning("predict", "a.ckpt", "shop", "--min_probability", 0.5) == 2
    assert "other names than 'unsure'" in capsys.readouterr().err


def test_standard_input_that_ends_at_once_leaves_nothing(there, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO())))
    assert run("-") == 2
    assert "from standard input" in capsys.readouterr().err
    assert not list(there.glob("predictions*"))


def test_memory_is_that_of_a_batch(there, monkeypatch):
    """A list of any length is taken line by line, as photos are decoded."""
    taken = []
    monkeypatch.setattr(decoding, "load_photo", lambda path, *_: taken.append(path) or np.zeros((48, 40, 3), np.uint8))
    given = SimpleNamespace(readline=lambda _: b"shop/tv/tv_0001.jpg\n", peek=lambda _: b"")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=given))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(labelling, "label", stop)
    assert run("-", "--batch_size=4") == 130
    assert len(taken) <= 8


@pytest.mark.keras
@pytest.mark.slow
def test_both_twins_write_the_same_at_a_temperature_in_every_format(there, made):
    twin = made / "run" / "model.h5"
    write_twin(made / "run" / "best.ckpt", twin)
    for form in ("csv", "parquet", "jsonl"):
        options = ["shop", "table.csv", "--top=4", "--min_probability=0.6", "--format", form]
        assert run(*options, "--out", f"ours.{form}") == 0
        assert lightning("predict", "run/model.h5", *options, "--out", f"theirs.{form}", "--batch_size=5") == 0
        assert Path(f"ours.{form}").read_bytes() == Path(f"theirs.{form}").read_bytes()
    assert Path("ours_bad.csv").read_bytes() == Path("theirs_bad.csv").read_bytes()
    assert run("shop", "--top=4", "--min_probability=0.6", "--temperature=none", "--out=other.csv") == 0
    assert Path("other.csv").read_bytes() != Path("ours.csv").read_bytes()  # the negative control


@pytest.mark.keras
@pytest.mark.slow
def test_keras_file_of_one_sigmoid_has_two_labels_as_its_import_has(there, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("net_of_one.py").write_text(CODE)
    torch.save(state_of(random_net(num_classes=1)), "one.pth")
    network = ("--model", "net_of_one.py:Net", "--image_size", "16,12", "--mean", "0.5", "--std", "0.25")
    sigmoid = (*network, "--model_args", "ending=sigmoid", "--output", "sigmoid", "--class_names", "sound")
    assert lightning("export", "one.pth", "one.h5", *sigmoid) == 0
    assert lightning("predict", "one.h5", "shop", "--top=2") == 0
    rows = rows_of(Path("predictions.csv"))
    assert {name for row in rows for name in (row["label"], row["label_2"])} == {"sound", "not sound"}
    write_import(read_keras_classifier(Path("one.h5")), Path("one.ckpt"), check=False)
    assert list(read_checkpoint(Path("one.ckpt")).class_names) == ["not sound", "sound"]
    assert lightning("predict", "one.ckpt", "shop", "--top=2", "--out=theirs.csv") == 0
    assert Path("theirs.csv").read_bytes() == Path("predictions.csv").read_bytes()
