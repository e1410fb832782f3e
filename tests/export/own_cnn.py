"""Somebody's own CNN, as a Keras file: no network that timm has. Written without Keras, so that it costs nothing."""

from pathlib import Path

import numpy as np

from export.graph.nodes import Graph, Node
from export.keras_file.layers import keras_layers
from export.keras_file.write import write_keras_h5

SIZE = 32
LAYERS = ["photo", "scale", "first", "norm", "pool", "second", "flat", "hidden", "drop", "classes"]
"""Its layers' names; `second` and `hidden` have a ReLU inside, `classes` the softmax."""


def own_cnn(path: Path, classes: int = 4, seed: int = 0) -> Path:
    """Takes 0 to 255."""
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> np.ndarray:
        tensors[name] = rng.normal(0, 1.2 / np.sqrt(np.prod(shape[1:]) or 1), shape).astype(np.float32)
        return tensors[name]

    tensors: dict[str, np.ndarray] = {}
    weights("first/kernel", 6, 3, 3, 3)
    for role in ("gamma", "beta", "moving_mean", "moving_variance"):
        tensors[f"norm/{role}"] = rng.uniform(0.5, 1.5, 6).astype(np.float32)
    for name, shape in (("second", (8, 6, 3, 3)), ("hidden", (12, 8 * 8 * 8)), ("classes", (classes, 12))):
        weights(f"{name}/kernel", *shape)
        weights(f"{name}/bias", shape[0])
    conv = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    half = {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0)}
    both = ("kernel", "bias")

    def node(name: str, op: str, before: str, shape: tuple[int, ...], roles=(), inside: str = "", **attributes) -> Node:
        return Node(name, op, (before,), shape, attributes, {each: f"{name}/{each}" for each in roles}, inside=inside)

    nodes = [
        Node("photo", "input", (), (3, SIZE, SIZE)),
        node("scale", "affine", "photo", (3, SIZE, SIZE), scale=[1 / 255] * 3, offset=[0.0] * 3),
        node("first", "conv2d", "scale", (6, 16, 16), ("kernel",), **{**conv, "strides": (2, 2)}),
        node("norm", "batch_norm", "first", (6, 16, 16), ("gamma", "beta", "moving_mean", "moving_variance"),
             epsilon=1e-3, momentum=0.99),
        node("pool", "max_pool", "norm", (6, 8, 8), **half),
        node("second", "conv2d", "pool", (8, 8, 8), both, **conv),
        node("second_relu", "relu", "second", (8, 8, 8), inside="second", max_value=None),
        node("flat", "flatten", "second_relu", (512,)),
        node("hidden", "dense", "flat", (12,), both),
        node("hidden_relu", "relu", "hidden", (12,), inside="hidden", max_value=None),
        node("drop", "dropout", "hidden_relu", (12,), rate=0.25),
        node("classes", "dense", "drop", (classes,), both),
        node("softmax", "softmax", "classes", (classes,), inside="classes"),
    ]  # fmt: skip
    # (1, 1, 1, 1) around 32 pixels at stride 2 is not SAME, so a ZeroPadding2D stands before `first`
    layers = keras_layers(Graph(tuple(nodes), tensors))
    write_keras_h5(path, layers, model_name="own", details={}, training=None)
    return path
