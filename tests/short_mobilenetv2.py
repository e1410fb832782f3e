"""A MobileNetV2 with six of the seventeen blocks, known to timm by name: for tests that look at single layers.

It has every kind of layer of the whole network, and each of Keras's costs a third. `mobilenetv2_short` is as narrow
as mobilenetv2_035; there is one for each of timm's widths, such as `mobilenetv2_short_140`. Whole ones are proved by
`export/proof/test_parity_backbones.py`.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, resolve_bn_args, round_channels
from timm.models.efficientnet import EfficientNet, _create_effnet
from torch import nn

STAGES = [["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r3_k3_s2_e6_c32"]]
"""The first ones of timm's `_gen_mobilenet_v2`."""
WIDTHS = {"": (0.35, 1.0)} | {
    f"_{name}": factors
    for name, factors in {
        "035": (0.35, 1.0), "050": (0.5, 1.0), "075": (0.75, 1.0), "100": (1.0, 1.0), "110d": (1.1, 1.2),
        "120d": (1.2, 1.4), "140": (1.4, 1.0),
    }.items()
}  # fmt: skip
"""Ending of the name -> timm's factors of channels and of blocks."""
default_cfgs = generate_default_cfgs({f"mobilenetv2_short{ending}.untrained": {} for ending in WIDTHS})


def _register(ending: str, channels: float, blocks: float) -> None:
    def build(pretrained: bool = False, **settings: Any) -> EfficientNet:
        return _create_effnet(
            build.__name__, pretrained, block_args=decode_arch_def(STAGES, depth_multiplier=blocks),
            num_features=1280, stem_size=32, fix_stem=blocks > 1, act_layer=nn.ReLU6,
            round_chs_fn=partial(round_channels, multiplier=channels),
            norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(settings)), **settings,
        )  # fmt: skip

    build.__name__ = f"mobilenetv2_short{ending}"
    register_model(build)


for _ending, _factors in WIDTHS.items():
    _register(_ending, *_factors)
