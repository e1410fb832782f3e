"""Training: the LightningModule, its callbacks, and the `lightning` command.

The LightningModule itself is at the top level. `commands` is the command line, `run` has the run's folder and resuming,
`evaluation` has measuring and reporting.
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
    """Import a name when it is first used, because `lightning --help` needs none of them."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion in a notebook."""
    return sorted([*globals(), *__all__])
