"""Batch and layer normalisation."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
    name_of,
    shape_of,
)


def _batch_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    if given["training"]:
        raise NoKerasCounterpart("aten.batch_norm", module_path(operation), "by the statistics of the batch")
    tracer.emit(
        operation,
        "batch_norm",
        [given["input"]],
        # torch's momentum is the weight of the new value, Keras's momentum is that of the old one
        {"epsilon": float(given["eps"]), "momentum": 1.0 - float(given["momentum"])},
        {
            "gamma": given["weight"],
            "beta": given["bias"],
            "moving_mean": given["running_mean"],
            "moving_variance": given["running_var"],
        },
    )


def _layer_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source, normalised = given["input"], tuple(given["normalized_shape"])
    weights = {"gamma": given["weight"], "beta": given["bias"]}
    attributes = {"epsilon": float(given["eps"])}
    if len(normalised) == 1 and (tracer.is_channels_last(source) or len(shape_of(source)) == 1):
        tracer.emit(operation, "layer_norm", [source], attributes, weights)
    elif normalised == shape_of(source) and not tracer.is_channels_last(source):
        tracer.emit(operation, "map_norm", [source], attributes, weights)
    else:
        why = f"over {list(normalised)} of {list(shape_of(source))}, neither the channels nor the whole map"
        raise NoKerasCounterpart("aten.layer_norm", module_path(operation), why)


def _group_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    _emit_group_norm(tracer, operation, given, int(given["num_groups"]))


def _emit_group_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any], groups: int) -> None:
    source = given["input"]
    tracer.as_map(source)
    if given["weight"] is None and given["bias"] is not None:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), "with a bias alone")
    if len(shape_of(source)) not in (1, 3):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"of shape {shape_of(source)}")
    attributes = {"groups": groups, "epsilon": float(given["eps"])}
    tracer.emit(operation, "group_norm", [source], attributes, {"gamma": given["weight"], "beta": given["bias"]})


def _instance_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Each channel is a group; in inference with statistics of its own it is a BatchNorm."""
    if given["use_input_stats"]:
        _emit_group_norm(tracer, operation, given, shape_of(given["input"])[0])
    else:
        _batch_norm(tracer, operation, {**given, "training": False})


def _rms_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    source = given["input"]
    over_channels = tracer.is_channels_last(source) or len(shape_of(source)) == 1
    if len(given["normalized_shape"]) != 1 or not over_channels or given["eps"] is None:
        why = "other than over the channels, with an epsilon"  # without one it is the type's own
        raise NoKerasCounterpart("aten.rms_norm", module_path(operation), why)
    tracer.emit(operation, "rms_norm", [source], {"epsilon": float(given["eps"])}, {"gamma": given["weight"]})


def _places_norm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """As in a global response norm; of other norms than that of all places, see `tokens.py`."""
    source, rank = given["self"], len(shape_of(given["self"]))
    places = [1, 2] if tracer.is_channels_last(source) else [2, 3]
    dims = given["dim"] if isinstance(given["dim"], list | tuple) else [given["dim"]]
    if rank != 3 or sorted(dim % 4 for dim in dims if dim is not None) != places or not given["keepdim"]:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"over dimensions {given['dim']}")
    if float(given["ord"]) != 2:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"of order {given['ord']}")
    tracer.emit(operation, "places_norm", [source])


CONVERTERS: dict[str, Converter] = {
    "aten.batch_norm": _batch_norm,
    "aten.layer_norm": _layer_norm,
    "aten.group_norm": _group_norm,
    "aten.instance_norm": _instance_norm,
    "aten.rms_norm": _rms_norm,
    "aten.linalg_vector_norm": _places_norm,
}
