"""Each built-in Keras layer -> nodes of the neutral graph: one short function for each, in `readers`.

Everything becomes explicit: SAME becomes numbers of pixels, an activation inside a Dense becomes a node of its own, and
so does the preprocessing that a model contains. Nothing is run, and code in the file is not looked at: a layer class
that is not in `READERS` is refused.
"""

from __future__ import annotations

import numpy as np

from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer
from export.keras_file.readers import (
    activation,
    applications,
    attention,
    bare_operations,
    convolution,
    joining,
    normalisation,
    places,
    preprocessing,
    shape,
    tokens,
    training,
)
from export.keras_file.readers.layer_reader import LayerReader, Reader, refused
from models.bad_input import BadInput

# Keras's class -> its reader.
READERS: dict[str, Reader] = {
    **preprocessing.READERS,
    **convolution.READERS,
    **normalisation.READERS,
    **activation.READERS,
    **places.READERS,
    **shape.READERS,
    **joining.READERS,
    **applications.READERS,
    **attention.READERS,
    **tokens.READERS,
    **training.READERS,
    **bare_operations.READERS,  # last: some of Keras 3's have a layer's name, and tell the two apart
}


def read_layers(
    layers: dict[str, FlatLayer],
    weights: dict[str, dict[str, np.ndarray]],
    image_size: tuple[int, int] | None,
    generation: int,
) -> LayerReader:
    """Read all layers, each after those that it reads.

    Args:
        layers: from `flatten`.
        weights: from `weights_by_layer`; what is read is taken out of it.
        image_size: (height, width) to use if the file leaves it open.
        generation: 2 or 3: which Keras saved the file.

    Raises:
        BadInput: a layer or one of its settings is not read here, or the weights are not those of the layers.
    """
    reader = LayerReader(layers, weights, image_size, generation)
    for key, layer in layers.items():
        read = READERS.get(layer.class_name)
        if read is None:
            raise refused(layer)
        reader.check_dtype(layer)
        if layer.class_name != "Stack" and any(reader.node_of[each] in reader.without_channel for each in layer.inputs):
            raise BadInput(
                f"{key}: expected layers that read all channels, got one that reads x[..., i] alone. {AS_IT_IS}"
            )
        read(reader, layer)
        if weights.get(key):
            left = ", ".join(sorted(weights[key]))
            raise BadInput(f"{key}: expected weights that a {layer.class_name} has, got {left} besides. {DAMAGED}")
    return reader
