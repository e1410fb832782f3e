"""The three pages as a browser shows them: on a phone and on a screen, by day and in the dark."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodule.audit.findings import KINDS, Finding, read_actions
from datamodule.audit.page import render_page as render_audit
from export.proof.page import MEANINGS, WITNESSES, meaning_of
from export.proof.page import render_page as render_proof
from export.proof.report import Check, LayerError, PhotoDifference, Report
from lightning_module.evaluation.figures import evaluate
from lightning_module.evaluation.measured_photos import MeasuredPhotos
from lightning_module.evaluation.plots import batch_png, confusion_png, coverage_png, curves_png, reliability_png
from lightning_module.evaluation.report import _data_uri, render_report

LOOKS_AT_PLOTS = True
LONG = "a_folder_whose_name_nobody_has_kept_short_" * 3
CLASSES = [f"long-sleeved shirts {number}" for number in range(12)]
PHONE, SCREEN = 390, 1400
LEAST_CONTRAST = 4.5
"""Of text and what is behind it: WCAG 2.2, level AA."""

# Of every element with text of its own: the contrast with the nearest background behind it.
CONTRASTS = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const linear = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour).slice(0, 3).map(value => linear(value / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor, alpha = numbers(colour)[3] ?? 1;
      if (alpha === 1) return colour;
      if (alpha > 0) throw new Error("see-through: " + each.outerHTML.slice(0, 80));
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("");
    if (!text || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const lights = [element instanceof SVGElement ? style.fill : style.color, behind(element)].map(light);
    found.push([text.slice(0, 40), (Math.max(...lights) + .05) / (Math.min(...lights) + .05)]);
  }
  return {found, paper: light(behind(document.body))};
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def listened_to(browser, width: int, scheme: str, **settings):
    """A new page, with a list of its errors in `page.wrong`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **settings)
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    return page


@pytest.fixture
def show(browser, tmp_path):
    """Open a page, with a list of whatever it complains of or asks for."""

    def opened(html: str, width: int = SCREEN, scheme: str = "light"):
        page = listened_to(browser, width, scheme)
        own = ((tmp_path / "page.html").as_uri(), "data:")
        page.on("request", lambda request: None if request.url.startswith(own) else page.wrong.append(request.url))
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        page.goto(own[0], wait_until="networkidle")
        pages.append(page)
        return page

    pages: list = []
    yield opened
    for page in pages:
        page.close()


def report_page() -> str:
    """With two sets, twelve classes, all pictures, mistakes, and a path that has no place to break."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % len(CLASSES)
    logits = random.normal(size=(120, len(CLASSES))) + 3 * np.eye(len(CLASSES))[labels]
    files = [f"/photos/{LONG}/{number}.jpg" for number in range(120)]
    measured = [
        MeasuredPhotos(
            name, CLASSES, files, labels, logits.astype(np.float32), f"{LONG}/best.ckpt", "0" * 64, (64, 64), "nearest"
        )
        for name in ("test", "validation")
    ]
    evaluations = [evaluate(each, measured[1]) for each in measured]
    epochs = [
        {"epoch": epoch, **{f"{name}/{metric}": 0.5 for name in ("train", "val") for metric in ("loss", "accuracy")}}
        for epoch in range(3)
    ]
    pictures = {
        "curves": curves_png(epochs, 1),
        "training_batch": batch_png(random.random((16, 3, 32, 32)), [*CLASSES, *CLASSES][:16]),
        **{f"{each.measured.name}_confusion": confusion_png(each) for each in evaluations},
        **{f"{each.measured.name}_reliability": reliability_png(each) for each in evaluations},
        **{f"{each.measured.name}_coverage": coverage_png(each) for each in evaluations},
    }
    return render_report(evaluations, {name: _data_uri(content, "png") for name, content in pictures.items()})


def proof_page() -> str:
    """With every check, second opinions, one that fails, one that is skipped, and an interpreter that could not."""
    names = [*MEANINGS, *(f"{name}_{other}" for name in list(MEANINGS)[3:7] for other in WITNESSES)]
    checks = [
        Check(name, True, 0.0, 1.0, "max abs difference", f"of {LONG}") for name in names if name != "training_steps"
    ]
    checks[1] = replace(checks[1], passed=False, first_divergence=f"Conv1/{LONG}")
    even = [1 / len(CLASSES)] * len(CLASSES)
    pixels = np.zeros((64, 64, 3), np.uint8)
    photos = [
        PhotoDifference(f"/photos/{LONG}/{number}.jpg", 1e-7, even, even, pixels, dict.fromkeys(WITNESSES, even))
        for number in range(3)
    ]
    report = Report(
        {"path": f"/runs/{LONG}/best.ckpt", "sha256": "0" * 64},
        {"path": f"/runs/{LONG}/model.h5", "sha256": "1" * 64, "input_range": "unit"},
        checks,
        {side: {"python": "3.11", "keras": "3.15", "backend": "tensorflow"} for side in ("torch", "keras")},
        layers=[LayerError(f"layer_{number}", "dense", "head", 10.0 ** (number - 15)) for number in range(12)],
        class_names=CLASSES,
        photos=photos,
        skipped={"training_steps": "the network is certain of every image here"},
        likely_cause=f"an array of {LONG} is another",
    )
    return render_proof([report], {f"/{LONG}/bin/python": "it has no Keras"})


def audit_page(root: Path) -> str:
    """With a sheet of each kind of finding."""
    (root / LONG).mkdir(parents=True)
    files = [f"{LONG}/{LONG[:60]}{number}.jpg" for number in range(6)]
    for file in files:
        Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(root / file)
    findings = [
        Finding(
            file, LONG, kind, 0.5, LONG, "" if kind == "group" else files[-1],
            f"group 1 of 1 in {LONG}" if kind == "group" else f"looks like {LONG}",
        )
        for kind in KINDS
        for file in files[:5]
    ]  # fmt: skip
    findings[1] = replace(findings[1], action=f"move to {CLASSES[0]}")
    facts = [f"6 photos in 1 class: {LONG}."]
    return render_audit(root, findings, facts, "audit.csv", f"lightning audit /{LONG}", class_names=[*CLASSES, LONG])


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    return {
        "report": report_page(),
        "proof": proof_page(),
        "audit": audit_page(tmp_path_factory.mktemp("audit") / "photos"),
    }


PAGES = pytest.mark.parametrize("name", ["report", "proof", "audit"])


def overhang(page) -> int:
    """Pixels by which the page is wider than the screen."""
    return page.evaluate("document.scrollingElement.scrollWidth - innerWidth")


def too_faint(page) -> list:
    """Texts whose contrast is too low."""
    found = page.evaluate(CONTRASTS)["found"]
    assert found
    return [each for each in found if each[1] < LEAST_CONTRAST]


def is_dark(page) -> bool:
    return page.evaluate(CONTRASTS)["paper"] < 0.05


@PAGES
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_nothing_is_wider_than_the_screen(show, pages, name, width):
    page = show(pages[name], width)
    assert overhang(page) <= 0
    # a part that moves in its own frame is no narrower than what is left of the screen
    assert page.locator("body").bounding_box()["width"] <= width


def test_a_table_without_a_frame_is_noticed(show, pages):
    bare = pages["report"].replace('<div class="scroll" tabindex="0">', "<div>")
    assert overhang(show(bare, PHONE)) > 0


@PAGES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_day_and_in_the_dark(show, pages, name, scheme):
    page = show(pages[name], scheme=scheme)
    assert is_dark(page) == (scheme == "dark")
    assert too_faint(page) == []


def test_a_page_that_is_only_light_or_half_dark_is_noticed(show, pages):
    light = re.sub(r"@media \(prefers-color-scheme: dark\)", "@media not all", pages["proof"])
    assert not is_dark(show(light, scheme="dark"))
    half = show(pages["proof"].replace("--ink: #e4e9ee;", ""), scheme="dark")
    assert is_dark(half)
    assert too_faint(half)


@PAGES
def test_nothing_is_fetched_and_nothing_is_complained_of(show, pages, name):
    assert show(pages[name]).wrong == []


@pytest.mark.parametrize(
    ("added", "seen"),
    [
        ('<img src="http://localhost:9/x.png">', "http://localhost:9/x.png"),
        ('<link rel="stylesheet" href="other.css">', "other.css"),
        ("<script>console.error('a complaint')</script>", "a complaint"),
        ("<script>missing()</script>", "missing is not defined"),
    ],
)
def test_what_is_fetched_or_complained_of_is_noticed(show, pages, added, seen):
    assert any(seen in each for each in show(pages["proof"].replace("</body>", f"{added}</body>")).wrong)


@PAGES
def test_figures_come_before_paths_and_digests(pages, name):
    parts = {
        "report": ['class="figures"', "</table>", "/best.ckpt (SHA-256"],
        "proof": ['class="figures"', "</table>", "/model.h5 (SHA-256"],
        "audit": ["6 photos in 1 class", "</section>", "The photos are in"],
    }
    places = [pages[name].index(part) for part in parts[name]]
    assert places == sorted(places)


def test_each_check_of_the_proof_is_explained_on_the_page(pages):
    for check in re.findall(r"<td><b>(\w+)</b>", pages["proof"]):
        assert meaning_of(check)
        assert meaning_of(check) in pages["proof"]
    assert meaning_of("probabilities_photos_tf2onnx") != meaning_of("probabilities_photos")
    assert meaning_of("something else") == ""


def test_a_suspect_is_moved_to_a_class_kept_or_set_aside(show, pages, tmp_path):
    page = show(pages["audit"])
    keys = page.locator("[data-choices]")
    tops = [page.locator("#suspect .card").nth(place).bounding_box()["y"] for place in (0, 1)]
    assert tops[0] == tops[1]  # beside each other
    pressed = page.locator("[data-choices] [aria-pressed=true]")
    assert pressed.all_inner_texts() == ["Move to"]
    keys.nth(0).locator("select").select_option(label=CLASSES[3])
    keys.nth(2).get_by_role("button", name="Keep").click()
    keys.nth(3).get_by_role("button", name="Set aside").click()
    assert pressed.all_inner_texts() == ["Move to", "Move to", "Keep", "Set aside"]
    assert page.locator("#count").inner_text() == "1 to set aside, 2 to move"
    # seen on the other sheets, too
    assert f"\u2192 {CLASSES[3]}" in page.locator("#dark").inner_text()
    with page.expect_download() as saving:
        page.click("#save")
    saving.value.save_as(tmp_path / "audit.csv")
    actions = [action for (_, kind), action in read_actions(tmp_path / "audit.csv").items() if kind == "suspect"]
    assert actions == [f"move to {CLASSES[3]}", f"move to {CLASSES[0]}", "keep", "quarantine", ""]
