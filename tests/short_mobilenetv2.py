"""A MobileNetV2 with six of the seventeen blocks, known to timm by name: for tests that look at single layers.

It has every kind of layer of the whole network, and each of Keras's costs a third. Whole ones are proved by
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
default_cfgs = generate_default_cfgs({"mobilenetv2_short.untrained": {}})  # timm warns where a model has none


@register_model
def mobilenetv2_short(pretrained: bool = False, **settings: Any) -> EfficientNet:
    """As narrow as mobilenetv2_035."""
    return _create_effnet(
        "mobilenetv2_short", pretrained, block_args=decode_arch_def(STAGES), num_features=1280, stem_size=32,
        round_chs_fn=partial(round_channels, multiplier=0.35), act_layer=nn.ReLU6,
        norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(settings)), **settings,
    )  # fmt: skip
