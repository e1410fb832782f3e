"""docs/service/deploy.md as a stranger follows it: every block, in an environment with that runtime alone.

What needs TensorFlow runs in one process, each block with names of its own; TensorFlow is imported once.
"""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from datamodule.demo_photos import draw_catalogue
from datamodule.photo_store import PhotoStore, load_photo
from datamodule.split import list_photos
from export.formats import Photos
from export.torch_to_keras import write_twin
from tests.conftest import CLASS_NAMES, OTHER_KERAS, ROOT, random_classifier, save_checkpoint
from tests.export.test_formats import fit_head
from tests.runtimes import NODES, PYTHONS

PAGE = ROOT / "docs" / "service" / "deploy.md"
SIZE = (48, 64)
HALF, COARSE = 0.02, 0.05
"""How far a probability may be from torch's in float16, and in a browser."""
FLOATS = 1e-5
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
RUNTIMES = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert", "openvino": "openvino"}
"""Environment -> what its blocks import; all other Python needs TensorFlow or Keras."""
RUNNER = """
import json, os, sys
for folder, line, code in json.load(sys.stdin):
    os.chdir(folder)
    print(f"== {folder} {line}", flush=True)
    exec(compile("\\n" * (line - 1) + code, "deploy.md", "exec"), {"__name__": "__main__"})
print("== modules", *sorted({"torch", "lightning_module", "export"} & sys.modules.keys()))
"""


class Block(NamedTuple):
    line: int
    language: str
    code: str


class Answer(NamedTuple):
    label: str
    probability: float


def blocks(language: str, text: str | None = None) -> list[Block]:
    text = PAGE.read_text() if text is None else text
    found = [Block(text.count("\n", 0, each.start(2)) + 1, each[1], each[2]) for each in BLOCK.finditer(text)]
    return [each for each in found if each.language == language]


def python_of(module: str) -> list[Block]:
    return [each for each in blocks("python") if re.search(rf"^(?:import|from) {module}\b", each.code, re.MULTILINE)]


def tensorflow_blocks() -> list[Block]:
    others = [each for module in RUNTIMES.values() for each in python_of(module)]
    return [each for each in blocks("python") if each not in others]


def answers(said: str) -> list[Answer]:
    lines = re.findall(rf"^({'|'.join(CLASS_NAMES)}) ([\d.e-]+)\s*$", said, re.MULTILINE)
    return [Answer(label, float(number)) for label, number in lines]


def run(python: Path | str, jobs: list[tuple[Path, Block]], work: Path) -> dict[tuple[str, int], list[Answer]]:
    """Run blocks in one process that knows nothing of ours; return what each printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-I", "-c", RUNNER],
        input=json.dumps([(str(folder), each.line, each.code) for folder, each in jobs]),
        cwd=work,
        env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    parts = re.split(r"^== ", done.stdout, flags=re.MULTILINE)[1:]
    assert parts[-1].split() == ["modules"], "torch or ShelfTwin was needed"
    found = {}
    for part in parts[:-1]:
        folder, line = part.splitlines()[0].rsplit(" ", 1)
        found[folder, int(line)] = answers(part)
    return found


class Stranger(NamedTuple):
    """A folder as somebody has it, and what torch says of the photo in it."""

    folder: Path
    expected: Answer
    changed: Path


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Stranger:
    folder = tmp_path_factory.mktemp("deploy") / "given"
    draw_catalogue(folder / "photos", per_class=10, seed=0)
    files = list_photos(folder / "photos")
    store = PhotoStore(SIZE)
    assert not store.add(files)
    photos = Photos(
        store.photos_of(files), [str(file) for file in files], [CLASS_NAMES.index(file.parent.name) for file in files]
    )
    network = random_classifier(backbone="mobilenetv2_short", hidden=(), pad_type="same", mean=0.5, std=0.5)
    fit_head(network, photos, logit=2.0)
    checkpoint = save_checkpoint(folder.parent / "best.ckpt", network, SIZE)
    with Image.open(files[-1]) as photo:  # a stranger's photo is not square
        photo.resize((150, 110)).save(folder / "photo.jpg", quality=90)
    twin = write_twin(checkpoint, folder / "model.h5")
    names = ("class_names", "image_size", "interpolation", "background", "deep_grey", "input_range")
    (folder / "labels.json").write_text(json.dumps({name: twin.details[name] for name in names}))
    pixels = torch.from_numpy(load_photo(folder / "photo.jpg", SIZE)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        probabilities = network(pixels).softmax(dim=1)[0]
    changed = folder.parent / "changed"
    changed.mkdir()
    for name in ("photo.jpg", "labels.json", "model.h5"):
        shutil.copy(folder / name, changed)
    change_a_weight(changed / "model.h5")
    return Stranger(folder, Answer(CLASS_NAMES[int(probabilities.argmax())], float(probabilities.max())), changed)


def change_a_weight(h5: Path) -> None:
    with h5py.File(h5, "r+") as file:
        kernels: list[h5py.Dataset] = []
        file["model_weights"].visititems(
            lambda name, each: kernels.append(each) if isinstance(each, h5py.Dataset) and each.ndim == 4 else None
        )
        kernels[0][0, 0, 0, 0] += 1.0


@pytest.fixture(scope="module")
def tensorflow_said(stranger) -> dict[int, list[Answer]]:
    """What the blocks with TensorFlow print; they make the files that all others use."""
    keras_block, *_ = tensorflow_blocks()
    jobs = [(stranger.folder, each) for each in tensorflow_blocks()]
    said = run(sys.executable, [*jobs, (stranger.changed, keras_block)], stranger.folder.parent)
    (changed,) = said.pop((str(stranger.changed), keras_block.line))
    assert changed.label != stranger.expected.label or abs(changed.probability - stranger.expected.probability) > FLOATS
    return {line: given for (_, line), given in said.items()}


def check(given: Answer, expected: Answer, threshold: float = FLOATS) -> None:
    assert given.label == expected.label
    assert abs(given.probability - expected.probability) <= threshold


@pytest.mark.slow
@pytest.mark.keras
def test_keras_and_the_saved_model_give_torchs_label(stranger, tensorflow_said):
    given = [each for line in sorted(tensorflow_said) for each in tensorflow_said[line]]
    assert len(given) == 2
    for each in given:
        check(each, stranger.expected)
    made = {"shop", "model.onnx", "model.tflite", "model_float16.tflite", "model_int8.tflite"}
    assert made <= {path.name for path in stranger.folder.iterdir()}


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize("name", RUNTIMES)
def test_other_runtimes_give_torchs_label(stranger, tensorflow_said, name):
    if not PYTHONS[name].is_whole:
        pytest.skip(f"there is no {PYTHONS[name].folder}: python -m tests.runtimes makes it")
    (block,) = python_of(RUNTIMES[name])
    said = run(PYTHONS[name].python(), [(stranger.folder, block)], stranger.folder.parent)
    given = said[str(stranger.folder), block.line]
    assert len(given) == (3 if name == "litert" else 1)
    for each, threshold in zip(given, (FLOATS, HALF, 1.0), strict=False):
        check(each, stranger.expected, threshold)


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize("python", [OTHER_KERAS])
def test_keras_2_and_its_saved_model_give_torchs_label(stranger, tmp_path, python):
    for name in ("photo.jpg", "labels.json", "model.h5"):
        shutil.copy(stranger.folder / name, tmp_path)
    jobs = [
        (tmp_path, each._replace(code=re.sub(r"^import keras$", "from tensorflow import keras", each.code, flags=re.M)))
        for each in tensorflow_blocks()[:3]
    ]
    given = [each for answer in run(python, jobs, tmp_path).values() for each in answer]
    assert len(given) == 2
    for each in given:
        check(each, stranger.expected)


@pytest.mark.slow
@pytest.mark.keras
def test_int8_takes_photos_of_every_class_and_never_none(stranger, tmp_path):
    (block,) = [each for each in tensorflow_blocks() if "representative" in each.code]
    chosen, _, _ = block.code.partition("\ndef representative")
    shutil.copy(stranger.folder / "labels.json", tmp_path)
    without = subprocess.run([sys.executable, "-c", block.code], cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode == 1
    assert without.stderr.splitlines()[-1] == (
        "int8 needs about a hundred photos, of every class, in the folder photos: there are none"
    )
    assert not list(tmp_path.glob("*.tflite"))
    for name, count, ending in (("jeans", 150, "jpg"), ("sofa", 30, "PNG"), ("tv", 20, "jpeg")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "photos" / name / f"{number}.{ending}").touch()
    (every,) = re.findall(r"for file in (.*):  # at most", block.code)
    said = subprocess.run(
        [sys.executable, "-c", f"{chosen}\nprint([file.parent.name for file in {every}])"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken = json.loads(said.stdout.splitlines()[-1].replace("'", '"'))
    assert [taken.count(name) for name in ("jeans", "sofa", "tv")] == [75, 15, 10]


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed (Debian: apt-get install nodejs npm)")
    if not NODES["onnxruntime-node"].is_whole:
        pytest.skip(f"there is no {NODES['onnxruntime-node'].folder}: python -m tests.runtimes makes it")
    return found


def run_node(node: str, code: str, folder: Path) -> str:
    environment = {**os.environ, "NODE_PATH": str(NODES["onnxruntime-node"].folder / "node_modules")}
    done = subprocess.run([node, "-e", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.keras
def test_node_gives_torchs_label(stranger, tensorflow_said, node):
    (block,) = blocks("js")
    (given,) = answers(run_node(node, block.code, stranger.folder))
    check(given, stranger.expected)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(31, 47), (200, 170), (111, 60)])
def test_node_resizes_as_pillow_does(node, tmp_path, size, interpolation):
    (block,) = blocks("js")
    pixels = np.random.default_rng(0).integers(0, 256, (111, 150, 3), np.uint8)
    pixels.tofile(tmp_path / "pixels")
    height, width = size
    code = block.code.replace("\nmain();\n", "") + (
        'const data = fs.readFileSync("pixels");\n'
        f'const wide = resizedRows(data, 111, 150, {width}, "{interpolation}");\n'
        f'fs.writeFileSync("small", resizedRows(wide, {width}, 111, {height}, "{interpolation}"));\n'
    )
    run_node(node, code, tmp_path)
    small = np.fromfile(tmp_path / "small", np.uint8).reshape(height, width, 3)
    expected = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
    assert (small == np.asarray(expected)).all()


@pytest.fixture(scope="module")
def web(stranger) -> Path:
    """The folder `web`, made by the page's commands; those that install have been done before."""
    if not (PYTHONS["tensorflowjs"].is_whole and NODES["tfjs"].is_whole):
        pytest.skip(f"there is no {PYTHONS['tensorflowjs'].folder}: python -m tests.runtimes makes it")
    (commands,) = [each.code.splitlines() for each in blocks("") if "tensorflowjs_converter" in each.code]
    work = stranger.folder.parent / "browser"
    work.mkdir()
    for name in ("model.h5", "labels.json", "photo.jpg"):
        shutil.copy(stranger.folder / name, work)
    (work / "node_modules").symlink_to(NODES["tfjs"].folder / "node_modules")
    path = f"{PYTHONS['tensorflowjs'].folder / 'bin'}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}
    for command in commands:
        if not command.startswith(("pip install", "npm install")):
            subprocess.run(["sh", "-ec", command], cwd=work, env=environment, capture_output=True, check=True)
    (page,) = blocks("html")
    (work / "web" / "index.html").write_text(page.code)
    return work / "web"


@pytest.fixture
def address(web) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    return found


def read_page(chromium: str, address: str) -> tuple[str, list[str]]:
    """What the page says in the end, and what it asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_function("document.getElementById('label').textContent", timeout=120_000)
        said = page.text_content("#label")
        browser.close()
    return said, asked


@pytest.mark.slow
@pytest.mark.keras
def test_a_browser_gives_torchs_label(stranger, address, chromium):
    said, asked = read_page(chromium, address)
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    (given,) = answers(said + "\n")
    check(given, stranger.expected, COARSE)


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("photo.jpg", "No label: photo.jpg is not there, or is no photo"),
        ("labels.json", "No label: there is no labels.json beside this page"),
        ("model.json", "No label: Request to model.json failed with status code 404"),
    ],
)
def test_the_browser_says_what_is_missing(web, address, chromium, missing, said):
    away = web.with_name("away")
    (web / missing).rename(away)
    try:
        assert read_page(chromium, address)[0].startswith(said)
    finally:
        away.rename(web / missing)


# What needs no runtime ------------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_run():
    text = PAGE.read_text()
    assert {each[1] for each in BLOCK.finditer(text)} == {"", "python", "js", "html", "dockerfile"}
    assert len(tensorflow_blocks()) == 5
    assert [len(python_of(module)) for module in RUNTIMES.values()] == [1, 1, 1]


def test_what_the_page_installs_is_what_the_environments_have():
    """By name; where the page names a version, by that."""
    lines = re.findall(r"^(pip|npm) install (.*)$", PAGE.read_text(), re.MULTILINE)
    named = {each.strip('"') for _, rest in lines for each in rest.split() if not each.startswith("-")}
    pinned = [each for every in PYTHONS.values() for each in every.requirements]
    pinned += [each for every in NODES.values() for each in every.packages]
    names = {re.split(r"==|<|(?<=.)@", each)[0] for each in pinned}
    assert {each for each in named if re.search("[=<]", each)} <= set(pinned)
    plain = {each for each in named if not re.search("[=<]", each)}
    assert plain - names == {"keras", "tensorflow"}  # here


def dockerfile(word: str) -> list[tuple[str, str]]:
    """Instructions and their arguments of the Dockerfile in which a word stands."""
    (block,) = [each for each in blocks("dockerfile") if word in each.code]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in block.code.splitlines())]


@pytest.mark.parametrize("word", ['"lightning"', "ray start"])
def test_dockerfiles_name_what_there_is(word):
    instructions = dockerfile(word)
    names = [name for name, _ in instructions]
    assert names[0] == "FROM"
    assert names[-1] == "CMD"
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENV", "CMD"}
    assert set(names) <= known
    (install,) = [rest for name, rest in instructions if name == "RUN" and "pip install" in rest]
    extra = re.search(r"\.\[(\w+)\]", install)[1]
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "constraints.txt").is_file()
    for name, rest in instructions:
        if name == "CMD":
            assert isinstance(json.loads(rest), list)


@pytest.mark.slow
@pytest.mark.keras
def test_the_service_starts_by_its_command_and_is_healthy(tmp_path):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    run = tmp_path / "model"
    run.mkdir()
    network = random_classifier(backbone="mobilenetv2_035", hidden=())  # another process knows it by name, too
    write_twin(save_checkpoint(run / "best.ckpt", network, SIZE), run / "model.h5")
    instructions = dict(dockerfile('"lightning"'))
    program, *arguments = json.loads(instructions["CMD"])
    assert program == "lightning"
    arguments = [{"/run/model": str(run), "8000": "0"}.get(each, each) for each in arguments]
    service = subprocess.Popen(
        [sys.executable, "-m", "lightning_module", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = next((line for line in service.stdout if " has the page" in line), "")
        assert said, service.communicate()[1]
        port = re.search(r":(\d+) ", said)[1]
        _, code = json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])[1:]
        assert subprocess.run([sys.executable, "-c", code.replace("8000", port)], check=False).returncode == 0
        nobody = subprocess.run([sys.executable, "-c", code.replace("8000", "1")], capture_output=True)
        assert nobody.returncode != 0
    finally:
        service.terminate()
        service.communicate(timeout=60)
    assert service.returncode == 128 + signal.SIGTERM


def test_the_workers_command_is_one():
    ray = Path(sys.executable).with_name("ray")
    if not ray.is_file():
        pytest.skip("Ray is not installed: pip install 'shelftwin[ray]'")
    command = json.loads(dict(dockerfile("ray start"))["CMD"])[-1]
    said = subprocess.run([str(ray), "start", "--help"], capture_output=True, text=True, check=True).stdout
    asked = re.findall(r"--[a-z]+", command)
    assert asked == ["--address", "--block"]
    assert [each for each in asked if each not in said] == []
