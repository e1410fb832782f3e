"""Networks of keras.applications with random weights, as people have them in files, for `keras_files.py`.

    KERAS_PYTHON benchmarks/keras_bases.py FOLDER [CASE ...]

Needs Keras and numpy: any Keras from 2.2 on, any Python from 3.7 on; what it does not have is left out. Writes CASE.h5,
in Keras 3 CASE.keras as well, and CASE.npz with `images` (4, H, W, 3) and `answer` (4, C), what this Keras gave for
them. Name the folder after the Keras: `keras_files.py` prints its name in the table.

The last layer is scaled until its outputs, before the softmax, are about 1: probabilities of exactly 0 and 1 would be
the same whatever the network computed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

try:
    if os.environ.get("TF_USE_LEGACY_KERAS"):  # TensorFlow's own switch
        import tf_keras as keras
    else:
        import keras
    keras.applications  # noqa: B018 - beside a tf.keras 2 there is a package keras without it
except (ImportError, AttributeError):
    from tensorflow import keras

if TYPE_CHECKING:
    from collections.abc import Iterator

L = keras.layers
IS_3 = str(getattr(keras, "__version__", "2")).startswith("3")

# Case -> how it is built, class of keras.applications, side of the image, range of the image, further settings.
CASES = {
    "mobilenet": ("nested", "MobileNet", 96, "tf", {"alpha": 0.25}),
    "mobilenet_top": ("whole", "MobileNet", 96, "tf", {"alpha": 0.25}),
    "v3small": ("nested", "MobileNetV3Small", 96, "raw", {"alpha": 0.75}),
    "v3small_f": ("joined", "MobileNetV3Small", 96, "raw", {"minimalistic": True}),
    "v3small_top": ("whole", "MobileNetV3Small", 96, "raw", {}),
    "v3large": ("nested", "MobileNetV3Large", 96, "raw", {"alpha": 0.75}),
    "b0": ("nested", "EfficientNetB0", 96, "raw", {}),
    "b0_f": ("joined", "EfficientNetB0", 96, "raw", {}),
    "b0_top": ("whole", "EfficientNetB0", 96, "raw", {}),
    "v2b0": ("nested", "EfficientNetV2B0", 96, "raw", {}),
    "resnet50": ("nested", "ResNet50", 64, "raw", {}),
    "resnet50_f": ("joined", "ResNet50", 64, "raw", {}),
    "resnet50_top": ("whole", "ResNet50", 64, "raw", {}),
    "resnet50v2": ("nested", "ResNet50V2", 64, "tf", {}),
    "vgg16": ("nested", "VGG16", 48, "raw", {}),
    "vgg16_f": ("joined", "VGG16", 48, "raw", {}),
    "inceptionv3": ("nested", "InceptionV3", 80, "tf", {}),
    "inceptionv3_f": ("joined", "InceptionV3", 80, "tf", {}),
    "irv2": ("nested", "InceptionResNetV2", 80, "tf", {}),
    "irv2_f": ("joined", "InceptionResNetV2", 80, "tf", {}),
    "xception": ("nested", "Xception", 72, "tf", {}),
    "densenet121": ("nested", "DenseNet121", 64, "tf", {}),
    "nasnet": ("nested", "NASNetMobile", 64, "tf", {}),
    "nasnet_f": ("joined", "NASNetMobile", 64, "tf", {}),
    "convnext": ("nested", "ConvNeXtTiny", 64, "raw", {}),
    "regnet": ("nested", "RegNetX002", 64, "raw", {}),
}


def nested(base: Any, size: int, settings: dict[str, Any]) -> Any:
    """The base as one layer of a Sequential, with the usual head."""
    inner = base(include_top=False, weights=None, input_shape=(size, size, 3), **settings)
    model = keras.models.Sequential(
        [inner, L.GlobalAveragePooling2D(), L.Dropout(0.2), L.Dense(4, activation="softmax")]
    )
    if IS_3:
        model.build((None, size, size, 3))
    return model


def joined(base: Any, size: int, settings: dict[str, Any]) -> Any:
    """The base's layers in the model itself, with a longer head."""
    inner = base(include_top=False, weights=None, input_tensor=L.Input((size, size, 3)), **settings)
    x = L.BatchNormalization()(L.GlobalAveragePooling2D()(inner.output))
    return keras.models.Model(inner.input, L.Dense(4, activation="softmax")(L.Dense(16, activation="relu")(x)))


def whole(base: Any, size: int, settings: dict[str, Any]) -> Any:
    """With the head that keras.applications has."""
    return base(include_top=True, weights=None, input_shape=(size, size, 3), classes=10, **settings)


FORMS = {"nested": nested, "joined": joined, "whole": whole}


def leaves(model: Any) -> Iterator[Any]:
    """Each layer that is no model, once."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from leaves(layer)
        else:
            yield layer


def randomise(model: Any) -> None:
    """Random weights and statistics: about as large as keeps the layers' outputs in their size."""
    random = np.random.RandomState(0)
    for layer in leaves(model):
        arrays = []
        for weight, own in zip(layer.weights, layer.get_weights()):  # noqa: B905
            role = (getattr(weight, "path", None) or weight.name).split("/")[-1].split(":")[0]
            fan_in = np.prod(own.shape[:2]) if "depthwise" in role else np.prod(own.shape[:-1])
            if not np.issubdtype(own.dtype, np.floating):
                new = own
            elif "variance" in role:
                new = random.uniform(0.3, 1.5, own.shape)
            elif role == "gamma":
                new = random.uniform(0.6, 1.4, own.shape)
            elif "kernel" in role:
                if type(layer).__name__ == "DepthwiseConv2D":
                    fan_in = np.prod(own.shape[:2])
                new = random.normal(0, np.sqrt(2.0 / max(1, fan_in)), own.shape)
            else:
                new = random.normal(0, 0.2, own.shape)
            arrays.append(np.asarray(new, own.dtype))
        if arrays:
            layer.set_weights(arrays)
        if hasattr(layer, "finalize_state"):  # a Normalization computes with what this makes of its weights
            layer.finalize_state()


def scale_last(model: Any, images: np.ndarray) -> None:
    """Scale the last layer with weights so that what it gives, before its activation, has a deviation of 1."""
    last = [layer for layer in leaves(model) if layer.get_weights()][-1]
    kernel, bias = last.get_weights()
    own, last.activation = last.activation, keras.activations.linear
    given = keras.models.Model(model.inputs, last.output).predict(images)
    last.activation = own
    deviation = max(float(np.std(given - bias)), 1e-6)
    last.set_weights([kernel / deviation, bias])


def images_for(size: int, name: str) -> np.ndarray:
    """Blocks of 8 x 8 pixels, (4, size, size, 3): 0 to 255 (`raw`) or -1 to 1 (`tf`)."""
    blocks = np.random.RandomState(7).randint(0, 256, (4, size // 8 + 1, size // 8 + 1, 3))
    pixels = blocks.repeat(8, 1).repeat(8, 2)[:, :size, :size].astype("float32")
    return pixels if name == "raw" else (pixels / 127.5 - 1).astype("float32")


def save(name: str, folder: Path) -> None:
    """Build a case and write its files."""
    form, base, size, image_range, settings = CASES[name]
    model, images = FORMS[form](getattr(keras.applications, base), size, settings), images_for(size, image_range)
    randomise(model)
    scale_last(model, images)
    answer = np.asarray(model.predict(images), "float32")
    for ending in ("h5", "keras") if IS_3 else ("h5",):
        model.save(str(folder / f"{name}.{ending}"))
    np.savez(str(folder / f"{name}.npz"), images=images, answer=answer)


def main() -> None:
    """Write every case that this Keras builds."""
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        keras.backend.clear_session()
        try:
            save(name, folder)
        except Exception as error:  # not every Keras has every network
            print("could not build", name, type(error).__name__, str(error)[:150].replace("\n", " "))
            continue
        print("wrote", name, flush=True)


if __name__ == "__main__":
    main()
