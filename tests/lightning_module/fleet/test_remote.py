"""Photos behind an address: read one by one where they are computed; rows are those of the same photos on a disk."""

import shutil
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from datamodule.sources import remote_photos
from datamodule.sources.remote_photos import Address, list_addresses, read_address
from lightning_module.evaluation.decoding import BadPhoto
from models.bad_input import BadInput
from tests.conftest import ROOT, lightning
from tests.datamodule.sources.test_addresses import bucket, root  # noqa: F401 - fixtures
from tests.datamodule.test_product_photos import draw_root
from tests.lightning_module.fleet.test_data_set import files_of, random_checkpoint, rows_of

OPTIONS = ("--device=cpu", "--photos_per_part=4", "--engine=local")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", 0)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A shop in fsspec's own memory, and the same photos on the disk."""
    monkeypatch.chdir(tmp_path)
    shop = draw_root(tmp_path / "shop", {"hat": 5, "tv": 4})
    (shop / "hat" / "empty.png").touch()
    (shop / "notes.txt").write_text("no photo")
    system = fsspec.filesystem("memory")
    system.put(str(shop), "/shop", recursive=True)
    system.pipe("/shop/__MACOSX/00.png", b"x")
    yield system
    system.rm("/shop", recursive=True)
    remote_photos._opened.cache_clear()


def rows(out: str, start: str) -> list[dict]:
    found = rows_of(Path(out))
    assert all(row["file"].startswith(start) for row in found)
    return [row | {"file": row["file"].removeprefix(start)} for row in found]


def test_rows_are_those_of_the_same_photos_on_a_disk(memory, checkpoint, capsys):
    assert lightning("predict", checkpoint, "memory://shop", "--out=there", *OPTIONS) == 0
    assert "1 file in __MACOSX" in capsys.readouterr().out
    assert lightning("predict", checkpoint, "shop", "--out=here", *OPTIONS) == 0
    assert len(rows("here", "shop")) == 10
    assert rows("there", "memory://shop") == rows("here", "shop")
    assert lightning("predict", checkpoint, "shop", "memory://shop/tv", "shop/tv", "--out=both", *OPTIONS) == 0
    named = [row["file"] for row in rows_of(Path("both"))]
    assert [name.partition("/")[0] for name in named] == ["shop"] * 10 + ["memory:"] * 4 + ["shop"] * 4


def test_what_cannot_be_reached_stops_the_run_and_is_no_row(memory, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(remote_photos, "SECONDS_BETWEEN", 0)
    asked, usual = Counter(), type(memory).open

    def opened(self, name, *rest):
        asked[name] += 1
        if name == "/shop/tv/02.png" and asked[name] <= refused:
            raise ConnectionResetError("the line is dead")
        return usual(self, name, *rest)

    monkeypatch.setattr(type(memory), "open", opened)
    arguments = ("predict", checkpoint, "memory://shop", "--out=there", "--resume", *OPTIONS)
    refused = 3
    assert lightning(*arguments) == 2
    assert "received memory://shop/tv/02.png: the line is dead." in capsys.readouterr().err
    assert not Path("there/_SUCCESS").exists()
    asked.clear()
    refused = 2
    assert lightning(*arguments) == 0
    assert asked["/shop/tv/02.png"] == 3
    assert [row["reason"] for row in rows_of(Path("there")) if row["reason"]] == ["is empty (0 bytes)"]


def test_what_is_deleted_meanwhile_is_a_bad_photo(memory):
    with pytest.raises(BadPhoto, match=r"memory://shop/tv/99\.png: is not there"):
        read_address(Address("memory://shop/tv/99.png"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("memory://shop/none", "received memory://shop/none: "),
        ("zip://shop.zip", "an archive. Unpack it"),
        ("memory://shop/labels.csv", "a table. Fetch the table"),
        ("nosuch://shop", "received nosuch://shop: "),
    ],
)
def test_other_addresses_are_refused(memory, checkpoint, capsys, address, words):
    assert lightning("predict", checkpoint, address, "--out=there", *OPTIONS) == 2
    assert words in capsys.readouterr().err
    assert not Path("there").exists()


def test_a_folder_without_photos_is_refused(memory):
    memory.pipe("/shop/texts/a.txt", b"x")
    with pytest.raises(BadInput, match="received 1 other files"):
        list_addresses("memory://shop/texts", "web", Counter())


def test_a_bucket(bucket, checkpoint, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bucket, "here")
    assert lightning("predict", checkpoint, "s3://shop/by class", "--out=there_set", *OPTIONS) == 0
    assert lightning("predict", checkpoint, "here", "--out=here_set", *OPTIONS) == 0
    assert rows("there_set", "s3://shop/by class") == rows("here_set", "here")


@pytest.mark.slow
def test_a_bucket_on_ray(bucket, checkpoint, tmp_path, monkeypatch):  # noqa: F811
    """Each worker reads the photos itself, with the credentials of its environment."""
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the workers
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments = ("predict", checkpoint, "s3://shop/by class", *OPTIONS[:2])
    assert lightning(*arguments, "--out=ray", "--engine=ray", "--num_workers=2") == 0
    assert lightning(*arguments, "--out=local", "--engine=local") == 0
    assert files_of(Path("ray")) == files_of(Path("local"))
    assert len(rows_of(Path("ray"))) == 10
