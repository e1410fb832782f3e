"""What is answered: the numbers of `lightning predict`, and a clear body where there is no answer."""

import base64
import csv
import io
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from lightning_module.evaluation.labelling import Labelling
from lightning_module.serving.limits import MIB, Limits
from models.digests import file_digest
from tests.conftest import CLASS_NAMES, lightning
from tests.datamodule.odd_photos import draw_odd_photos
from tests.lightning_module.serving.conftest import form, serving

pytestmark = pytest.mark.keras


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> list[Path]:
    """Photos with transparency, of 16 bits, of one pixel, in every format."""
    root = tmp_path_factory.mktemp("odd") / "photos"
    draw_odd_photos(root)
    return sorted(root.iterdir())


@pytest.fixture(scope="module")
def predicted(run, photos, odd, tmp_path_factory) -> dict[str, list]:
    """Photo's path -> the cells that `lightning predict` writes of it, from the .h5."""
    out = tmp_path_factory.mktemp("out") / "p.csv"
    assert lightning("predict", run / "model.h5", *photos, odd[0].parent, "--out", out, "--top", 4) == 0
    with out.open(newline="") as file:
        return {row[0]: row[1:] for row in list(csv.reader(file))[1:]}


def cells(answer: dict) -> list[str]:
    """An answer as predict writes it."""
    return [cell for each in answer["labels"] for cell in (each["label"], f"{each['probability']:.3f}")]


def test_answers_are_what_predict_writes(service, predicted):
    """Of every photo, alone and together, from both twins."""
    files = [Path(each) for each in predicted]
    assert len(files) > 20
    answer = service.client.post("/predict?top=4", files=form(*files)).json()
    assert [each["name"] for each in answer["photos"]] == [each.name for each in files]
    for file, each in zip(files, answer["photos"], strict=True):
        assert cells(each) == cells(each["twins"]["torch"]) == cells(each["twins"]["keras"]) == predicted[str(file)]
        assert each["agree"]
        assert 0 <= each["difference"] < 1e-5
        assert each["label"] == predicted[str(file)][0]
    for file in files[:3]:
        alone = service.client.post("/predict", files=form(file)).json()["photos"][0]
        assert cells(alone) == predicted[str(file)][:6]


def test_twins_that_differ_are_said_to(run, photos, tmp_path):
    """The negative control: one weight of the .h5 is another, its statement of the checkpoint is not."""
    import h5py

    altered = tmp_path / "model.h5"
    altered.write_bytes((run / "model.h5").read_bytes())
    with h5py.File(altered, "r+") as file:
        bias = next(each for each in names_of(file) if each.endswith("predictions/bias:0"))
        file[bias][0] += 0.5
    with serving(run / "best.ckpt", altered) as service:
        (answer,) = service.client.post("/predict", files=form(photos[0])).json()["photos"]
        assert not answer["agree"]
        assert answer["difference"] > 1e-3
        assert "shelftwin_twin_disagreements_total 1.0" in service.client.get("/metrics").text
        assert service.client.get("/model").json()["parity"] is None  # the proof is of another file


def names_of(file) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def test_json_with_base64_gets_the_same_answer(service, photos):
    text = base64.encodebytes(photos[0].read_bytes()).decode()  # in lines
    by_form = service.client.post("/predict", files=form(photos[0])).json()["photos"][0]["labels"]
    for photo in (text, {"base64": text, "name": "x.jpg"}, {"base64": f"data:image/jpeg;base64,{text}"}):
        answer = service.client.post("/predict", json={"photos": [photo]})
        assert answer.status_code == 200
        assert answer.json()["photos"][0]["labels"] == by_form
    answer = service.client.post("/predict", json={"photos": [{"base64": text, "name": "x.jpg"}]}).json()
    assert answer["photos"][0]["name"] == "x.jpg"
    assert answer["milliseconds"] > 0


def test_the_model_and_its_figures(service, run):
    said = service.client.get("/model").json()
    assert said["class_names"] == CLASS_NAMES
    assert said["image_size"] == [48, 40]
    assert said["accuracy"] == {"value": 0.825, "low": 0.68, "high": 0.91, "photos": 40, "set": "validation"}
    assert said["parity"] == {"verdict": "PASS", "passed": 2, "checks": 2}
    assert said["twins"]["keras"]["sha256"] == file_digest(run / "model.h5")
    assert said["checkpoint_sha256"] == file_digest(run / "best.ckpt")
    photo = io.BytesIO()
    Image.new("RGB", (9, 9)).save(photo, "PNG")
    answer = service.client.post("/predict", files=form(("a.png", photo.getvalue()))).json()
    assert answer["model"] == said["checkpoint_sha256"]


def png(size=(30, 20), colour="red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


SMALL = Limits(upload=MIB, pixels=10_000, photos=3, waiting=4)
REFUSED = {
    "text": (422, "no_photo", {"files": form(("a.jpg", b"some text"))}),
    "empty": (422, "no_photo", {"files": form(("a.jpg", b""))}),
    "half a photo": (422, "no_photo", {"files": form(("a.png", png((60, 60))[:80]))}),
    "one of two": (422, "no_photo", {"files": form(("good.png", png()), ("bad.png", b"text"))}),
    "no file": (422, "no_photos", {"files": {"photos": (None, "x")}}),
    "an empty list": (422, "no_photos", {"json": {"photos": []}}),
    "another list": (422, "malformed", {"json": [1]}),
    "a number": (422, "malformed", {"json": {"photos": [1]}}),
    "no base64": (422, "not_base64", {"json": {"photos": ["é"]}}),
    "broken JSON": (400, "malformed", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "deep JSON": (400, "malformed", {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}),
    "no boundary": (400, "malformed", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
    "no form": (
        400, "malformed", {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}
    ),
    "a bare photo": (415, "unknown_type", {"content": png(), "headers": {"content-type": "image/png"}}),
    "no type": (415, "unknown_type", {"content": png()}),
    "bytes": (413, "too_large", {"files": form(("a.jpg", b"x" * MIB))}),
    "bytes without a length": (
        413, "too_large",
        {"content": (b"x" * 65536 for _ in range(40)), "headers": {"content-type": "application/json"}},
    ),
    "pixels": (413, "too_many_pixels", {"files": form(("a.png", png((101, 100))))}),
    "photos": (413, "too_many", {"files": form(*[("a.png", png())] * 4)}),
    "photos in JSON": (413, "too_many", {"json": {"photos": ["aaaa"] * 4}}),
}  # fmt: skip
"""What is sent -> the status, and the word for it."""


@pytest.fixture(scope="module")
def small(run):
    with serving(run, twin="torch", limits=SMALL) as running:
        yield running


@pytest.mark.parametrize("sent", REFUSED)
def test_what_cannot_be_labelled_gets_a_clear_body(small, sent):
    status, code, request = REFUSED[sent]
    answer = small.client.post("/predict", **request)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert "expected" in error["message"]
    assert "received" in error["message"]
    assert small.answers.waiting.taken == small.answers.received.taken == 0
    assert small.client.post("/predict", files=form(("a.png", png()))).status_code == 200  # on the same connection


def test_the_photo_to_blame_is_named(small):
    error = small.client.post("/predict", files=form(("good.png", png()), ("bad.png", b"text"))).json()["error"]
    assert [(each["index"], each["name"]) for each in error["photos"]] == [(1, "bad.png")]
    assert "is not an image" in error["photos"][0]["reason"]
    error = small.client.post("/predict", files=form(("empty.png", b""))).json()["error"]
    assert error["photos"][0]["reason"] == "is empty (0 bytes)"


def test_a_name_that_is_no_text_comes_back_as_text(small):
    """JSON may have half of a pair of UTF-16, which no UTF-8 has."""
    for content, status in ((png(), 200), (b"text", 422)):
        photo = {"name": "\ud800.png", "base64": base64.b64encode(content).decode()}
        asked = {"content": json.dumps({"photos": [photo]}), "headers": {"content-type": "application/json"}}
        answer = small.client.post("/predict", **asked)
        assert answer.status_code == status
        found = answer.json().get("photos") or answer.json()["error"]["photos"]
        assert found[0]["name"] == "?.png"


def test_unknown_routes_and_methods(service):
    for method, path, status, wanted in (
        ("GET", "/nothing", 404, "expected a route that /docs lists, received GET /nothing"),
        ("GET", "/predict", 405, "expected POST /predict, received GET /predict"),
        ("POST", "/model", 405, "expected GET /model, received POST /model"),
    ):
        answer = service.client.request(method, path)
        assert answer.status_code == status
        assert wanted in answer.json()["error"]["message"]
    assert service.client.post("/predict?top=5", files=form(("a.png", png()))).json()["error"]["code"] == "invalid"


def test_too_many_at_once_are_told_to_come_again(run, photos):
    """And those that were accepted are answered."""
    with serving(run, twin="torch", limits=Limits(waiting=2)) as service:
        together = service.client.post("/predict", files=form(*photos[:3]))
        assert together.status_code == 429
        assert together.headers["retry-after"] == "1"
        assert together.json()["error"]["code"] == "busy"
        twin = service.answers.twins["torch"]
        with twin._computing, ThreadPoolExecutor(3) as pool:
            two = [pool.submit(service.client.post, "/predict", files=form(each)) for each in photos[:2]]
            wait_for(lambda: service.answers.waiting.taken == 2)
            assert service.client.post("/predict", files=form(photos[2])).status_code == 429
            assert service.client.get("/healthz").status_code == 200
            assert service.client.head("/healthz").status_code == 200
            twin._computing.release()
            assert [each.result().status_code for each in two] == [200, 200]
            twin._computing.acquire()
        assert service.client.post("/predict", files=form(photos[2])).status_code == 200


def test_memory_of_requests_is_bounded(run):
    """Of slow clients too: what they have sent counts, and is given back."""
    limits = Limits(upload=MIB, received=2 * MIB, receive_seconds=3.0)
    with serving(run, twin="torch", limits=limits) as service, ThreadPoolExecutor(8) as pool:
        began = time.monotonic()

        def dripping():
            yield b"x" * 800_000
            while time.monotonic() < began + 6:
                time.sleep(0.1)
                yield b"x"

        def send(_):
            with httpx.Client(base_url=service.url, timeout=30) as client:
                return client.post("/predict", content=dripping(), headers={"content-type": "application/json"})

        slow = [pool.submit(send, each) for each in range(3)]
        statuses = [each.result().status_code for each in slow]
        assert set(statuses) <= {408, 429}
        assert 429 in statuses  # 800,000 bytes count three times as JSON
        assert service.answers.received.taken == 0
        slow_form = service.client.post(
            "/predict", content=dripping(), headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert slow_form.status_code in (400, 408)


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


@pytest.fixture
def opened():
    """Files that this process opens to write, from now on."""
    found: list[str] = []
    watching = [True]

    def hook(event, arguments):
        if watching and event == "open" and isinstance(arguments[2], int):
            flags = arguments[2]
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                found.append(str(arguments[0]))

    sys.addaudithook(hook)  # it cannot be taken away again
    yield found
    watching.clear()


def folders_of(*roots: Path) -> dict[str, int]:
    """Every folder with the time of its last change: a file that was there for a moment changes it, too."""
    return {str(each): each.stat().st_mtime_ns for root in roots for each in (root, *root.rglob("*")) if each.is_dir()}


def test_nothing_is_written_to_the_disk(run, photos, opened, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    large = io.BytesIO()
    Image.effect_noise((2000, 1500), 90).convert("RGB").save(large, "PNG")
    assert len(large.getvalue()) > 2 * MIB  # Starlette would put it into a file
    with serving(run) as service:
        before, _ = folders_of(tmp_path, run), opened.clear()
        for path in ("/predict", "/explain"):
            assert service.client.post(path, files=form(("large.png", large.getvalue()))).status_code == 200
        text = base64.b64encode(large.getvalue()).decode()
        assert service.client.post("/predict", json={"photos": [text]}).status_code == 200
        assert service.client.post("/predict", files=form(*photos)).status_code == 200
        assert service.client.post("/predict", files=form(("a.txt", b"x" * 3 * MIB))).status_code == 422
        assert folders_of(tmp_path, run) == before
        assert opened == []
        with tempfile.SpooledTemporaryFile(max_size=MIB) as spooled:  # what would be seen
            spooled.write(large.getvalue())
        assert len(opened) > 0


def test_health_of_a_twin_that_crashes_and_comes_back(run, photos):
    with serving(run, batch_size=1) as service:
        assert service.client.get("/healthz").json() == {
            "status": "ready", "twins": {"torch": "ready", "keras": "ready"},
        }  # fmt: skip
        keras = service.answers.twins["keras"]
        keras.labeller._keras._process.kill()
        lost = service.client.post("/predict", files=form(photos[0]))
        assert lost.status_code == 503
        assert lost.json()["error"]["code"] == "twin_down"
        assert lost.headers["retry-after"]
        wait_for(lambda: service.client.get("/healthz").status_code == 200, 120)
        assert service.client.post("/predict", files=form(photos[0])).json()["photos"][0]["agree"]


def test_counters(torch_alone, photos):
    before = torch_alone.client.get("/metrics").text
    torch_alone.client.post("/predict", files=form(*photos[:4]))
    torch_alone.client.post("/predict", files=form(("a.txt", b"text")))
    after = torch_alone.client.get("/metrics").text

    def count(text: str, start: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start))

    assert count(after, "shelftwin_photos_total{") - count(before, "shelftwin_photos_total{") == 4
    refused = 'shelftwin_requests_total{route="/predict",status="422"}'
    assert count(after, refused) - count(before, refused) == 1
    assert 'shelftwin_twin_ready{twin="torch"} 1.0' in after
    assert count(after, "shelftwin_waiting_photos ") == 0


def test_photos_that_come_together_are_computed_together(torch_alone, photos):
    sizes: list[int] = []
    twin = torch_alone.answers.twins["torch"]
    observe, twin.on_batch = twin.on_batch, sizes.append
    try:
        torch_alone.client.post("/predict", files=form(*photos[:8]))
    finally:
        twin.on_batch = observe
    assert sum(sizes) == 8
    assert max(sizes) > 1
    assert max(sizes) <= twin.batch_size


def test_unsure_is_said_as_predict_says_it(run, photos, tmp_path):
    out = tmp_path / "p.csv"
    assert lightning("predict", run / "best.ckpt", *photos, "--out", out, "--temperature", 1.5) == 0
    with out.open(newline="") as file:
        middle = sorted(float(row["probability"]) for row in csv.DictReader(file))[len(photos) // 2]
    options = ("--min_probability", middle, "--temperature", "fitted")
    assert lightning("predict", run / "best.ckpt", *photos, "--out", out, *options) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labelling = Labelling(min_probability=middle, temperature=1.5)
    with serving(run, twin="torch", labelling=labelling) as service:
        said = service.client.post("/predict", files=form(*photos)).json()["photos"]
        assert [each["label"] for each in said] == [row["label"] for row in rows]
        assert {"unsure"} < {each["label"] for each in said}
        assert [f"{each['labels'][0]['probability']:.3f}" for each in said] == [row["probability"] for row in rows]
        assert [each["labels"][0]["label"] for each in said] == [row["likeliest"] for row in rows]
        for photo, each in list(zip(photos, said, strict=True))[:4]:
            explained = service.client.post("/explain", files=form(photo)).json()
            assert explained["unsure"] == (each["label"] == "unsure")
            assert explained["probability"] == each["labels"][0]["probability"]


def test_the_interface_is_stated_without_anything_from_elsewhere(service):
    stated = service.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/healthz", "/model", "/metrics"} == set(stated["paths"])
    page = service.client.get("/docs")
    assert page.status_code == 200
    for path in stated["paths"]:
        assert path in page.text
    assert "http" not in page.text.replace("http://ADDRESS", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    kinds = stated["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"multipart/form-data", "application/json"}


def test_answers_have_the_stated_shape(service, photos):
    from lightning_module.serving.schemas import ErrorAnswer, ExplainAnswer, HealthAnswer, ModelAnswer, PredictAnswer

    post = service.client.post
    PredictAnswer.model_validate(post("/predict", files=form(photos[0])).json())
    ExplainAnswer.model_validate(post("/explain", files=form(photos[0])).json())
    HealthAnswer.model_validate(service.client.get("/healthz").json())
    ModelAnswer.model_validate(service.client.get("/model").json())
    ErrorAnswer.model_validate(post("/predict", files=form(("a", b"text"))).json())


def test_two_photos_are_not_explained_at_once(service, photos):
    answer = service.client.post("/explain", files=form(*photos[:2]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "one_photo")


def test_many_clients_get_the_answers_to_their_own_photos(service, predicted, photos):
    def ask(number: int):
        file = photos[number % len(photos)]
        with httpx.Client(base_url=service.url, timeout=120) as client:
            return file, client.post("/predict?top=4", files=form(file)).json()["photos"][0]

    with ThreadPoolExecutor(8) as pool:
        for file, answer in pool.map(ask, range(48)):
            assert answer["name"] == file.name
            assert cells(answer) == predicted[str(file)]


def test_a_fault_is_said_and_traced(torch_alone, photos, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(torch_alone.answers, "decoded", broken)
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    answer = torch_alone.client.post("/predict", files=form(photos[0]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "fault")
    assert "planted" not in answer.text
    wait_for(lambda: "planted" in caplog.text)  # it is logged after the answer
    log.removeHandler(caplog.handler)
