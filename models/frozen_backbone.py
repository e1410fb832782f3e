"""A frozen backbone's forward pass without what only training needs: the same features, several times as fast.

The network itself is not changed. A copy of it runs, which is in no state dict, parameter list or checkpoint.
"""

import copy
import importlib.util
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Literal, TypeGuard, get_args

import torch
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.bad_input import BadInput
from models.parts_on_cores import PartsOnCores
from models.timm_mobilenetv2 import TimmClassifier

FrozenPrecision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "never", "always"]

PIXELS_AT_ONCE = 1 << 18
"""On a CPU a batch goes through the network in parts of about this many pixels (4 photos of 244 x 244). The activations
between two layers then stay in the cache: on 2 cores 102 photos a second in bfloat16, compared with 56 for 32 photos at
once (measured before activations were joined to the convolutions)."""

COMPILE_PAYS_AT = {"cpu": 10_000, "cuda": 500_000}
"""By type of device, the number of photos over all epochs from which `compile: auto` compiles; it never compiles for
other types. On a CPU compiling took 15 to 25 s and saved 4 ms a photo (2 cores, 244 x 244), so it pays off after some
5,000 photos. The threshold is twice that, because training often stops early. The number for a GPU is an estimate, not
measured on one: where a photo takes about a tenth of a millisecond, half a minute of compiling pays off after some
250,000 photos at the earliest."""


SAME_FUNCTION = 1e-4
"""Largest relative error in float32 at which the fast pass counts as the same function; above it the plain one runs."""


class FrozenBackbone:
    """Computes `network.features` of a network whose backbone does not change.

    BatchNorm is folded into the convolutions, padding and activations are joined to them, weights are channels-last
    and, if chosen, bfloat16, and the whole may be compiled. Copies are made when first needed, and again when the
    network's weights are replaced, changed in place, or moved to another device. If the result is not the same function
    for some backbone, that backbone runs unchanged, with one warning.

    Args:
        network: not changed; it does not become a submodule of anything through this class.
        precision: number format of the fast pass; `auto` is bfloat16 where the processor has instructions for it,
            float32 elsewhere.
        compile: `auto` compiles once `expect` has announced enough photos, on a CPU if a C++ compiler is installed, on
            a GPU if Triton is. Compiling for a GPU has not been tested on one.

    Raises:
        BadInput: a setting has an unknown value.
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
        self._warned = False
        self._weights: tuple[Any, ...] = ()
        self._passes: dict[tuple[torch.dtype, bool, int, int], tuple[Callable[[Tensor], Tensor], int]] = {}
        self._parts = PartsOnCores()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the copies out of pickles and deep copies: they are made again, and compiled code cannot be pickled."""
        return self.__dict__ | {"_weights": (), "_passes": {}, "_parts": PartsOnCores()}

    def expect(self, photos: float, device: torch.device) -> None:
        """Announce how many photos will come at most; `compile: auto` decides by this number."""
        if self.compile == "auto":
            self._passes.clear()
            enough = COMPILE_PAYS_AT.get(device.type)
            self._compiles = enough is not None and photos >= enough and can_compile(device)

    def features(self, images: Tensor, exact: bool = False) -> Tensor:
        """Compute pooled features of images without gradients, in the pass's own number format, whatever autocast says.

        Args:
            images: float32, shape (B, 3, H, W), RGB, 0 to 1.
            exact: compute in float32 whatever the precision; the result differs from `network.features` only by
                float32's rounding (about 1e-6 of the features' norm). Otherwise bfloat16 is used where chosen (up to
                about 5e-2).

        Returns:
            float32, shape (B, F).
        """
        weights = fingerprint(self.network.normalise, self.network.backbone)
        if weights != self._weights:
            self._passes.clear()
            self._weights = weights
        dtype = torch.float32 if exact else resolve_precision(self.precision, images.device)
        height, width = images.shape[-2:]
        # Exact features are rarely needed, and compiling hardly speeds up float32, so the compile time is not worth it.
        key = (dtype, self._compiles and not exact, height, width)
        # Lightning may validate in inference mode. Tensors created in it could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if key not in self._passes:
                self._passes[key] = self._make_pass(dtype, key[1], images)
            run, rows = self._passes[key]
            if not isinstance(run, _Compiled):
                return self._parts.map(run, images, rows)
            # Compiled code takes one shape only, so the last part is padded with zeros.
            missing = -len(images) % rows
            filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
            return torch.cat([run(part) for part in filled.split(rows)])[: len(images)]

    def _make_pass(self, dtype: torch.dtype, compiles: bool, images: Tensor) -> tuple[Callable[[Tensor], Tensor], int]:
        """Return a forward pass, and how many photos to give it at once."""
        network, example, on_cpu = self.network, images[:1], images.device.type == "cpu"
        backbone = fold_batchnorm(network.backbone)
        turned = turn_around(backbone)
        if on_cpu and not compiles:  # the compiler joins them itself
            join_activations(backbone)
        frozen = _FrozenPass(copy.deepcopy(network.normalise), backbone, turned)
        with without_tf32():
            error = relative_error(frozen(example), network.features(example))
        if not error < SAME_FUNCTION:
            # The backbone contains something that the shortcuts do not handle, so it runs unchanged.
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the frozen backbone runs without shortcuts, and so more slowly: with them its features differ by "
                    f"{error:.1e} of their norm, expected below {SAME_FUNCTION:.0e}",
                    stacklevel=2,
                )
            frozen = _FrozenPass(copy.deepcopy(network.normalise), copy.deepcopy(network.backbone), False)
        frozen.convert(dtype)
        rows = max(1, PIXELS_AT_ONCE // (images.shape[2] * images.shape[3])) if on_cpu else len(images)
        return _Compiled(frozen, give_up=self.compile == "auto") if compiles else frozen, rows


class _FrozenPass(nn.Module):
    """Normalisation in float32, the backbone in `dtype`, features in float32 again."""

    def __init__(self, normalise: nn.Module, backbone: nn.Module, turned: bool) -> None:
        super().__init__()
        self.normalise, self.backbone, self.turned, self.dtype = normalise, backbone, turned, torch.float32
        self.eval().requires_grad_(False)

    def convert(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.backbone.to(dtype)
        self.backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        normalised = self.normalise(images)
        if self.turned:
            normalised = normalised.flip(2, 3)
        return self.backbone(normalised.to(self.dtype, memory_format=torch.channels_last)).float()


class _Compiled:
    """A compiled module; with `give_up`, it falls back to the plain module if that cannot be compiled."""

    def __init__(self, module: nn.Module, give_up: bool) -> None:
        self.module, self.give_up = module, give_up
        # Freezing turns the weights into constants: they are arranged for the processor once and not in every pass.
        self.compiled: Callable[[Tensor], Tensor] | None = torch.compile(
            module, fullgraph=True, dynamic=False, options={"freezing": True}
        )

    def __call__(self, images: Tensor) -> Tensor:
        if self.compiled is not None:
            try:
                return self.compiled(images)
            # A missing header, a full disk, an operation without lowering: whatever the cause, only speed is lost.
            except Exception as error:
                if not self.give_up:
                    raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"the frozen backbone runs without torch.compile: {reason[0]}", stacklevel=2)
                self.compiled = None
        return self.module(images)


def fingerprint(*modules: nn.Module) -> tuple[tuple[int, int], ...]:
    """Identify weights by address and number of in-place changes. Takes less than a millisecond."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


def resolve_precision(precision: FrozenPrecision, device: torch.device) -> torch.dtype:
    """Choose the fast pass's number format for a device.

    Raises:
        BadInput: bfloat16 was chosen, but this processor cannot convolve in it.
    """
    if precision == "float32":
        return torch.float32
    on_cpu = device.type == "cpu"
    if precision == "bfloat16":
        if on_cpu and not convolves_in_bfloat16():
            raise BadInput(
                "--model.frozen_precision bfloat16: expected a processor that convolves in bfloat16 (x86 with AVX-512, "
                "AMX or AVX-NE-CONVERT, arm64 with BF16), which this one does not. Give --model.frozen_precision auto: "
                "it takes bfloat16 where that is faster, and float32 elsewhere."
            )
        return torch.bfloat16
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bfloat16 is emulated, and slower than float32.
        capabilities = torch.cpu.get_capabilities() if on_cpu else {}
        gains = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")) and convolves_in_bfloat16()
    return torch.bfloat16 if gains else torch.float32


@cache
def convolves_in_bfloat16() -> bool:
    """Return whether oneDNN convolves in bfloat16 here, found by trying it.

    The processor's instructions alone do not decide. For example, `ONEDNN_MAX_CPU_ISA` keeps oneDNN from using some of
    them, and torch still reports them as available.
    """
    image, kernel = (torch.ones(1, 8, 4, 4, dtype=torch.bfloat16) for _ in range(2))
    convolution = _OneDnnConvolution(nn.Conv2d(8, 1, 4, bias=False), nn.ReLU())
    convolution.weight = nn.Parameter(kernel, requires_grad=False)
    try:
        return bool(convolution(image).item() == kernel.numel())
    except (RuntimeError, AttributeError):  # this processor's oneDNN refuses, or this torch has no oneDNN
        return False


def can_compile(device: torch.device) -> bool:
    """Return whether torch.compile finds its compiler for a device. If something else is missing, a warning says so."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return has_cpp_compiler()


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler, which it needs for the CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name)


class _Tracer(fx.Tracer):
    """Traces convolutions and BatchNorm as single calls, timm's variants of them too."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(module, qualified_name)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Turn TF32 off, which would keep only 10 bits of mantissa in convolutions and matrix products on a GPU."""
    places = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference divided by the reference's norm; NaN if either is not finite."""
    return float((ours - reference).norm() / reference.norm())


def fold_batchnorm(backbone: nn.Module) -> nn.Module:
    """Copy a network in evaluation mode, with every BatchNorm that follows a convolution folded into it.

    `torch.fx.experimental.optimization.fuse` does not recognise timm's layers, whose BatchNorm contains the activation.

    Args:
        backbone: in evaluation mode; it is not changed.

    Returns:
        Copy that computes the same up to float32's rounding. A network that cannot be traced is copied unchanged.
    """
    folded = copy.deepcopy(backbone)
    try:
        graph = _Tracer().trace(folded)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return folded  # its forward pass depends on values
    traced = fx.GraphModule(folded, graph)
    for convolution_node, node in _pairs(traced):
        convolution, norm = (traced.get_submodule(str(each.target)) for each in (convolution_node, node))
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_mean is None or norm.running_var is None:
            continue  # normalises by the batch's own statistics
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # timm's BatchNormAct2d contains the activation (and a dropout, which does nothing in evaluation mode).
        activation = getattr(norm, "act", None)
        if activation is None or isinstance(activation, nn.Identity):
            node.replace_all_uses_with(convolution_node)
            graph.erase_node(node)
        else:
            traced.set_submodule(str(node.target), activation)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _pairs(traced: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Return pairs of layers where only the second uses the first one's output, and each is called only once."""
    layers = [node for node in traced.graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in layers)
    pairs = [(node.args[0], node) for node in layers if node.args and isinstance(node.args[0], fx.Node)]
    return [
        (first, second)
        for first, second in pairs
        if first.op == "call_module" and len(first.users) == 1 and calls[first.target] == calls[second.target] == 1
    ]


def turn_around(backbone: nn.Module) -> bool:
    """Rotate a network by 180 degrees in place, if that avoids timm's separate padding for TensorFlow's SAME.

    timm pads in an operation of its own, which copies the whole input. With stride 2 and an even size, SAME adds one
    more zero at the end than at the beginning, and no convolution can pad like that by itself. After a rotation the
    extra zero is at the beginning. A convolution with equal padding on both sides does exactly that, because it never
    reaches the last zero. So the kernels and the images are rotated; the pooled features stay the same.

    Args:
        backbone: ends in global pooling; changed only if it has such layers, with strides 1 and 2 and odd kernels.

    Returns:
        Whether it now expects rotated images.
    """
    convolutions = [(name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)]
    padded = [layer for _, layer in convolutions if isinstance(layer, Conv2dSame)]
    usual = all(
        set(layer.kernel_size) <= {1, 3, 5, 7} and set(layer.stride) <= {1, 2} and tuple(layer.dilation) == (1, 1)
        for layer in padded
    )
    if not padded or not usual:
        return False
    for name, layer in convolutions:
        layer.weight = nn.Parameter(layer.weight.detach().flip(2, 3), requires_grad=False)
        if isinstance(layer, Conv2dSame):
            kernel, stride = (layer.kernel_size[0], layer.kernel_size[1]), (layer.stride[0], layer.stride[1])
            plain = nn.Conv2d(
                layer.in_channels, layer.out_channels, kernel, stride, (kernel[0] // 2, kernel[1] // 2),
                groups=layer.groups, device="meta",
            )  # fmt: skip
            plain.weight, plain.bias = layer.weight, layer.bias
            backbone.set_submodule(name, plain)
    return True


class _OneDnnConvolution(nn.Module):
    """A convolution whose activation oneDNN applies while it writes, which saves a pass over the result.

    It is the operation that Inductor, torch.compile's backend, generates. Without an activation it is for one thread,
    where torch itself would leave oneDNN aside and be slower.
    """

    ACTIVATIONS: ClassVar = {
        nn.Identity: ("none", [], ""),
        nn.ReLU: ("relu", [], ""),
        nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    }

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.settings = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self.activation = self.ACTIVATIONS[type(activation)]

    def forward(self, images: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(images, self.weight, self.bias, *self.settings, *self.activation)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is torch's own convolution, padded by a number of zeros."""
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def join_activations(backbone: nn.Module) -> None:
    """Leave every convolution to oneDNN, together with a ReLU or ReLU6 behind it; in place, for CPUs that have it."""
    if not isinstance(backbone, fx.GraphModule) or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return
    for convolution_node, node in _pairs(backbone):
        convolution, activation = (backbone.get_submodule(str(each.target)) for each in (convolution_node, node))
        if _is_plain(convolution) and type(activation) in _OneDnnConvolution.ACTIVATIONS:
            joined = _OneDnnConvolution(convolution, activation)
            backbone.set_submodule(str(convolution_node.target), joined)
            node.replace_all_uses_with(convolution_node)
            backbone.graph.erase_node(node)
    for name, convolution in [*backbone.named_modules()]:
        if _is_plain(convolution):
            backbone.set_submodule(name, _OneDnnConvolution(convolution, nn.Identity()))
    backbone.delete_all_unused_submodules()
    backbone.recompile()
