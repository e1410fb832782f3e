"""Batch and layer normalisation."""

from __future__ import annotations

from typing import Any

from torch import fx

from export.graph.record import module_path
from export.graph.tracer import (
    Converter,
    NoKerasCounterpart,
    Tracer,
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
    source = given["input"]
    over_channels = len(given["normalized_shape"]) == 1 and (
        tracer.is_channels_last(source) or len(shape_of(source)) == 1
    )
    if not over_channels:
        raise NoKerasCounterpart("aten.layer_norm", module_path(operation), "only over the channels")
    weights = {"gamma": given["weight"], "beta": given["bias"]}
    tracer.emit(operation, "layer_norm", [source], {"epsilon": float(given["eps"])}, weights)


CONVERTERS: dict[str, Converter] = {
    "aten.batch_norm": _batch_norm,
    "aten.layer_norm": _layer_norm,
}
