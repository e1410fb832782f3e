"""The environments of those who have no torch: each runtime alone, made once in the user's cache.

    python -m tests.runtimes    # makes all of them; `.ci/run` does it in the background

The tests of docs/service/deploy.md run that page's code in them, and skip with a reason where one is missing.
"""

from __future__ import annotations

from export.worker.own_environment import OwnEnvironment

_SEE = ("numpy==2.4.6", "pillow==12.2.0")
PYTHONS = {
    "onnxruntime": OwnEnvironment("onnxruntime-1.31", "ONNX Runtime", ("onnxruntime==1.31.1", *_SEE), "do without it"),
    "litert": OwnEnvironment("litert-2.3", "LiteRT", ("ai-edge-litert==2.3.0", *_SEE), "do without it"),
    "openvino": OwnEnvironment("openvino-2026.4", "OpenVINO", ("openvino==2026.4.1", *_SEE), "do without it"),
}
