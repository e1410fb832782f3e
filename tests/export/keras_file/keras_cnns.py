"""Small networks of Keras's own layers, saved by whatever Keras runs this file: FOLDER. Needs Keras and numpy.

Writes NAME.h5, in Keras 3 NAME.keras as well, and NAME.npz with `images` and `answer`, what this Keras gave for them.
"""

import sys
from pathlib import Path

import keras
import numpy as np

L = keras.layers
# Activations that every Keras has, and those of this one.
ACTIVATIONS = [
    "relu",
    "relu6",
    "selu",
    "softplus",
    "softsign",
    "tanh",
    "sigmoid",
    "exponential",
    "gelu",
    "swish",
    "hard_sigmoid",
    "elu",
    "softmax",
]
if keras.__version__.startswith("3"):
    ACTIVATIONS += ["mish", "leaky_relu", "hard_silu", "hard_tanh", "log_sigmoid", "celu"]


def many_layers(activations):
    """One network of most layers, with preprocessing as bare operations, in front of a flattened map."""
    photo = keras.Input((33, 30, 3))
    x = L.Conv2D(8, 3, strides=2, padding="same", activation="elu")(photo / 127.5 - 1.0)
    x = L.SeparableConv2D(12, 3, padding="same", depth_multiplier=2, activation="relu")(x)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, padding="valid")(x)
    x = L.PReLU(shared_axes=[1, 2])(L.BatchNormalization(scale=False)(x))
    y, z = L.MaxPooling2D(3, strides=1, padding="same")(x), L.AveragePooling2D(3, strides=1, padding="same")(x)
    merged = [merge()([y, z]) for merge in (L.Add, L.Subtract, L.Maximum, L.Average, L.Minimum)]
    x = L.Conv2D(8, 1, use_bias=False)(L.Concatenate()(merged))
    x = L.Conv2D(8, 1)(L.Add()([L.Activation(name)(L.Conv2D(8, 1)(x)) for name in activations]))
    x = L.ReLU(max_value=4.0, negative_slope=0.1)(L.ELU(0.5)(L.LeakyReLU()(x)))
    gate = L.Dense(8, activation="hard_sigmoid")(L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(x)))
    x = L.UpSampling2D(2, interpolation="bilinear")(L.Multiply()([x, gate]))
    x = L.Conv2DTranspose(6, 3, strides=2, padding="same")(L.Cropping2D(((1, 0), (2, 1)))(x))
    x = L.UpSampling2D(2)(L.Conv2DTranspose(6, 2, strides=3, padding="valid")(x))
    x = L.PReLU()(L.MaxPooling2D(2, padding="same")(L.AveragePooling2D(8, padding="same")(x)))
    x = L.LayerNormalization()(L.GaussianNoise(0.1)(L.SpatialDropout2D(0.1)(x)))
    x = L.Dropout(0.3)(L.BatchNormalization()(L.Flatten()(x)))
    return keras.Model(photo, L.Softmax()(L.Dense(3)(L.Dense(16, activation=activations[0])(x))))


def resized():
    """Resized inside the model."""
    photo = keras.Input((40, 40, 3))
    x = L.Conv2D(4, 3)(L.Resizing(24, 20)(L.Rescaling(1 / 255)(photo)))
    return keras.Model(photo, L.Dense(3, activation="softmax")(L.Flatten()(L.GlobalMaxPooling2D(keepdims=True)(x))))


def divided():
    """The tutorial's preprocessing, as bare operations."""
    photo = keras.Input((12, 10, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu")(photo / 127.5 - 1.0))
    return keras.Model(photo, L.Dense(3, activation="softmax")(x))


def called_again():
    """Layers without weights that are called twice, a gate without height and width, odd settings."""
    photo = keras.Input((24, 20, 3))
    relu, pool, flip = L.ReLU(), L.MaxPooling2D(), L.RandomFlip()
    x = flip(photo)
    if keras.__version__.startswith("3"):  # preprocess_input of the networks that came from caffe
        x = keras.ops.stack([x[..., index] for index in (2, 1, 0)], axis=-1) + np.array([-3.0, 2.0, 9.0], "float32")
    x = relu(L.Conv2D(6, 3, padding="same")(x))
    x = pool(relu(L.Conv2D(6, 3, padding="same")(pool(x))))
    gate = L.Dense(6, activation="sigmoid")(L.GlobalAveragePooling2D()(x))
    x = L.Multiply()([x, gate])
    x = L.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1, activation="tanh")(x)
    x = L.ReLU(max_value=0.6, threshold=0.1)(x)
    x = keras.ops.mean(x, axis=(1, 2)) if keras.__version__.startswith("3") else L.GlobalAveragePooling2D()(x)
    return keras.Model(photo, L.Dense(3, activation="softmax")(x))


def settings_that_float32_rounds():
    """Each in a layer that some Keras computes with the setting rounded to float32, in float64 as well."""
    photo = keras.Input((20, 18, 3))
    x = L.Normalization(mean=[0.48, 0.45, 0.4], variance=[0.05, 0.06, 0.07])(L.Rescaling(1 / 255, offset=0.1)(photo))
    x = L.LayerNormalization()(L.Conv2D(6, 3, activation="gelu")(x))
    x = L.ReLU(max_value=0.9, negative_slope=0.1)(L.Conv2D(6, 3)(x))
    x = L.ReLU(max_value=0.9, threshold=0.1)(L.Conv2D(6, 3)(x))
    x = L.ELU(0.7)(L.LeakyReLU(0.1)(L.Conv2D(6, 3)(x)))
    x = L.LayerNormalization(epsilon=1e-5)(L.Dense(8, activation="gelu")(L.GlobalAveragePooling2D()(x)))
    return keras.Model(photo, L.Dense(3, activation="softmax")(x))


def save(name, model, folder):
    rng = np.random.default_rng(0)
    model.set_weights([
        rng.uniform(0.5, 1.5, own.shape) if "variance" in weight.name
        else rng.normal(0, 1.2 / np.sqrt(np.prod(own.shape[:-1])) if own.ndim > 1 else 0.3, own.shape)
        for weight, own in zip(model.weights, model.get_weights(), strict=True)
    ])  # fmt: skip
    images = rng.integers(0, 256, (3, *model.input_shape[1:])).astype("float32")
    for ending in ("h5", "keras") if keras.__version__.startswith("3") else ("h5",):
        model.save(str(Path(folder, f"{name}.{ending}")))
    np.savez(Path(folder, f"{name}.npz"), images=images, answer=np.asarray(model(images, training=False)))


if __name__ == "__main__":
    for start in range(0, len(ACTIVATIONS), 5):
        save(f"many_{start}", many_layers(ACTIVATIONS[start : start + 5]), sys.argv[1])
    save("resized", resized(), sys.argv[1])
    save("called_again", called_again(), sys.argv[1])
    save("divided", divided(), sys.argv[1])
    save("settings", settings_that_float32_rounds(), sys.argv[1])
