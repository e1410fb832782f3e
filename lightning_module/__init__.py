"""How the network learns: the LightningModule, its callbacks, and the `lightning` command.

The module itself stands in front; `commands` is the command line, `run` a run's folder and how it survives,
`evaluation` what is measured and reported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_module.classifier import ProductClassifier

_PLACES = {
    "ProductClassifier": "lightning_module.classifier",
}

__all__ = ["ProductClassifier"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `lightning --help` needs none of it."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
