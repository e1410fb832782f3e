"""The page in a real browser: photos are dropped, pasted and chosen, and both answers are read."""

import json
import re
import string
from pathlib import Path

import pytest
from PIL import Image

from lightning_module.evaluation.labelling import Labelling
from lightning_module.serving.web.files import FILES, LANGUAGES
from tests.conftest import CLASS_NAMES
from tests.lightning_module.serving.conftest import serving
from tests.test_pages import CONTRASTS, PHONE, SCREEN, browser, is_dark, listened_to, overhang, too_faint  # noqa: F401

pytestmark = pytest.mark.keras

DROP = """([type, name, kind, base64]) => {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: kind}));
  const event = type === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
    : new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true});
  document.getElementById("drop").dispatchEvent(event);
  return event.defaultPrevented;
}"""


@pytest.fixture
def visit(browser):  # noqa: F811
    """Open a service's page; whatever it asks of others, or complains of, is in `page.wrong`."""

    def opened(url: str, width: int = SCREEN, scheme: str = "light", locale: str = "en-GB", path: str = "/"):
        page = listened_to(browser, width, scheme, locale=locale)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url + path)
        page.locator("body[data-ready]" if path == "/" else "body").wait_for()
        pages.append(page)
        return page

    pages: list = []
    yield opened
    for page in pages:
        page.close()


def drop(page, file: Path, event: str = "drop", kind: str = "image/jpeg") -> None:
    import base64

    page.evaluate(DROP, [event, file.name, kind, base64.b64encode(file.read_bytes()).decode()])


def read(page, name: str) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """The label of a card, and each twin's rows; waits for them."""
    card = page.locator(".result", has=page.get_by_text(name, exact=True))
    card.locator(".bars").first.wait_for()
    rows = {}
    for section in card.locator("section").all():
        names, numbers = (section.locator(each).all_inner_texts() for each in (".name", ".number"))
        rows[section.locator("h3").inner_text()] = list(zip(names, numbers, strict=True))
    return card.locator("h2").inner_text(), rows


@pytest.mark.parametrize("way", ["drop", "paste", "pick"])
def test_both_answers_to_a_photo(service, visit, photos, way):
    page = visit(service.url)
    if way == "pick":
        page.set_input_files("#pick", photos[0])
    else:
        drop(page, photos[0], way)
    label, rows = read(page, photos[0].name)
    from tests.lightning_module.serving.conftest import form

    answer = service.client.post("/predict?top=4", files=form(photos[0])).json()["photos"][0]
    expected = [(each["label"], f"{each['probability']:.1%}") for each in answer["labels"]]
    assert rows == {"PyTorch": expected, "Keras": expected}
    assert label == answer["label"]
    assert "Both say the same" in page.locator(".difference").inner_text()
    widths = [each.evaluate("bar => bar.style.width") for each in page.locator("section >> nth=0 >> i").all()]
    assert [float(each.rstrip("%")) for each in widths] == [
        pytest.approx(100 * each["probability"]) for each in answer["labels"]
    ]
    assert label in page.locator("#status").inner_text()
    assert page.wrong == []


def test_a_text_file_is_no_photo(service, visit, tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    page = visit(service.url)
    drop(page, tmp_path / "notes.txt", kind="text/plain")
    page.get_by_role("heading", name="This is no photo that can be read").wait_for()
    assert "is not an image in a format" in page.locator(".state").inner_text()
    assert page.locator(".result img").is_hidden()
    assert page.locator(".look").is_hidden()
    assert all("422" in each for each in page.wrong)


def test_where_it_looks_and_why(service, visit, tmp_path):
    Image.new("RGB", (20, 60), (3, 3, 3)).save(tmp_path / "dark.png")
    page = visit(service.url)
    page.set_input_files("#pick", tmp_path / "dark.png")
    page.locator(".why:not([hidden])").wait_for()
    page.locator(".why:not([hidden]) summary").click()
    reasons = page.locator(".why li").all_inner_texts()
    assert "The photo is very dark." in reasons
    assert "The photo is nearly of one colour." in reasons
    assert any("squeezed from 20 × 60 to 40 × 48" in each for each in reasons)
    assert any("Whichever is covered" in each for each in reasons)
    assert not any("With the most important part covered" in each for each in reasons)
    assert page.locator("canvas").is_hidden()
    page.locator(".look input").check()
    assert page.locator("canvas").is_visible()
    photo, heat = (page.locator(each).bounding_box() for each in (".seen img", ".seen canvas"))
    assert photo == heat


def test_the_server_is_lost_and_comes_back(run, visit, photos):
    with serving(run, twin="torch") as service:
        page = visit(service.url)
        port = int(service.url.rsplit(":", 1)[1])
    page.set_input_files("#pick", photos[0])
    page.get_by_text("The server does not answer").wait_for()
    assert page.locator(".result h2").inner_text() == "No answer"
    page.get_by_role("button", name="Try again").wait_for()
    with serving(run, twin="torch", port=port):
        _, rows = read(page, photos[0].name)  # by itself
        assert list(rows) == ["PyTorch"]
        assert page.locator("#lost").is_hidden()


def test_an_answer_that_is_too_unsure(run, visit, photos):
    with serving(run, twin="torch", labelling=Labelling(min_probability=1.0)) as service:
        page = visit(service.url)
        page.set_input_files("#pick", photos[0])
        label, _ = read(page, photos[0].name)
        assert label in CLASS_NAMES  # the likeliest
        assert "less than the 100.0%" in page.locator(".state").inner_text()


def test_the_keyboard_is_enough(service, visit, photos):
    page = visit(service.url)
    named = []
    for _ in range(2):  # further on is the browser's own bar, from where no key would come back
        page.keyboard.press("Tab")
        named.append(page.evaluate("document.activeElement.id"))
    assert named == ["language", "pick"]
    assert page.locator("#drop").evaluate("box => getComputedStyle(box).outlineStyle") == "solid"
    choosers: list = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(30):  # Chromium opens no chooser for a key right after another; on a busy machine, that lasts
        page.wait_for_timeout(500)
        page.keyboard.press("Space")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[0].set_files(photos[0])
    page.locator(".why:not([hidden])").wait_for()
    page.locator(".look input").focus()
    page.keyboard.press("Space")
    assert page.locator("canvas").is_visible()
    page.locator(".why:not([hidden]) summary").focus()
    page.keyboard.press("Enter")
    assert page.locator(".why li").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_on_a_phone_and_in_the_dark(service, visit, photos, tmp_path, width, scheme):
    (tmp_path / "notes.txt").write_text("no photo")
    page = visit(service.url, width, scheme)
    page.set_input_files("#pick", [photos[0], tmp_path / "notes.txt"])
    page.locator(".why:not([hidden])").wait_for()
    page.locator(".why:not([hidden]) summary").click()
    assert overhang(page) <= 0
    assert is_dark(page) == (scheme == "dark")
    assert too_faint(page) == []
    for each in page.locator("button, summary, .look, select").all():
        if each.is_visible():
            assert each.bounding_box()["height"] >= 24  # WCAG 2.2, target size
    docs = visit(service.url, width, scheme, path="/docs")
    assert overhang(docs) <= 0
    assert too_faint(docs) == []


def test_nothing_is_asked_of_others(service, visit, photos):
    page = visit(service.url)
    page.set_input_files("#pick", photos[0])
    page.locator(".why:not([hidden])").wait_for()
    visit_docs = visit(service.url, path="/docs")
    asked = page.asked + visit_docs.asked
    assert len(asked) > 6
    assert [each for each in asked if not each.startswith((service.url, "blob:", "data:"))] == []
    assert page.wrong == []
    # and it could not be: the browser refuses
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://localhost:9/x.png'}))")
    page.wait_for_timeout(300)
    assert any("Content Security Policy" in each for each in page.wrong)


def test_spanish(service, visit, photos):
    page = visit(service.url, locale="es-ES")
    assert page.locator("html").get_attribute("lang") == "es"
    page.set_input_files("#pick", photos[0])
    page.locator(".why:not([hidden])").wait_for()
    assert page.get_by_text("Elegir fotos").is_visible()
    assert "Ambas dicen lo mismo" in page.locator(".difference").inner_text()
    page.locator("#language").select_option("en")
    page.get_by_text("Choose photos").wait_for()
    assert "Both say the same" in page.locator(".difference").inner_text()
    assert visit(service.url, locale="fr-FR").locator("html").get_attribute("lang") == "en"


def braces(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_language_has_every_word_and_brace(code):
    english, words = LANGUAGES["en"], LANGUAGES[code]
    assert list(words) == list(english)
    assert {key: braces(text) for key, text in words.items()} == {key: braces(text) for key, text in english.items()}
    assert all(text.strip() for text in words.values())
    assert code == "en" or len([key for key in english if words[key] == english[key]]) < 5


ROOM = Path(__file__).parents[3] / "lightning_module" / "serving"


def test_every_word_that_is_named_is_there():
    page, script = ((ROOM / "web" / name).read_text() for name in ("index.html", "script.js"))
    named = re.findall(r'(?:data-text="|say\("|text\.)(\w+)', page + script)
    named += re.findall(r'\? "(\w+)" : "(\w+)"', script)[0]
    explanation = (ROOM / "explanation.py").read_text()
    codes = re.findall(r'"code": "(\w+)"', explanation) + re.findall(r'"(mirrored|turned_\w+)"', explanation)
    about_photo = explanation[explanation.index("found = {") : explanation.index("return [{")]
    codes += re.findall(r'"(\w+)": ', about_photo)
    named += [f"reason_{code}" for code in codes]
    assert len(named) > 40
    assert [each for each in named if each not in LANGUAGES["en"]] == []


def test_no_word_is_left_over():
    sources = "".join(each.read_text() for each in ROOM.rglob("*") if each.suffix in (".py", ".js", ".html"))
    stems = ("reason_confused_in_", "reason_", "error_", "twin_", "set_", "parity_", "")
    left = []
    for key in LANGUAGES["en"]:
        stem = next(each for each in stems if key.startswith(each))
        if not re.search(rf"\b{key.removeprefix(stem)}\b", sources) and stem != "parity_":  # a verdict
            left.append(key)
    assert left == []


def test_files_are_whole():
    assert json.loads(FILES["/languages/es.json"][1])["language_name"] == "Español"
    assert b"prefers-color-scheme" in FILES["/style.css"][1]
    assert b"http:" not in b"".join(content for _, content in FILES.values())
