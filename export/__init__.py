"""How a network leaves PyTorch and how it comes back from Keras: one file for each conversion.

The files directly in this folder are what a user calls. Below them are `proof` (is it the same network?), `keras_file`
(Keras's files, without Keras), `graph` (what a network computes, independent of any framework) and `worker` (what runs
in another interpreter).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.modules import export_module, prove_module
    from export.proof.comparison import Pair
    from export.proof.parity import check_parity
    from export.torch_to_keras import write_twin

_PLACES = {
    "Pair": "export.proof.comparison",
    "check_parity": "export.proof.parity",
    "export_module": "export.modules",
    "prove_module": "export.modules",
    "write_twin": "export.torch_to_keras",
}

__all__ = ["Pair", "check_parity", "export_module", "prove_module", "write_twin"]


def __getattr__(name: str) -> Any:
    """Import a name only when it is first used: `lightning --help` needs none of them."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion in a notebook."""
    return sorted([*globals(), *__all__])
