"""Saves MobileNetV2 classifiers as their owners would have, under any Keras: run as `PY keras_variants.py FOLDER`.

No test: `test_keras_to_torch.py` runs it in a process of its own, under the Keras here, and another where there is one.
"""

import sys
from pathlib import Path

import numpy as np

# Beside a tf.keras there is a package keras that is not to be used; the worker knows which one is.
sys.path.insert(0, str(Path(__file__).parents[2] / "export" / "worker"))
from keras_worker import find_keras

keras = find_keras()
layers = keras.layers
SIZE = 64


def base(size: int | None = SIZE, **settings):
    return keras.applications.MobileNetV2((size, size, 3), alpha=0.35, include_top=False, weights=None, **settings)


def softmax_head(features, *hidden):
    for units in hidden:
        features = layers.Dense(units, activation="relu")(features)
        features = layers.Dropout(0.25)(features)
    return layers.Dense(4, activation="softmax")(features)


def nested():
    """Rescaling to [-1, 1], a frozen base as one layer, two hidden layers: how transfer learning is taught."""
    frozen = base()
    frozen.trainable = False
    photo = layers.Input((SIZE, SIZE, 3))
    features = frozen(layers.Rescaling(1 / 127.5, offset=-1)(photo), training=False)
    return keras.Model(photo, softmax_head(layers.GlobalAveragePooling2D()(features), 16, 8))


def sequential():
    """No preprocessing inside, pooling in the base, nothing hidden; Dropout before the predictions."""
    return keras.Sequential([base(pooling="avg"), layers.Dropout(0.2), layers.Dense(4, activation="softmax")])


def flat():
    """One model at an odd size, preprocessing for each channel, activations as layers of their own."""
    photo = layers.Input((61, 61, 3))
    scaled = layers.Rescaling([1 / 58.0, 1 / 57.0, 1 / 57.5], offset=[-2.1, -2.0, -1.8])(photo)
    trunk = keras.applications.MobileNetV2(input_tensor=scaled, alpha=0.35, include_top=False, weights=None)
    features = layers.GlobalAveragePooling2D(name="gap")(trunk.output)
    features = layers.ReLU()(layers.Dense(16)(layers.Dropout(0.3)(features)))
    return keras.Model(photo, layers.Activation("softmax")(layers.Dense(4)(features)))


def normalised():
    """A Normalization layer, and the pooled features kept as images until a Flatten."""
    photo = layers.Input((SIZE, SIZE, 3))
    scaled = layers.Normalization(mean=[120.0, 115.0, 105.0], variance=[3000.0, 2900.0, 3100.0])(photo)
    features = layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(base()(scaled)))
    return keras.Model(photo, layers.Softmax()(layers.Dense(4)(features)))


def unsized():
    """A base that takes any size."""
    return keras.Sequential([base(None), layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")])


def augmented():
    """Augmentation inside the model, as a Sequential of its own before the base: Keras's own tutorial has it so."""
    changes = [
        layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.RandomZoom(0.2),
        layers.RandomTranslation(0.1, 0.1), layers.RandomContrast(0.2),
    ]  # fmt: skip
    photo = layers.Input((SIZE, SIZE, 3))
    scaled = layers.Rescaling(1 / 127.5, offset=-1)(keras.Sequential(changes, name="augmentation")(photo))
    features = base(pooling="avg")(layers.GaussianNoise(0.1)(scaled))
    return keras.Model(photo, softmax_head(features, 16))


def flattened():
    return keras.Sequential([base(), layers.Flatten(), layers.Dense(4, activation="softmax")])


def operations():
    photo = layers.Input((SIZE, SIZE, 3))
    trunk = base(pooling="avg")
    return keras.Model(photo, softmax_head(trunk(keras.applications.mobilenet_v2.preprocess_input(photo))))


def with_lambda():
    inner = keras.Sequential([layers.Input((SIZE, SIZE, 3)), layers.Lambda(lambda x: x / 127.5 - 1.0), base()])
    outer = [layers.Input((SIZE, SIZE, 3)), inner]  # Keras 2 has no weights before it knows the input
    return keras.Sequential([*outer, layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")])


def wide():
    """Alpha 1.3, of which timm has no model."""
    trunk = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=1.3, include_top=False, weights=None, pooling="avg")
    return keras.Sequential(
        [layers.Input((SIZE, SIZE, 3)), layers.Rescaling(1 / 255), trunk, layers.Dense(4, "softmax")]
    )


VARIANTS = [nested, sequential, flat, normalised, unsized, flattened, operations, with_lambda, wide]
VARIANTS += [augmented]


def randomise(model, generator) -> None:
    """No statistic and no bias is trivially right; small last weights keep float32's own rounding small."""
    ranges = {"gamma": (0.7, 1.3), "moving_variance": (0.5, 1.5), "kernel": None}
    arrays = []
    for weight in model.weights:
        role = weight.name.split(":")[0].split("/")[-1].removeprefix("depthwise_")
        array = np.asarray(weight.numpy() if hasattr(weight, "numpy") else weight)
        if role not in ("mean", "variance", "count") and (between := ranges.get(role, (-0.2, 0.2))):
            array = generator.uniform(*between, array.shape).astype(array.dtype)
        arrays.append(array)
    last = max(index for index, array in enumerate(arrays) if array.shape[-1:] == (4,) and array.ndim == 2)
    arrays[last] = arrays[last] * np.float32(0.2)
    model.set_weights(arrays)


def main(folder: Path) -> None:
    for number, build in enumerate(VARIANTS):
        model = build()
        randomise(model, np.random.default_rng(number))
        model.compile(keras.optimizers.Adam(5e-4), "categorical_crossentropy", metrics=["accuracy"])
        model.save(str(folder / f"{build.__name__}.h5"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
