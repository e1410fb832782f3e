"""How the network learns: the LightningModule, its callbacks, and the `lightning` command.

The module itself stands in front; `commands` is the command line, `run` a run's folder and how it survives,
`evaluation` what is measured and reported.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_module.classifier import ProductClassifier

_PLACES = {
    "ProductClassifier": "lightning_module.classifier",
}

__all__ = ["ProductClassifier"]

# TensorBoard's logger, which a stock Trainer has, would import TensorFlow into this process: seconds, hundreds of
# megabytes, and a crash where torch comes later. TensorBoard looks at this name alone (tensorboard/compat/__init__.py).
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `lightning --help` needs none of it."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
