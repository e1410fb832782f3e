"""The mapped store: shared by processes, whole after a kill, aware of changed photos, and not held in memory."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import datamodule.photo_store as photo_store
from datamodule.photo_store import PhotoStore, load_photo, memory_size
from datamodule.pixel_file import CHECKSUM_BYTES, DIGEST_BYTES, PixelFile
from datamodule.product_photos import ProductPhotos
from models.bad_input import BadInput
from tests.conftest import ROOT
from tests.datamodule.odd_photos import noise

SIZE = (9, 7)


def draw(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:03}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.fromarray(noise(12, 10, seed=number)).save(file)
    return files


def mapped(folder: Path, **settings) -> PhotoStore:
    return PhotoStore(SIZE, ram_share=0, folder=folder, **settings)


def check(store: PhotoStore, files: list[Path]) -> None:
    np.testing.assert_array_equal(store.photos_of(files), [load_photo(file, SIZE) for file in files])


def rows_written(folder: Path) -> int:
    index = list(folder.glob("*/index"))
    return index[0].stat().st_size // (DIGEST_BYTES + CHECKSUM_BYTES) if index else 0


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that were decoded."""
    paths = []

    def load(path, *arguments):
        paths.append(path)
        return load_photo(path, *arguments)

    monkeypatch.setattr(photo_store, "load_photo", load)
    return paths


def test_a_second_store_decodes_nothing(tmp_path, decoded):
    files = draw(tmp_path / "photos", 5)
    for _ in range(2):
        store = mapped(tmp_path / "store")
        assert store.add(files) == []
        assert not store._memory
        check(store, files)
    assert sorted(decoded) == files


def test_it_is_not_even_read_where_it_looks_the_same(tmp_path, monkeypatch):
    files = draw(tmp_path / "photos", 3)
    mapped(tmp_path / "store").add(files)
    store = mapped(tmp_path / "store")
    monkeypatch.setattr(store, "_read", lambda file: pytest.fail(f"{file} read"))
    store.add(files)
    check(store, files)


def test_grows(tmp_path, decoded):
    files = draw(tmp_path / "photos", 6)
    store = mapped(tmp_path / "store")
    store.add(files[:2])
    check(store, files[:2])
    other = mapped(tmp_path / "store")
    other.add(files[1:4])
    store.add(files)
    check(store, files)
    check(other, files[1:4])
    assert sorted(decoded) == files


@pytest.mark.parametrize("ram_share", [0, 1])
def test_a_changed_photo_is_noticed(tmp_path, ram_share, decoded):
    files = draw(tmp_path / "photos", 3)
    store = PhotoStore(SIZE, ram_share=ram_share, folder=tmp_path / "store")
    store.add(files)
    before, times = files[1].read_bytes(), files[1].stat()
    Image.fromarray(noise(12, 10, seed=99)).save(files[1])
    assert files[1].stat().st_size == len(before)  # noise does not compress
    os.utime(files[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # as some copying programs do
    for each in (store, PhotoStore(SIZE, ram_share=ram_share, folder=tmp_path / "store")):
        each.add(files)
        check(each, files)
    # back to what it was: known by its content
    decoded.clear()
    files[1].write_bytes(before)
    store.add(files)
    check(store, files)
    assert files[1] not in decoded


@pytest.mark.parametrize("ram_share", [0, 1])
def test_equal_photos_are_kept_once(tmp_path, ram_share):
    files = draw(tmp_path / "photos", 2)
    copies = [file.with_name(f"copy_{file.name}") for file in files]
    for file, copied in zip(files, copies, strict=True):
        copied.write_bytes(file.read_bytes())
    store = PhotoStore(SIZE, ram_share=ram_share, folder=tmp_path / "store")
    store.add([*files, *copies])
    check(store, [*copies, *files])
    assert len(store._memory) == (2 if ram_share else 0)
    assert rows_written(tmp_path / "store") == (0 if ram_share else 2)


@pytest.mark.parametrize("processes", ["", "1", "2", "many"])
def test_processes_on_one_machine_share_the_memory(tmp_path, monkeypatch, processes):
    files = draw(tmp_path / "photos", 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(photo_store, "memory_size", lambda: 4 * SIZE[0] * SIZE[1] * 3)
    store = PhotoStore(SIZE, ram_share=1, folder=tmp_path / "store")
    store.add(files)
    check(store, files)
    assert len(store._memory) == (0 if processes == "2" else 4)


def test_processes_that_lightning_starts_count(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name in ("sofa", "tv"):
        draw(tmp_path / "photos" / name, 5)
    photos = ProductPhotos(str(tmp_path / "photos"), image_size=8, store_dir=str(tmp_path / "store"))
    photos.setup("fit")
    assert photos.store.processes == 1
    photos.trainer = SimpleNamespace(num_devices=3)
    photos.setup("fit")
    assert photos.store.processes == 3


def test_size_and_interpolation_are_kept_apart(tmp_path):
    files = draw(tmp_path / "photos", 2)
    for size, interpolation in ((SIZE, "nearest"), (SIZE, "bilinear"), ((7, 9), "nearest")):
        store = PhotoStore(size, interpolation, ram_share=0, folder=tmp_path / "store")
        store.add(files)
        for row, file in enumerate(files):
            np.testing.assert_array_equal(store.photos_of(files)[row], load_photo(file, size, interpolation))


def test_memory_up_to_the_share_and_the_file_beyond(tmp_path, monkeypatch):
    files = draw(tmp_path / "photos", 6)
    monkeypatch.setattr(photo_store, "memory_size", lambda: 6 * SIZE[0] * SIZE[1] * 3)
    store = PhotoStore(SIZE, ram_share=0.5, folder=tmp_path / "store")
    store.add(files[:3])
    assert (len(store._memory), rows_written(tmp_path / "store")) == (3, 0)
    store.add(files)
    assert (len(store._memory), rows_written(tmp_path / "store")) == (3, 3)
    check(store, files)


def test_memory_size_is_this_machines():
    assert 1e8 < memory_size() < 1e14


def test_waiting_photos_are_few(tmp_path, monkeypatch):
    """Decoded photos are written part after part and not gathered in memory."""
    files = draw(tmp_path / "photos", 10)
    parts = []
    append = PixelFile.append
    monkeypatch.setattr(PixelFile, "append", lambda self, fresh: (parts.append(len(fresh)), append(self, fresh)))
    monkeypatch.setattr(photo_store, "BYTES_AT_ONCE", 4 * SIZE[0] * SIZE[1] * 3)
    store = mapped(tmp_path / "store")
    store.add(files)
    assert parts == [4, 4, 2]
    check(store, files)


def test_pickles_small_and_works_there(tmp_path):
    """A loader's worker gets the name of the file and not the pixels."""
    files = draw(tmp_path / "photos", 20)
    store = PhotoStore((100, 100), ram_share=0, folder=tmp_path / "store")
    store.add(files)
    photos = store.photos_of(files)
    pickled = pickle.dumps(store)
    assert len(pickled) < 20_000 < photos.nbytes
    np.testing.assert_array_equal(pickle.loads(pickled).photos_of(files), photos)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index").write_bytes((folder / "index").read_bytes()[:-5]),
        lambda folder: (folder / "pixels").write_bytes((folder / "pixels").read_bytes()[:-5]),
        lambda folder: (folder / "pixels").write_bytes((folder / "pixels").read_bytes() + b"half a photo"),
        lambda folder: (folder / "index").unlink(),
        lambda folder: (folder / "pixels").unlink(),
        lambda folder: (folder / "seen.json").write_text("{"),
        lambda folder: (folder / "seen.json").unlink(),
    ],
)
def test_torn_files_are_mended(tmp_path, damage):
    files = draw(tmp_path / "photos", 4)
    mapped(tmp_path / "store").add(files)
    damage(next((tmp_path / "store").iterdir()))
    for _ in range(2):
        store = mapped(tmp_path / "store")
        assert store.add(files) == []
        check(store, files)
    assert rows_written(tmp_path / "store") == 4


BUILDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import datamodule.photo_store as photo_store
    from datamodule.photo_store import PhotoStore, load_photo

    photos, store, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    decoded = []

    def slow(*arguments):
        time.sleep(pause)
        decoded.append(arguments[0])
        return load_photo(*arguments)

    photo_store.load_photo = slow
    photo_store.BYTES_AT_ONCE = 2 * 9 * 7 * 3
    files = sorted(photos.iterdir())
    filled = PhotoStore((9, 7), ram_share=0, folder=store)
    assert filled.add(files) == []
    assert (filled.photos_of(files) == [load_photo(file, (9, 7)) for file in files]).all()
    print(len(decoded))
    """
)


def start_builder(photos: Path, store: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(photos), str(store), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_three_processes_at_once_decode_each_photo_once(tmp_path):
    draw(tmp_path / "photos", 30)
    builders = [start_builder(tmp_path / "photos", tmp_path / "store", 0.01) for _ in range(3)]
    counts = [int(builder.communicate(timeout=60)[0]) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert sum(counts) == 30
    assert rows_written(tmp_path / "store") == 30


def test_a_killed_process_leaves_its_finished_part_to_the_next(tmp_path):
    files = draw(tmp_path / "photos", 40)
    builder = start_builder(tmp_path / "photos", tmp_path / "store", 0.1)
    deadline = time.monotonic() + 60
    while rows_written(tmp_path / "store") < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    assert builder.returncode == -signal.SIGKILL
    done = rows_written(tmp_path / "store")
    assert 4 <= done < 40
    following = start_builder(tmp_path / "photos", tmp_path / "store", 0)
    assert int(following.communicate(timeout=60)[0]) == 40 - done
    store = mapped(tmp_path / "store")
    store.add(files)
    check(store, files)


def test_no_room(tmp_path, monkeypatch):
    files = draw(tmp_path / "photos", 3)
    monkeypatch.setattr(photo_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(BadInput, match="store_dir: expected room for 3 decoded photos"):
        mapped(tmp_path / "store").add(files)


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="store_dir: expected a folder"):
        mapped(tmp_path / "file").add(draw(tmp_path / "photos", 1))


def test_a_file_that_is_being_written_is_named(tmp_path, monkeypatch):
    files = draw(tmp_path / "photos", 2)

    def load(path, *arguments):
        pixels = load_photo(path, *arguments)
        if path == files[1]:
            Image.fromarray(noise(12, 10, seed=50)).save(path)
        return pixels

    monkeypatch.setattr(photo_store, "load_photo", load)
    store = PhotoStore(SIZE)
    (bad,) = store.add(files)
    assert bad.path == files[1]
    assert "being written" in bad.reason


def test_settings_of_the_data_module(tmp_path):
    for name in ("jeans", "sofa"):
        draw(tmp_path / "photos" / name, 5)
    settings = {"image_size": 8, "store_dir": str(tmp_path / "store")}
    in_memory = ProductPhotos(str(tmp_path / "photos"), **settings)
    in_file = ProductPhotos(str(tmp_path / "photos"), **settings, store_ram_share=0)
    in_memory.setup("fit")
    assert not (tmp_path / "store").exists()
    in_file.setup("fit")
    assert rows_written(tmp_path / "store") == 5  # both classes have the same photos here
    np.testing.assert_array_equal(in_file.photos_of(in_file.train_files), in_memory.photos_of(in_memory.train_files))
    with pytest.raises(BadInput, match=r"store_ram_share: expected .* received 2"):
        ProductPhotos(str(tmp_path / "photos"), store_ram_share=2)


def test_what_was_seen_is_kept_path_by_path_and_only_with_its_checksum(tmp_path):
    known = {f'/photos/{{odd}} "{number}",.jpg': ((number, 2, 3), bytes([number]) * 32) for number in range(3)}
    pixels = PixelFile(tmp_path / "store", (2, 2, 3))
    pixels.write_seen(known)
    assert pixels.read_seen(known) == known
    assert len(json.loads((tmp_path / "store" / "seen.json").read_text())) == 3
    _, second, third = known
    changed = {second: ((9, 9, 9), b"b" * 32)}
    pixels.write_seen(changed)
    assert pixels.read_seen(known) == known | changed
    assert pixels.read_seen({third}) == {third: known[third]}
    on_one_line = json.dumps({path: [*signature, digest.hex()] for path, (signature, digest) in known.items()})
    (tmp_path / "store" / "seen.json").write_text(on_one_line)  # as older versions did, whose photos are decoded again
    assert pixels.read_seen(known) == {}
    (tmp_path / "store" / "seen.json").write_text('{\n"/photos/a": [1, 2')
    assert pixels.read_seen(known) == {}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.write_bytes(data)


def half_zeros(folder: Path) -> None:
    data = (folder / "pixels").read_bytes()
    (folder / "pixels").write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def digests_exchanged(folder: Path) -> None:
    data, entry = bytearray((folder / "index").read_bytes()), DIGEST_BYTES + CHECKSUM_BYTES
    data[:DIGEST_BYTES], data[entry : entry + DIGEST_BYTES] = data[entry : entry + DIGEST_BYTES], data[:DIGEST_BYTES]
    (folder / "index").write_bytes(data)


def seen_exchanged(folder: Path) -> None:
    """Two paths have each other's digest."""
    lines = (folder / "seen.json").read_text().splitlines()
    first, second = (json.loads(line.rstrip(",").partition(": ")[2])[3] for line in lines[1:3])
    lines[1], lines[2] = lines[1].replace(first, second), lines[2].replace(second, first)
    (folder / "seen.json").write_text("\n".join(lines))


DAMAGE = {
    "a bit of the pixels": lambda folder: flip(folder / "pixels", 100),
    "a bit of a digest": lambda folder: flip(folder / "index", 3),
    "a bit of a checksum": lambda folder: flip(folder / "index", DIGEST_BYTES),
    "half of the pixels": half_zeros,
    "two digests exchanged": digests_exchanged,
    "two digests of paths exchanged": seen_exchanged,
}


@pytest.mark.filterwarnings("ignore:the stored pixels")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_decoded_again(tmp_path, damage):
    files = draw(tmp_path / "photos", 4)
    mapped(tmp_path / "store").add(files)
    (folder,) = (tmp_path / "store").iterdir()
    DAMAGE[damage](folder)
    store = mapped(tmp_path / "store")
    assert store.add(files) == []
    check(store, files)
    again = mapped(tmp_path / "store")  # it was mended on the disk, too
    again.add(files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(again, files)


def test_damage_is_said_and_a_photo_that_is_gone_is_named(tmp_path):
    files = draw(tmp_path / "photos", 2)
    mapped(tmp_path / "store").add(files)
    (folder,) = (tmp_path / "store").iterdir()
    flip(folder / "pixels", 100)
    store = mapped(tmp_path / "store")
    store.add(files)
    kept = files[0].read_bytes()
    files[0].unlink()
    with (
        pytest.warns(UserWarning, match=f"stored pixels of {files[0]} were damaged"),
        pytest.raises(BadInput, match=f"{files[0]} as they were written.*Put it back"),
    ):
        store.photos_of(files)
    files[0].write_bytes(kept)
    with pytest.warns(UserWarning, match="decoded again"):
        check(store, files)


def test_without_checksums_damage_goes_unnoticed(tmp_path, monkeypatch):
    """The negative control."""
    monkeypatch.setattr("datamodule.pixel_file._checksum", lambda digest, pixels: 0)
    files = draw(tmp_path / "photos", 2)
    mapped(tmp_path / "store").add(files)
    (folder,) = (tmp_path / "store").iterdir()
    flip(folder / "pixels", 100)
    store = mapped(tmp_path / "store")
    store.add(files)
    assert not np.array_equal(store.photos_of(files)[0], load_photo(files[0], SIZE))
