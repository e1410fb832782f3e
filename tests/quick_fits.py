"""What a process of the tests imports so that its fits are quick: it knows the short network and draws no plots."""

import io

from PIL import Image

from lightning_module.evaluation import plots
from tests import short_mobilenetv2  # noqa: F401 - timm gets to know it

PLOTS = {
    name: getattr(plots, name)
    for name in ("batch_png", "confusion_png", "coverage_png", "curves_png", "reliability_png")
}
"""Of the reports; they take two thirds of a small fit."""


def draw(really: bool) -> None:
    """Draw the plots, or one pixel for each."""
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    for name, plot in PLOTS.items():
        setattr(plots, name, plot if really else lambda *_, **__: pixel.getvalue())


draw(really=False)
