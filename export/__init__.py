"""How a network leaves PyTorch and comes back from Keras: one file for each road.

Top of the room: what a user calls. Below it `proof` (is it the same network?), `keras_file` (Keras's files without
Keras), `graph` (what a network computes, in no framework) and `worker` (what runs in another interpreter).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.proof.comparison import Pair
    from export.proof.parity import check_parity
    from export.torch_to_keras import write_twin

_PLACES = {
    "Pair": "export.proof.comparison",
    "check_parity": "export.proof.parity",
    "write_twin": "export.torch_to_keras",
}

__all__ = ["Pair", "check_parity", "write_twin"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `lightning --help` needs none of it."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
