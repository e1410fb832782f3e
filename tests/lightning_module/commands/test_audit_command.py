import copy
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datamodule.audit.inspection import inspect_all
from datamodule.demo_photos import draw_catalogue
from lightning_module.commands import audit as command
from lightning_module.photo_features import PhotoFeatures
from tests.conftest import lightning, random_classifier


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    network = random_classifier(backbone="mobilenetv2_short")
    save_file({name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def small(weights):
    return ["--backbone", "mobilenetv2_short", "--weights", weights, "--image_size", "48", "--mean", "0.5", "--std=0.5"]


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    draw_catalogue(root, per_class=6, seed=0, size=64)
    (root / "tv" / "broken.jpg").write_bytes(b"no photo")
    (root / "tv" / "<script><b>.jpg").write_bytes((root / "tv" / "tv_0001.jpg").read_bytes())
    return root


def rows(out):
    return list(csv.DictReader((out / "audit.csv").open(newline="", encoding="utf-8-sig", errors="surrogateescape")))


def write(out, table):
    with (out / "audit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def test_audit_apply_undo(photos, small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    before = sorted(path for path in photos.rglob("*"))
    assert lightning("audit", photos, "--out", out, *small) == 0
    assert sorted(path for path in photos.rglob("*")) == before
    page = (out / "audit.html").read_text()
    # self-contained, and names cannot break out
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<b>.jpg" not in page
    assert page.count("<script") == 4
    table = rows(out)
    assert {row["finding"] for row in table if row["action"] == "quarantine"} == {"unreadable", "exact_duplicate"}
    for row in table:
        row["action"] = "quarantine" if row["file"] == "sofa/sofa_0002.jpg" else row["action"]
        row["action"] = "keep" if row["finding"] == "exact_duplicate" else row["action"]
    if not any(row["file"] == "sofa/sofa_0002.jpg" for row in table):
        table.append({**table[0], "file": "sofa/sofa_0002.jpg", "action": "quarantine"})
    write(out, table)

    # features come from the cache, decisions from the CSV
    monkeypatch.setattr("models.frozen_backbone.FrozenBackbone.features", None)
    assert lightning("audit", photos, "--out", out, *small) == 0
    assert {row["action"] for row in rows(out) if row["finding"] == "exact_duplicate"} == {"keep"}
    write(out, table)
    assert lightning("audit", photos, "--out", out, "--apply") == 0
    assert not (photos / "tv" / "broken.jpg").exists()
    assert (out / "quarantine" / "tv" / "broken.jpg").is_file()
    assert (out / "quarantine" / "sofa" / "sofa_0002.jpg").is_file()
    assert len(list(photos.rglob("*"))) == len(before) - 2
    assert lightning("audit", photos, "--out", out, "--undo") == 0
    assert sorted(path for path in photos.rglob("*")) == before
    assert "2 files brought back" in capsys.readouterr().out


def test_names_that_are_not_utf8(photos, small, tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (photos / "tv" / name).write_bytes(b"no photo")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    out = tmp_path / "out"
    assert lightning("audit", photos, "--out", out, *small) == 0
    assert {row["action"] for row in rows(out) if row["file"] == f"tv/{name}"} == {"quarantine"}
    (out / "audit.html").read_text(encoding="utf-8")
    assert lightning("audit", photos, "--out", out, *small) == 0
    assert lightning("audit", photos, "--out", out, "--apply") == 0
    assert not (photos / "tv" / name).exists()
    # a place that is taken: the name is shown, too
    (photos / "tv" / name).write_bytes(b"another")
    assert lightning("audit", photos, "--out", out, "--undo") == 2
    assert "left: tv/caf?.jpg" in capsys.readouterr().out
    (photos / "tv" / name).unlink()
    assert lightning("audit", photos, "--out", out, "--undo") == 0
    assert (photos / "tv" / name).read_bytes() == b"no photo"


def test_files_that_are_left_are_exit_code_2(photos, small, tmp_path, capsys):
    out = tmp_path / "out"
    assert lightning("audit", photos, "--out", out, *small) == 0
    assert lightning("audit", photos, "--out", out, "--apply") == 0
    capsys.readouterr()
    assert lightning("audit", photos, "--out", out, "--apply") == 0
    assert "2 had been set aside before" in capsys.readouterr().out
    (photos / "tv" / "broken.jpg").write_bytes(b"a new one")
    assert lightning("audit", photos, "--out", out, "--apply") == 2
    assert lightning("audit", photos, "--out", out, "--undo") == 2


def test_one_out_is_for_one_folder(photos, small, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(photos, other)
    assert lightning("audit", photos, "--out", out, *small) == 0
    for arguments in (["--apply"], small):
        assert lightning("audit", other, "--out", out, *arguments) == 2
        assert "another --out" in capsys.readouterr().err
    assert lightning("audit", photos, "--out", out, "--apply") == 0
    assert lightning("audit", other, "--out", out, "--undo") == 2
    assert (other / "tv" / "broken.jpg").exists()
    renamed = photos.rename(tmp_path / "renamed")
    assert lightning("audit", renamed, "--out", out, "--undo") == 0
    assert (renamed / "tv" / "broken.jpg").exists()


def test_checkpoint_in_place_of_weights(photos, small_checkpoint, tmp_path):
    arguments = ["audit", photos, "--out", tmp_path / "out", "--image-size", "48", "--checkpoint", small_checkpoint]
    assert lightning(*arguments) == 0
    cached = np.load(tmp_path / "out" / "features.npz")
    assert cached["features"].shape == (24, 1280)
    assert np.isfinite(cached["features"]).all()


def test_features_are_float32_on_every_processor(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("models.frozen_backbone.convolves_in_bfloat16", lambda: True)
    network = random_classifier(backbone="mobilenetv2_short").eval()
    extractor = PhotoFeatures(network, 48, "bilinear", tmp_path / "features.npz")
    seen, _ = inspect_all(sorted((photos / "sofa").iterdir())[:2], lambda items, _: items)
    features = extractor.of(seen, lambda items, _: items)
    views = torch.from_numpy(np.stack([extractor._views(each) for each in seen])).permute(0, 1, 4, 2, 3) / 255
    with torch.no_grad():
        expected = network.features(views.flatten(0, 1)).unflatten(0, (2, 3)).mean(1).numpy()
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    assert error < 1e-5
    # a pass in bfloat16 is noticed; torch's own, which every processor has
    rounded = copy.deepcopy(network).bfloat16().requires_grad_(False)
    extractor.backbone = SimpleNamespace(features=lambda images, **_: rounded.features(images.bfloat16()).float())
    extractor.cache = tmp_path / "other.npz"
    rough = extractor.of(seen, lambda items, _: items)
    assert np.linalg.norm(rough - expected) / np.linalg.norm(expected) > 1e-3


def test_bad_input_is_one_message(photos, small, weights, tmp_path, capsys, monkeypatch):
    out = ["--out", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([tmp_path / "none", *out, *small], "one folder of photos per class"),
        ([tmp_path / "empty", *out, *small], "no photos"),
        ([photos, "--out", photos / "audit", *small], "would become a class"),
        ([photos, *out, "--weights", tmp_path / "none.pth"], "--weights"),
        ([photos, *out, "--weights", weights], "does not fit"),
        ([photos, *out, "--backbone", "mobilnetv2"], "knows no model"),
        ([photos, *out, *small, "--validation_split", "1"], "--validation_split"),
        ([photos, "--out", tmp_path / "new", "--apply"], "Audit first"),
        ([photos, "--out", tmp_path / "new", "--undo"], "journal"),
        ([photos, *out, "--apply", "--undo"], "received both"),
    ):
        assert lightning("audit", *arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
        assert "--model." not in error
    monkeypatch.setattr(command, "EXTRA", {"cleanlab": "cleanlab", "no_such_package": "its-name"})
    assert lightning("audit", photos, *out, *small) == 2
    assert f"{sys.executable} -m pip install its-name" in capsys.readouterr().err


def test_weights_out_of_reach_name_the_option(photos, tmp_path, capsys, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("models.pretrained.huggingface_hub.get_session", unreachable)
    monkeypatch.setattr("models.pretrained._cached_file", lambda *_: None)
    assert lightning("audit", photos, "--out", tmp_path / "made" / "out") == 2
    assert not (tmp_path / "made").exists()  # a failed command leaves no empty folder
    assert "--weights FILE" in capsys.readouterr().err


def test_the_package_loads_nothing_heavy():
    heavy = "{'torch', 'sklearn', 'numpy'}"
    code = (
        f"import sys, datamodule.audit, lightning_module.commands.cli; print([m for m in sys.modules if m in {heavy}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def decide(out, **actions):
    """Write decisions about files into the CSV, by the names without endings; a row for each that has none."""
    table = rows(out)
    for name, (file, action) in actions.items():
        table = [row for row in table if row["file"] != file]
        table.append({**dict.fromkeys(table[0], ""), "file": file, "finding": "suspect", "action": action})
        assert name in file
    write(out, table)


def test_wrong_labels_are_moved_and_brought_back(photos, small, tmp_path, capsys):
    out, before = tmp_path / "out", sorted(photos.rglob("*"))
    assert lightning("audit", photos, "--out", out, *small) == 0
    page = (out / "audit.html").read_text()
    assert json.loads(re.search(r'id="classes">(.*?)</script>', page).group(1)) == ["jeans", "sofa", "tshirt", "tv"]
    decide(out, sofa_0002=("sofa/sofa_0002.jpg", "move to tv"), jeans_0001=("jeans/jeans_0001.jpg", "keep"))
    assert lightning("audit", photos, "--out", out, *small) == 0  # a second audit keeps the decision
    assert "move to tv" in {row["action"] for row in rows(out)}
    capsys.readouterr()
    for _ in range(2):
        assert lightning("audit", photos, "--out", out, "--apply") == 0
        assert (photos / "tv" / "sofa_0002.jpg").is_file()
        assert not (photos / "sofa" / "sofa_0002.jpg").exists()
    said = capsys.readouterr().out
    assert f"2 files moved to {out / 'quarantine'}; 1 files moved to other classes; --undo brings them back." in said
    assert "(1 had been moved before)" in said
    assert lightning("audit", photos, "--out", out, "--undo") == 0
    assert sorted(photos.rglob("*")) == before
    decide(out, sofa_0002=("sofa/sofa_0002.jpg", "move to tvs"))
    assert lightning("audit", photos, "--out", out, "--apply") == 2
    assert "received ['tvs']. Nothing was moved" in capsys.readouterr().err
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize("layout", ["one folder too high", "classes again in a folder", "sets without names"])
def test_folders_that_are_no_classes(photos, small, tmp_path, capsys, layout):
    root, meant = tmp_path / "root", tmp_path / "root" / "train"
    if layout == "classes again in a folder":
        shutil.copytree(photos, root)
    shutil.copytree(photos, meant)
    if layout == "sets without names":
        meant = meant.rename(root / "first half")
        shutil.copytree(photos, root / "second half")
    out = tmp_path / "out"
    assert lightning("audit", root, "--out", out, *small) == 2
    said = capsys.readouterr().err
    assert f"lightning audit {shlex.quote(str(meant))} --out {out}, and your other options" in said
    assert not out.exists()
    assert lightning("audit", meant, "--out", out, *small) == 0  # the advice


def test_sets_are_taken_as_fit_takes_them(photos, small, tmp_path, capsys):
    """A copy of a training photo among the validation photos is found, and a photo stays in its set."""
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(photos, root / "train")
    draw_catalogue(root / "archive" / "valid", per_class=5, seed=99, size=64)
    (root / "archive" / "valid").rename(root / "valid")
    (root / "archive").rmdir()
    (root / "to predict").mkdir()
    shutil.copy(photos / "tv" / "tv_0003.jpg", root / "to predict")
    shutil.copy(photos / "tv" / "tv_0001.jpg", root / "valid" / "tv" / "copy.jpg")
    before = sorted(root.rglob("*"))
    assert lightning("audit", root, "--out", out, *small) == 0
    said = capsys.readouterr().out
    assert "46 photos in 4 classes" in said
    assert "has sets, which are taken as they are: training train, validation valid" in said
    assert "Photos with a twin in another set" in said
    found = rows(out)
    assert {row["class"] for row in found} == {"jeans", "sofa", "tshirt", "tv"}
    assert not [row for row in found if row["file"].startswith("to predict")]
    (copied,) = [row for row in found if row["file"] == "valid/tv/copy.jpg" and row["finding"] == "exact_duplicate"]
    assert "one is trained on, the other validates" in copied["detail"]
    decide(out, sofa=("valid/sofa/sofa_0002.jpg", "move to tv"))
    assert lightning("audit", root, "--out", out, "--apply") == 0
    assert (root / "valid" / "tv" / "sofa_0002.jpg").is_file()
    assert not (root / "valid" / "tv" / "copy.jpg").exists()
    renamed = root.rename(tmp_path / "renamed")
    assert lightning("audit", renamed, "--out", out, "--undo") == 0
    assert sorted(renamed / each.relative_to(root) for each in before) == sorted(renamed.rglob("*"))


def test_sets_that_are_classes_after_all(photos, small, tmp_path):
    (tmp_path / "root").mkdir()
    for name in ("train", "test"):
        shutil.copytree(photos, tmp_path / "root" / name)
    out = tmp_path / "out"
    assert lightning("audit", tmp_path / "root", "--out", out, *small, "--listing", "keras") == 0
    assert {row["file"].split("/")[0] for row in rows(out)} <= {"train", "test"}


def test_table_of_labels(photos, small, tmp_path, capsys):
    """Nothing is moved: a copy of the table has the decisions."""
    files = sorted(photos.rglob("*.jpg"))
    (tmp_path / "shop").mkdir()
    table = tmp_path / "shop" / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "kind"], *([file, file.parts[-2]] for file in files)])
    out = tmp_path / "out"
    assert lightning("audit", table, "--out", out, *small) == 0
    said = capsys.readouterr().out
    assert "files from its column 'path'" in said
    found = {(row["file"], row["class"]) for row in rows(out) if row["action"] == "quarantine"}
    assert found == {(f"photos/tv/{name}.jpg", "tv") for name in ("broken", "tv_0001")}
    assert str(out / "labels.csv") in (out / "audit.html").read_text()
    assert lightning("audit", table, "--out", out, "--apply") == 0
    assert "without 2 rows and with other labels in 0; no file was moved" in capsys.readouterr().out
    assert sorted(photos.rglob("*.jpg")) == files
    with (out / "labels.csv").open(newline="") as copied:
        assert len(list(csv.DictReader(copied))) == len(files) - 2
    decide(out, sofa=("photos/sofa/sofa_0002.jpg", "move to tv"))
    assert lightning("audit", table, "--out", out, "--apply") == 0
    assert "without 2 rows and with other labels in 1; no file was moved" in capsys.readouterr().out
    with (out / "labels.csv").open(newline="") as copied:
        labels = {Path(row["path"]).name: row["kind"] for row in csv.DictReader(copied)}
    assert labels["sofa_0002.jpg"] == "tv"
    assert labels["sofa_0001.jpg"] == "sofa"
    decide(out, sofa=("photos/sofa/sofa_0002.jpg", "move to tvs"))
    assert lightning("audit", table, "--out", out, "--apply") == 2
    assert "received ['tvs']" in capsys.readouterr().err
    assert lightning("audit", table, "--out", out, "--undo") == 0
    assert not (out / "labels.csv").exists()
    assert table.is_file()
    assert lightning("audit", table, "--out", table.parent) == 2
    assert "expected another folder than the table's" in capsys.readouterr().err
    assert lightning("audit", table, "--out", out, "--label_column", "x") == 2
    assert "label_column: expected a column of" in capsys.readouterr().err
