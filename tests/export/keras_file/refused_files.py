"""Files that are refused, and what becomes of them where the refusal's advice is followed: FOLDER. Any Keras.

No test: `test_advice.py` runs it. Writes CASE.h5 or CASE.keras, CASE_new.h5, and CASE.npz with `images` and `answer`,
what this Keras gave for the refused one.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3] / "export" / "worker"))
from keras_worker import find_keras

keras = find_keras()
L = keras.layers
SIZE = 16
V3 = keras.__version__.startswith("3")
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype("float32")


class OwnScale(L.Layer):
    def call(self, inputs):
        return inputs / 127.5 - 1.0


def ours():
    return L.Rescaling(1 / 127.5, offset=-1)


def network(scale, middle=lambda x: x):
    photo = keras.Input((SIZE, SIZE, 3))
    x = middle(L.Conv2D(4, 3, activation="relu", name="c")(scale(photo)))
    return keras.Model(photo, L.Dense(3, activation="softmax", name="classes")(L.GlobalAveragePooling2D()(x)))


def filled(model):
    model.set_weights([rng.normal(0, 0.5, each.shape) for each in model.get_weights()])
    return model


def save(folder, name, refused, mended, ending="h5", answer=lambda given: given):
    refused.save(str(folder / f"{name}.{ending}"))
    mended(str(folder / f"{name}.{ending}")).save(str(folder / f"{name}_new.h5"))
    np.savez(folder / f"{name}.npz", images=images, answer=np.asarray(answer(refused(images, training=False))))


def with_weights_of(path, build):
    model = build()
    model.load_weights(path)
    return model


def shared(folder):
    twice = L.Conv2D(4, 3, padding="same", name="twice")
    old = filled(network(ours(), lambda x: twice(twice(x))))

    def mended(path):
        first, second = (L.Conv2D(4, 3, padding="same", name=name) for name in ("twice", "twice_2"))
        new = network(ours(), lambda x: second(first(x)))
        for layer in new.layers:
            if layer.weights:
                layer.set_weights(old.get_layer(layer.name.removesuffix("_2")).get_weights())
        return new

    save(folder, "shared", old, mended)


def channels_first(folder):
    """The same code, told where the channels are; it has no Keras compute the old file, which TensorFlow may refuse."""

    def build():
        first = keras.backend.image_data_format() == "channels_first"
        photo = keras.Input((3, SIZE, SIZE) if first else (SIZE, SIZE, 3))
        x = L.BatchNormalization(axis=1 if first else -1)(L.Conv2D(4, 3, activation="relu", name="c")(photo))
        x = L.Flatten()(L.MaxPooling2D()(x))
        return keras.Model(photo, L.Dense(3, activation="softmax", name="classes")(x))

    keras.backend.set_image_data_format("channels_first")
    old = filled_positive(build())
    old.save(str(folder / "channels_first.h5"))
    try:
        answer = np.asarray(old(images.transpose(0, 3, 1, 2) / 255, training=False))
    except Exception as error:  # not every TensorFlow pools channels that come first, on a processor
        print("could not compute channels_first", type(error).__name__)
        answer = None
    keras.backend.set_image_data_format("channels_last")
    new = with_weights_of(str(folder / "channels_first.h5"), build)
    new.save(str(folder / "channels_first_new.h5"))
    answer = np.asarray(new(images / 255, training=False)) if answer is None else answer
    np.savez(folder / "channels_first.npz", images=images / 255, answer=answer)


def filled_positive(model):
    """As `filled`; a variance is not negative."""
    filled(model)
    names = [weight.name for weight in model.weights]
    arrays = [
        np.abs(each) if "variance" in name else each for name, each in zip(names, model.get_weights(), strict=True)
    ]
    model.set_weights(arrays)
    return model


def two_outputs(folder):
    model = network(ours())
    features = model.get_layer("classes").input
    both = filled(keras.Model(model.inputs, [*model.outputs, L.Dense(1, name="age")(features)]))
    save(
        folder,
        "two_outputs",
        both,
        lambda path: keras.Model(both.inputs[0], both.outputs[0]),
        answer=lambda two: two[0],
    )


def float64(folder):
    policy = keras.config.set_dtype_policy if V3 else keras.mixed_precision.set_global_policy
    policy("float64")
    old = filled(network(ours()))
    old.save(str(folder / "float64.h5"))
    np.savez(folder / "float64.npz", images=images, answer=np.asarray(old(images.astype("float64"))))
    policy("float32")
    with_weights_of(str(folder / "float64.h5"), lambda: network(ours())).save(str(folder / "float64_new.h5"))


def subclassed(folder):
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [ours(), L.Conv2D(4, 3, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(3, "softmax")]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    model = Mine()
    model(images)
    photo = keras.Input((SIZE, SIZE, 3))
    save(folder, "subclassed", filled(model), lambda path: keras.Model(photo, model.call(photo)), ending="keras")


def half(folder):
    """Not refused: computed in float32."""
    policy = keras.config.set_dtype_policy if V3 else keras.mixed_precision.set_global_policy
    policy("mixed_float16")
    filled(network(ours())).save(str(folder / "half.h5"))
    policy("float32")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    by_lambda = lambda: L.Lambda(lambda x: x / 127.5 - 1.0)  # noqa: E731
    for name, layer in (("lambda", by_lambda), ("own_layer", OwnScale)):
        for ending in ("h5", "keras") if V3 else ("h5",):
            mended = lambda path: with_weights_of(path, lambda: network(ours()))  # noqa: E731
            save(folder, f"{name}_{ending}", filled(network(layer())), mended, ending)
    shared(folder)
    channels_first(folder)
    two_outputs(folder)
    float64(folder)
    half(folder)
    if V3:
        subclassed(folder)
        bare = filled(network(lambda x: x / 127.5 - 1.0))
        bare.save(str(folder / "bare.h5"))
        with_weights_of(str(folder / "bare.h5"), lambda: network(lambda x: x / 127.5 - 1.0)).save(
            str(folder / "whole.keras")
        )
