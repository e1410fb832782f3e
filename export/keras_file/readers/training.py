"""Layers that do something in training alone."""

from __future__ import annotations

from export.keras_file.flat_layers import FlatLayer
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import finite_number
from export.worker.keras_worker import AUGMENTATION


def _dropout(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    rate = finite_number(layer.config["rate"], layer, "rate")
    reader.rates[layer.key] = rate
    if layer.config.get("noise_shape") is None and 0 < rate < 1:
        reader.emit(layer, "dropout", before.shape, {"rate": rate})
    else:
        reader.same_as(layer, before)


def _augmentation(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    reader.augmentation.append(layer.key)
    reader.same_as(layer, before)  # does nothing when a photo is classified


def _no_effect(reader: LayerReader, layer: FlatLayer) -> None:
    (before,) = reader.before(layer)
    reader.without_effect.append(layer.key)
    reader.same_as(layer, before)


# In training they add noise, or a term to the loss; a classified photo passes unchanged.
REGULARISATION = (
    *("SpatialDropout2D", "SpatialDropout1D", "GaussianDropout", "GaussianNoise"),
    *("AlphaDropout", "ActivityRegularization", "Identity"),
)
READERS: dict[str, Reader] = {
    "Dropout": _dropout,
    **dict.fromkeys(sorted(AUGMENTATION - {"RandomCrop", "GaussianNoise"}), _augmentation),
    **dict.fromkeys(REGULARISATION, _no_effect),
}
