"""The training data: product photos, the split, the augmentation, the photo store.

`product_photos.ProductPhotos` is the LightningDataModule; `audit` finds photos that should not be trained on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodule.product_photos import ProductPhotos

_PLACES = {
    "ProductPhotos": "datamodule.product_photos",
}

__all__ = ["ProductPhotos"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, because `lightning --help` needs none of them."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
