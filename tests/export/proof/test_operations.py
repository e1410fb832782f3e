"""Operations that MobileNetV2 lacks and other families have: each is the same function in a real Keras.

Two networks with all of them, one Keras process; every node's output is compared in float64. One of them is branches
side by side, each with one operation. It is written once more with a small fault in every branch, and each is found.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from export.graph.network import graph_network
from export.graph.record import record
from export.graph.trace import NoKerasCounterpart, trace_graph
from export.keras_file.architecture import read_keras_graph
from export.keras_file.layers import keras_layers
from export.keras_file.read import read_keras_h5
from export.keras_file.write import training_config, write_keras_h5
from export.proof.checks import LAYER_THRESHOLD, check_layers
from export.proof.torch_side import torch_layers
from export.torch_answers import torch_probabilities
from export.worker.keras_process import run_keras

SIZE = (16, 12)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, (4, 3), padding="same")
        self.leaky, self.mish = nn.LeakyReLU(0.01), nn.Mish()
        self.shrink, self.up = nn.Conv2d(12, 12, 3, stride=2, padding=1), nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Linear(9, 4)

    def forward(self, images):
        x = self.leaky(self.stem(images) * 10.17)  # a number that float32 does not hold
        x = x - self.up(self.mish(self.shrink(x)))
        x = torch.cat([x], dim=1)
        first, second, third = x.split([3, 5, 4], dim=1)
        left, right = second[:, :4], second[:, 1:]
        quarter = third.chunk(4, dim=1)[-1]
        x = torch.cat([first + quarter, left * third, right[:, 2:]], dim=1)
        x = x.permute(0, 2, 3, 1)[..., :9].permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def test_new_operations_become_nodes():
    graph = trace_graph(record(Everything(), SIZE))
    ops = [node.op for node in graph.nodes]
    assert ops.count("slice_channels") == 7
    assert {"leaky_relu", "mish", "upsample", "subtract", "multiply", "concatenate"} <= set(ops)
    parts = [node.attributes for node in graph.nodes if node.op == "slice_channels"]
    assert {"start": 3, "stop": 8} in parts
    assert {"start": 3, "stop": 4} in parts  # the last of four chunks
    assert "aten.chunk" not in {node.op for node in graph.nodes}


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: x.sin(), "aten.sin"),
        (lambda x: functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1)), "aten.grid_sampler"),
        (lambda x: x.gather(1, x.argsort(1)), "aten.argsort"),
        (lambda x: x.round(), "aten.round"),
        (lambda x: x.long() * x, "from torch.float32 to torch.int64"),
        (lambda x: nn.functional.pad(x, (1, 1), value=torch.inf), "aten.pad: with inf"),
        (lambda x: nn.functional.max_pool2d(x, 3, dilation=2), "with dilation"),
        (lambda x: x.flatten(0, 1).reshape(x.shape).sum(0, keepdim=True) + x, "aten.sum: along the images"),
    ],
    ids=[
        "sine",
        "warped",
        "sorted",
        "rounded",
        "whole",
        "infinite padding",
        "dilated",
        "over images",
    ],
)
def test_what_would_not_be_the_same_is_refused(operation, named):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return operation(self.conv(x)).mean((2, 3))

    with pytest.raises(NoKerasCounterpart) as caught:
        trace_graph(record(Odd(), SIZE))
    assert caught.value.reason.startswith(named) or named in caught.value.reason


class Apply(nn.Module):
    """A function as a module, so that its nodes are named by the branch."""

    def __init__(self, function, *weights):
        super().__init__()
        self.function, self.weights = function, nn.ParameterList([torch.randn(*shape) for shape in weights])

    def forward(self, x):
        return self.function(x, *self.weights)


def over_branches(x, weight):
    """As selective kernels and split attention have it."""
    both = torch.stack([x, x * weight], dim=1)
    gates = both.sum(1).mean((2, 3), keepdim=True).view(len(x), 2, 4, 1, 1).softmax(1)
    return (both.view(len(x), 2, 2, 4, *x.shape[2:]) * gates[:, None]).sum(2).flatten(1, 2)


def to_depth(x):
    """As TResNet's stem has it."""
    batch, channels, rows, columns = x.shape
    apart = x.view(batch, channels, rows // 2, 2, columns // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return apart.view(batch, channels * 4, rows // 2, columns // 2)


def standardised(x, kernel):
    """As networks without BatchNorm have it."""
    kernel = (kernel - kernel.mean((1, 2, 3), keepdim=True)) / kernel.std((1, 2, 3), keepdim=True)
    return functional.conv2d(x, kernel, padding=1)


def response_norm(x, weight, bias):
    """As ConvNeXt V2 has it."""
    length = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + torch.addcmul(bias, weight, x * (length / (length.mean(1, keepdim=True) + 1e-6)))


def by_hand(x):
    """A LayerNorm over the channels in single operations."""
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)


def channels_last(operation):
    return lambda x, *weights: operation(x.permute(0, 2, 3, 1), *weights).permute(0, 3, 1, 2)


def eca(x, kernel):
    gate = functional.conv1d(x.mean((2, 3)).view(len(x), 1, -1), kernel, padding=1).sigmoid()
    return x * gate.view(len(x), -1, 1, 1).expand_as(x)


def blurred(x):
    blur = torch.tensor([[1.0, 2.0, 1.0]]).T @ torch.tensor([[1.0, 2.0, 1.0]]) / 16
    padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, blur.to(x.dtype).expand(8, 1, 3, 3), stride=2, groups=8)


def evo_norm(x):
    """As EvoNorm has it: divided by the deviation in each group of channels."""
    groups = x.view(len(x), 2, 4, *MAP)
    deviation = groups.var(dim=(2, 3, 4), unbiased=False, keepdim=True).add(1e-5).sqrt()
    return x * x.sigmoid() / deviation.expand(groups.shape).reshape(x.shape)


class LastOf(nn.Module):
    """Rows as a sequence of torch's own recurrent layer, or tokens first for its own attention."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        if isinstance(self.layer, nn.MultiheadAttention):
            tokens = x.flatten(2).permute(2, 0, 1)
            return self.layer(tokens, tokens, tokens)[0].mean(0)
        return self.layer(x.mean(3).transpose(1, 2)[:, :3])[0][:, -1]


def stacked_in_front(x, weight):
    return (torch.stack([x, x * x], dim=0) * weight.softmax(0).view(2, 1, 1, 1, 1)).sum(0)


C, MAP = 8, (12, 10)


def shares(x):
    return torch.add(x, x.relu(), alpha=0.3) + torch.sub(x, x.abs(), alpha=0.2) + torch.rsub(x, 2, alpha=3)


def by_hand_in_groups(x):
    """GroupNorm in single operations, with the variance."""
    groups = x.reshape(len(x), 4, -1)
    groups = groups - groups.mean(2, keepdim=True)
    return (groups / torch.sqrt(groups.var(2, unbiased=False, keepdim=True) + 1e-5)).view_as(x)


def shifted(x):
    """Channels moved by a place, as in a temporal shift: parts of zeros are set."""
    out = torch.zeros_like(x)
    out[:, :2, :-1] = x[:, :2, 1:]
    out[:, 2:4, 1:] = x[:, 2:4, :-1]
    out[:, 4:] = x[:, 4:]
    return out


def parts_set(x, weight):
    x = x * 1.5
    x[:, :2] = weight
    x[:, 3] = 0.5
    x[:, 4, 2:5, 1:3] += 2
    x[x < -0.5] = 0.1
    return x


def tokens_set(x, weight):
    tokens = torch.empty(len(x), x[0, 0].numel() + 1, C)
    tokens[:, 0], tokens[:, 1:] = weight, x.flatten(2).mT
    return tokens.mT


def shared_keys(x, weight):
    """Fewer heads of keys and values than of queries."""
    query, key, value = (x.flatten(2).mT @ weight).split([C, C // 2, C // 2], 2)
    query, key, value = (each.unflatten(2, (-1, 2)).transpose(1, 2) for each in (query, key, value))
    attended = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return attended.transpose(1, 2).flatten(2).mT


def patches_as_images(x, kernel, bias):
    """Patches in the batch's axis, as many images more."""
    patches = x.unfold(2, 6, 6).unfold(3, 5, 5).permute(0, 2, 3, 1, 4, 5).reshape(-1, C, 6, 5)
    patches = functional.conv2d(patches, kernel, bias, stride=(2, 1), padding=1)
    patches = functional.max_pool2d(patches, 3, 2, 1)
    patches = functional.avg_pool2d(patches, (2, 1), 1, (1, 0))
    return functional.adaptive_avg_pool2d(patches, 1).flatten(1).view(len(x), 4, -1).mT.flatten(1)


def mirrored_in_the_batch(x, kernel):
    """The mean of an image's and its mirror image's answers, in one batch."""
    both = functional.conv2d(torch.cat([x, x.flip(3)]), kernel, padding=1)
    return (both[: len(x)] + both.chunk(2)[1].flip(3)) / 2


class Cells(nn.Module):
    """A recurrent cell that is called row by row."""

    def __init__(self, cell, has_memory):
        super().__init__()
        self.cell, self.has_memory = cell, has_memory

    def forward(self, x):
        state = memory = torch.zeros(len(x), C)
        for row in x[:, :, :3].mean(3).unbind(2):
            if self.has_memory:
                state, memory = self.cell(row, (state, memory))
            else:
                state = self.cell(row, state)
        return state


class OfARow(nn.Module):
    """A layer of (B, C, L)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2))


# Of (B, 8, 12, 10), with values of any sign.
BRANCHES = {
    "group_norm": nn.GroupNorm(4, C),
    "group_norm_of_all": nn.GroupNorm(1, C),
    "instance_norm": nn.InstanceNorm2d(C),
    "map_norm": nn.LayerNorm((C, *MAP)),
    "batch_norm_alone": nn.BatchNorm2d(C, affine=False),
    "rms_norm": Apply(channels_last(lambda x, w: functional.rms_norm(x, (C,), w, 1e-6)), (C,)),
    "norm_by_hand": Apply(by_hand),
    "simple_norm": Apply(lambda x: x * torch.rsqrt(torch.var(x, dim=1, keepdim=True) + 1e-5)),
    "root_of_squares": Apply(lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)),
    "response_norm": Apply(response_norm, (C, 1, 1), (1, C, 1, 1)),
    "standardised": Apply(standardised, (C, C, 3, 3)),
    "scale_of_all": Apply(lambda x, w: x * w, (1,)),
    "shift_of_all": Apply(lambda x, w: x + w, (1,)),
    "scale": Apply(lambda x, w: w * x, (C, 1, 1)),
    "shift": Apply(lambda x, w: w + x, (1, C, 1, 1)),
    "scale_and_shift": Apply(lambda x, w, b: torch.addcmul(b, x, w), (C, 1, 1), (1, C, 1, 1)),
    "scale_of_places": Apply(lambda x, w: x * w, (1, C, *MAP)),
    "shift_of_places": Apply(lambda x, w: x + w, (C, *MAP)),
    "prelu": nn.PReLU(C),
    "prelu_of_all": nn.PReLU(1),
    "elu": nn.ELU(0.7),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(2.0),
    "softsign": nn.Softsign(),
    "gelu_tanh": nn.GELU("tanh"),
    "log_sigmoid": nn.LogSigmoid(),
    "absolute": Apply(torch.abs),
    "hardtanh": nn.Hardtanh(-0.4, 0.6),
    "at_least": Apply(lambda x: x.clamp(min=-0.3)),
    "at_most": Apply(lambda x: x.clamp(max=0.3)),
    "hard_shrink": nn.Hardshrink(0.3),
    "soft_shrink": nn.Softshrink(0.2),
    "glu": Apply(lambda x: functional.glu(torch.cat([x, x * 2], 1), 1)),
    "softmax": nn.Softmax(1),
    "cube": Apply(lambda x: x**3),
    "numbers": Apply(lambda x: (1 - x / 3) * 0.7 - 2),
    "larger": Apply(lambda x: torch.maximum(x, -x) - torch.minimum(x, x * 2)),
    "transposed": nn.ConvTranspose2d(C, C, 4, stride=2, padding=1),
    "transposed_with_more": nn.ConvTranspose2d(C, C, 3, stride=2, padding=1, output_padding=1, bias=False),
    "reflected": nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(C, C, (3, 5), padding=(1, 2), padding_mode="circular"),
    "replicated": nn.Conv2d(C, C, 3, padding=1, padding_mode="replicate"),
    "padded_with_a_number": Apply(lambda x: functional.pad(x, (1, 2, 0, 1), value=0.7)),
    "cut_off": Apply(lambda x: functional.pad(x, (-1, 0, -1, -2))),
    "moved": Apply(lambda x: functional.pad(x, (-1, 1, -1, 1))),
    "max_pool": nn.MaxPool2d(3, 2, 1),
    "max_pool_every": nn.MaxPool2d(3, 1, 1),
    "max_pool_beyond": nn.MaxPool2d(2, 2, 1),
    "max_pool_to_the_end": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max_pool_padded": Apply(lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)),
    "average_pool": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average_pool_beyond": nn.AvgPool2d(2, 2, 1, count_include_pad=False),
    "average_pool_to_the_end": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d((7, 4)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear_by_corners": nn.Upsample(size=(17, 13), mode="bilinear", align_corners=True),
    "bilinear_by_a_scale": nn.Upsample(scale_factor=0.7, mode="bilinear"),
    "bicubic": nn.Upsample(size=(9, 11), mode="bicubic"),
    "nearest": nn.Upsample(size=(7, 15)),
    "mean_of_rows": Apply(lambda x: x * x.mean(2, keepdim=True)),
    "mean_of_channels": Apply(lambda x: x * x.mean(1, keepdim=True)),
    "largest_channel": Apply(lambda x: x * x.amax(1, keepdim=True)),
    "largest_column": Apply(lambda x: x * x.amax(3, keepdim=True)),
    "sum_of_channels": Apply(lambda x: x * x.sum(1, keepdim=True)),
    "turned": Apply(lambda x: x.flip(3).roll(1, 2)),
    "eca": Apply(eca, (1, 1, 3)),
    "over_branches": Apply(over_branches, (C, 1, 1)),
    "to_depth": Apply(to_depth),
    "pixel_shuffle": Apply(lambda x: functional.pixel_shuffle(functional.pixel_unshuffle(x * 2, 2)[:, :16], 2)),
    "channel_shuffle": nn.ChannelShuffle(2),
    "blur": Apply(blurred),
    "squeezed": Apply(lambda x: (x.unsqueeze(1) * 2).squeeze(1)),
    "part_of_rows": Apply(lambda x: x.split(5, dim=2)[1] * 2),
    "columns": Apply(lambda x: nn.functional.conv1d(x.mean(2), torch.ones(C, C, 1, dtype=x.dtype) / 4).mean(2)),
    "largest_place": Apply(lambda x: x.flatten(2).max(-1).values),
    "smallest_channel": Apply(lambda x: x - x.amin(1).unsqueeze(1)),
    "both_moments": Apply(lambda x: x.mean(-1).std(-1) + x.var((2, 3))),
    "length_of_places": Apply(lambda x: x * x.flatten(2).norm(dim=1).view(len(x), 1, *MAP)),
    "evo_norm": Apply(evo_norm),
    "quotient": Apply(lambda x: x / (2 + x.square())),
    "inverse": Apply(lambda x: 1 / (x - 9) + 2 / (x.pow(4) + 1)),
    "root": Apply(lambda x: x.relu().sqrt()),
    "power": Apply(lambda x: (x.abs() + 0.1) ** 0.7 + (x.square() + 0.1).rsqrt()),
    "trained_power": Apply(lambda x, p: x.clamp(min=1e-6).pow(p * 0.1 + 3).mean((2, 3)).pow(1 / (p * 0.1 + 3)), (1,)),
    "logarithm": Apply(lambda x: torch.log1p(x.abs())),
    "log_sum_exp": Apply(lambda x: torch.logsumexp(x, 1, keepdim=True) * x),
    "error_function": Apply(lambda x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5))),
    "power_alone": Apply(lambda x: x.exp() ** 0.3),
    "logarithm_alone": Apply(lambda x: (x * 0.1).exp().log()),
    "above_zero": Apply(lambda x: (x > 0).to(x.dtype)),
    "where": Apply(lambda x: torch.where(x > 0, x, x * 0.1)),
    "mask": Apply(lambda x: x * (x.mean(1, keepdim=True) >= x).float() + x.masked_fill(x < 0.1, 0.5)),
    "strides_of_dilated": Apply(lambda x, kernel: functional.conv2d(x, kernel, None, 2, 2, 2), (C, C, 3, 3)),
    "strides_that_differ": Apply(lambda x, kernel: functional.conv2d(x, kernel, None, (2, 1), 1, 1, C), (C, 1, 3, 3)),
    "largest_alone": Apply(lambda x: x * (x == x.amax((2, 3), keepdim=True)) + (x.relu() != 0).float()),
    "signs": Apply(lambda x: x.sign() * (x.abs() + 1) + (~(x > 0.2) & (x > -0.5)).float()),
    "repeated": Apply(lambda x: x.repeat_interleave(2, 2).repeat(1, 1, 1, 3)[..., :20] * x.repeat(1, 1, 2, 2)),
    "chosen": Apply(lambda x: x[:, [3, 1, 4, 1, 5, 0, 2, 7]] * x.index_select(2, torch.arange(11, -1, -1))),
    "cumulated": Apply(lambda x: x.cumsum(2)),
    "windows": Apply(lambda x: x.unfold(2, 4, 4).unfold(3, 3, 2).mean(-1)[..., 1]),
    "unfolded": nn.Unfold(3, padding=1, stride=2),
    "folded": Apply(lambda x: functional.fold(functional.unfold(x, 3, 1, 1, 2), MAP, 3, 1, 1, 2)),
    "transposed_in_groups": nn.ConvTranspose2d(C, C, 3, stride=2, groups=4, padding=1, output_padding=1, dilation=2),
    "pool_of_a_row": Apply(lambda x: functional.max_pool1d(functional.avg_pool1d(x.flatten(2) * 2, 5, 3), 3)),
    "padded_channels": Apply(lambda x: functional.pad(x, (0, 0, 1, 0, 2, 2))[:, 1:9]),
    "product": Apply(lambda x, w: x.mean((2, 3)) @ w, (C, C)),
    "product_before": Apply(lambda x, w: torch.matmul(w, x.flatten(2)), (C, C)),
    "product_of_heads": Apply(
        lambda x, w: torch.einsum("bhdn,hdk->bhkn", x.view(len(x), 2, 4, -1), w).flatten(1, 2), (2, 4, 4)
    ),
    "query": Apply(lambda x, w: ((w.expand(len(x), -1, -1) @ x.flatten(2)).softmax(-1) @ x.flatten(2).mT).flatten(1),
                   (1, 2, C)),
    "less_a_weight": Apply(lambda x, w, v: (x - w) / v, (1, C, 1, 1), (C, 1, 1)),
    "larger_than_weight": Apply(lambda x, w: torch.maximum(x, w) - torch.minimum(x, w * 2), (C, 1, 1)),
    "stacked_in_front": Apply(stacked_in_front, (2,)),
    "local_response_norm": nn.LocalResponseNorm(3, alpha=0.5),
    "gru": LastOf(nn.GRU(C, C, batch_first=True)),
    "multihead": LastOf(nn.MultiheadAttention(C, 2)),
    "celu": nn.CELU(0.5),
    "steep": nn.LeakyReLU(2.0),
    "threshold_to_a_number": nn.Threshold(0.1, 2),
    "low_softplus": nn.Softplus(1, 1),
    "glu_of_rows": Apply(lambda x: functional.glu(x, 2)),
    "prelu_of_a_row": OfARow(nn.PReLU(C)),
    "log_softmax": nn.LogSoftmax(1),
    "log_softmax_of_a_vector": Apply(lambda x: x.mean((2, 3)).log_softmax(1)),
    "shares": Apply(shares),
    "between": Apply(lambda x, w: torch.lerp(x, x.relu(), 0.3) + torch.lerp(x, x.tanh(), w), (C, 1, 1)),
    "of_three": Apply(lambda x: torch.addcdiv(x.addcmul(x.relu(), x.abs(), value=0.5), x, x.square() + 1, value=0.5)),
    "between_weights": Apply(lambda x, w: torch.clamp(x, min=-w.abs(), max=w.abs()), (C, 1, 1)),
    "norm_of_places": nn.LayerNorm(MAP),
    "group_norm_of_a_row": OfARow(nn.GroupNorm(2, C)),
    "instance_norm_of_a_row": OfARow(nn.InstanceNorm1d(C, affine=True)),
    "rms_norm_without_epsilon": Apply(channels_last(lambda x, w: functional.rms_norm(x, (C,), w)), (C,)),
    "by_hand_in_groups": Apply(by_hand_in_groups),
    "adaptive_maximum": nn.AdaptiveMaxPool2d((5, 4)),
    "divisor": nn.AvgPool2d(3, 2, 1, divisor_override=5),
    "transposed_row": OfARow(nn.ConvTranspose1d(C, C, 4, 2, 1)),
    "differences": Apply(lambda x: torch.diff(x, dim=2)),
    "channels_in_reverse": Apply(lambda x: x.flip(1)),
    "turned_by_90": Apply(lambda x: torch.rot90(x, 1, (2, 3)) + torch.rot90(x, -1, (2, 3)) * 2),
    "bilinear_form": Apply(lambda x, w, b: functional.bilinear(x.mean((2, 3)), x.amax((2, 3)), w, b), (6, C, C), (6,)),
    "cosine": Apply(lambda x, w: functional.cosine_similarity(x.mean((2, 3))[:, None], w, dim=-1), (6, C)),
    "distances": Apply(lambda x, w: torch.cdist(x.mean((2, 3)), w) - torch.cdist(x.amax((2, 3)), w, p=1), (6, C)),
    "squared_distances": Apply(lambda x, w: ((x.mean((2, 3))[:, None] - w) ** 2).sum(-1), (6, C)),
    "distance_of_two": Apply(lambda x: functional.pairwise_distance(x.flatten(2), x.flatten(2).relu())),
    "repeated_for_a_weight": Apply(lambda x, w: x.mean(1, keepdim=True) * w + w, (C, 1, 1)),
    "repeated_alone": Apply(lambda x: (x.mean((2, 3), keepdim=True).expand_as(x) * 2).flatten(1).view_as(x) + x),
    "repeated_in_front": Apply(lambda x, w: (x.expand(2, *x.shape) * w).sum(0), (2, 1, 1, 1, 1)),
    "gru_cell": Cells(nn.GRUCell(C, C), False),
    "lstm_cell": Cells(nn.LSTMCell(C, C), True),
    "shared_keys": Apply(shared_keys, (C, 2 * C)),
    "antialiased": Apply(lambda x: functional.interpolate(x, (7, 6), mode="bilinear", antialias=True)),
    "shifted": Apply(shifted),
    "parts_set": Apply(parts_set, (2, *MAP)),
    "tokens_set": Apply(tokens_set, (C,)),
    "gathered": Apply(lambda x: x.gather(3, torch.tensor([2, 0, 5]).expand(len(x), C, 12, 3))),
    "single_places": Apply(lambda x: x[:, :, torch.tensor([0, 3, 11]), torch.tensor([1, 9, 4])]),
    "places_of_a_mask": Apply(lambda x: x[:, :, torch.arange(120).view(MAP) % 7 == 0]),
    "diagonal": Apply(lambda x: x.diagonal(1, 2, 3)),
    "coordinates": Apply(lambda x: torch.cat([x, torch.linspace(-1, 1, 10).expand(len(x), 1, *MAP)], 1)[:, 5:]),
    "patches_as_images": Apply(patches_as_images, (C, C, 3, 3), (C,)),
    "mirrored_in_the_batch": Apply(mirrored_in_the_batch, (C, C, 3, 3)),
    "flatten": nn.Sequential(nn.Flatten(), nn.Linear(C * 12 * 10, C)),
}  # fmt: skip


class Branches(nn.Module):
    """All of `BRANCHES` side by side, and one convolution that is used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, C, (5, 3), padding=0), nn.Conv2d(C, C, 3, padding=1)
        self.branches, self.head = nn.ModuleDict(BRANCHES), nn.Linear(C, 4)

    def forward(self, images):
        x = self.twice(self.twice(self.stem(images)) + 0.1)
        total = 0.0
        for branch in self.branches.values():
            value = branch(x)
            # not the mean, which after some of the norms is zero but for rounding
            value = value.amax((2, 3)) if value.dim() == 4 else value.amax(2) if value.dim() == 3 else value
            total = total + value[:, :4].tanh()
        return self.head(torch.cat([total, total], 1)) / 10


def off_by_a_little(layer, op):
    """The same layer with another number; None if there is nothing in it that could be another."""
    config = layer.config
    if op == "positive" and layer.class_name != "Cropping2D":  # a number is divided by its own length
        return None
    if layer.class_name == "Cropping2D" and (op == "array" or (op == "root_of_squares" and "_first" in layer.name)):
        return None  # of what it cuts, nothing but the number of images is taken
    if op in ("power", "logarithm", "log_softmax") and not layer.name.endswith(("_7_step", "_scaled")):
        return None  # the next step mends it
    if layer.weights:
        (role, tensor, array), *others = layer.weights
        array = array.copy()
        array.reshape(-1)[0] += 1e-3 * max(1.0, abs(array.reshape(-1)[0]))
        return replace(layer, weights=((role, tensor, array), *others))
    if layer.class_name == "Rescaling" and np.any(config["scale"]):
        return replace(layer, config={**config, "scale": (np.array(config["scale"]) * (1 + 1e-6)).tolist()})
    if layer.class_name == "LayerNormalization":
        if config["epsilon"] < 1e-20:  # it has none, but in name
            return None
        return replace(layer, config={**config, "epsilon": config["epsilon"] * 2})
    if layer.class_name == "Cropping2D":
        rows, columns = config["cropping"]
        moved = [[first - 1, last + 1] if first else [first + bool(last), last - bool(last)]
                 for first, last in (rows, columns)]  # fmt: skip
        return None if moved == [rows, columns] else replace(layer, config={**config, "cropping": moved})
    if layer.class_name == "Permute" and config["dims"] == [3, 1, 2]:  # to the same shape after the flatten
        return replace(layer, config={"dims": [3, 2, 1]})
    others = {"softmax": "sigmoid", "softsign": "tanh", "selu": "elu", "softplus": "relu"}
    if config.get("activation") in others:
        return replace(layer, config={"activation": others[config["activation"]]})
    if layer.class_name == "ELU":
        return replace(layer, config={"alpha": config["alpha"] + 1e-3})
    if layer.class_name in ("MaxPooling2D", "AveragePooling2D") and config["padding"] == "same":
        return replace(layer, config={**config, "pool_size": [side + 1 for side in config["pool_size"]]})
    return None


# They have no number that could be another. With their axes in another order Keras would refuse the shape.
ONLY_MOVED = {"to_depth", "channel_shuffle", "largest_channel", "largest_column", "largest_place", "cube"}


def spoilt(graph, layers):
    """The layers with one fault in each branch, and for each branch the node that is to be found."""
    branch_of = {node.name: node.source.split(".")[1] for node in graph.nodes if node.source.startswith("branches.")}
    op_of = {node.name: node.op for node in graph.nodes}
    faults, found = {}, {}
    for layer in layers:
        branch = branch_of.get(layer.node)
        if (
            branch is not None
            and branch not in found
            and (other := off_by_a_little(layer, op_of[layer.node])) is not None
        ):
            faults[layer.name], found[branch] = other, layer.node
    return [faults.get(layer.name, layer) for layer in layers], found


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    """Name -> network, graph, what torch and what Keras gave, by node; all in one Keras process."""
    torch.manual_seed(0)
    networks = {"everything": Everything().eval(), "branches": Branches().eval()}
    networks["branches"].branches["batch_norm_alone"].running_var.uniform_(0.5, 2)
    folder, jobs, proofs = tmp_path_factory.mktemp("operations"), [], {}
    for name in ("everything", "branches", "spoilt"):
        network = networks["branches" if name == "spoilt" else name]
        graph = trace_graph(record(network, SIZE))
        layers, own = keras_layers(graph, separate=True), folder / name
        faults = {}
        if name == "spoilt":
            layers, faults = spoilt(graph, layers)
        own.mkdir()
        write_keras_h5(own / "m.h5", layers, model_name="m", details={}, training=training_config(1e-3))
        images = np.random.default_rng(0).random((2, *SIZE, 3))
        np.save(own / "exact.npy", images)
        np.save(own / "single.npy", images.astype(np.float32))
        names = [node.name for node in graph.nodes[1:]]
        tasks = [
            {"task": "layers", "inputs": str(own / "exact.npy"), "names": names, "folder": str(own)},
            {"task": "predict", "inputs": str(own / "single.npy"), "scale": 1.0, "outputs": str(own / "p.npy")},
        ]
        jobs.append((own / "m.h5", tasks))
        proofs[name] = (network, graph, images, own, names, faults)
    run_keras(jobs)
    return {
        name: (
            network, graph, images, torch_layers(network, graph, images),
            {each: np.load(own / f"{index}.npy") for index, each in enumerate(names)}, np.load(own / "p.npy"), faults,
        )
        for name, (network, graph, images, own, names, faults) in proofs.items()
    }  # fmt: skip


@pytest.mark.keras
@pytest.mark.parametrize("name", ["everything", "branches"])
def test_new_operations_are_the_same_function_in_keras(proofs, name):
    network, graph, images, expected, given, predicted, _ = proofs[name]
    check, _ = check_layers(graph, expected, given)
    assert check.passed, check
    probabilities = torch_probabilities(network, [images.astype(np.float32)])
    assert 0.01 < probabilities.min() < probabilities.max() < 0.99  # a difference would be seen
    assert np.abs(predicted - probabilities).max() < 1e-6


@pytest.mark.keras
def test_channels_cut_one_too_far_would_be_seen(proofs):
    _, graph, _, expected, given, _, _ = proofs["everything"]
    cut = next(node.name for node in graph.nodes if node.op == "slice_channels")
    shifted = {**given, cut: np.roll(given[cut], 1, axis=-1)}
    assert check_layers(graph, expected, shifted)[0].figure > LAYER_THRESHOLD


@pytest.mark.keras
def test_one_number_that_is_another_is_found_in_every_branch(proofs):
    """A weight, an epsilon, a crop, an order of axes: the node that has it is named."""
    _, graph, _, expected, given, _, faults = proofs["spoilt"]
    assert set(BRANCHES) - set(faults) == ONLY_MOVED
    errors = {each.name: each.relative_error for each in check_layers(graph, expected, given)[1]}
    missed = {branch: errors[node] for branch, node in faults.items() if not errors[node] > LAYER_THRESHOLD}
    assert not missed


def test_file_of_new_operations_is_read_back_as_what_it_is(tmp_path):
    """`lightning import` of a file that we wrote: every layer is one that it knows, and the answers are the same."""
    torch.manual_seed(0)
    network = Branches().eval()
    # neither a product of two values is read, nor places that are filled with a number
    for name in ("product_of_heads", "query", "multihead", "shared_keys", "patches_as_images"):
        del network.branches[name]
    layers = keras_layers(trace_graph(record(network, SIZE)))
    write_keras_h5(tmp_path / "m.h5", layers, model_name="m", details={}, training=None)
    again = graph_network(read_keras_graph(read_keras_h5(tmp_path / "m.h5")).graph)
    images = torch.rand(2, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), network(images).softmax(1))


def test_folded_and_repeated_weights_are_named_with_their_sources():
    graph = trace_graph(record(Branches(), SIZE))
    said = {name: origin.sources for name, origin in graph.computed.items() if origin.sources}
    assert said["twice.weight.again"] == ("twice.weight",)
    assert said["branches.standardised.weights.0.computed"] == ("branches.standardised.weights.0",)
    blur = next(node for node in graph.nodes if node.source == "branches.blur" and node.op == "conv2d")
    assert not graph.computed[blur.weights["kernel"]].sources
    fixed = {layer.node for layer in keras_layers(graph) if layer.fixed}
    assert blur.name in fixed
    assert not any(name.startswith("twice") for name in fixed)
