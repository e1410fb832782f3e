"""The card says what the run's files say; publishing puts just the files that it lists into one commit."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from datamodule.demo_photos import draw_catalogue
from lightning_module.publishing.model_card import model_card, plain
from lightning_module.run.run_folder import RunFolder
from models.bad_input import BadInput
from tests.conftest import ROOT, lightning


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("published") / "photos"
    draw_catalogue(root, per_class=8, seed=0)
    return root


@pytest.fixture(scope="module")
def finished(photos) -> RunFolder:
    """A small fit with its twin and proof."""
    run = photos.parent / "run"
    settings = [
        "--model.backbone=mobilenetv2_short", "--model.pretrained=false", "--model.hidden=[]", "--data.image_size=32",
        "--data.batch_size=8", "--data.validation_split=0.25", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        f"--data.root={photos}", f"--trainer.default_root_dir={run}", "--hand_over.max_photos=4",
    ]  # fmt: skip
    assert lightning("fit", *settings) == 0
    return RunFolder(run)


@pytest.mark.slow
@pytest.mark.keras
def test_card_of_a_fit_says_what_its_files_say(finished, photos):
    text = finished.model_card.read_text()
    metrics, parity = (json.loads(path.read_text()) for path in (finished.metrics, finished.parity))
    card = ModelCard(text)
    assert card.data.pipeline_tag == "image-classification"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == metrics["final"]["accuracy"]
    assert results["f1"].metric_value == metrics["final"]["f1_macro"]
    data = json.loads(finished.environment.read_text())["data"]
    assert results["accuracy"].dataset_revision == data["val"]["sha256"]
    assert all(each["sha256"] in text for each in data.values())
    low, high = metrics["final"]["accuracy_interval"]
    assert f"{low:.4f} to {high:.4f}" in text
    assert f"error {metrics['final']['ece']:.4f}" in text
    for check in parity["reports"][0]["rungs"]:
        assert f"| {check['name']} |" in text
    assert "**PASS**" in text
    assert "proved to be the same network" in text
    assert "these figures are a little too good" in text
    assert "Fewer than 30 photos were measured of: jeans 2" in text
    assert str(photos) not in text  # nor any other folder of this machine


@pytest.mark.slow
@pytest.mark.keras
def test_code_of_the_card_gives_one_label(finished, photos, tmp_path):
    """In the order of the card: Keras; predict and import; torch with what was imported; ONNX Runtime."""
    run = finished.path
    for name in ("model.h5", "labels.json"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "photo.jpg").symlink_to(photos / "tv" / "tv_0001.jpg")
    text = finished.model_card.read_text()
    keras_code, torch_code, onnx_code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert lightning("import", tmp_path / "model.h5", tmp_path / "best.ckpt") == 0
    assert lightning("export", tmp_path / "best.ckpt", tmp_path / "model.h5", "--format", "onnx") == 0
    said = []
    short = "import tests.short_mobilenetv2\n"  # a network of the tests alone
    for code in (keras_code, short + torch_code, onnx_code):
        command = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.splitlines()[-1].split())
    assert len({label for label, _ in said}) == 1
    assert max(float(number) for _, number in said) - min(float(number) for _, number in said) < 2e-5


# What needs no fit ----------------------------------------------------------------------------------------------------


FIGURES = {
    "photos": 60,
    "accuracy": 0.9,
    "f1_macro": 0.8,
    "accuracy_interval": [0.8, 0.95],
    "f1_macro_interval": None,
    "ece": 0.1,
    "ece_scaled": 0.05,
    "temperature": 1.2,
    "temperature_fitted_on": "validation",
    "temperature_mistakes": 2,
    "per_class": {
        "a|b *c*": {"precision": 1.0, "recall": 0.5, "f1": 0.6, "support": 30},
        "{{ x }}": {"precision": 0.9, "recall": 1.0, "f1": 0.9, "support": 30},
    },
}


@pytest.fixture
def written(tmp_path) -> RunFolder:
    """A run's folder without a fit."""
    run = RunFolder(tmp_path / "RUN")
    run.path.mkdir()
    run.metrics.write_text(json.dumps({"final": FIGURES, "test": {**FIGURES, "accuracy": 0.85}}))
    labels = {"class_names": list(FIGURES["per_class"]), "image_size": [32, 40], "interpolation": "nearest"}
    run.labels.write_text(json.dumps({**labels, "input_range": "raw", "background": None, "deep_grey": "clip"}))
    run.model_h5.write_bytes(b"network")
    return run


def test_card_of_half_a_run_says_what_is_not_known(written):
    text = str(model_card(written, "apache-2.0"))
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert [each["dataset"]["split"] for each in front["model-index"][0]["results"]] == ["test", "validation"]
    assert "which was not compared with it" in text
    assert "The test photos had no part in training" in text
    assert "too few to say much" in text
    assert "| 0.8000 | not known |" in text
    assert r"a\|b \*c\*" in text
    assert r"\{\{ x \}\}" in text
    assert "0 to 255, shape (N, 32, 40, 3)" in text
    assert "/ 255" not in text.split("```python")[1]
    written.labels.unlink()
    written.model_h5.unlink()
    assert "It has no Keras twin." in str(model_card(written))
    written.metrics.write_text("{}")
    with pytest.raises(BadInput, match="figures in metrics"):
        model_card(written)


def test_names_stay_names():
    assert plain("a\n# b `c` <d>") == r"a \# b \`c\` \<d\>"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a commit needs; what it was told is in `told`."""

    told: dict

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer right":
            return self.reply(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.told["create"] = json.loads(body)
            return self.reply(200, {"url": f"http://{self.headers['Host']}/owner/name"})
        if "/preupload/" in self.path:
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for each in json.loads(body)["files"]]  # fmt: skip
            return self.reply(200, {"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line)["value"] for line in body.splitlines()]
            self.told["files"] = {each["path"]: base64.b64decode(each["content"]) for each in lines if "path" in each}
            return self.reply(
                200, {"commitUrl": f"http://{self.headers['Host']}/owner/name/commit/0123", "commitOid": "0123"}
            )
        return self.reply(200, {"errors": [], "warnings": []})  # the card's YAML

    def reply(self, status: int, content: dict) -> None:
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[dict]:
    told: dict = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"told": told}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reach(monkeypatch, server.server_port)
    yield told
    server.shutdown()
    server.server_close()


def reach(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Let huggingface_hub look for the hub on this machine, with a token."""
    for module in ("huggingface_hub.constants", "huggingface_hub.hf_api.constants"):
        monkeypatch.setattr(f"{module}.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_TOKEN", "right")


def test_everything_listed_is_in_one_commit_and_nothing_else(written, hub, capsys):
    (written.path / "model.onnx").write_bytes(b"onnx")
    (written.path / "model_saved_model" / "variables").mkdir(parents=True)
    (written.path / "model_saved_model" / "variables" / "variables.index").write_bytes(b"index")
    (written.path / "report.html").write_text("photos")
    assert lightning("publish", written.path, "owner/name", "--private", "--license", "mit") == 0
    listed = set(re.findall(r"bytes  (\S+)", capsys.readouterr().out))
    names = {"README.md", "model.h5", "labels.json", "metrics.json", "model.onnx"}
    assert listed == set(hub["files"]) == names | {"model_saved_model/variables/variables.index"}
    assert hub["files"]["model.h5"] == b"network"
    assert b"license: mit" in hub["files"]["README.md"]
    assert hub["create"]["name"] == "name"
    assert hub["create"].get("private") or hub["create"].get("visibility") == "private"
    assert lightning("publish", written.path, "owner/name", "--also", "report.html") == 0
    assert hub["files"]["report.html"] == b"photos"


def test_dry_run_and_folder_reach_nobody(written, hub, tmp_path, capsys):
    assert lightning("publish", written.path, "owner/name", "--dry-run") == 0
    assert "dry run" in capsys.readouterr().out
    assert lightning("publish", written.path, "owner/name", "--folder", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.h5",
        "labels.json",
        "metrics.json",
    }
    assert "`hf upload owner/name " in capsys.readouterr().out
    assert lightning("publish", written.path, "owner/name", "--private", "--folder", tmp_path / "hidden") == 0
    assert " --private`" in capsys.readouterr().out
    assert hub == {}
    assert lightning("publish", written.path, "owner/name", "--folder", tmp_path / "out") == 2


def test_unreachable_or_refused_is_one_message_with_a_way_out(written, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert lightning("publish", written.path, "owner/name") == 2
    assert "hf auth login" in capsys.readouterr().err
    reach(monkeypatch, 9)  # nobody listens there
    assert lightning("publish", written.path, "owner/name", "--private") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "`hf upload owner/name DIR --private`" in said
    assert "expected to reach http://127.0.0.1:9" in said
    assert "--folder DIR" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a/b/c"], "owner/name"),
        (["name"], "Name its owner"),
        (["owner/na me"], "owner/name"),
        (["owner/name", "--also", "none.txt"], "Leave it out of --also"),
    ],
)
def test_bad_names_are_refused(written, given, message, capsys):
    assert lightning("publish", written.path, *given, "--dry_run") == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there_or_is_no_run_is_named(tmp_path, capsys):
    assert lightning("publish", tmp_path / "none", "owner/name", "--dry_run") == 2
    assert "expected a run's folder" in capsys.readouterr().err
    assert lightning("publish", tmp_path, "owner/name", "--dry_run") == 2
    assert "--also" not in capsys.readouterr().err
