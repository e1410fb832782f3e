"""Attention, and dense layers of several axes, of which it is made.

Tokens are (N, C) in Keras, without the batch: the queries' N, the keys' and values' M. A map's places are tokens.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np

from export.graph.nodes import Node
from export.keras_file.flat_layers import AS_IT_IS, DAMAGED, FlatLayer, Tensor
from export.keras_file.readers.activation import activation_of
from export.keras_file.readers.axes import from_keras, keras_shape
from export.keras_file.readers.layer_reader import LayerReader, Reader
from export.keras_file.readers.settings import expect, finite_number, whole_number
from models.bad_input import BadInput

Shape = tuple[int, ...]


def _regrouped(reader: LayerReader, layer: FlatLayer, node: Node, shape: Shape, part: str) -> Node:
    """The same numbers in another of Keras's shapes; nothing where it is that already and the name may be any."""
    if part and keras_shape(node) == shape:
        return node
    return reader.emit(layer, "regroup", from_keras(shape), inputs=[node], part=part)


def _projected(
    reader: LayerReader, layer: FlatLayer, before: Node, weights: dict[str, np.ndarray], axes: int, part: str = ""
) -> Node:
    """A Dense of the last `axes` axes of a value, whose kernel has those and then the result's.

    Args:
        reader: emits the nodes.
        layer: whose they are.
        before: what they read.
        weights: kernel and perhaps bias, as Keras has them.
        axes: of the value, and in front of the kernel.
        part: name of the result; "" if it is the layer's.
    """
    kernel = weights["kernel"]
    kept, result = keras_shape(before)[:-axes], kernel.shape[axes:]
    # Keras (in..., out...) -> torch (out, in)
    held: dict[str, np.ndarray] = {"kernel": kernel.reshape(prod(kernel.shape[:axes]), prod(result)).T}
    if "bias" in weights:
        held["bias"] = weights["bias"].reshape(-1)
    node = _regrouped(reader, layer, before, (*kept, held["kernel"].shape[1]), "axes_together")
    apart = len(result) != 1
    name = f"{part}_dense".lstrip("_") if apart else part
    node = reader.emit(layer, "dense", from_keras((*kept, prod(result))), {}, held, [node], name)
    return _regrouped(reader, layer, node, (*kept, *result), part) if apart else node


# Dense layers of several axes -----------------------------------------------------------------------------------------


def _einsum_dense(reader: LayerReader, layer: FlatLayer) -> None:
    """Equations such as ``abc,cde->abde``: the last axes of the value are the first ones of the kernel."""
    (before,) = reader.before(layer)
    own = keras_shape(before)
    given, kernel, result = _axes_of_equation(layer, len(own) + 1)
    shared = [letter for letter in given if letter in kernel]
    new = kernel[len(shared) :]
    if not shared or kernel[: len(shared)] != "".join(shared) or not given.endswith(kernel[: len(shared)]) or (
        result != given[: -len(shared)] + new or not new or len(given) == len(shared)
    ):  # fmt: skip
        raise BadInput(
            f"{layer.key}: expected an EinsumDense that is a Dense of the last axes, such as abc,cd->abd, got "
            f"{str(layer.config.get('equation'))[:60]}. {AS_IT_IS}"
        )
    shape = layer.config.get("output_shape")
    sides = [whole_number(each, layer, "output_shape") for each in _several(shape)[-len(new) :]]
    weights = {"kernel": reader.take(layer, "kernel", (*own[-len(shared) :], *sides), 0)}
    of_bias = layer.config.get("bias_axes")
    if of_bias is not None:
        if of_bias != new:
            raise BadInput(
                f"{layer.key}: expected an EinsumDense with bias_axes {new} or none, got {str(of_bias)[:20]}. "
                f"{AS_IT_IS}"
            )
        weights["bias"] = reader.take(layer, "bias", tuple(sides), 1)
    activation_of(reader, layer, _projected(reader, layer, before, weights, len(shared)))


def _axes_of_equation(layer: FlatLayer, rank: int) -> tuple[str, str, str]:
    """The axes of the value, the kernel and the result, each a letter; dots are as many capitals as the value has."""
    equation = re.fullmatch(r"([a-z.]+),([a-z]+)->([a-z.]+)", str(layer.config.get("equation")).replace(" ", ""))
    if equation is None:
        return "", "", ""
    given, kernel, result = equation.groups()
    dots = "".join(chr(ord("A") + place) for place in range(rank - len(given.replace("...", ""))))
    return given.replace("...", dots), kernel, result.replace("...", dots)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# Attention of several heads -------------------------------------------------------------------------------------------

# In a `.keras` archive the arrays of a part lie under its attribute's name, in an `.h5` under its layer's.
_PARTS = {"query_dense": "query", "key_dense": "key", "value_dense": "value", "output_dense": "attention_output"}
_ROLES = {"0": "kernel", "1": "bias"}
_ARGUMENTS = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask")


def _given(reader: LayerReader, layer: FlatLayer) -> tuple[Node, Node, Node]:
    """The values that an attention of several heads is called with: query, key and value. Masks are refused."""
    given = {**dict(zip(_ARGUMENTS, layer.arguments, strict=False)), **(layer.options or {})}
    _expect_no_mask(layer, given)
    expect(layer, sliding_window=(None,), use_gate=(False,))
    tensors = [given.get("query"), given.get("key") or given.get("value"), given.get("value")]
    nodes = [reader.nodes[reader.node_of[each.layer]] for each in tensors if isinstance(each, Tensor)]
    if len(nodes) != 3 or any(len(node.shape) < 2 for node in nodes) or nodes[1].shape[1:] != nodes[2].shape[1:]:
        raise BadInput(
            f"{layer.key}: expected attention of tokens, a query and a value, got {[node.shape for node in nodes]}. "
            f"{AS_IT_IS}"
        )
    return nodes[0], nodes[1], nodes[2]


def _expect_no_mask(layer: FlatLayer, given: dict[str, Any]) -> None:
    """Refuse masks, and scores as a second output."""
    for name, value in given.items():
        mask = name.endswith("mask") and value not in (None, False) and value != [None] * len(_several(value))
        if mask or (name == "return_attention_scores" and value):
            raise BadInput(
                f"{layer.key}: expected attention of every token to every other one, got {name}, which is not read "
                f"here. {AS_IT_IS}"
            )


def _parts_of(reader: LayerReader, layer: FlatLayer) -> None:
    """Give the arrays of the layer's parts the names that they have in an `.h5`."""
    own = reader.weights[layer.key]
    renamed = {}
    for role, array in own.items():
        part, _, which = role.removeprefix("_").partition("/")
        renamed[f"{_PARTS.get(part, part)}/{_ROLES.get(which, which)}"] = array
    reader.weights[layer.key] = renamed


def _part(
    reader: LayerReader, layer: FlatLayer, part: str, before: Node, kernel: Shape, axes: int = 1, name: str = ""
) -> Node:
    """One of the dense layers that the attention consists of."""
    weights = {"kernel": reader.take(layer, f"{part}/kernel", kernel)}
    if layer.config.get("use_bias", True):
        weights["bias"] = reader.take(layer, f"{part}/bias", kernel[axes:])
    return _projected(reader, layer, before, weights, axes, name)


def _attended(
    reader: LayerReader, layer: FlatLayer, query: Node, key: Node, value: Node, scale: float | None = None
) -> Node:
    """Of (N, heads, K), (M, heads, K) and (M, heads, V): (N, heads, V)."""
    if scale is not None:
        attributes = {"scale": [scale], "offset": [0.0]}
        query = reader.emit(layer, "affine", query.shape, attributes, inputs=[query], part="scaled")
    shape = (*keras_shape(query)[:2], keras_shape(key)[0])
    scores = reader.emit(layer, "matmul", from_keras(shape), {"last": True}, inputs=[query, key], part="scores")
    return _mixed(reader, layer, scores, value)


def _mixed(reader: LayerReader, layer: FlatLayer, scores: Node, value: Node) -> Node:
    """The values, each as much as the scores (N, heads, M) say."""
    weights = reader.emit(layer, "softmax", scores.shape, inputs=[scores], part="weights")
    rate = finite_number(layer.config.get("dropout") or 0.0, layer, "dropout")
    if 0 < rate < 1:
        weights = reader.emit(layer, "dropout", scores.shape, {"rate": rate}, inputs=[weights], part="dropout")
    shape = (*keras_shape(scores)[:2], keras_shape(value)[2])
    return reader.emit(layer, "matmul", from_keras(shape), {"last": False}, inputs=[weights, value], part="mixed")


def _tokens(reader: LayerReader, layer: FlatLayer, node: Node, part: str) -> Node:
    *places, channels = keras_shape(node)
    return _regrouped(reader, layer, node, (prod(places), channels), part)


def _multi_head(reader: LayerReader, layer: FlatLayer) -> None:
    query, key, value = _given(reader, layer)
    heads = whole_number(layer.config["num_heads"], layer, "num_heads")
    size = whole_number(layer.config["key_dim"], layer, "key_dim")
    of_value = whole_number(layer.config.get("value_dim") or size, layer, "value_dim")
    places = keras_shape(query)[:-1]
    axes = layer.config.get("attention_axes")
    rank = len(places) + 2
    if axes is not None and sorted(axis % rank for axis in _several(axes)) != list(range(1, rank - 1)):
        raise BadInput(
            f"{layer.key}: expected attention along all axes of the tokens, got attention_axes {axes}. {AS_IT_IS}"
        )
    last = tuple(_several(layer.config.get("output_shape") or query.shape[0]))
    _parts_of(reader, layer)
    tokens = [_tokens(reader, layer, *each) for each in ((query, "queries"), (key, "keys"), (value, "values"))]
    parts = [
        _part(reader, layer, name, node, (node.shape[0], heads, each), name=name)
        for name, node, each in zip(("query", "key", "value"), tokens, (size, size, of_value), strict=True)
    ]
    mixed = _attended(reader, layer, parts[0], parts[1], parts[2], size**-0.5)
    whole = len(places) == 1
    node = _part(
        reader, layer, "attention_output", mixed, (heads, of_value, *last), 2, "" if whole else "attention_output"
    )
    if not whole:
        _regrouped(reader, layer, node, (*places, *last), "")


def _grouped_query(reader: LayerReader, layer: FlatLayer) -> None:
    """Several heads of queries share each head of keys and values."""
    query, key, value = _given(reader, layer)
    size = whole_number(layer.config["head_dim"], layer, "head_dim")
    heads = whole_number(layer.config["num_query_heads"], layer, "num_query_heads")
    shared = whole_number(layer.config["num_key_value_heads"], layer, "num_key_value_heads")
    if heads % shared or any(len(each.shape) != 2 for each in (query, key, value)):
        raise BadInput(f"{layer.key}: expected heads of queries for each of {shared} heads, got {heads}. {DAMAGED}")
    _parts_of(reader, layer)
    queries = _part(reader, layer, "query", query, (query.shape[0], heads, size), name="query")
    repeated = []
    for name, node in (("key", key), ("value", value)):
        part = _part(reader, layer, name, node, (node.shape[0], shared, size), name=name)
        count = keras_shape(part)[0]
        if heads > shared:
            apart = _regrouped(reader, layer, part, (count * shared, 1, size), f"{name}_heads")
            attributes = {"axes": (1,), "counts": (heads // shared,)}
            shape = from_keras((count * shared, heads // shared, size))
            part = reader.emit(layer, "repeat", shape, attributes, inputs=[apart], part=f"{name}_repeated")
            part = _regrouped(reader, layer, part, (count, heads, size), f"{name}_of_all")
        repeated.append(part)
    mixed = _attended(reader, layer, queries, repeated[0], repeated[1], size**-0.5)
    _part(reader, layer, "attention_output", mixed, (heads, size, query.shape[0]), 2)


# Attention without weights of its own ---------------------------------------------------------------------------------


def _plain(reader: LayerReader, layer: FlatLayer) -> None:
    """Keras's Attention and AdditiveAttention, called with [query, value] or [query, value, key]."""
    nodes = reader.all_before(layer)
    _expect_no_mask(layer, {**(layer.options or {}), "causal_mask": layer.config.get("causal")})
    additive = layer.class_name == "AdditiveAttention"
    expect(layer, score_mode=("dot", "concat"))
    if len(nodes) not in (2, 3) or any(len(node.shape) != 2 for node in nodes):
        raise BadInput(
            f"{layer.key}: expected attention of tokens, [query, value] or [query, value, key], got "
            f"{[node.shape for node in nodes]}. {AS_IT_IS}"
        )
    query, value, key = (*nodes, nodes[1])[:3]
    dim = query.shape[0]
    values = _regrouped(reader, layer, value, (value.shape[1], 1, value.shape[0]), "values")
    queries = _regrouped(reader, layer, query, (query.shape[1], 1, dim), "queries")
    scaled = layer.config.get("use_scale", additive)
    scale = {"scale": reader.take(layer, "scale", (dim,) if additive else (), 0).reshape(-1)} if scaled else None
    if not additive and layer.config.get("score_mode", "dot") == "dot":
        keys = _regrouped(reader, layer, key, (key.shape[1], 1, dim), "keys")
        shape = from_keras((query.shape[1], 1, key.shape[1]))
        scores = reader.emit(layer, "matmul", shape, {"last": True}, inputs=[queries, keys], part="scores")
        if scale:
            scores = reader.emit(layer, "channel_scale", shape, {}, scale, [scores], "scaled")
    else:
        keys = _regrouped(reader, layer, key, (1, key.shape[1], dim), "keys")
        scores = _added_up(reader, layer, queries, keys, scale, additive)
    mixed = _mixed(reader, layer, scores, values)
    reader.emit(layer, "regroup", (value.shape[0], query.shape[1]), inputs=[mixed])


def _added_up(
    reader: LayerReader,
    layer: FlatLayer,
    queries: Node,
    keys: Node,
    scale: dict[str, np.ndarray] | None,
    additive: bool,
) -> Node:
    """Scores (N, 1, M): the sum over the channels of tanh(query + key), scaled before or after the tanh."""
    (count, _, dim), (_, others, _) = keras_shape(queries), keras_shape(keys)
    shape = from_keras((count, others, dim))
    node = reader.emit(layer, "add", shape, inputs=[queries, keys], part="pairs")
    if scale and not additive:
        node = reader.emit(layer, "channel_scale", shape, {}, scale, [node], "scaled")
    node = reader.emit(layer, "activation", shape, {"function": "tanh"}, inputs=[node], part="tanh")
    if scale and additive:
        node = reader.emit(layer, "channel_scale", shape, {}, scale, [node], "scaled")
    node = reader.emit(layer, "sum", from_keras((count, others)), {"axes": (2,)}, inputs=[node], part="sums")
    node = _regrouped(reader, layer, node, (count, 1, others), "scores")
    if additive:
        return node
    weight = {"scale": reader.take(layer, "concat_score_weight", (), int(scale is not None)).reshape(-1)}
    return reader.emit(layer, "channel_scale", node.shape, {}, weight, [node], "weighed")


READERS: dict[str, Reader] = {
    "EinsumDense": _einsum_dense,
    "MultiHeadAttention": _multi_head,
    **dict.fromkeys(("GroupQueryAttention", "GroupedQueryAttention"), _grouped_query),
    **dict.fromkeys(("Attention", "AdditiveAttention"), _plain),
}
