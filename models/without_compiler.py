"""Lets timm and torchvision be imported without torch's compiler, which takes longer to import than torch itself."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


class WithoutCompiler:
    """A finder for `sys.meta_path` that sees to the modules in `_DEFERRED`, and leaves every other to Python.

    Everything here imports timm, which imports torchvision, as torchmetrics and lightning do. Each of the two has one
    line that imports torch's compiler for what is hardly ever called. These lines get something that imports it when it
    is called. Whoever else imports the compiler, then or later, gets the compiler. A version of timm or torchvision
    that is written otherwise works as well, and only takes its time again.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find such a module with a loader of its own; None for others, and where the compiler is there already."""
        if name not in _DEFERRED or "torch._dynamo" in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _DEFERRED[module.__name__](module):
            super().exec_module(module)


@contextmanager
def _stand_in_for_utils(module: ModuleType) -> Generator[None]:
    """Put a module in the compiler's place in `sys.modules`, for `from torch._dynamo.utils import`."""
    stand_in: Any = ModuleType(_COMPILER)

    def real(name: str) -> Any:
        if name.startswith("__"):  # Python asks whether it is a package
            raise AttributeError(name)
        remove()
        return getattr(import_module(_COMPILER), name)

    def remove() -> None:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]

    stand_in.is_compile_supported = lambda device_type: real("is_compile_supported")(device_type)
    stand_in.__getattr__ = real
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        remove()


@contextmanager
def _decorator_of_torch(module: ModuleType) -> Generator[None]:
    """Exchange `torch.compiler.disable`, which imports the compiler at once, for torch's own that does so when called.

    It decorates methods of one family, NaFlexViT.
    """
    yield
    import torch

    if getattr(module, "disable_compiler", None) is torch.compiler.disable and hasattr(torch, "_disable_dynamo"):
        setattr(module, "disable_compiler", torch._disable_dynamo)  # noqa: B010 - mypy knows no such attribute


_DEFERRED: dict[str, Callable[[ModuleType], Any]] = {
    "torchvision.ops.roi_align": _stand_in_for_utils,
    "timm.layers.typing": _decorator_of_torch,
}
"""Module -> what surrounds its import."""
