"""`lightning predict` into a data set: the rows of the table, in parts, which a stopped run goes on from."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from pyarrow import dataset, parquet

from datamodule.demo_photos import draw_catalogue
from datamodule.sources.photo_arguments import PhotoArguments
from lightning_module.evaluation import labelling
from models.digests import file_digest
from tests.conftest import ROOT, lightning, random_classifier, save_checkpoint

OPTIONS = ("--device=cpu", "--photos_per_part=4")
PARTS = 6
"""17 photos of a folder, of which one is broken, and 6 that a list names, of which one is not there."""


def random_checkpoint(path: Path, seed: int) -> Path:
    network = random_classifier(seed, backbone="mobilenetv2_035", hidden=(16,), mean=0.5, std=0.5)
    with torch.no_grad():
        network.head.predictions.weight.mul_(5)  # some photos are sure, others not
    return save_checkpoint(path, network, (48, 40))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    random_checkpoint(folder / "best.ckpt", 0)
    random_checkpoint(folder / "other.ckpt", 1)
    draw_catalogue(folder / "shop", per_class=4, seed=0)
    photos = sorted((folder / "shop").rglob("*.jpg"))
    (folder / "shop" / "sofa" / "broken.jpg").write_bytes(photos[0].read_bytes()[:300])
    (folder / "shop" / "notes.txt").write_text("no photo")
    (folder / "list.txt").write_text("\n".join(["shop/none.jpg", *map(str, photos[3:8])]))
    (folder / "more.txt").write_text("\n".join(["shop/none.jpg", *map(str, photos[3:9])]))
    return folder


@pytest.fixture(scope="module")
def in_peace(made, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        out = tmp_path_factory.mktemp("peace") / "labels"
        assert run("--out", out) == 0
    return files_of(out)


def run(*arguments: object, model: str = "best.ckpt") -> int:
    return lightning("predict", model, "shop", "list.txt", *OPTIONS, *arguments)


def files_of(out: Path) -> dict[str, bytes]:
    """What readers see, and the summary."""
    return {each.name: each.read_bytes() for each in sorted(out.iterdir()) if each.name != "_request.json"}


def rows_of(out: Path) -> list[dict]:
    return dataset.dataset(out).to_table().to_pylist()


def test_rows_are_those_of_the_table_in_the_order_of_the_source(there, in_peace, made, capsys):
    assert run("--out=labels") == 0
    assert files_of(Path("labels")) == in_peace
    names = [f"part-{number:05d}.parquet" for number in range(PARTS)]
    assert sorted(each.name for each in Path("labels").iterdir()) == [
        "_SUCCESS", "_photos.jsonl", "_request.json", "_summary.json", *names
    ]  # fmt: skip
    rows = rows_of(Path("labels"))
    assert [row["file"] for row in rows] == [str(each) for each in photos_of("shop", "list.txt")]
    assert {row["model_sha256"] for row in rows} == {file_digest(made / "best.ckpt")}
    assert [parquet.read_metadata(Path("labels", name)).num_rows for name in names] == [4, 4, 4, 4, 4, 3]

    said = capsys.readouterr().out
    assert run("--out=table.csv", "--batch_size=5", "--device=cpu") == 2  # of OPTIONS, one asks for a data set
    assert lightning("predict", "best.ckpt", "shop", "list.txt", "--device=cpu", "--out=table.csv") == 0
    with Path("table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    good = [row for row in rows if row["reason"] is None]
    assert [[*row.values()][:-2] for row in good] == [
        [float(cell) if name.startswith("probability") else cell for name, cell in row.items()] for row in table
    ]
    with Path("table_bad.csv").open(newline="") as file:
        bad = [(row["file"], row["reason"]) for row in csv.DictReader(file)]
    assert [(row["file"], row["reason"]) for row in rows if row["reason"]] == bad
    assert all(row["label"] is None and row["probability"] is None for row in rows if row["reason"])

    summary = json.loads(Path("labels/_summary.json").read_text())
    assert (summary["photos"], summary["labelled"], summary["bad"], summary["parts"]) == (23, 21, 2, PARTS)
    for label, each in summary["labels"].items():
        chances = [row["probability"] for row in good if row["label"] == label]
        assert each["photos"] == len(chances)
        assert each["mean_probability"] == pytest.approx(sum(chances) / len(chances), abs=1e-6)
    assert summary["mean_probability"] == pytest.approx(sum(row["probability"] for row in good) / 21, abs=1e-6)
    assert said.startswith(f"21 photos labelled: labels, {PARTS} files\n")
    assert "2 that cannot be read, with the reason in the column reason:\n" in said
    assert "shop/none.jpg: is not there" in said
    assert said.endswith("left out, as their names are no photos': 1 .txt\n")


def photos_of(*arguments: str) -> list[Path]:
    return [getattr(each, "path", each) for each in PhotoArguments(arguments)]


def test_other_readers_leave_our_own_files_out(there):
    pandas = pytest.importorskip("pandas")
    assert run("--out=labels") == 0
    assert len(pandas.read_parquet("labels")) == 23


@pytest.mark.parametrize("options", [["--batch_size=1"], ["--batch_size=3", "--num_threads=1"]])
def test_how_it_is_computed_changes_no_byte(there, in_peace, options):
    assert run("--out=labels", *options) == 0
    assert files_of(Path("labels")) == in_peace


def test_another_model_gives_other_rows(there, in_peace):
    """The negative control."""
    assert run("--out=labels", model="other.ckpt") == 0
    theirs = files_of(Path("labels"))
    assert theirs.keys() == in_peace.keys()
    assert theirs["part-00000.parquet"] != in_peace["part-00000.parquet"]


def test_what_is_missing_or_damaged_is_labelled_again_and_nothing_else(there, in_peace, monkeypatch, capsys):
    assert run("--out=labels") == 0
    out = Path("labels")
    names = [f"part-{number:05d}.parquet" for number in range(PARTS)]
    (out / names[0]).unlink()
    damaged = bytearray((out / names[1]).read_bytes())
    damaged[100] ^= 4  # within a page
    (out / names[1]).write_bytes(damaged)
    (out / names[2]).write_bytes((out / names[2]).read_bytes()[:200])
    shutil.copy(out / names[5], out / names[4])  # a part of another number
    before = {name: (out / name).stat().st_mtime_ns for name in (names[3], names[5])}
    (out / f".{names[0]}.12345678-999999999.tmp").write_bytes(b"left by a killed process elsewhere")
    computed = []
    kept = labelling.label
    monkeypatch.setattr(labelling, "label", lambda *given: computed.extend(given[1]) or kept(*given))
    capsys.readouterr()
    assert run("--out=labels", "--resume") == 0
    assert f"2 of {PARTS} files are there; going on with the others\n" in capsys.readouterr().out
    assert len(computed) == 4 * 4 - 2  # two of them cannot be read
    (out / f".{names[0]}.12345678-999999999.tmp").unlink()
    assert files_of(out) == in_peace
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before

    computed.clear()
    assert run("--out=labels", "--resume") == 0
    assert computed == []
    assert capsys.readouterr().out.count("all 23 photos were labelled before\n21 photos labelled") == 1


def test_a_set_of_which_a_part_is_missing_does_not_say_that_it_is_whole(there, monkeypatch):
    """Readers go by _SUCCESS; a run that labels a damaged part again may be killed, too."""
    assert run("--out=labels") == 0
    Path("labels/part-00001.parquet").unlink()
    monkeypatch.setattr(labelling, "label", lambda *given: iter([]) if Path("labels/_SUCCESS").exists() else 1 / 0)
    assert run("--out=labels", "--resume") == 70
    assert not Path("labels/_SUCCESS").exists()


def test_a_model_that_is_replaced_meanwhile_stops_the_run(there, in_peace, monkeypatch, capsys):
    Path("model.ckpt").write_bytes(Path("best.ckpt").read_bytes())
    kept = labelling.label

    def label(*given):
        Path("model.ckpt").write_bytes(Path("other.ckpt").read_bytes())
        return kept(*given)

    monkeypatch.setattr(labelling, "label", label)
    assert run("--out=labels", "--resume", model="model.ckpt") == 2
    said = capsys.readouterr().err
    assert "expected model.ckpt to stay as it is while it labels (" in said
    assert f"0 of {PARTS} files" in said
    monkeypatch.undo()
    monkeypatch.chdir(there)
    Path("model.ckpt").write_bytes(Path("best.ckpt").read_bytes())
    assert run("--out=labels", "--resume", model="model.ckpt") == 0
    assert files_of(Path("labels")) == in_peace


def test_files_of_unknown_origin_are_no_parts(there, capsys):
    """A part that no request covers would be read with the others."""
    Path("labels").mkdir()
    Path("labels/part-00099.parquet").touch()
    assert run("--out=labels", "--resume") == 2
    assert "which has other files, such as part-00099.parquet" in capsys.readouterr().err
    for content in ("{", "[1]"):
        Path("labels/_request.json").write_text(content)
        assert run("--out=labels", "--resume") == 2
        said = capsys.readouterr().err
        assert "expected in labels/_request.json what the data set was begun with, received what cannot" in said


def test_a_name_that_is_too_long_is_bad_input(there, capsys):
    assert run(f"--out={'y' * 300}") == 2
    assert "received one of 300 characters: yyy" in capsys.readouterr().err


def test_resume_begins_where_nothing_is(there, in_peace):
    Path("labels").mkdir()
    assert run("--out=labels", "--resume") == 0
    assert files_of(Path("labels")) == in_peace


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["best.ckpt", "shop", "list.txt"], None),
        (["other.ckpt", "shop", "list.txt"], "the model's file ("),
        (["best.ckpt", "shop", "more.txt"], "the photos (23 then, 24 now)"),
        (["best.ckpt", "list.txt", "shop"], "which photos, and their order ("),
        (["best.ckpt", "shop", "list.txt", "--top=2"], "--top (3 then, 2 now)"),
        (["best.ckpt", "shop", "list.txt", "--min_probability=0.5"], "--min_probability (null then, 0.5 now)"),
        (["best.ckpt", "shop", "list.txt", "--temperature=2"], "the temperature (1.0 then, 2.0 now)"),
        (["best.ckpt", "shop", "list.txt", "--photos_per_part=5"], "--photos_per_part (4 then, 5 now)"),
    ],
)
def test_only_the_same_request_goes_on(there, in_peace, capsys, arguments, words):
    out = Path("labels")
    out.mkdir()
    for name in ("part-00001.parquet", "_photos.jsonl"):
        (out / name).write_bytes(in_peace[name])
    assert run("--out=whole") == 0
    shutil.copy("whole/_request.json", out)
    before = {each.name: each.read_bytes() for each in out.iterdir()}
    capsys.readouterr()
    given = ["--device=cpu", "--out=labels", "--resume", "--photos_per_part=4", *arguments]
    assert lightning("predict", *given) == (2 if words else 0)
    if words:
        said = capsys.readouterr().err
        assert f"expected the request that labels was begun with, received one that differs in\n  {words}" in said
        assert {each.name: each.read_bytes() for each in out.iterdir()} == before
    else:
        assert files_of(out) == in_peace


def test_what_is_there_is_not_overwritten(there, in_peace, capsys):
    assert run("--out=labels") == 0
    assert run("--out=labels") == 2
    assert "received labels with a whole data set. Give --resume" in capsys.readouterr().err
    Path("labels/_SUCCESS").unlink()
    assert run("--out=labels") == 2
    assert "with a data set that is not finished" in capsys.readouterr().err
    assert run("--out=shop") == 2
    assert "which has other files, such as" in capsys.readouterr().err
    Path("empty").mkdir()
    assert run("--out=empty/a/b") == 2
    assert "is in no folder that is there" in capsys.readouterr().err
    assert run("--out=list.txt") == 2
    assert "which is a file" in capsys.readouterr().err
    with FileLock("labels/.lock"):
        assert run("--out=labels", "--resume") == 2
    assert "of no other run" in capsys.readouterr().err
    assert run("--out=labels", "--resume") == 0
    assert files_of(Path("labels")) == in_peace


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out=l", "--format=csv"], "--format: expected parquet"),
        (["--out=l.csv"], "Give l."),
        (["--out=l", "--num_workers=2"], "--num_workers: expected with --engine ray"),
        (["--out=l", "--ray_address=auto"], "--ray_address: expected with --engine ray"),
        (["--out=l", "--photos_per_part=0"], "--photos_per_part: expected 1 or more"),
        (["--out=l", "--engine=ray", "--num_workers=0"], "--num_workers: expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(there, capsys, options, words):
    assert run(*options) == 2
    assert words in capsys.readouterr().err
    assert not list(there.glob("l*/"))


def test_without_ray_its_engine_is_a_message_and_ours_needs_none(there, monkeypatch, capsys):
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run("--out=labels", "--engine=ray") == 2
    assert "pip install 'shelftwin[ray]'" in capsys.readouterr().err
    assert run("--out=labels", "--engine=local") == 0


def test_photos_that_are_all_gone_stop_the_run_and_are_no_rows(there, in_peace, monkeypatch, capsys):
    """A disk that is unmounted meanwhile."""
    shutil.copytree("shop", "disk")
    kept = PhotoArguments.__iter__

    def gone(self):
        yield from kept(self)
        shutil.rmtree("disk")

    with monkeypatch.context() as patch:
        patch.setattr(PhotoArguments, "__iter__", gone)
        assert lightning("predict", "best.ckpt", "list.txt", "disk", "--out=labels", *OPTIONS) == 2
    said = capsys.readouterr().err
    assert "received none of the 4 of part 2" in said
    assert "1 of 6 files of labels are there; the same command with --resume goes on" in said
    shutil.copytree("shop", "disk")
    assert lightning("predict", "best.ckpt", "list.txt", "disk", "--out=labels", "--resume", *OPTIONS) == 0
    assert len(rows_of(Path("labels"))) == 23


def test_no_photo_that_can_be_read_is_exit_code_2(there, capsys):
    Path("bad").mkdir()
    for name in "abc":
        Path("bad", f"{name}.jpg").touch()
    assert lightning("predict", "best.ckpt", "bad", "--out=labels", *OPTIONS) == 2
    assert "expected photos that can be read" in capsys.readouterr().err
    assert [row["reason"] for row in rows_of(Path("labels"))] == ["is empty (0 bytes)"] * 3


def test_photos_are_the_pixels_of_pillow(there, monkeypatch):
    """What is computed is what Pillow alone decodes and resizes, bit for bit."""
    seen = {}
    kept = labelling.label
    monkeypatch.setattr(
        labelling, "label", lambda *given: seen.update(zip(given[1], given[2], strict=True)) or kept(*given)
    )
    assert run("--out=labels") == 0
    assert len(seen) == 21
    for file, pixels in seen.items():
        with Image.open(file) as photo:
            assert pixels.tobytes() == photo.convert("RGB").resize((40, 48), Image.Resampling.NEAREST).tobytes()


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_no_row_is_lost_or_there_twice(there, tmp_path):
    big = Path("big")
    big.mkdir()
    content = Image.effect_noise((900, 900), 60).convert("RGB")
    content.save(big / "00.jpg")
    for number in range(1, 36):
        os.link(big / "00.jpg", big / f"{number:02d}.jpg")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lightning_module", "predict", "best.ckpt", "big", "--device=cpu", "--resume",
               "--photos_per_part=3", "--batch_size=2", "--num_threads=1"]  # fmt: skip
    subprocess.run([*command, "--out=peace"], env=environment, check=True, stdout=subprocess.DEVNULL)
    kills = 0
    # before the folder is there; when there is a listing; then further and further on
    moments = [lambda out: out.exists(), lambda out: (out / "_photos.jsonl").exists()]
    moments += [lambda out, count=count: len(list(out.glob("part-*"))) >= count for count in (1, 4, 8)]
    for moment in moments:
        running = subprocess.Popen([*command, "--out=labels"], env=environment, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while running.poll() is None and not moment(Path("labels")) and time.monotonic() < until:
            time.sleep(0.001)
        running.kill()
        kills += running.wait() == -signal.SIGKILL
        assert not Path("labels/_SUCCESS").exists() or running.returncode == 0
    print(f"kills: {kills} of the command on the local engine")
    assert kills >= 3
    subprocess.run([*command, "--out=labels"], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert files_of(Path("labels")) == files_of(Path("peace"))
    assert len(rows_of(Path("labels"))) == 36
