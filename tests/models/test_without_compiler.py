"""timm and torchvision without torch's compiler, until somebody wants it."""

import subprocess
import sys

from tests.conftest import ROOT


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_timm_needs_no_compiler_until_it_is_called():
    """And what was deferred still works: regions are pooled, the compiler is the real one, a decorated method runs."""
    assert run(
        "import sys, models.timm_mobilenetv2, torch, torchvision\n"
        "print('torch._dynamo' in sys.modules, 'torch._dynamo.utils' in sys.modules)\n"
        "box = torch.tensor([[0, 0.0, 0, 4, 4]])\n"
        "assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), box, 2).tolist() == [[[[1, 1], [1, 1]]]]\n"
        "roi_align = sys.modules['torchvision.ops.roi_align']\n"
        "print(roi_align.is_compile_supported('cpu'), 'torch._dynamo' in sys.modules)\n"
        "import torch._dynamo.utils\n"
        "assert torch._dynamo.utils.is_compile_supported('cpu') is roi_align.is_compile_supported('cpu')\n"
        "print(torch._dynamo.utils.__name__, hasattr(torch._dynamo.utils, '__file__'))\n"
        "from timm.layers.typing import disable_compiler\n"
        "print(disable_compiler(lambda x: x + 1)(1))\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())"
    ) == ["False", "False", "True", "True", "torch._dynamo.utils", "True", "2", "2.0"]


def test_another_version_gets_what_it_asks_for():
    """A torchvision that takes another name from the compiler's module is given the real one's."""
    assert run(
        "import sys, torch\n"
        "from types import ModuleType\n"
        "from models.without_compiler import _stand_in_for_utils\n"
        "with _stand_in_for_utils(ModuleType('somebody')):\n"
        "    from torch._dynamo.utils import counters\n"
        "import torch._dynamo.utils\n"
        "print(counters is torch._dynamo.utils.counters, counters is sys.modules['torch._dynamo.utils'].counters)"
    ) == ["True", "True"]
