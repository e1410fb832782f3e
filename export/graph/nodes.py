"""The neutral graph: what a network computes, in typed nodes and numpy weights, independent of any framework.

`trace.py` makes it from a torch module, `keras_file` writes it as Keras HDF5, and `proof` walks through it to compare.
Wherever the defaults of the two frameworks differ (padding, epsilon, momentum, the ceiling of a ReLU), the value is
stated in a node's attributes; nothing relies on a default.

Layout is that of torch's convolutions: activations NCHW, convolution kernels (out, in/groups, kh, kw), dense kernels
(out, in).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.graph.layouts import Layout

# Operation -> (the attributes that its nodes must state, the roles of the weights that they may have).
OPERATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "input": ((), ()),
    "affine": (("scale", "offset"), ()),  # one constant per channel: x * scale + offset
    # one trained weight per channel, or for all together, or for each place of each channel: x * scale, x + offset
    "channel_scale": ((), ("scale",)),
    "channel_shift": ((), ("offset",)),
    "channel_affine": ((), ("scale", "offset")),
    "conv2d": (("strides", "padding", "dilation", "groups"), ("kernel", "bias")),  # padding: top, bottom, left, right
    # kernel (in, out, kh, kw); crop: top, bottom, left, right of the whole result, negative where zeros are added;
    # same: whether that is what SAME crops
    "conv2d_transpose": (("strides", "crop", "same"), ("kernel", "bias")),
    "batch_norm": (("epsilon", "momentum"), ("gamma", "beta", "moving_mean", "moving_variance")),
    "layer_norm": (("epsilon",), ("gamma", "beta")),  # over the channels
    "map_norm": (("epsilon",), ("gamma", "beta")),  # over the whole map
    "group_norm": (("groups", "epsilon"), ("gamma", "beta")),
    "rms_norm": (("epsilon",), ("gamma",)),  # over the channels
    # over the channels, 1 / sqrt(f * mean(x ** 2) + epsilon), of x minus its mean where it is centred; as one channel
    "inverse_rms": (("centred", "factor", "epsilon"), ()),
    "positive": ((), ()),  # 1 where x is above 0, else 0
    "places_norm": ((), ()),  # the length of each channel's vector of places, as a map of one place
    "divide_by_mean": (("epsilon",), ()),  # of (C, 1, 1), not negative: x / (mean(x) + epsilon)
    "divide_by_rms": (("centred", "factor", "epsilon"), ()),  # the first value by that of the second
    "relu": (("max_value",), ()),  # max_value None: no ceiling
    "leaky_relu": (("negative_slope",), ()),  # 0 to 1
    "prelu": ((), ("alpha",)),  # where negative, x * alpha: (C,), (C, 1, 1) or (C, H, W)
    "elu": (("alpha",), ()),
    "threshold": (("threshold",), ()),  # x where it is above the threshold, else 0
    "activation": (("function",), ()),  # silu, sigmoid, tanh, gelu (exact), elu, selu, softplus, softsign, exponential
    "hard_sigmoid": ((), ()),  # relu6(x + 3) / 6
    "hard_swish": ((), ()),  # x * relu6(x + 3) / 6
    "gelu_tanh": ((), ()),  # x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))
    "softplus": (("beta",), ()),  # log(1 + exp(beta * x)) / beta
    "log_sigmoid": ((), ()),
    "log_softmax": ((), ()),  # over the channels; of a probability below 1e-34 it is that of 1e-34
    "absolute": ((), ()),
    "cube": ((), ()),
    "power": (("exponent",), ()),  # any, of numbers from 1e-34 to 1e34; with a positive one, 0 of those below
    "logarithm": ((), ()),  # of numbers from 1e-34 to 1e34
    "clip": (("low", "high"), ()),  # None: not on that side
    "hard_shrink": (("threshold",), ()),  # 0 where |x| is not above the threshold
    "soft_shrink": (("threshold",), ()),  # that, and nearer to 0 by the threshold
    "glu": ((), ()),  # the first half of the channels, times the sigmoid of the second
    "mish": ((), ()),  # x * tanh(log(1 + exp(x)))
    "upsample": (("factors",), ()),  # each pixel repeated, (rows, columns) times
    "upsample_bilinear": (("factors",), ()),  # half-pixel centres
    "resize": (("interpolation",), ()),  # bilinear or nearest, half-pixel centres, no antialiasing
    "crop": (("cropping",), ()),  # top, bottom, left, right
    "slice_channels": (("start", "stop"), ()),
    "pad": (("padding",), ()),  # with zeros: top, bottom, left, right
    "pad_constant": (("padding", "value"), ()),  # with another number
    # along the rows, along the columns, from channels to channels: a matrix (result, size), row by row, or None
    "map_places": (("rows", "columns"), ()),
    "map_channels": (("matrix",), ()),
    "channel_max": ((), ()),  # the largest channel, as the only one
    "max_pool": (("kernel", "strides", "padding"), ()),
    "average_pool": (("kernel", "strides", "padding", "count_padding"), ()),
    "global_average_pool": (("keep_dimensions",), ()),
    "global_max_pool": (("keep_dimensions",), ()),
    "add": ((), ()),
    "subtract": ((), ()),
    "multiply": ((), ()),
    "divide": ((), ()),  # by numbers that are not 0, from 1e-13 on
    "average": ((), ()),
    "maximum": ((), ()),
    "minimum": ((), ()),
    "concatenate": ((), ()),  # of channels
    "flatten": ((), ()),  # to (C * H * W,), place by place with all of its channels, as Keras has them
    "flatten_channels": ((), ()),  # to (C * H * W,), channel by channel with all of its places, as torch has them
    "reshape": ((), ()),  # to (C, H, W), in the same order
    "dropout": (("rate",), ()),
    "dense": ((), ("kernel", "bias")),  # over the channels, at every position
    "softmax": ((), ()),  # over the channels
    # Of values with any number of axes. Axes are counted as Keras has them, without the batch and with the channels
    # last; a node's shape is theirs with the channels first.
    "regroup": ((), ()),  # the same numbers in the same order, in another shape
    "transpose": (("axes",), ()),  # result axis -> axis
    "unit_norm": (("least",), ()),  # divided by the length of the channels' vector, which counts as `least` or more
    "pad_axis": (("axis", "before", "after", "value"), ()),
    # a part of one axis; where torch takes one of it and has no axis left, nor has the result
    "cut": (("axis", "start", "stop", "step"), ()),
    "join": (("axis",), ()),  # of values one after the other along an axis
    "roll": (("axes", "shifts"), ()),  # as `torch.roll`
    "mean": (("axes",), ()),  # over neighbouring axes
    "sum": (("axes",), ()),
    "largest": (("axes",), ()),  # of the numbers along neighbouring axes
    # sqrt(factor * sum(x ** 2) + epsilon) over neighbouring axes, or 1 divided by that
    "root_of_squares": (("axes", "factor", "epsilon", "inverse"), ()),
    "repeat": (("axes", "counts"), ()),  # axes of one, so often
    "stack": (("axis",), ()),  # of values side by side along a new axis
    "conv1d": (("strides", "padding", "dilation", "groups"), ("kernel", "bias")),  # of (L, C); kernel (out, in, k)
    # An array that is the same for all images: a weight, or the numbers in `constant`. It has the given shape, and for
    # each of its axes `order` has that of the value.
    "add_array": (("shape", "order", "constant"), ("array",)),
    "multiply_array": (("shape", "order", "constant"), ("array",)),
    "array": (("shape", "order", "constant"), ("array",)),  # itself; the value gives only the number of images
    # of maps of which an image has several: (C, windows, H, W); what is padded, is padded in each
    "conv2d_of_windows": (("strides", "padding", "dilation", "groups"), ("kernel", "bias")),
    "max_pool_of_windows": (("kernel", "strides", "padding"), ()),
    "average_pool_of_windows": (("kernel", "strides", "padding", "count_padding"), ()),
    # (N, heads, K) with (M, heads, K), or with (K, heads, M) if `last` is false: (N, heads, M), for each head
    "matmul": (("last",), ()),
    "matmul_windows": ((), ()),  # (windows, N, K) with (windows, M, K): (windows, N, M), for each window
}


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique in the graph; becomes the Keras layer's name.
        op: a key of `OPERATIONS`.
        inputs: names of the nodes that it reads, in order.
        shape: output shape without the batch, channels first: (C, H, W) or (C,); (C, N) for tokens, (d, heads, N).
        attributes: what `OPERATIONS` lists for the op.
        weights: role (``kernel``, ``gamma``, ...) -> name of the tensor in `Graph.tensors`.
        source: path of the torch module that computed it; empty for nodes that do not exist in torch.
        trace_name: name of the operation in the traced torch program, used to find its output there.
        trace_channels_last: whether torch holds that output as (H, W, C).
        trace_layout: how torch holds it, if it is neither that nor (C, H, W) nor (C,).
        inside: of an activation: name of the node before it whose Keras layer computes it as well, as
            ``Dense(4, activation="softmax")`` does; empty for a layer of its own.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    source: str = ""
    trace_name: str = ""
    trace_channels_last: bool = False
    trace_layout: Layout | None = None
    inside: str = ""

    def __post_init__(self) -> None:
        stated, roles = OPERATIONS[self.op]
        if set(stated) != set(self.attributes) or not set(self.weights) <= set(roles):
            raise ValueError(
                f"node {self.name!r} ({self.op}) must state attributes {stated} and may have weights {roles}, "
                f"got {tuple(self.attributes)} and {tuple(self.weights)}"
            )


@dataclass(frozen=True)
class Computed:
    """An array that is not in the state dict: what the network computes from its weights alone, once for all images.

    Attributes:
        sources: the tensors of the state dict that it is computed from; none of a constant, such as a blur's kernel.
        trace_name: the recorded operation that computes it; empty for the copy of a weight that is used again.
    """

    sources: tuple[str, ...]
    trace_name: str = ""


@dataclass(frozen=True)
class Graph:
    """A network with one input and one output.

    Attributes:
        nodes: in the order of computation; the first is the input, the last the output.
        tensors: the network's arrays, as stored in the torch state dict and by the same names; and the computed ones.
        computed: names of those that the state dict does not have -> where they come from.
        unused: names in the state dict of what has no part in what is computed, such as a head for training only.
        untrained: names of arrays that training leaves as they are: buffers and what is computed from such, constants.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]
    computed: dict[str, Computed] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    untrained: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in seen]
            if node.name in seen or missing:
                raise ValueError(f"node {node.name!r} is named twice or reads {missing} before they are computed")
            seen.add(node.name)
        used = [tensor for node in self.nodes for tensor in node.weights.values()]
        if sorted(used) != sorted(self.tensors):
            unused, unknown = set(self.tensors) - set(used), set(used) - set(self.tensors)
            twice = sorted({tensor for tensor in used if used.count(tensor) > 1})
            raise ValueError(
                "every tensor must be used exactly once: "
                f"unused {sorted(unused)}, unknown {sorted(unknown)}, used more than once {twice}"
            )

    def node(self, name: str) -> Node:
        """Return the node with that name; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def output(self) -> Node:
        """The last node."""
        return self.nodes[-1]
