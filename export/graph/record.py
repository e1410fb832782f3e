"""What a network computes in one forward pass, operation by operation, as a `torch.fx` graph.

The network runs as it always does, in inference mode, on real images. `torch.inference_mode` leaves convolutions,
norms and linear layers whole, and a `TorchDispatchMode` sees each operation that reaches torch with its tensors. What
Python does with shapes is over by then. What Python does with *values* would be invisible, so it is refused.
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from export.graph.changed_parts import box_in, joined_around
from export.graph.simpler import table
from export.graph.simpler.products import NotRecorded
from models.bad_input import BadInput
from models.cores import one_thread


class NotTraced(BadInput):
    """The network raises an exception, or what it computes depends on more than its operations."""

    def __init__(self, network: nn.Module, image_size: tuple[int, int], error: Exception) -> None:
        self.reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        name, module = getattr(network, "backbone_name", type(network).__name__), _raised_in(network, error)
        super().__init__(
            f"expected a network whose operations can be recorded, got {name} at {image_size[0]}x{image_size[1]} "
            f"pixels, where module {module or '(root)'!r} raises {type(error).__name__}: {self.reason}. "
            + _advice(error)
        )


def _advice(error: Exception) -> str:
    first = (
        "Write that part of its forward in torch's operations on whole tensors, or take another backbone, such as "
        "those in docs/families.md"
        if isinstance(error, NotRecorded)
        else "If its layers are made for images of another size, give the size that it was trained at (image_size, on "
        "the command line --image_size HEIGHT,WIDTH); otherwise mend what it raises"
    )
    others = "for other networks torch.onnx.export followed by onnx2tf gives a SavedModel or TFLite file"
    return f"{first}; {others}, without the proof."


def _raised_in(network: nn.Module, error: Exception) -> str:
    """Path of the innermost module whose forward raised the exception; empty for the root."""
    path_of = {id(module): path for path, module in network.named_modules()}
    owners = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((path_of[owner] for owner in reversed(owners) if owner in path_of), "")


@dataclass(frozen=True)
class Recording:
    """One forward pass.

    Attributes:
        graph: its operations in order, without those whose result nothing reads. Tensors of the state dict are
            ``get_attr`` nodes with the tensor's name as target, constants are ``get_attr`` nodes with the tensor in
            ``meta["constant"]``. Each node has the shape of its value, batch included, in ``meta["shape"]``, the path
            of the module that computed it in ``meta["path"]``, and ``meta["computed"]``: whether the image is part of
            it. The results of an operation that has several are ``getitem`` nodes.
        state: the network's state dict.
        output: what the network gave, (B, C).
        values: names of operations that were asked for -> the values at that moment.
    """

    graph: fx.Graph
    state: dict[str, Tensor]
    output: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)


def record(
    network: nn.Module,
    image_size: tuple[int, int],
    images: Tensor | None = None,
    keep: Collection[str] = (),
    given: Mapping[str, Tensor] | None = None,
) -> Recording:
    """Run a network once in inference mode and record what it computes.

    Args:
        network: takes float (B, 3, H, W) and gives (B, C); it is put into eval mode.
        image_size: (height, width) in pixels.
        images: what it is run on, (B, 3, H, W), B at least 2, in the network's own type; zeros if not given. A batch of
            one would not show whether images are mixed.
        keep: names of operations whose values are wanted.
        given: names of operations on weights alone -> what the network goes on with in place of their results.

    Raises:
        NotTraced: the network raised an exception, or it does something that no graph of operations can state: a
            branch, number or array made from the image's values, a weight that is changed, several outputs.
    """
    if images is None:
        parameter = next(network.parameters(), torch.zeros(()))
        images = torch.zeros((2, 3, *image_size), dtype=parameter.dtype, device=parameter.device)
    network.train().eval()  # leaving training mode, LeViT and its like forget what they have computed from weights
    recorder = _Recorder(network, keep, given or {})
    try:
        with torch.inference_mode(), one_thread():
            # an inference tensor even where the images are not: only of such are composite operations left whole
            images = images.clone()
            recorder.begin(images)
            with recorder.paths(network), _without_fused_attention(), recorder:
                output = network(images)
            return recorder.recording(output, len(images))
    except Exception as error:  # from the network, which may raise anything, or from the recorder
        raise NotTraced(network, image_size, error) from error


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """In inference, torch's own attention and encoder layers are one operation each, unless they are told otherwise."""
    usual = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(usual)


def view_of_changed_value(changed: Any) -> Any:
    """Stand in the graph for a value that shares memory with another, which was then changed in place."""
    raise NotImplementedError


# They have a result, or none, only so that Python can read the memory: `numpy`, `tolist`.
_READ_BY_PYTHON = ("aten.resolve_conj", "aten.resolve_neg")

# Their result depends on their argument's shape alone.
_OF_SHAPE = frozenset(f"aten.{name}" for name in ("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like",
                                                  "ones_like", "full_like", "empty_like"))  # fmt: skip

# What Python is told by them is a type.
_TYPES = ("aten.result_type", "aten.promote_types", "aten.can_cast")

_CASTS = ("aten.to", "aten._to_copy")


def _not_narrower(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else dtype


class _Recorder(TorchDispatchMode):
    """Knows for each living tensor which node of the graph computes it."""

    def __init__(self, network: nn.Module, keep: Collection[str], given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph, self.keep, self.given = fx.Graph(), frozenset(keep), given
        self.values: dict[str, Tensor] = {}
        self.state = network.state_dict(keep_vars=True)  # the tensors themselves, not copies that are other objects
        self.name_of = {id(tensor): name for name, tensor in reversed(self.state.items())}
        self.weight_memory = {_memory(tensor) for tensor in self.state.values()} - {0}
        self.node_of = WeakTensorKeyDictionary()
        self.weight_nodes: dict[str, fx.Node] = {}
        self.path: list[str] = [""]
        self.exact = False
        self.refused: NotRecorded | None = None  # kept, because a network may catch the exception

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and skipping would import all of torch._dynamo first

    def begin(self, images: Tensor) -> None:
        self.exact = images.dtype == torch.float64
        node = self.graph.placeholder("image")
        node.meta = {"shape": tuple(images.shape), "dtype": images.dtype, "path": "", "computed": True}
        self.node_of[images] = node

    @contextmanager
    def paths(self, network: nn.Module) -> Iterator[None]:
        """Follow which module is running."""
        path_of = {id(module): path for path, module in network.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self.path.append(path_of.get(id(module), self.path[-1]))

        def leave(module: nn.Module, *_: Any) -> None:
            self.path.pop()

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def recording(self, output: Any, batch: int) -> Recording:
        if self.refused:
            raise self.refused
        if not isinstance(output, Tensor):
            raise NotRecorded(f"it gives a {type(output).__name__}, not one tensor (images, classes)")
        node = self.read(output)
        if output.dim() != 2 or len(output) != batch:
            raise NotRecorded(f"it gives shape {tuple(output.shape)} for {batch} images, not (images, classes)")
        if not node.meta["computed"]:
            raise NotRecorded("what it gives does not depend on the image")
        self.graph.output(node)
        for each in reversed(list(self.graph.nodes)):
            if each.op in ("call_function", "get_attr") and not each.users:
                self.graph.erase_node(each)
        constants = {each.name: each.meta["constant"] for each in self.graph.nodes if "constant" in each.meta}
        values = self.values | {name: value for name, value in constants.items() if name in self.keep}
        return Recording(self.graph, dict(self.state), output, values)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._run(func, args, kwargs or {})
        except NotRecorded as error:
            self.refused = self.refused or error
            raise

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operation_name(func)
        in_steps = self._in_steps(func, name, args, kwargs)
        if in_steps is not NotImplemented:
            return in_steps
        if self.exact and name in _CASTS:  # `x.float()` is there to leave half precision, not float64
            args, kwargs = tree_map_only(torch.dtype, _not_narrower, (args, kwargs))
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(each, torch.UntypedStorage) for each in leaves):
            raise NotRecorded(f"{name} works on the memory of a tensor")
        given = [each for each in leaves if isinstance(each, Tensor)]
        nodes = [self.read(tensor) for tensor in given]
        computed = any(node.meta["computed"] for node in nodes)
        if name in _OF_SHAPE:
            computed, nodes = False, []
        elif name == "aten.copy_":  # what was there is gone
            computed, nodes = nodes[1].meta["computed"], nodes[1:]
        # the result of an operation on constants alone is one, but not if it is random
        constant = not computed and all("constant" in node.meta for node in nodes)
        if constant and torch.Tag.nondeterministic_seeded in func.tags:
            computed, constant = True, False
        if computed and name in _READ_BY_PYTHON:
            raise NotRecorded("Python reads values that depend on the image (numpy, tolist)")
        # nodes first: the operation may change what its arguments are
        node_args, node_kwargs = tree_map_only(Tensor, self.read, (args, kwargs))
        changed = _changed(func, args, kwargs)
        aliases = self._before_change(changed, name) if torch.Tag.inplace_view not in func.tags else []
        in_float32 = constant and self.exact and not changed and not _is_view(func)
        result = _in_float32(func, args, kwargs) if in_float32 else func(*args, **kwargs)
        results = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if not results and not changed:
            if computed and result is not None and name not in _TYPES:
                raise NotRecorded(f"{name} makes a Python {type(result).__name__} of values that depend on the image")
            return result
        if constant:
            for tensor in [*results, *changed]:
                self.node_of[tensor] = self._constant(tensor)
            for tensor, same in aliases:
                self.node_of[tensor] = self._changed_alias(tensor, same, changed)
            return result
        if not computed and name == "aten.copy_":
            self.node_of[changed[0]] = nodes[0]
            for tensor, same in aliases:
                self.node_of[tensor] = self._changed_alias(tensor, same, changed)
            return result
        node = self.graph.create_node("call_function", func, node_args, node_kwargs, name=name.rpartition(".")[2])
        node.meta = self._meta(results[0] if results else changed[0], computed)
        if changed:
            if node.name in self.given:
                changed[0].copy_(self._given(node, changed[0]))
            return self._after_change(node, changed, aliases, result)
        if isinstance(result, Tensor):
            result = self._given(node, result)
            # Inference's dropout gives its input back. Other readers of the input must not read the dropout.
            node.meta["unchanged"] = any(result is each for each in given)
            result = torch.ops.aten.alias.default(result) if node.meta["unchanged"] else result
            self._set(result, node)
            return result
        parts = []
        node.meta["results"] = [tuple(part.shape) for part in results]
        if node.name in self.keep:
            self.values[node.name] = results[0].clone()
        for index, part in enumerate(result):
            if isinstance(part, Tensor):
                taken = self.graph.call_function(operator.getitem, (node, index))
                taken.meta = self._meta(part, computed)
                part = self._given(taken, part)
                part = torch.ops.aten.alias.default(part) if any(part is each for each in given) else part
                self._set(part, taken)
            parts.append(part)
        return type(result)(parts) if type(result) in (list, tuple) else result

    def _in_steps(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation as several simpler ones, each of which is recorded; `NotImplemented`: as it is."""
        plain = name if name.endswith("__") else name.rstrip("_")  # `__and__` is not in place
        steps = table.ALWAYS.get(name)
        if steps is None and plain not in table.KNOWN:
            return NotImplemented
        names = [argument.name for argument in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | kwargs
        if steps is None:
            of_images = [
                self.read(each).meta["computed"] for each in tree_leaves(arguments) if isinstance(each, Tensor)
            ]
            if not any(of_images):
                return NotImplemented
            steps = table.OF_IMAGES.get(plain)
            if plain in table.BY_WEIGHTS and not all(of_images):
                constants = plain in table.BY_CONSTANTS
                weights = {key for key, each in arguments.items() if self._is_weight(each, constants)}
                steps = partial(table.BY_WEIGHTS[plain], weights) if weights else steps
        with self:
            if plain in table.TAKEN_APART:
                usual = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)  # it has recurrent layers of its own, for float32 alone
                try:
                    return func.decompose(*args, **kwargs)
                finally:
                    torch._C._set_mkldnn_enabled(usual)
            result = NotImplemented if steps is None else steps(**arguments)
            if result is not NotImplemented and plain != name:
                return args[0].copy_(result)
            return result

    def _is_weight(self, value: Any, or_constant: bool) -> bool:
        """Whether an argument is a tensor that does not depend on the images."""
        if not isinstance(value, Tensor):
            return False
        meta = self.read(value).meta
        return not meta["computed"] and (or_constant or "constant" not in meta)

    def _given(self, node: fx.Node, result: Tensor) -> Tensor:
        """What the network goes on with; one image's part is given where the result has one for each image."""
        given = self.given.get(node.name, result)
        if given.shape != result.shape and given.dim() == result.dim():
            given = given.repeat([whole // one for whole, one in zip(result.shape, given.shape, strict=True)])
        return given

    def read(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor; one that no operation has made is a weight or a constant."""
        node = self.node_of.get(tensor)
        if node is not None:
            return node
        name = self.name_of.get(id(tensor))
        if name is not None:
            if name not in self.weight_nodes:
                self.weight_nodes[name] = self._attribute(name, tensor)
            return self.weight_nodes[name]
        memory = _memory(tensor)
        computed = {_memory(each) for each, node in self.node_of.items() if "constant" not in node.meta}
        if memory and memory in self.weight_memory | computed:
            raise NotRecorded("a tensor shares the memory of a weight or a computed value, and no operation made it")
        self.node_of[tensor] = node = self._constant(tensor)
        return node

    def _set(self, tensor: Tensor, node: fx.Node) -> None:
        self.node_of[tensor] = node
        if node.name in self.keep:
            self.values[node.name] = tensor.clone()  # the next operation may change it in place

    def _meta(self, tensor: Tensor, computed: bool) -> dict[str, Any]:
        return {"shape": tuple(tensor.shape), "dtype": tensor.dtype, "path": self.path[-1], "computed": computed}

    def _attribute(self, target: str, tensor: Tensor) -> fx.Node:
        node = self.graph.create_node("get_attr", target, name="attribute")
        node.meta = self._meta(tensor, computed=False)
        return node

    def _constant(self, tensor: Tensor) -> fx.Node:
        node = self._attribute("constant", tensor)
        node.meta["constant"] = tensor
        return node

    def _before_change(self, changed: list[Tensor], name: str) -> list[tuple[Tensor, bool]]:
        """Other living tensors that the change of these will change, and whether they are the very same numbers."""
        aliases: list[tuple[Tensor, bool]] = []
        for target in changed:
            if _memory(target) in self.weight_memory:
                raise NotRecorded(f"{name} changes a weight while the network runs")
            for tensor, node in list(self.node_of.items()):
                if tensor is not target and _share_memory(tensor, target):
                    aliases.append((tensor, _geometry(tensor) == _geometry(target)))
                    self._freeze(node)
            self._freeze(self.read(target))
        return aliases

    def _freeze(self, node: fx.Node) -> None:
        """Keep the number that a constant had where it was read before its change."""
        if "constant" in node.meta:
            node.meta["constant"] = node.meta["constant"].clone()

    def _after_change(
        self, node: fx.Node, changed: list[Tensor], aliases: list[tuple[Tensor, bool]], result: Any
    ) -> Any:
        if len(changed) == 1:
            self._set(changed[0], node)
        else:
            for tensor in changed:
                self.node_of[tensor] = self._stale(tensor, node)
        for tensor, same in aliases:
            self.node_of[tensor] = self._changed_alias(tensor, same, changed)
        return result

    def _changed_alias(self, tensor: Tensor, same: bool, changed: list[Tensor]) -> fx.Node:
        """The node of a tensor after the change of one that it shares memory with."""
        part, whole = self.node_of[changed[0]], self.node_of[tensor]
        if len(changed) > 1:
            return self._stale(tensor, part)
        if same:
            return part
        if "constant" in part.meta and "constant" in whole.meta:
            return self._constant(tensor)
        if not part.meta["computed"] and not whole.meta["computed"]:
            if not tensor.is_contiguous():
                return self._stale(tensor, part)
            # of weights and constants the change of a part is one of the whole
            place = (changed[0].shape, changed[0].stride(), changed[0].storage_offset() - tensor.storage_offset())
            scatter = torch.ops.aten.as_strided_scatter.default
            node = self.graph.call_function(scatter, (whole, part, *map(_plain, place)))
            node.meta = self._meta(tensor, computed=False)
            return node
        box = box_in(tensor, changed[0])
        if box is None:
            return self._stale(tensor, part)
        with self:
            return self.read(joined_around(tensor, changed[0].reshape([stop - start for start, stop in box]), box))

    def _stale(self, tensor: Tensor, node: fx.Node) -> fx.Node:
        stale = self.graph.call_function(view_of_changed_value, (node,))
        stale.meta = self._meta(tensor, computed=True)
        return stale


def _is_view(func: Any) -> bool:
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _in_float32(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A constant as a network in float32 makes it, since the Keras file has that; in float64, which holds it."""

    def narrow(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.dtype == torch.float64 else value
        return torch.float32 if value == torch.float64 else value

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        args, kwargs = tree_map_only((Tensor, torch.dtype), narrow, (args, kwargs))
        result = func(*args, **kwargs)
    finally:
        torch.set_default_dtype(usual)
    return tree_map_only(Tensor, lambda each: each.double() if each.dtype == torch.float32 else each, result)


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to: the one before its underscore, or those named ``out``."""
    changed: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            changed += [each for each in tree_leaves(value) if isinstance(each, Tensor)]
    return changed


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _memory(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 if it has none. Of the meta device's, which have no numbers, the object."""
    if tensor.layout != torch.strided:
        return 0
    storage = tensor.untyped_storage()
    return storage._cdata if tensor.is_meta else storage.data_ptr()


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have a number in common; the parts of a split have the same storage, but none in common."""
    if not _memory(one) or _memory(one) != _memory(other):
        return False
    if one.dtype != other.dtype:
        return True
    marks = torch.zeros(one.untyped_storage().nbytes() // one.element_size(), dtype=torch.bool, device="cpu")
    marks.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def operation_name(target: Any) -> str:
    """``aten.add_`` for ``aten.add_.Tensor``; ``getitem`` for one of the results of an operation that has several."""
    return "getitem" if target is operator.getitem else ".".join(str(target).split(".")[:2])


def module_path(operation: fx.Node) -> str:
    """Path of the module whose forward ran a recorded operation; empty for the root."""
    return operation.meta["path"]
