"""Torch module path -> Keras layer name.

For timm's MobileNetV2 family the names are those of `keras.applications.MobileNetV2` (``Conv1``, ``bn_Conv1``,
``block_1_expand``, ...), so that Keras users recognise their layers. In every other network a layer's name is its
module path, with underscores for dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# In timm's backbone, outside the blocks.
_STEM_AND_HEAD = {
    "conv_stem": "Conv1",
    "bn1": "bn_Conv1",
    "bn1.act": "Conv1_relu",
    "conv_head": "Conv_1",
    "bn2": "Conv_1_bn",
    "bn2.act": "out_relu",
    "global_pool.pool": "global_average_pooling2d",
}
# timm's DepthwiseSeparableConv (first block, no expansion) and InvertedResidual; "" is the residual sum.
_SEPARABLE = {
    "conv_dw": "depthwise",
    "bn1": "depthwise_BN",
    "bn1.act": "depthwise_relu",
    "conv_pw": "project",
    "bn2": "project_BN",
    "": "add",
}
_INVERTED = {
    "conv_pw": "expand",
    "bn1": "expand_BN",
    "bn1.act": "expand_relu",
    "conv_dw": "depthwise",
    "bn2": "depthwise_BN",
    "bn2.act": "depthwise_relu",
    "conv_pwl": "project",
    "bn3": "project_BN",
    "": "add",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.?(.*)")


def mobilenetv2_layer_names(module_paths: Iterable[str]) -> dict[str, str]:
    """Names of `keras.applications.MobileNetV2` for the module paths of a timm MobileNetV2.

    Args:
        module_paths: all paths inside the timm model (``conv_stem``, ``blocks.1.0.conv_pw``, ...); blocks are numbered
            in the order in which they occur.

    Returns:
        path -> name, for the paths that have a name in Keras.
    """
    paths = list(module_paths)
    matches = {path: match for path in paths if (match := _BLOCK.fullmatch(path))}
    blocks = sorted({(int(match[1]), int(match[2])) for match in matches.values()})
    inverted = {(int(match[1]), int(match[2])) for match in matches.values() if match[3] == "conv_pwl"}
    names = {path: _STEM_AND_HEAD[path] for path in paths if path in _STEM_AND_HEAD}
    for path, match in matches.items():
        block = (int(match[1]), int(match[2]))
        part = (_INVERTED if block in inverted else _SEPARABLE).get(match[3])
        if part is not None:
            number = blocks.index(block)
            prefix = "expanded_conv" if number == 0 else f"block_{number}"
            names[path] = f"{prefix}_{part}"
    return names


def plain_layer_name(module_path: str) -> str:
    """Return the module path as a name that every Keras and HDF5 accept: no dots, no slashes."""
    return re.sub(r"[^0-9A-Za-z_]+", "_", module_path).strip("_") or "layer"
