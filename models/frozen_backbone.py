"""A frozen backbone's forward pass without what only training needs: the same features, several times as fast.

The network itself is left alone. What runs is a copy that is in no state dict, no list of parameters and no checkpoint.
"""

import copy
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.bad_input import BadInput
from models.timm_mobilenetv2 import TimmClassifier

FrozenPrecision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "never", "always"]

PIXELS_AT_ONCE = 1 << 18
"""On a CPU a batch goes through the network in parts of about this many pixels (4 photos of 244 x 244). What lies
between two layers then stays in the cache: on 2 cores 102 photos a second in bfloat16, against 56 for 32 at once."""

COMPILE_PAYS_AT = 20_000
"""Photos, over all epochs, from which `compile: auto` compiles on a CPU. Compiling took 25 s and saved 5 ms a photo
(2 cores, 244 x 244), so it is earned back after 5,000; training is often stopped early, hence four times that."""


class FrozenBackbone:
    """Computes `network.features` of a network whose backbone does not change.

    BatchNorm is folded into the convolutions, TensorFlow's SAME padding is made part of the kernels, weights are
    channels-last, and, where wanted, bfloat16 and compiled. Copies are made when first needed, and made anew when the
    network's weights are replaced, changed in place, or moved to another device.

    Args:
        network: stays as it is, and is not held by any list of submodules through this.
        precision: of the fast pass; `auto` is bfloat16 where the processor computes in it, float32 elsewhere.
        compile: `auto` compiles on a CPU that has a C++ compiler at hand, once `expect` has announced enough photos.

    Raises:
        BadInput: a setting is none of its choices.
    """

    def __init__(self, network: TimmClassifier, precision: FrozenPrecision = "auto", compile: Compile = "auto") -> None:
        for name, value, choices in (
            ("frozen_precision", precision, get_args(FrozenPrecision)),
            ("compile", compile, get_args(Compile)),
        ):
            if value not in choices:
                raise BadInput(f"--model.{name}: expected one of {', '.join(choices)}; received {value!r}.")
        self.network = network
        self.precision = precision
        self.compile = compile
        self._compiles = compile == "always"
        self._weights: tuple[Any, ...] = ()
        self._passes: dict[tuple[torch.dtype, int, int], Callable[[Tensor], Tensor]] = {}
        self._rows_at_once: dict[tuple[torch.dtype, int, int], int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the copies out of pickles and deep copies: they are made again, and compiled code cannot travel."""
        return self.__dict__ | {"_weights": (), "_passes": {}, "_rows_at_once": {}}

    def expect(self, photos: float, device: torch.device) -> None:
        """Say how many photos are to come at most, on which `compile: auto` decides."""
        if self.compile == "auto":
            self._passes.clear()
            # On a GPU compiling saves less than a tenth of a millisecond a photo: no common fit earns it back.
            self._compiles = device.type == "cpu" and photos >= COMPILE_PAYS_AT and has_cpp_compiler()

    def features(self, images: Tensor, exact: bool = False) -> Tensor:
        """Pooled features of images, without graph.

        Args:
            images: float32, shape (B, 3, H, W), RGB, 0 to 1.
            exact: compute in float32 whatever the precision; differs from `network.features` by float32's rounding
                alone (about 1e-6 of the features' norm). Without it bfloat16 is used where chosen (about 1e-2).

        Returns:
            float32, shape (B, F).
        """
        weights = fingerprint(self.network)
        if weights != self._weights:
            self._passes.clear()
            self._weights = weights
        dtype = torch.float32 if exact else resolve_precision(self.precision, images.device)
        height, width = images.shape[-2:]
        key = (dtype, height, width)
        # Not inference mode, under which Lightning validates: what is made there could not be used in training.
        with torch.inference_mode(False), torch.no_grad():
            if key not in self._passes:
                self._passes[key] = self._make_pass(dtype, images)
                on_cpu = images.device.type == "cpu"
                self._rows_at_once[key] = max(1, PIXELS_AT_ONCE // (height * width)) if on_cpu else len(images)
            run, rows = self._passes[key], self._rows_at_once[key]
            if not self._compiles:
                return torch.cat([run(part) for part in images.split(rows)])
            # Compiled code is for one shape: the last part is filled up with zeros.
            missing = -len(images) % rows
            filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
            return torch.cat([run(part) for part in filled.split(rows)])[: len(images)]

    def _make_pass(self, dtype: torch.dtype, images: Tensor) -> Callable[[Tensor], Tensor]:
        folded = build_in_padding(fold_batchnorm(self.network.backbone), images[:1])
        frozen = _FrozenPass(copy.deepcopy(self.network.normalise), folded, dtype)
        frozen.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        if not self._compiles:
            return frozen
        # Freezing makes the weights constants: they are laid out for the processor once and not in every pass.
        return _Compiled(frozen, give_up=self.compile == "auto")


class _FrozenPass(nn.Module):
    """Normalisation in float32, the backbone in `dtype`, features in float32 again."""

    def __init__(self, normalise: nn.Module, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalise, self.backbone, self.dtype = normalise, backbone.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        normalised = self.normalise(images).to(self.dtype, memory_format=torch.channels_last)
        return self.backbone(normalised).float()


class _Compiled:
    """A compiled module that, where that is allowed, falls back to the module if it cannot be compiled."""

    def __init__(self, module: nn.Module, give_up: bool) -> None:
        self.module, self.give_up = module, give_up
        self.compiled: Callable[[Tensor], Tensor] | None = torch.compile(
            module, fullgraph=True, dynamic=False, options={"freezing": True}
        )

    def __call__(self, images: Tensor) -> Tensor:
        if self.compiled is not None:
            try:
                return self.compiled(images)
            # A missing header, a full disk, an operation without lowering: whatever it is, speed alone is lost.
            except Exception as error:
                if not self.give_up:
                    raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"the frozen backbone runs without torch.compile: {reason[0]}", stacklevel=2)
                self.compiled = None
        return self.module(images)


def fingerprint(network: nn.Module) -> tuple[tuple[int, int], ...]:
    """Identify the weights: where each is, and how often it was changed in place. Takes 0.1 ms."""
    tensors = [*network.parameters(), *network.buffers()]
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


def resolve_precision(precision: FrozenPrecision, device: torch.device) -> torch.dtype:
    """Choose the fast pass's number format for a device."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bfloat16 is emulated, and slower than float32.
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if gains else torch.float32


def has_cpp_compiler() -> bool:
    """Tell whether torch.compile finds a C++ compiler to make code for the CPU with."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name)


class _Tracer(fx.Tracer):
    """Keeps convolutions and BatchNorm whole, timm's variants of them too."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(module, qualified_name)


def fold_batchnorm(backbone: nn.Module) -> nn.Module:
    """Copy a network in evaluation mode, with every BatchNorm that follows a convolution folded into it.

    `torch.fx.experimental.optimization.fuse` does not see timm's layers, whose BatchNorm carries the activation.

    Args:
        backbone: in evaluation mode; is not changed.

    Returns:
        Copy that computes the same up to float32's rounding. A network that cannot be traced is copied as it is.
    """
    folded = copy.deepcopy(backbone)
    try:
        graph = _Tracer().trace(folded)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return folded  # its forward pass depends on values
    traced = fx.GraphModule(folded, graph)
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def layer_of(node: Any) -> nn.Module | None:
        """Return the layer that a node calls, if nothing else calls it."""
        called_once = isinstance(node, fx.Node) and node.op == "call_module" and calls[node.target] == 1
        return modules.get(str(node.target)) if called_once else None

    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        norm, convolution = layer_of(node), layer_of(before)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(convolution, nn.Conv2d):
            continue
        if norm.running_mean is None or norm.running_var is None:
            continue  # normalises by the batch's own statistics
        convolution.weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.bias = bias
        # What else is in timm's BatchNormAct2d: drop (an identity unless training) and the activation.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        traced.set_submodule(str(node.target), nn.Sequential(*rest))
    return traced


def build_in_padding(backbone: nn.Module, images: Tensor) -> nn.Module:
    """Make TensorFlow's SAME padding part of the convolutions, for one size of images, in place.

    timm pads in an operation of its own, a copy of all that goes in. Padding that is equal on both sides a convolution
    does itself; where SAME adds one more at the end, the kernel gets a zero in front, which asks for one more there.

    Args:
        backbone: is changed, and right for images of this size only.
        images: shape (1, 3, H, W).

    Returns:
        The backbone.
    """
    sizes: dict[nn.Module, tuple[int, int]] = {}
    convolutions = [
        (name, layer)
        for name, layer in backbone.named_modules()
        if isinstance(layer, Conv2dSame) and tuple(layer.dilation) == (1, 1)
    ]
    handles = [
        layer.register_forward_hook(lambda layer, given, _: sizes.update({layer: given[0].shape[-2:]}))
        for _, layer in convolutions
    ]
    if convolutions:
        backbone(images)
    for handle in handles:
        handle.remove()
    for name, layer in convolutions:
        if layer not in sizes:
            continue
        rows, columns = (_same_padding(layer, sizes[layer], axis) for axis in (0, 1))
        kernel = nn.functional.pad(layer.weight, (columns[1] - columns[0], 0, rows[1] - rows[0], 0))
        padded = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            (kernel.shape[2], kernel.shape[3]),
            (layer.stride[0], layer.stride[1]),
            (rows[1], columns[1]),
            groups=layer.groups,
            device="meta",
        )
        padded.weight = nn.Parameter(kernel, requires_grad=False)
        padded.bias = layer.bias
        backbone.set_submodule(name, padded)
    return backbone


def _same_padding(layer: Conv2dSame, size: tuple[int, int], axis: int) -> tuple[int, int]:
    """Zeros before and after that TensorFlow's SAME adds along an axis."""
    stride = layer.stride[axis]
    total = max((-(-size[axis] // stride) - 1) * stride + layer.kernel_size[axis] - size[axis], 0)
    return total // 2, total - total // 2
