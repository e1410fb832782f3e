"""Training: the LightningModule, its callbacks, and the `lightning` command.

The LightningModule itself is at the top level. `commands` is the command line, `run` has the run's folder and resuming,
`evaluation` has measuring and reporting.
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
    """Import a name when it is first used, because `lightning --help` needs none of them."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
