"""The audit's page: what it shows, and what its buttons do (in Node, where there is one)."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datamodule.audit.findings import COLUMNS, Finding, read_actions
from datamodule.audit.page import SHOWN_OF_GROUP, SMALL_THUMBNAIL, THUMBNAIL, render_page

GROUP = 20

# A document that is enough for the page's script: elements from the HTML's own attributes, and a click on each thing.
STUB = """
const page = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const listening = () => ({listeners: {}, addEventListener(name, what) { this.listeners[name] = what; }});
const details = {open: false};
const boxes = page.boxes.map(row => ({...listening(), dataset: {row}, checked: false}));
const part = {querySelectorAll: () => [details]};
const buttons = page.buttons.map(rows => ({...listening(), dataset: {rows}, closest: () => part}));
const images = page.images.map(picture => ({dataset: {picture}}));
const byId = {save: listening(), count: {}};
for (const id of ["table", "pictures", "classes"]) byId[id] = {textContent: page[id]};
const found = {"input[data-row]": boxes, "button[data-rows]": buttons, "img[data-picture]": images, "[data-fate]": []};
const keys = page.choices.map(row => {
  const buttons = ["keep", "quarantine", "move to "].map(choice => ({
    ...listening(), dataset: {choice}, setAttribute(_, pressed) { this.pressed = pressed; },
  }));
  const select = {...listening(), options: [], append(option) { this.options.push(option); }, focus() {}, value: ""};
  return {dataset: row, buttons, select, querySelector: () => select, querySelectorAll: () => buttons};
});
found["[data-choices]"] = keys;
let saved;
globalThis.Blob = class { constructor(parts) { saved = Buffer.concat(parts.map(part => Buffer.from(part))); } };
URL.createObjectURL = () => "";
globalThis.document = {
  getElementById: id => byId[id],
  createElement: what => ({what, click() {}}),
  querySelectorAll: what => found[what],
};
const set = (place, on) => { boxes[place].checked = on; boxes[place].listeners.change(); };
const answer = [];
const report = () => answer.push({
  checked: boxes.map(box => box.checked), count: byId.count.textContent,
  pressed: keys.map(each => each.buttons.map(button => button.pressed)),
  classes: keys.map(each => each.select.options.map(option => option.textContent)),
});
(0, eval)(page.script);
report();
for (const [what, place, on] of page.steps) {
  if (what === "box") set(place, on);
  else if (what === "button") buttons[place].listeners.click();
  else if (what === "key") keys[place].buttons[on].listeners.click();
  else { keys[place].select.value = on; keys[place].select.listeners.change(); }
  report();
}
byId.save.listeners.click();
console.log(JSON.stringify({answer, open: details.open, saved: saved.toString("hex")}));
"""


class Page(HTMLParser):
    """Boxes, buttons and pictures in order, with the text of each label."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.boxes, self.buttons, self.images, self.captions, self.headings = [], [], [], [], []
        self.choices: list[dict[str, str]] = []
        self.inside: list[str] = []
        self.folded = 0
        self.folded_boxes = []
        self.feed(html)
        self.script = re.search(r"<script>\n(.*?)</script>", html, re.S).group(1)
        self.table, self.pictures, self.classes = (
            re.search(rf'id="{name}">(.*?)</script>', html, re.S).group(1) for name in ("table", "pictures", "classes")
        )

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "input":
            self.boxes.append(given["data-row"])
            self.folded_boxes.append(self.folded)
        if "data-choices" in given:
            self.choices.append({name: given[f"data-{name}"] for name in ("choices", "likelier", "own")})
        if tag == "button" and "data-rows" in given:
            self.buttons.append(given["data-rows"])
        if tag == "img":
            self.images.append(given["data-picture"])
        if tag == "details":
            self.folded += 1
        if tag == "label":
            self.captions.append("")
        if tag in ("h3", "h4"):
            self.headings.append("")
        if tag in ("label", "h3", "h4", "button"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag == "details":
            self.folded -= 1
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if self.inside[-1:] == ["label"]:
            self.captions[-1] += data
        if self.inside[-1:] in (["h3"], ["h4"]):
            self.headings[-1] += data

    def run(self, *steps) -> dict:
        node = shutil.which("node")
        if node is None:
            pytest.skip("Node is not installed")
        names = ("boxes", "buttons", "images", "table", "pictures", "classes", "choices", "script")
        page = {name: getattr(self, name) for name in names}
        done = subprocess.run(
            [node, "-e", STUB], input=json.dumps(page | {"steps": steps}), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def box_of(self, name: str) -> list[int]:
        return [place for place, caption in enumerate(self.captions) if name in caption]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    random = np.random.default_rng(0)
    for name in ("shoes", "tv"):
        (root / name).mkdir(parents=True)
        for number in range(GROUP):
            Image.fromarray(random.integers(0, 256, (200, 160, 3), np.uint8)).save(root / name / f"{number:02}.jpg")
    return root


@pytest.fixture
def findings():
    pair = Finding("tv/19.jpg", "tv", "near_duplicate", related_file="shoes/03.jpg", detail="in two classes: shoes too")
    groups = [
        Finding(f"{name}/{number:02}.jpg", name, "group", detail=f"group 1 of 2 in {name}: {GROUP} photos")
        for name in ("tv", "shoes")
        for number in range(GROUP)
        if (name, number) != ("shoes", 3)
    ]
    return [Finding("tv/00.jpg", "tv", "suspect", suggestion="shoes", action="quarantine"), pair, *groups]


@pytest.fixture
def page(root, findings):
    return Page(render_page(root, findings, [], "audit.csv", "lightning audit", class_names=["hat", "shoes", "tv"]))


def test_every_photo_that_can_be_ticked_can_be_seen(page):
    rows = json.loads(page.table)["rows"]
    pictures = json.loads(page.pictures)
    assert {rows[int(row)][0] for row in page.boxes} == {row[0] for row in rows}
    assert {int(row) for button in page.buttons for row in button.split()} <= {int(row) for row in page.boxes}
    assert len(page.images) == len(page.boxes) + len(page.choices)
    assert all(pictures[int(place)].startswith("data:image/jpeg;base64,") for place in page.images)
    # all but the first of each group unfold
    assert sum(page.folded_boxes) == 2 * GROUP - 1 - 2 * SHOWN_OF_GROUP
    # a picture is in the page once, and smaller where it is in a group only
    assert len(pictures) == len(set(pictures)) == 2 * GROUP


def test_thumbnails_of_groups_are_smaller(page):
    import base64
    import io

    rows, pictures = json.loads(page.table)["rows"], json.loads(page.pictures)
    sides = {}
    for row, place in zip([page.choices[0]["choices"], *page.boxes], page.images, strict=True):
        content = base64.b64decode(pictures[int(place)].partition(",")[2])
        sides[rows[int(row)][0]] = max(Image.open(io.BytesIO(content)).size)
    large = {file for file, side in sides.items() if side == THUMBNAIL}
    assert large == {"tv/00.jpg", "tv/19.jpg", "shoes/03.jpg"}
    assert {side for file, side in sides.items() if file not in large} == {SMALL_THUMBNAIL}


def test_one_block_for_each_class_and_names(page):
    assert [heading.strip() for heading in page.headings] == [
        "shoes",
        f"group 1 of 2 in shoes: {GROUP} photos",
        "tv",
        f"group 1 of 2 in tv: {GROUP} photos",
    ]
    assert "07.jpg" in " ".join(page.captions[-GROUP:])


def test_both_of_a_pair_can_be_ticked_and_are_named(page, tmp_path):
    first, second = (caption.split() for caption in page.captions[:2])
    assert (first, second) == (["tv", "19.jpg"], ["shoes", "03.jpg"])
    result = page.run(["box", 1, True])
    assert result["answer"][1]["checked"][:2] == [False, True]
    (tmp_path / "audit.csv").write_bytes(bytes.fromhex(result["saved"]))
    marked = {file for (file, _), action in read_actions(tmp_path / "audit.csv").items() if action}
    assert marked == {"tv/00.jpg", "shoes/03.jpg"}


def test_a_file_is_ticked_on_all_its_sheets(page):
    places = [
        place for place, row in enumerate(page.boxes) if json.loads(page.table)["rows"][int(row)][0] == "tv/19.jpg"
    ]
    assert len(places) == 2
    before, ticked, unticked = page.run(["box", places[1], True], ["box", places[0], False])["answer"]
    assert [before["checked"][place] for place in places] == [False, False]
    assert [ticked["checked"][place] for place in places] == [True, True]
    assert [unticked["checked"][place] for place in places] == [False, False]
    assert [each["count"] for each in (before, ticked)] == [
        "1 to set aside, 0 to move",
        "2 to set aside, 0 to move",
    ]


def test_tick_all_unfolds_what_it_ticks(page):
    result = page.run(["button", 1])
    assert result["open"]
    assert sum(result["answer"][1]["checked"]) == GROUP + 1  # of tv, one of them on another sheet as well
    assert not page.run()["open"]


def test_what_the_page_saves_is_read_as_it_was_meant(root, tmp_path):
    names = ["a/ö,\n'3\".jpg", "a/😀.jpg", os.fsdecode(b"a/caf\xe9\x80.jpg"), "=1/plain.jpg", "a/plain.jpg"]
    page = Page(render_page(root, [Finding(name, "a", "dark") for name in names], [], "audit.csv", ""))
    result = page.run(["box", 0, True], ["box", 1, True], ["box", 2, True], ["box", 3, True])
    content = bytes.fromhex(result["saved"])
    assert content.startswith(b"\xef\xbb\xbf" + COLUMNS[0].encode())
    (tmp_path / "audit.csv").write_bytes(content)
    assert read_actions(tmp_path / "audit.csv") == {
        (name, "dark"): "quarantine" if name != "a/plain.jpg" else "" for name in names
    }


def test_a_suspect_is_kept_moved_or_set_aside(page, tmp_path):
    keep, aside, move = range(3)
    result = page.run(
        ["key", 0, keep], ["key", 0, move], ["key", 0, move], ["class", 0, "0"], ["key", 0, aside], ["key", 0, move]
    )
    answers = result["answer"]
    assert answers[0]["classes"] == [["hat", "shoes"]]  # its own is none
    pressed = [answer["pressed"][0] for answer in answers]
    # marked in the CSV; kept; moved to the likelier class; undecided; moved to another; set aside; moved there again
    assert [row.index(True) if True in row else None for row in pressed] == [aside, keep, move, None, move, aside, move]
    # what becomes of it is shown on the sheet of groups, too
    (box,) = page.box_of("00.jpg")[-1:]
    assert [answer["checked"][box] for answer in answers] == [True, False, False, False, False, True, False]
    assert answers[-1]["count"] == "0 to set aside, 1 to move"
    (tmp_path / "audit.csv").write_bytes(bytes.fromhex(result["saved"]))
    actions = read_actions(tmp_path / "audit.csv")
    assert {key: action for key, action in actions.items() if action} == {
        ("tv/00.jpg", "suspect"): "move to hat",
        ("tv/00.jpg", "group"): "move to hat",
    }


def test_a_class_that_is_called_like_a_script(root, tmp_path):
    names = ["</script><b>", "a", "=b"]
    finding = Finding("tv/00.jpg", "a", "suspect", suggestion="=b")
    html = render_page(root, [finding], [], "audit.csv", "", class_names=names)
    assert "</script><b>" not in html
    result = Page(html).run(["key", 0, 2])
    (tmp_path / "audit.csv").write_bytes(bytes.fromhex(result["saved"]))
    assert read_actions(tmp_path / "audit.csv") == {("tv/00.jpg", "suspect"): "move to =b"}
