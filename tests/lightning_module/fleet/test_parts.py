"""What an engine relies on: the list of photos, a labeller that is started again, a worker that gives up."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datamodule.photo_store import BadPhoto
from datamodule.sources.remote_photos import Address
from export.worker.keras_process import KerasFailed
from export.worker.keras_worker import pillow_versions
from lightning_module.evaluation.labelling import Labelling
from lightning_module.fleet import ray_engine
from lightning_module.fleet.listing import Listing, part_of
from lightning_module.fleet.parts import Job, Restarting, check_model, content_of, model_digest
from lightning_module.fleet.ray_engine import MOST_TRIES, PartWorker
from models.bad_input import BadInput

FOUND = [
    Path("shop/a.jpg"), Path("line\nfeed, \\ and \udcff.jpg"), Address("s3://shop/é.jpg"),
    BadPhoto(Path("none.jpg"), "is not there"), Path("/b.jpg"),
]  # fmt: skip


def as_told(found: list) -> list:
    return [(type(each), str(each)) for each in found]


def test_list_gives_back_what_it_was_given_part_by_part(tmp_path):
    listing = Listing.written(tmp_path / "photos.jsonl", FOUND, 2)
    assert (listing.photos, listing.parts, [listing.rows(number) for number in range(3)]) == (5, 3, [2, 2, 1])
    parts = list(listing.each_part([2, 0, 1]))
    assert [part.number for part in parts] == [2, 0, 1]
    assert [as_told(part.found) for part in parts] == [as_told(each) for each in (FOUND[4:], FOUND[:2], FOUND[2:4])]
    assert as_told(part_of(7, listing.lines(1)).found) == as_told(FOUND[2:4])
    again = Listing.written(tmp_path / "again.jsonl", FOUND, 3)
    other = Listing.written(tmp_path / "other.jsonl", FOUND[::-1], 2)
    assert listing.digest == again.digest != other.digest


class Dying:
    """A labeller whose Keras ends so many times, counting its starts."""

    image_size = (4, 4)

    def __init__(self, deaths: int) -> None:
        self.deaths, self.starts = deaths, 0

    def __enter__(self):
        self.starts += 1
        return self

    def __exit__(self, *_):
        pass

    def probabilities(self, photos):
        if self.deaths:
            self.deaths -= 1
            raise KerasFailed("the Keras process ended without a reply (killed by signal SIGKILL).\nmore")
        return photos

    exact = probabilities


def test_labeller_is_started_again_once_for_a_batch(capsys):
    photos = np.zeros((1, 4, 4, 3), np.uint8)
    with Restarting(Dying(1)) as labeller:
        assert labeller.image_size == (4, 4)
        assert labeller.exact(photos) is photos
        assert labeller.starts == 2
    assert "(killed by signal SIGKILL). It is started again.\n" in capsys.readouterr().err
    with Restarting(Dying(2)) as labeller, pytest.raises(KerasFailed):
        labeller.probabilities(photos)


def test_labeller_that_is_started_again_has_the_same_file(tmp_path):
    model = tmp_path / "model.h5"
    model.write_bytes(b"one")
    photos = np.zeros((1, 4, 4, 3), np.uint8)
    check = partial(check_model, model, model_digest(model))
    with Restarting(Dying(1), check) as labeller:
        labeller.probabilities(photos)
    model.write_bytes(b"two")
    with Restarting(Dying(1), check) as labeller, pytest.raises(BadInput, match="received another file"):
        labeller.probabilities(photos)
    model.unlink()
    with pytest.raises(BadInput, match="No such file"):
        check()


@pytest.fixture
def job() -> Job:
    return Job(lambda *_: None, Labelling(), "m", "r", pillow_versions(), 32, "cpu")


def test_part_that_ends_its_worker_every_time_is_given_up(job, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_node_id", lambda: "0123456789")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def worker() -> PartWorker:
        return PartWorker(job, {"": b""}, "best.ckpt", 1, str(tmp_path), "run")

    dead = [worker()._counted(3) for _ in range(MOST_TRIES)]
    for each in dead:  # they never come to the end of it
        each.__enter__()
    with worker()._counted(4):  # another part
        pass
    with pytest.raises(BadInput, match=f"labels part 3, received {MOST_TRIES} on "), worker()._counted(3):
        pass
    assert not list(tmp_path.iterdir())
    for each in dead:
        each.gen.close()


def test_machine_that_decodes_otherwise_is_refused(job):
    job.check_machine("here")
    other = Job(job.make_labeller, job.labelling, "m", "r", {"pillow": "1.0"}, 32, "cpu")
    with pytest.raises(BadInput, match=r"pillow 1\.0; received pillow .* on there\. .* pip install pillow==1\.0"):
        other.check_machine("there")


def test_model_that_is_a_folder_is_sent_as_its_files(tmp_path):
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    (tmp_path / "saved" / "model.pb").write_bytes(b"graph")
    (tmp_path / "saved" / "variables" / "data").write_bytes(b"weights")
    assert content_of(tmp_path / "saved") == {"model.pb": b"graph", "variables/data": b"weights"}
    assert content_of(tmp_path / "saved" / "model.pb") == {"": b"graph"}
    before = model_digest(tmp_path / "saved")
    (tmp_path / "saved" / "variables" / "data").write_bytes(b"weightz")
    assert model_digest(tmp_path / "saved") != before
