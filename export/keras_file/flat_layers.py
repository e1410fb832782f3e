"""The layers of a Keras model, taken out of the models that contain them, each with its own weights.

Keras 2 and Keras 3 write the same network differently: how a layer is called, where the weights of a nested model are.
After this file there is one form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.keras_file.read import COMPOSED, KerasFile
from models.bad_input import BadInput

# Advice for a file that contradicts itself.
DAMAGED = "The file is damaged or was edited: save or export it again."

# Advice for a file that is whole, and has something that is not read here.
AS_IT_IS = (
    "As it is, the Keras that saved the file loads it; what Keras 2 saved, tf_keras mostly does, too (pip install "
    "tf_keras, and TF_USE_LEGACY_KERAS=1)."
)

_MODELS = ("Functional", "Model", "Sequential")
# No classifier that we know has more layers than this; a file that claims more is not read.
_MOST_LAYERS = 5000
_DEEPEST_NESTING = 8


@dataclass(frozen=True)
class Tensor:
    """In a layer's call: the output of another layer.

    Attributes:
        layer: in the file, its name; in a `FlatLayer`, its key.
        place: which of its outputs, if it has several.
    """

    layer: str
    place: int = 0


@dataclass(frozen=True)
class FlatLayer:
    """A layer, taken out of the models that contain it.

    Attributes:
        path: the names of the models that contain it (except the outermost, the file's own), then its own name.
        class_name: Keras's.
        config: its constructor's arguments; ``trainable`` is False as well if a model around it is frozen.
        inputs: keys of the layers that it reads.
        arguments: what it is called with, in order: `Tensor`, or a constant.
        options: the same by name.
        calls: how often the layer is called; each call is a `FlatLayer`, and the first one has the layer's name.
    """

    path: tuple[str, ...]
    class_name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None
    calls: int = 1

    @property
    def key(self) -> str:
        """The path as one string, unique in the file."""
        return "/".join(self.path)

    def is_bare(self, generation: int) -> bool:
        """Whether it is an operation between layers in Keras 3, which has no type; before 2.3 no layer stated one."""
        return generation == 3 and "dtype" not in self.config


@dataclass(frozen=True)
class _Call:
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What is read, in order."""
        return [each for each in (*self.arguments, *(self.options or {}).values()) if isinstance(each, Tensor)]

    @property
    def reads(self) -> list[str]:
        """Names of the layers that are read, in order."""
        return [each.layer for each in self.tensors]


def flatten(model: dict[str, Any]) -> tuple[dict[str, FlatLayer], dict[tuple[str, ...], str | None]]:
    """All layers by key, in the order of computation, and what each nested model is fed.

    Raises:
        BadInput: the model is none with one input and one output, or a layer is called twice.
    """
    flattener = _Flattener()
    if model["class_name"] not in _MODELS:
        raise BadInput(
            f"expected a Functional or Sequential model, got {model['class_name']}, a class of its own: the file holds "
            "its settings, but not what it computes, which is in its author's code. With that code at hand: photo = "
            "keras.Input((height, width, 3)), keras.Model(photo, model.call(photo)).save(NEW)."
        )
    flattener.add_model(model["config"], (), None, model["class_name"], True)
    return flattener.layers, flattener.fed_by


class _Flattener:
    def __init__(self) -> None:
        self.layers: dict[str, FlatLayer] = {}
        self.fed_by: dict[tuple[str, ...], str | None] = {}
        self.build_shape: Any = None  # of the outermost Sequential, which Keras 2 may state nowhere else

    def add_model(self, config: Any, path: tuple[str, ...], fed: str | None, class_name: str, trainable: bool) -> str:
        """Add a model's layers and return the key of its output; `fed` is the key of its input, None if outermost."""
        given = config if isinstance(config, list) else config["layers"]  # Keras before 2.3 wrote a Sequential's list
        if not path and isinstance(config, dict):
            self.build_shape = config.get("build_input_shape")
        trainable = trainable and (isinstance(config, list) or config.get("trainable") is not False)
        if len(path) > _DEEPEST_NESTING or len(given) + len(self.layers) > _MOST_LAYERS:
            raise BadInput(
                f"{'/'.join(path)}: expected a classifier, got models nested or layers too many to be one. {AS_IT_IS}"
            )
        repeated_calls = {} if class_name == "Sequential" else _repeated(given)
        layers = {
            _nth(_name(layer), number): (layer, number)
            for layer in given
            for number in range(repeated_calls.get(_name(layer), 1))
        }
        names = [_name(layer) for layer in given]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise BadInput(f"expected each layer's name once in a model, got {', '.join(repeated)} twice. {DAMAGED}")
        if class_name == "Sequential":
            calls = {
                name: _Call(tuple(Tensor(each) for each in names[max(index - 1, 0) : index]))
                for index, name in enumerate(names)
            }
            first, last = names[0], names[-1]
        else:
            calls = {
                name: _inbound(layer, number, "/".join((*path, name)), repeated_calls)
                for name, (layer, number) in layers.items()
            }
            first, last = (_only(config[f"{end}_layers"], end, repeated_calls) for end in ("input", "output"))
        unknown = sorted({name for call in calls.values() for name in call.reads} - set(layers))
        if unknown or first not in layers or last not in layers:
            raise BadInput(
                f"expected layers that read layers of the same model, got {', '.join(unknown) or first}. {DAMAGED}"
            )
        output: dict[str, str] = {}  # layer name -> key of what computes its output
        order = _ordered({name: call.reads for name, call in calls.items()}, last)
        for name in order:
            layer, _ = layers[name]
            output[name] = self._add(
                layer,
                (*path, name),
                calls[name],
                output,
                fed if name == first else None,
                trainable,
                repeated_calls.get(_name(layer), 1),
            )
        unread = [name for name in layers if name not in order]
        if unread:
            raise BadInput(
                f"expected every layer on the way from the input to the predictions, got {unread[0]!r} aside of it. "
                "Save keras.Model(model.inputs[0], model.outputs[0]), which leaves it out."
            )
        return output[last]

    def _add(
        self,
        layer: dict[str, Any],
        path: tuple[str, ...],
        call: _Call,
        output: dict[str, str],
        fed: str | None,
        trainable: bool,
        count: int,
    ) -> str:
        key, kind = "/".join(path), layer["class_name"]
        inputs = [output_key(output[each.layer], each.place) for each in call.tensors]
        if kind in _MODELS:
            inside = inputs[0] if inputs else fed
            if len(inputs) > 1:
                raise BadInput(f"{key}: expected a nested model with one input, got {len(inputs)}. {AS_IT_IS}")
            self.fed_by[path] = inside
            return self.add_model(layer["config"], path, inside, kind, trainable)
        if kind == "InputLayer" and fed is not None:
            return fed  # the input of a nested model is whatever it is called with
        if not inputs and fed is not None:
            inputs = [fed]  # a nested Sequential without an InputLayer
            call = _Call((Tensor(""),), call.options)
        keys = iter(inputs)
        arguments, options = (
            [Tensor(next(keys)) if isinstance(each, Tensor) else each for each in several]
            for several in (call.arguments, (call.options or {}).values())
        )
        config = layer["config"] if trainable else {**layer["config"], "trainable": False}
        named = dict(zip(call.options or {}, options, strict=True))
        if kind != "InputLayer" and not inputs:
            # a Sequential without an InputLayer: its first layer states the shape
            shape = (
                config.get("batch_input_shape")
                or (layer.get("build_config") or {}).get("input_shape")
                or self.build_shape
            )
            source = FlatLayer((*path[:-1], f"{path[-1]}_input"), "InputLayer", {"batch_input_shape": shape}, ())
            self.layers[source.key] = source
            inputs, arguments = [source.key], [Tensor(source.key)]
        self.layers[key] = FlatLayer(path, kind, config, tuple(inputs), tuple(arguments), named, count)
        return key


def _name(layer: dict[str, Any]) -> str:
    name = layer.get("name") or layer["config"]["name"]
    if not isinstance(name, str):
        raise BadInput(f"expected layers with names, got {str(name)[:40]!r}. {DAMAGED}")
    return name


def _repeated(given: list[dict[str, Any]]) -> dict[str, int]:
    """Layers that are called more than once -> how often. Of a model, not every Keras counts the calls from 0."""
    several = {}
    for layer in given:
        count = len(layer.get("inbound_nodes") or [])
        if count > 1 and layer["class_name"] in _MODELS:
            raise shared_weights(_name(layer), count)
        if count > 1:
            several[_name(layer)] = count
    return several


def _nth(name: str, number: int) -> str:
    return name if number == 0 else f"{name}_call_{number + 1}"


def shared_weights(key: str, count: int) -> BadInput:
    """Of a layer with weights that is called more than once."""
    return BadInput(
        f"{key}: expected a layer that is called once, got {count} calls: a layer whose weights are shared "
        "between two places has no counterpart here. In the code that builds the model, give each place a layer of its "
        "own, and the copies the same weights (copy.set_weights(old.get_layer(NAME).get_weights())): it predicts the "
        "same; trained further, they go apart."
    )


def _only(ends: Any, what: str, repeated: dict[str, int]) -> str:
    """The single name in ``[["x", 0, 0]]`` (Keras 2) or ``["x", 0, 0]`` (Keras 3)."""
    if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
        ends = ends[0]
    if not (isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str) and not ends[2]):
        remedy = "Save keras.Model(model.inputs[0], model.outputs[NUMBER]): a file for each output that you need."
        raise BadInput(
            f"expected a model with one {what}, got {str(ends)[:80]}: only classifiers of one photo fit here. "
            f"{remedy if what == 'output' else AS_IT_IS}"
        )
    return _tensor(ends, repeated).layer


def output_key(layer: str, place: int) -> str:
    """Key of an output of a layer: of the first one, or the only one, the layer's."""
    return f"{layer}:{place}" if place else layer


def _inbound(layer: dict[str, Any], number: int, name: str, repeated: dict[str, int]) -> _Call:
    """What a layer is called with, the number-th time; Keras 2 and Keras 3 store it differently."""
    calls = layer.get("inbound_nodes") or []
    if not calls:
        return _Call()
    call = calls[number]
    arguments: list[Any]
    if isinstance(call, dict):
        arguments = _spread([_value(each, repeated) for each in call.get("args") or []])
        options = {key: _value(each, repeated) for key, each in (call.get("kwargs") or {}).items()}
    else:
        each_input = call if call and isinstance(call[0], list) else [call]
        # ["_CONSTANT_VALUE", -1, 127.5, {...}] is a number in the first place
        arguments = [each[2] if each[0] == "_CONSTANT_VALUE" else _tensor(each, repeated) for each in each_input]
        options = {
            key: _tensor(value, repeated) if _is_history(value) else value
            for each in each_input
            for options in each[3:]
            for key, value in options.items()
        }
    # Keras 3's predict overrules it, and its layers that change photos note it by themselves
    if options.get("training") is True and not isinstance(call, dict):
        raise BadInput(
            f"{name}: expected a layer that predicts when a photo is classified, got one called with training=True: "
            "what it gives is left to chance, or to the other photos of the batch. Leave training=True out in the code "
            "that builds the model, then model.load_weights(OLD) and model.save(NEW): it gives what is usual."
        )
    return _Call(tuple(arguments), options)


def _tensor(history: list[Any], repeated: dict[str, int]) -> Tensor:
    """From [name, which call of it, which of its outputs]."""
    return Tensor(_nth(history[0], history[1]) if history[0] in repeated else history[0], history[2])


def _value(argument: Any, repeated: dict[str, int]) -> Any:
    if isinstance(argument, dict) and argument.get("class_name") == "__keras_tensor__":
        return _tensor(argument["config"]["keras_history"], repeated)
    return [_value(each, repeated) for each in argument] if isinstance(argument, list) else argument


def _spread(arguments: list[Any]) -> list[Any]:
    """A merging layer is called with a list of tensors: here, with the tensors."""
    return [
        part
        for each in arguments
        for part in (each if isinstance(each, list) and any(isinstance(one, Tensor) for one in each) else [each])
    ]


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and value[1:] != []


def _ordered(reads: dict[str, list[str]], last: str) -> list[str]:
    """Names of the layers that the last one depends on, each after those that it reads."""
    done: dict[str, None] = {}
    open_: set[str] = set()
    stack = [last]
    while stack:
        name = stack[-1]
        waiting = [each for each in reads[name] if each not in done]
        if name in done or not waiting:
            done[name] = None
            open_.discard(name)
            stack.pop()
        elif name in open_:
            raise BadInput(f"{name}: expected layers in one direction, got a circle. {DAMAGED}")
        else:
            open_.add(name)
            stack.extend(waiting)
    return list(done)


# Weights --------------------------------------------------------------------------------------------------------------


def weights_by_layer(file: KerasFile, layers: dict[str, FlatLayer]) -> dict[str, dict[str, np.ndarray]]:
    """Layer key -> role -> array. A nested model's weights are all in one group; their names tell which is whose.

    Keras loads by order and this code by name; if the two ever differed, the comparison with Keras would show it.
    In a `.keras` archive the arrays of a layer have no names: its roles are "0", "1", ... there. Of a layer that
    consists of layers they have the part's before them.
    """
    found: dict[str, dict[str, np.ndarray]] = {key: {} for key in layers}
    for group, arrays in file.weights.items():
        for weight, array in zip(file.weight_names[group], arrays, strict=True):
            parts = weight.partition(":")[0].split("/")
            role = parts[-1]
            if role.startswith(_STATE):
                continue
            key = group if group in layers else _composed_key(layers, group, parts) or _nested_key(layers, group, parts)
            if key is None:  # TensorFlow 1 numbers a name that was in use, as where a model is made again in a notebook
                key = _nested_key(layers, group, [re.sub(r"_\d+$", "", part) for part in parts])
            if key is None and len(parts) > 1:
                key = _key_by_order(layers, group, parts[-2], file.weight_names[group])
            role = {"depthwise_kernel": "kernel"}.get(role, role)
            if key is not None and layers[key].class_name == "SeparableConv2D" and parts[-1] == "depthwise_kernel":
                role = parts[-1]
            if key is not None and layers[key].class_name in COMPOSED:
                role = "/".join(parts[-2:])
            if key is None or role in found[key]:
                what = "belongs to no layer of the architecture" if key is None else "is there twice"
                raise BadInput(
                    f"{group}/{weight}: expected each array to belong to one layer, got one that {what}. {DAMAGED}"
                )
            found[key][role] = array
    return found


# The state of a layer's random numbers: of Dropout, and of the layers that change photos in training.
_STATE = ("seed_generator_state", "StateVar", "rng_state")


def _nested_key(layers: dict[str, FlatLayer], group: str, parts: list[str]) -> str | None:
    owner = f"/{'/'.join(parts[:-1])}"
    inside = [key for key, layer in layers.items() if layer.path[0] == group and owner.endswith(f"/{layer.path[-1]}")]
    # a layer's name may have slashes itself, and end in another's: Conv/BatchNorm and BatchNorm
    longest = max((len(layers[key].path[-1]) for key in inside), default=0)
    inside = [key for key in inside if len(layers[key].path[-1]) == longest]
    if len(inside) > 1:  # two nested models may each have a layer of that name: the models' names tell
        inside = [key for key in inside if list(layers[key].path[-len(parts) + 1 :]) == parts[:-1]] or [
            key for key in inside if set(layers[key].path) <= {group, *parts}
        ]
    return inside[0] if len(inside) == 1 else None


def _composed_key(layers: dict[str, FlatLayer], group: str, parts: list[str]) -> str | None:
    """Of an array whose last name but one is that of a part of a layer."""
    key = _nested_key(layers, group, parts[:-1])
    return key if key is not None and layers[key].class_name in COMPOSED else None


def _key_by_order(layers: dict[str, FlatLayer], group: str, owner: str, weights: list[str]) -> str | None:
    """Of layers with one name in nested models, which is meant where the models' names are not stored.

    Keras 2.2 on TensorFlow 1 calls them conv and conv_1, in the order in which they were made. Their place in the file
    tells: Keras stores the weights that can be trained in the order of the layers, then those that cannot.
    """
    name = re.sub(r"_\d+$", "", owner)
    stored = [weight.partition(":")[0].split("/")[-2] for weight in weights if "/" in weight]
    owners = list(dict.fromkeys(each for each in stored if re.sub(r"_\d+$", "", each) == name))
    inside = [key for key, layer in layers.items() if layer.path[0] == group and layer.path[-1] == name]
    inside.sort(key=lambda key: layers[key].config.get("trainable") is False)
    return inside[owners.index(owner)] if len(owners) == len(inside) else None
