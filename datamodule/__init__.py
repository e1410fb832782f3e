"""The training data: product photos, the split, the augmentation, the photo store.

`product_photos.ProductPhotos` is the LightningDataModule, `photo_store.load_photo` reads one photo from its file;
`audit` finds photos that should not be trained on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodule.photo_store import load_photo
    from datamodule.product_photos import ProductPhotos

_PLACES = {
    "ProductPhotos": "datamodule.product_photos",
    "load_photo": "datamodule.photo_store",
}

__all__ = ["ProductPhotos", "load_photo"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, because `lightning --help` needs none of them."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion in a notebook."""
    return sorted([*globals(), *__all__])
