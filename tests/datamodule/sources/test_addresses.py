"""Photos behind an address: an archive, a file system in memory, and a bucket of a local object store."""

import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.request import Request, urlopen

import fsspec
import pyarrow
import pytest
from PIL import Image
from pyarrow import fs, parquet

from datamodule.product_photos import ProductPhotos
from datamodule.sources import addresses
from datamodule.sources.addresses import fetch, is_address
from models.bad_input import BadInput
from tests.datamodule.odd_photos import noise
from tests.datamodule.test_product_photos import draw_root

CLASSES = {"hat": 5, "tv": 5}


@pytest.fixture
def root(tmp_path) -> Path:
    return draw_root(tmp_path / "photos", CLASSES)


def packed(root: Path, archive: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for each in sorted(root.rglob("*.png")):
            file.write(each, f"{inside}{each.relative_to(root)}")
    return archive


def same_photos(address: str, root: Path, cache: Path, **settings) -> ProductPhotos:
    photos = ProductPhotos(address, image_size=12, store_dir=str(cache), **settings)
    here = ProductPhotos(str(root), image_size=12)
    for each in (photos, here):
        each.setup("fit")
    assert photos.describe_sets() == here.describe_sets()
    return photos


@pytest.mark.parametrize("inside", ["", "a dataset/", "a/b/"])
def test_archive(root, tmp_path, inside):
    archive = packed(root, tmp_path / "photos.zip", inside)
    same_photos(f"zip://{archive}", root, tmp_path / "cache")


def test_archive_of_sets(tmp_path):
    for seed, name in enumerate(("train", "test")):
        draw_root(tmp_path / "all" / name, CLASSES, seed=1000 * seed)
    archive = packed(tmp_path / "all", tmp_path / "photos.zip")
    photos = ProductPhotos(f"zip://{archive}", image_size=12, store_dir=str(tmp_path / "cache"))
    assert photos.has_test_photos


@pytest.fixture
def memory(root):
    system = fsspec.filesystem("memory")
    system.put(str(root), "/shop", recursive=True)
    yield system
    system.rm("/shop", recursive=True)


def test_what_has_changed_is_fetched_again_and_nothing_else(root, tmp_path, memory, monkeypatch):
    opened, usual = [], type(memory).open
    monkeypatch.setattr(type(memory), "open", lambda self, name, *rest: opened.append(name) or usual(self, name, *rest))
    same_photos("memory://shop", root, tmp_path / "cache")
    assert len(opened) == 10
    same_photos("memory://shop", root, tmp_path / "cache")
    assert len(opened) == 10
    Image.fromarray(noise(12, 12, seed=99)).save(root / "hat" / "00.png")
    memory.put(str(root / "hat" / "00.png"), "/shop/hat/00.png")
    (root / "tv" / "00.png").rename(root / "tv" / "09.png")
    memory.mv("/shop/tv/00.png", "/shop/tv/09.png")
    opened.clear()
    same_photos("memory://shop", root, tmp_path / "cache")
    assert len(opened) == 2


def test_other_files_are_not_fetched(root, tmp_path, memory):
    memory.pipe("/shop/hat/film.mp4", b"long")
    memory.pipe("/shop/hat/big.webp", b"not listed by Keras, but there for --data.formats web")
    here = fetch("root", "memory://shop", tmp_path)
    assert (here / "hat" / "big.webp").is_file()
    assert not (here / "hat" / "film.mp4").exists()


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "a\\..\\out.png"])
def test_names_that_lead_out_of_an_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("hat/0.png", b"x")
        file.writestr(name, b"x")
    cache = tmp_path / "cache"
    with suppress(BadInput):  # the reader may make a name harmless, as long as it stays inside
        fetch("root", f"zip://{tmp_path / 'evil.zip'}", cache)
    assert not [each for each in tmp_path.rglob("out.png") if not each.is_relative_to(cache)]
    assert not Path("/etc/out.png").exists()


def test_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "MOST_PHOTO_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("hat/0.png", bytes(2 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    with pytest.raises(BadInput, match="expected files of at most 1 MiB"):
        fetch("root", f"zip://{tmp_path / 'bomb.zip'}", tmp_path / "cache")
    monkeypatch.setattr(addresses, "MOST_PHOTO_BYTES", 1 << 30)
    monkeypatch.setattr(addresses.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))
    with pytest.raises(BadInput, match="expected room for"):
        fetch("root", f"zip://{tmp_path / 'bomb.zip'}", tmp_path / "cache")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("zip://gone.zip", "there is no file gone.zip"),
        ("memory://nowhere", "received nothing there|No such file|nowhere"),
        ("nosuch://a/b", "Protocol not known: nosuch"),
        ("sftp://host/photos", "paramiko"),
        ("http://127.0.0.1:9/photos", "Cannot connect to host|aiohttp"),
    ],
)
def test_what_cannot_be_reached_is_one_message(tmp_path, address, said):
    with pytest.raises(BadInput, match=said) as caught:
        ProductPhotos(address, store_dir=str(tmp_path))
    assert "root: expected" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_no_archive(tmp_path):
    (tmp_path / "no.zip").write_text("no")
    with pytest.raises(BadInput, match="File is not a zip file"):
        fetch("root", f"zip://{tmp_path / 'no.zip'}", tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "answer"), [("s3://a/b", True), ("zip://a", True), ("C:/photos", False), ("a:b", False)]
)
def test_addresses(text, answer):
    assert is_address(text) == answer


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A local object store in a process of its own, with a shop's photos and its table."""
    server = os.environ.get("SHELFTWIN_MOTO_SERVER") or shutil.which("moto_server", path=Path(sys.executable).parent)
    if server is None:
        pytest.skip("no moto_server here (pip install 'moto[server]', or name it in SHELFTWIN_MOTO_SERVER)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([server, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_REGION", "us-east-1")):
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        try:
            for _ in range(100):
                with socket.socket() as trial:
                    if trial.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            root = draw_root(tmp_path_factory.mktemp("shop") / "photos", CLASSES)
            store = fs.S3FileSystem(endpoint_override=f"http://127.0.0.1:{port}", allow_bucket_creation=True)
            store.create_dir("shop")
            rows = []
            for number, file in enumerate(sorted(root.rglob("*.png"))):
                for name in (f"shop/by class/{file.relative_to(root)}", f"shop/images/{number}.png"):
                    with store.open_output_stream(name) as target:
                        target.write(file.read_bytes())
                rows.append({"id": number, "kind": file.parts[-2]})
            with store.open_output_stream("shop/labels.parquet") as target:
                parquet.write_table(pyarrow.Table.from_pylist(rows), target)
            yield root
        finally:
            process.terminate()
            process.wait()


def test_bucket(bucket, tmp_path):
    same_photos("s3://shop/by class", bucket, tmp_path)


def test_table_in_a_bucket(bucket, tmp_path):
    photos = ProductPhotos(
        table="s3://shop/labels.parquet", photos="s3://shop/images", image_size=12, store_dir=str(tmp_path)
    )
    assert photos.class_names == ["hat", "tv"]
    photos.setup("fit")
    assert len(photos.train_files) == 8


@pytest.mark.parametrize("address", ["s3://nobodys/photos", "s3://shop/nothing"])
def test_no_such_bucket(bucket, tmp_path, address):
    with pytest.raises(BadInput, match=f"root: expected .*{address}") as caught:
        ProductPhotos(address, store_dir=str(tmp_path))
    assert len(str(caught.value)) < 700


def rights(count: str) -> None:
    """After how many requests moto asks for rights."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with urlopen(Request(f"{endpoint}/moto-api/reset-auth", count.encode(), {"Content-Type": "text/plain"})) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("address", ["s3://shop/images", "s3://shop/labels.parquet"])
def test_a_bucket_without_rights_is_one_message(bucket, tmp_path, address):
    rights("0")
    try:
        with pytest.raises(BadInput, match=f"root: expected .* received {address}: .*INVALID_ACCESS_KEY_ID") as caught:
            ProductPhotos(address, store_dir=str(tmp_path))
    finally:
        rights("inf")
    assert "the rights that the environment gives (for s3:// AWS_ACCESS_KEY_ID" in str(caught.value)
    assert "Request ID" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_photos_that_may_be_listed_and_not_read(tmp_path, memory, monkeypatch):
    def refuses(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "open", refuses)
    with pytest.raises(BadInput, match=r"received memory://shop: Access Denied\. Check it, .*, and the rights"):
        fetch("root", "memory://shop", tmp_path)


@pytest.mark.parametrize("scheme", ["gs", "hf", "abfs"])
def test_other_stores_by_stubs(root, tmp_path, memory, monkeypatch, scheme):
    """Each goes the way of fsspec; the store itself is a stub, which has what fsspec's memory has."""

    class Stub(type(memory)):
        protocol = scheme

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace(f"{scheme}://", "memory://"))

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Stub)
    same_photos(f"{scheme}://shop", root, tmp_path / "cache")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://shop/a", "s3://shop/a/b/1.jpg"),
        ("s3://shop/a/", "s3://shop/a/b/1.jpg"),
        ("zip://x/p.zip", "zip://b/1.jpg::x/p.zip"),
        ("zip://a::s3://shop/p.zip", "zip://a/b/1.jpg::s3://shop/p.zip"),
        ("zip://::p.zip", "zip://b/1.jpg::p.zip"),
    ],
)
def test_addresses_of_photos_in_a_folder(address, expected):
    assert addresses.address_of(address, PurePosixPath("b/1.jpg")) == expected


def test_a_bucket_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(addresses, "SECONDS_TO_CONNECT", 1)
    with pytest.raises(BadInput, match="root: expected an address that can be read; received s3://shop/x"):
        ProductPhotos("s3://shop/x", store_dir=str(tmp_path))
