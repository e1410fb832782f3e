"""Powers, roots, logarithms, and variances, which are mostly parts of norms."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from torch import fx

from export.graph.operations.any_layout import image_axis_of, refused, several_of, with_last
from export.graph.operations.attention import over_axes
from export.graph.record import module_path
from export.graph.tracer import Converter, NoKerasCounterpart, SumOfSquares, Tracer, name_of, shape_of

# Of maps and vectors --------------------------------------------------------------------------------------------------


def _power(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    value, exponent = given["self"], given.get("exponent", 2)
    constant = tracer.constant(exponent)
    exponent = None if constant is None or constant.size != 1 else float(constant.reshape(-1)[0])
    if exponent == 2:
        tracer.emit(operation, "multiply", [value, value])
    elif exponent == 3:
        tracer.emit(operation, "cube", [value])
    elif exponent == -0.5:
        _inverse_root(tracer, operation, given)
    elif exponent == 0.5:
        _root(tracer, operation, given)
    else:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"with exponent {exponent}")


def _root(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """The square root of a mean of squares, where nothing but a division reads it, see `_divide`."""
    if not all(name_of(user).rstrip("_") == "aten.div" and user.args[1] is operation for user in operation.users):
        raise NoKerasCounterpart(name_of(operation), module_path(operation), "that is read by something else")
    tracer.roots[operation.name] = _mean_of_squares(tracer, operation, given)


def _inverse_root(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    of, attributes = _mean_of_squares(tracer, operation, given)
    tracer.emit(operation, "inverse_rms", [of], attributes)


def _mean_of_squares(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> tuple[fx.Node, dict[str, Any]]:
    of, attributes = tracer.mean_squares.get(given["self"].name, (None, {}))
    if of is None or not attributes["epsilon"] > 0:
        why = "of something other than a mean of squares over the channels, or a variance, and a positive number"
        raise NoKerasCounterpart(name_of(operation), module_path(operation), why)
    return of, attributes


def _variance(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Nothing but a root may read it."""
    dims = given["dim"] if isinstance(given["dim"], list | tuple) else [given["dim"]]
    source = given["self"]
    rank = len(shape_of(source))
    channels = 1 if rank == 1 or not tracer.is_channels_last(source) else rank
    if [axis % (rank + 1) for axis in dims] != [channels] or not given["keepdim"]:
        raise NoKerasCounterpart(name_of(operation), module_path(operation), f"over dimensions {given['dim']}")
    count = shape_of(source)[channels - 1]
    correction = given["correction"] if given.get("correction") is not None else int(given.get("unbiased", True))
    factor = count / (count - correction)
    tracer.mean_squares[operation.name] = (source, {"centred": True, "factor": factor, "epsilon": 0.0})


CONVERTERS: dict[str, Converter] = {
    "aten.pow": _power,
    "aten.square": _power,
    "aten.sqrt": _root,
    "aten.rsqrt": _inverse_root,
    "aten.var": _variance,
}

# Of any values --------------------------------------------------------------------------------------------------------


def noting_squares(convert: Converter) -> Converter:
    """A converter of sums and means that notes sums of squares, and of what such are multiplied by and added to."""

    def noting(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
        convert(tracer, operation, given)
        value, other = given["self"], given.get("other")
        if isinstance(value, fx.Node) and value.name in tracer.squares and isinstance(other, int | float):
            _note_number(tracer, operation, tracer.squares[value.name], float(other))
        elif "dim" in given and given["dim"] not in (None, []):
            _note_sum(tracer, operation, value, several_of(given["dim"]), bool(given["keepdim"]))

    return noting


def _note_number(tracer: Tracer, operation: fx.Node, squares: SumOfSquares, number: float) -> None:
    name = name_of(operation).rstrip("_")
    if name == "aten.add" and number >= 0:
        squares = replace(squares, epsilon=squares.epsilon + number)
    elif name in ("aten.mul", "aten.div") and number > 0:
        factor = number if name == "aten.mul" else 1.0 / number
        squares = replace(squares, factor=squares.factor * factor, epsilon=squares.epsilon * factor)
    else:
        return
    tracer.squares[operation.name] = squares


def _note_sum(tracer: Tracer, operation: fx.Node, value: fx.Node, dims: list[int], keepdim: bool) -> None:
    squared = value.args[0] if value.op == "call_function" and value.args else None
    node = tracer.nodes[tracer.input_name(value)]
    if (
        not isinstance(squared, fx.Node)
        or node.op != "multiply"
        or set(node.inputs) != {tracer.node_of.get(squared.name)}
    ):
        return
    shape = value.meta["shape"]
    dims = [dim % len(shape) for dim in dims]
    factor = 1.0 if name_of(operation) == "aten.sum" else 1.0 / prod(shape[dim] for dim in dims)
    tracer.squares[operation.name] = SumOfSquares(squared, tuple(dims), keepdim, factor)


def _any_power(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Of a sum of squares a root is what a LayerNormalization divides by; any other power goes by the logarithm."""
    name, value = name_of(operation).rstrip("_"), given["self"]
    exponent = {"aten.sqrt": 0.5, "aten.rsqrt": -0.5}.get(name, given.get("exponent"))
    if not isinstance(value, fx.Node) or not isinstance(exponent, int | float):
        raise refused(operation, f"with exponent {exponent}")
    if exponent in (2, 3):  # of any sign
        _power(tracer, operation, given)
        return
    squares, inverse = tracer.squares.get(value.name), exponent == -0.5
    if squares is not None and exponent in (0.5, -0.5) and (squares.epsilon > 0 or not inverse):
        attributes = {"factor": squares.factor, "epsilon": squares.epsilon, "inverse": inverse}
        over_axes(tracer, operation, squares.of, squares.dims, squares.keepdim, "root_of_squares", **attributes)
    else:
        tracer.emit(operation, "power", [value], {"exponent": float(exponent)})


def _logarithm(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    tracer.emit(operation, "logarithm", [given["self"]])


def _log_softmax(tracer: Tracer, operation: fx.Node, given: dict[str, Any]) -> None:
    """Of a vector; of other values it is recorded in steps."""
    value = given["self"]
    node, layout = with_last(tracer, value, image_axis_of(tracer, operation, value, given["dim"]))
    tracer.add(operation, "log_softmax", [node], layout)


ANY_LAYOUT: dict[str, Converter] = {
    "aten.log_softmax": _log_softmax,
    **dict.fromkeys(("aten.sqrt", "aten.rsqrt", "aten.pow"), _any_power),
    "aten.log": _logarithm,
}
