"""The pages for people: their Python code runs, and what they point to is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from datamodule.augment import Augmentation
from datamodule.demo_photos import draw_catalogue
from export.torch_to_keras import write_twin
from lightning_module.commands.cli import COMMANDS
from lightning_module.commands.lightning_cli.short_help import GROUPS
from tests.conftest import ROOT, random_classifier, save_checkpoint

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"deploy.md": {"js", "html", "dockerfile"}}
"""Pages whose code another test runs -> the languages that it has besides; for this one, test_deploy.py."""
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
KERAS_CODE = re.compile(r"^\s*(?:import|from) (?:keras|tensorflow|tf_keras)\b", re.MULTILINE)

RUNNER = """
import json, sys
page, ran = sys.argv[1:]
names = {"__name__": "__main__"}
for number, (line, code) in enumerate(json.load(sys.stdin), start=1):
    exec(compile("\\n" * (line - 1) + code, page, "exec"), names)  # a traceback names the page and its line
    with open(ran, "w") as file:
        file.write(str(number))
print("loaded:", *sorted({"torch", "tensorflow", "keras"} & sys.modules.keys()))
"""
"""Runs blocks in order, as the cells of one notebook, and keeps count of those that came to their end."""


class Block(NamedTuple):
    """Python code of a page.

    Attributes:
        line: of the page on which it begins.
        code: what stands between the fences.
    """

    line: int
    code: str


def python_blocks(text: str) -> list[Block]:
    return [
        Block(text.count("\n", 0, fence.start(2)) + 1, fence[2])
        for fence in FENCE.finditer(text)
        if fence[1] == "python"
    ]


def run_blocks(page: Path, blocks: list[Block], folder: Path) -> tuple[int, str]:
    """How many of them ran, in one fresh process that works in `folder`; and what it said."""
    ran = folder / ".ran"
    ran.write_text("0")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, page, ran],
        input=json.dumps(blocks),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return int(ran.read_text()), done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture
def workplace(tmp_path) -> Path:
    """What the pages write of: PHOTOS, a photo, and RUN with a small network and its twin."""
    draw_catalogue(tmp_path / "PHOTOS", per_class=5, size=64)
    shutil.copy(tmp_path / "PHOTOS" / "tv" / "tv_0001.jpg", tmp_path / "photo.jpg")
    run = tmp_path / "RUN"
    run.mkdir()
    checkpoint = save_checkpoint(run / "best.ckpt", random_classifier(backbone="mobilenetv2_035"), (64, 64))
    twin = write_twin(checkpoint, run / "model.h5")
    (run / "labels.json").write_text(json.dumps(twin.details))
    return tmp_path


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python" in page.read_text() and page.name not in ELSEWHERE],
    ids=lambda page: page.name,
)
def test_python_of_a_page_runs(page, workplace):
    """In order, in a process of the page's own; what imports Keras in another, after the rest."""
    text = page.read_text()
    blocks = python_blocks(text)
    keras_code = [block for block in blocks if KERAS_CODE.search(block.code)]
    torch_code = [block for block in blocks if block not in keras_code]
    ran, said = run_blocks(page, torch_code, workplace)
    assert ran == len(torch_code), said
    assert not {"tensorflow", "keras"} & loaded(said)
    ran_keras, said = run_blocks(page, keras_code, workplace)
    assert ran_keras == len(keras_code), said
    assert "torch" not in loaded(said)
    assert ran + ran_keras == text.count("```python\n") > 0


def loaded(said: str) -> set[str]:
    """The frameworks that a process had imported in the end."""
    return set(re.search(r"^loaded:(.*)", said, re.MULTILINE)[1].split())


def test_a_broken_block_is_noticed(tmp_path):
    text = "Text\n```python\na = 1\n```\n```\n$ shell\n```\n\n```python\n\nassert a == 2\n```\n```python\nb = 3\n```\n"
    blocks = python_blocks(text)
    assert [block.line for block in blocks] == [3, 10, 14]
    ran, said = run_blocks(Path("page.md"), blocks, tmp_path)
    assert ran == 1
    assert '"page.md", line 11' in said
    assert run_blocks(Path("page.md"), [blocks[0], blocks[2]], tmp_path)[0] == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_code_is_fenced_in_a_way_that_no_test_runs(page):
    """A fence is Python's, or a shell's and plain output, which have no name."""
    text = page.read_text()
    assert {fence[1] for fence in FENCE.finditer(text)} <= {"", "python"} | ELSEWHERE.get(page.name, set())
    assert 2 * len(FENCE.findall(text)) == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    rooms = "benchmarks|configs|datamodule|docs|export|lightning_module|models|tests"
    named = re.findall(rf"\b(?:{rooms})/[\w/.]*\.(?:py|yaml|md|html|png)\b", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_is_in_the_index():
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    pages = [page.relative_to(docs).as_posix() for page in PAGES if docs in page.parents]
    assert [name for name in pages if name != "README.md" and f"({name})" not in index] == []


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1800


def test_every_setting_of_the_help_is_in_the_pages():
    """In the table of docs/training.md or in docs/data.md, which has the random changes by their own names."""
    text = "".join((ROOT / "docs" / page).read_text() for page in ("training.md", "data.md"))
    named = set(re.findall(r"--([\w.]*\w|[\w.]+\*)(?=[` \n=])", text))
    names = [group.prefix + name for group in GROUPS for name, *_ in group.settings]
    own = {f"data.augmentation.{field.name}" for field in fields(Augmentation) if f"`{field.name}`" in text}
    said = {
        *named,
        *own,
        *(name for name in names for each in named if each.endswith(".*") and name.startswith(each[:-1])),
    }
    assert [name for name in names if name not in said] == []
    assert {"data.formats", "model.schedule.cosine", "data.augmentation.cval"} <= said
    assert "data.no_such" not in said


def test_every_command_and_every_room_has_its_row():
    rows = [
        line.split("|")[1]
        for line in (ROOT / "docs" / "commands.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    assert [name for name in COMMANDS if f"`{name}`" not in " ".join(rows)] == []
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [
        path.parent.relative_to(ROOT)
        for house in ("models", "datamodule", "export", "lightning_module")
        for path in (ROOT / house).rglob("__init__.py")
    ]
    assert [str(room) for room in rooms if f"| `{room}/` |" not in contributing] == []
