"""How the pages look, and how they are made: each room has its template, and all of them include `page.css`."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader


def render_template(package: str, name: str, **values: Any) -> str:
    """Fill a template; whatever is filled in is text, and no markup.

    Args:
        package: that the template is in, such as `export.proof`.
        name: of its file.
        values: what it calls by name.
    """
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("models", ".")])
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True)
    return environment.get_template(name).render(**values)
