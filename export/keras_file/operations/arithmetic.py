"""Sums, differences, products and other layers of several values."""

from __future__ import annotations

from export.keras_file.keras_layer import (
    Emit,
    plain,
)

LAYERS: dict[str, Emit] = {
    "affine": plain(
        "Rescaling", lambda node: {"scale": list(node.attributes["scale"]), "offset": list(node.attributes["offset"])}
    ),
    "add": plain("Add"),
    "subtract": plain("Subtract"),
    "multiply": plain("Multiply"),
    "average": plain("Average"),
    "maximum": plain("Maximum"),
    "minimum": plain("Minimum"),
}
