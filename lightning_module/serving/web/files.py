"""The page's files, made once: HTML, style, script and words."""

import json
from importlib.resources import files
from typing import Any

from models.page_style import render_template

_HERE = files("lightning_module.serving.web")
ENGLISH = "en"


def _languages() -> dict[str, dict[str, str]]:
    found = sorted(each.name for each in (_HERE / "languages").iterdir() if each.name.endswith(".json"))
    return {name.removesuffix(".json"): json.loads((_HERE / "languages" / name).read_text("utf-8")) for name in found}


LANGUAGES = _languages()
"""Words by the language's code, English as any other."""


def _files() -> dict[str, tuple[str, bytes]]:
    names = {code: words["language_name"] for code, words in LANGUAGES.items()}
    page = render_template(__package__, "index.html", text=LANGUAGES[ENGLISH], languages=names)
    style = (files("models") / "page.css").read_text("utf-8") + (_HERE / "style.css").read_text("utf-8")
    return {
        "/": ("text/html; charset=utf-8", page.encode()),
        "/style.css": ("text/css; charset=utf-8", style.encode()),
        "/script.js": ("text/javascript; charset=utf-8", (_HERE / "script.js").read_bytes()),
        **{
            f"/languages/{code}.json": ("application/json", json.dumps(words, ensure_ascii=False).encode())
            for code, words in LANGUAGES.items()
        },
    }


FILES = _files()
"""Path -> media type and content."""


def docs_page(openapi: dict[str, Any]) -> str:
    """Return the interface as a page, with nothing from elsewhere.

    Args:
        openapi: the document that /openapi.json gives.
    """
    routes = [
        {"method": method.upper(), "path": path, **operation}
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    return render_template(
        __package__, "docs.html", routes=routes, title=openapi["info"]["title"],
        schemas=openapi.get("components", {}).get("schemas", {}),
    )  # fmt: skip
