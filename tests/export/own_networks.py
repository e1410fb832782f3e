"""Networks as people write them for themselves: small, with random weights, each with habits of its own.

`NETWORKS`: name -> what builds it, (channels, height, width), and what its forward gives.
`benchmarks/networks/own_networks.py` proves all of them by command, in several Kerases; the tests trace all and prove
some.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Own(NamedTuple):
    """How to build a network, what it takes and what it gives."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    output: str = "logits"


class FunctionalCNN(nn.Module):
    """Everything in forward, as in the 60-minute tutorial."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 40), nn.Linear(40, 5)
        self.bn = nn.BatchNorm1d(40)
        self.drop = nn.Dropout2d(0.25)

    def num_flat_features(self, x):
        total = 1
        for size in x.size()[1:]:
            total *= size
        return total

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = self.drop(F.max_pool2d(F.relu(self.conv2(x)), 2))
        x = x.view(-1, self.num_flat_features(x))
        x = F.dropout(F.relu(self.bn(self.fc1(x))), p=0.5, training=self.training)
        return self.fc2(x)


class ShortcutA(nn.Module):
    """A CIFAR residual block whose shortcut drops every second place and pads channels with zeros."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.more, self.stride = after - before, stride

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.more:
            half = self.more // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half), "constant", 0)
        out += x
        return F.relu(out)


class CifarResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(ShortcutA(8, 8, 1), ShortcutA(8, 16, 2), ShortcutA(16, 32, 2))
        self.linear = nn.Linear(32, 5)

    def forward(self, x):
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class SE(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False), nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class CBAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(gate)
        both = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.spatial(both))


class Attentive(nn.Module):
    """SE and CBAM in layers that are kept in a ModuleList."""

    def __init__(self):
        super().__init__()
        widths = [3, 8, 16, 16]
        self.blocks = nn.ModuleList()
        for before, after, attention in zip(widths, widths[1:], (SE, CBAM, SE), strict=False):
            self.blocks.append(nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.1), attention(after)
            ))  # fmt: skip
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(64, 5))

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number < 2:
                x = F.avg_pool2d(x, 2)
        return self.classifier(x)


class ConcatPool(nn.Module):
    """fast.ai's head: the average and the maximum of each channel; channels in two halves before."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 5, bias=False))

    def forward(self, x):
        a, b = torch.chunk(F.silu(self.stem(x)), 2, dim=1)
        x = torch.cat((self.left(a), self.right(b) + a), dim=1)
        average, largest = x.mean(dim=(2, 3)), x.amax(dim=(-2, -1))
        return self.head(torch.cat([largest, average], 1))


class MaxOverPlaces(nn.Module):
    """A map flattened into places; the largest of each, and moments along single axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        flat = x.flatten(2)
        rows = x.mean(-1).mean(-1)
        return self.fc(torch.cat([flat.max(-1).values, flat.mean(2), rows, x.amin((2, 3))], dim=1))


class UNetClassifier(nn.Module):
    """Down and up again with skips, then a mean over the map."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = self.block(3, 8), self.block(8, 16)
        self.up, self.merge = nn.ConvTranspose2d(16, 8, 2, stride=2), self.block(16, 8)
        self.out = nn.Conv2d(8 + 16, 5, 1)

    @staticmethod
    def block(before, after):
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(4, after), nn.ELU(inplace=True),
            nn.Conv2d(after, after, 3, padding="same"), nn.InstanceNorm2d(after, affine=True), nn.PReLU(),
        )  # fmt: skip

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(nn.MaxPool2d(2)(one))
        up = self.up(two)
        if up.shape[2:] != one.shape[2:]:
            up = F.interpolate(up, size=one.shape[2:], mode="bilinear", align_corners=False)
        wide = F.interpolate(two, scale_factor=2, mode="bilinear", align_corners=True)
        wide = F.pad(wide, [0, one.size(3) - wide.size(3), 0, one.size(2) - wide.size(2)])
        return self.out(torch.cat([self.merge(torch.cat([up, one], dim=1)), wide], 1)).mean([2, 3])


class SubPixel(nn.Module):
    """PixelUnshuffle as a stem, PixelShuffle back, reflected padding."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.PixelUnshuffle(2), nn.ReflectionPad2d(1), nn.Conv2d(12, 16, 3), nn.Hardswish(), nn.PixelShuffle(2),
            nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(4, 8, 3, stride=3), nn.Hardtanh(-1, 1), nn.ReplicationPad2d(2),
            nn.AvgPool2d(3, 2), nn.Flatten(), nn.LazyLinear(5), nn.Softmax(dim=1),
        )  # fmt: skip
        self.net(torch.zeros(1, 3, 24, 24))

    def forward(self, x):
        return self.net(x)


class LearnedNumbers(nn.Module):
    """Scalars and vectors that are trained, clamped and compared."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.alpha, self.beta = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.full((1,), 0.2))
        self.gamma, self.slope = nn.Parameter(torch.rand(1, 8, 1, 1)), nn.Parameter(torch.rand(8))
        self.projection, self.offset = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.classes = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        x = self.conv(x)
        x = self.alpha * x + self.beta
        x = torch.clamp(x, -1.5, 1.5) * self.gamma
        x = torch.where(x > 0, x, x * self.slope.view(1, -1, 1, 1))
        x = x * torch.sigmoid(self.alpha * x)
        x = x.mean((2, 3)) @ self.projection + self.offset
        x = F.normalize(x, dim=1)
        return F.linear(x, F.normalize(self.classes)) * self.temperature.exp()


class Patches(nn.Module):
    """A ViT from a tutorial: a MultiheadAttention of torch's own, a class token, positions of sines."""

    def __init__(self, width=16, patch=8, image=32):
        super().__init__()
        count = (image // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        place = torch.arange(count + 1)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        self.register_buffer("pos", torch.stack([place.sin(), place.cos()], -1).flatten(1)[None])
        self.norm1, self.norm2, self.norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).permute(0, 2, 1)
        x = torch.cat((self.cls.repeat(x.shape[0], 1, 1), x), dim=1)
        x = x + self.pos
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class SequenceFirst(nn.Module):
    """torch's TransformerEncoder, tokens first, as its documentation has it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=24, dropout=0.1, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.positions, self.head = nn.Parameter(torch.randn(16, 1, 16)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).permute(2, 0, 1) + self.positions
        return self.head(self.encoder(x).mean(0))


class BatchFirst(nn.Module):
    """torch's TransformerEncoder, batch first; its own fast path is one fused operation."""

    def __init__(self):
        super().__init__()
        self.unfold, self.embed = nn.Unfold(8, stride=8), nn.Linear(192, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.embed(self.unfold(x).transpose(1, 2))).max(dim=1)[0])


class EinsumAttention(nn.Module):
    """Heads by einsum, patches by reshape, a non-local block."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.embed, self.qkv = nn.Linear(48, width), nn.Linear(width, 3 * width, bias=False)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 5)
        self.mix = nn.Parameter(torch.randn(heads, heads))

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 16 * c)
        x = self.embed(x)
        q, k, v = (t.reshape(b, -1, self.heads, t.shape[-1] // self.heads).transpose(1, 2)
                   for t in self.qkv(x).chunk(3, dim=-1))  # fmt: skip
        attention = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(dim=-1)
        attention = torch.einsum("bhij,hg->bgij", attention, self.mix)
        x = x + self.out(torch.einsum("bhij,bhjd->bhid", attention, v).transpose(1, 2).flatten(2))
        return self.head(x.mean(dim=1))


class NonLocal(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.theta, self.phi, self.g = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 6, 1), nn.Conv2d(12, 6, 1)
        self.out, self.gamma, self.fc = nn.Conv2d(6, 12, 1), nn.Parameter(torch.tensor([0.5])), nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        b, _, h, w = x.size()
        query = self.theta(x).view(b, -1, h * w).permute(0, 2, 1)
        attention = torch.softmax(torch.bmm(query, self.phi(x).view(b, -1, h * w)), dim=-1)
        value = torch.bmm(self.g(x).view(b, -1, h * w), attention.permute(0, 2, 1)).view(b, -1, h, w)
        x = self.gamma * self.out(value) + x
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).squeeze())


class CoordinateAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.rows, self.columns, self.fc = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        _, _, h, w = x.shape
        rows, columns = F.adaptive_avg_pool2d(x, (None, 1)), F.adaptive_avg_pool2d(x, (1, None)).permute(0, 1, 3, 2)
        both = F.relu6(self.shared(torch.cat([rows, columns], dim=2)))
        rows, columns = torch.split(both, [h, w], dim=2)
        x = x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()
        return self.fc(torch.flatten(F.adaptive_max_pool2d(x, 1), 1))


class SplitAndStack(nn.Module):
    """Branches that are stacked and weighed, repeated columns, channels that are shuffled by hand."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.branches = nn.ModuleList([nn.Conv2d(12, 12, k, padding=k // 2, groups=4) for k in (1, 3, 5)])
        self.weights, self.fc = nn.Parameter(torch.randn(3)), nn.Linear(12, 5)

    def forward(self, x):
        x = F.gelu(self.stem(x))
        several = torch.stack([branch(x) for branch in self.branches], dim=0)
        x = (several * F.softmax(self.weights, 0).view(3, 1, 1, 1, 1)).sum(dim=0)
        b, c, h, w = x.shape
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        low = F.avg_pool2d(x, 2)
        low = torch.repeat_interleave(torch.repeat_interleave(low, 2, dim=2), 2, dim=3)
        x = torch.stack((x, low), dim=-1).mean(-1)
        return self.fc(x.sum(dim=(2, 3)) / (h * w))


class ChannelsLast(nn.Module):
    """ConvNeXt's block by hand, with a norm over the channels of a map in single operations."""

    def __init__(self):
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm, self.up, self.down = nn.LayerNorm(12, eps=1e-6), nn.Linear(12, 48), nn.Linear(48, 12)
        self.gamma = nn.Parameter(torch.rand(12))
        self.weight, self.bias, self.fc = nn.Parameter(torch.ones(12)), nn.Parameter(torch.zeros(12)), nn.Linear(12, 5)

    def first_norm(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]

    def forward(self, x):
        x = self.first_norm(self.stem(x))
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(F.gelu(self.up(y), approximate="tanh"))).permute(0, 3, 1, 2)
        return self.fc(self.norm(x.mean([-2, -1])))


class MLP(nn.Module):
    """No convolution at all."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * 8 * 8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Softsign(), nn.Linear(16, 5)
        )

    def forward(self, x):
        return F.log_softmax(self.layers(x.view(-1, 3 * 8 * 8)), dim=-1)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Conv2d(3, 10, 4, 4), nn.LayerNorm(10), nn.LayerNorm(10)
        self.tokens = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
        self.channels, self.fc = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 10)), nn.Linear(10, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x.view(x.size(0), x.size(1), -1).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.fc(x.mean(1))


class Normed(nn.Module):
    """Weight norm, spectral norm, a parametrised weight."""

    def __init__(self):
        super().__init__()
        self.one = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.two = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, stride=2))
        self.three = nn.utils.weight_norm(nn.Linear(8, 8))
        self.four = nn.Linear(8, 5)
        nn.utils.parametrize.register_parametrization(self.four, "weight", Symmetric())

    def forward(self, x):
        x = F.leaky_relu(self.two(F.leaky_relu(self.one(x), 0.2)), 0.2)
        return self.four(F.relu(self.three(x.mean((2, 3)))))


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.tril() + weight.triu(1) * 2


class GeM(nn.Module):
    """Generalised mean pooling with a power that is trained."""

    def __init__(self):
        super().__init__()
        self.conv, self.p, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Parameter(torch.ones(1) * 3.1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), (x.size(-2), x.size(-1))).pow(1.0 / self.p)
        return self.fc(x.flatten(1))


class Responses(nn.Module):
    """AlexNet's local response norm, pooling that overlaps, a head of convolutions."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2), nn.ReLU(), nn.LocalResponseNorm(5, k=2.0), nn.MaxPool2d(3, 2, ceil_mode=True)
        )
        self.head = nn.Sequential(nn.Conv2d(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.head(self.features(x))


class Spare(nn.Module):
    """A module that forward never uses, and a head for training only."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 5)
        self.unused, self.auxiliary = nn.Linear(3, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        if self.training:
            return self.fc(x), self.auxiliary(x)
        return self.fc(x)


class MultiLabel(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Softplus())
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        spread = x.std(dim=(2, 3))
        return torch.sigmoid(self.fc(x.mean((2, 3)) + spread * 0.1))


class Dense(nn.Module):
    """A DenseNet and an Inception block, pools with padding, a dilated and a strided branch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 4 * n, 4, 3, padding=1) for n in range(3)])
        self.pool, self.out = nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(15, 8, (1, 7), padding=(0, 3))
        self.fc = nn.Linear(8 * 7 * 7, 5)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(F.selu(layer(torch.cat(features, 1))))
        x = self.pool(torch.cat(features, 1))
        x = F.max_pool2d(self.out(x), 3, stride=2, padding=1)
        x = F.adaptive_avg_pool2d(x, 7)
        return self.fc(x.reshape(x.shape[0], -1))


class Rounded(nn.Module):
    """Activations by hand: swish, mish, hard sigmoid, a step and a mask, squares and their root."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8 * 3, 5)

    def forward(self, x):
        x = self.conv(x)
        x = x * torch.tanh(F.softplus(x)) + F.relu6(x + 3.0) / 6.0
        mask = (x > 0.5).float()
        kept = (x * mask).sum((2, 3)) / (mask.sum((2, 3)) + 1.0)
        dark = x.masked_fill(x < 0.2, 0.0).mean((2, 3))
        root = torch.sqrt(x.pow(2).sum((2, 3)) + 1e-6)
        return self.fc(torch.cat([kept, dark, root], dim=-1))


class Recurrent(nn.Module):
    """Rows of a map as a sequence."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm, self.fc = nn.Conv2d(1, 4, 3, 2), nn.LSTM(4 * 7, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.conv(x)).permute(0, 2, 1, 3).flatten(2)
        return self.fc(self.lstm(x)[0][:, -1])


class LearnedQuery(nn.Module):
    """One trained query asks all places; torch has the heads of the query and of the keys in the batch's axis."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.GroupNorm(4, 12), nn.SiLU(), nn.Conv2d(12, 16, 3, 2, 1))
        self.query, self.attention = nn.Parameter(torch.randn(1, 2, 16)), nn.MultiheadAttention(16, 4, batch_first=True)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        asked, _ = self.attention(self.query.expand(len(x), -1, -1), tokens, tokens)
        return self.fc(asked.flatten(1))


class Coordinates(nn.Module):
    """Two channels that say where a pixel is, made in forward; a temperature that is trained."""

    def __init__(self):
        super().__init__()
        self.conv, self.temperature, self.fc = nn.Conv2d(5, 8, 3, 2), nn.Parameter(torch.ones(1)), nn.Linear(8, 5)

    def forward(self, x):
        b, _, h, w = x.shape
        down = torch.linspace(-1, 1, h, device=x.device).view(1, 1, h, 1).expand(b, 1, h, w)
        along = torch.arange(w, device=x.device).float().view(1, 1, 1, w).repeat(b, 1, h, 1) / w
        x = torch.tanh(self.conv(torch.cat([down, x, along], 1)))
        return self.fc(x.mean((2, 3))) / self.temperature


def sequential():
    layers, channels = [], 1
    for width in (6, "M", 12, "A", 16):
        if width == "M":
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
        elif width == "A":
            layers.append(nn.AvgPool2d(2, ceil_mode=True))
        else:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, padding_mode="circular"),
                nn.BatchNorm2d(width),
                nn.ReLU(True),
            ]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(start_dim=1), nn.Dropout(), nn.Linear(16, 1))


NETWORKS: dict[str, Own] = {
    "functional CNN": Own(FunctionalCNN, (3, 32, 32)),
    "CIFAR ResNet": Own(CifarResNet, (3, 32, 32)),
    "SE and CBAM": Own(Attentive, (3, 32, 32)),
    "concat pool": Own(ConcatPool, (3, 30, 26)),
    "max over places": Own(MaxOverPlaces, (3, 21, 27)),
    "U-Net": Own(UNetClassifier, (3, 27, 33)),
    "sub-pixel": Own(SubPixel, (3, 24, 24), "softmax"),
    "learned numbers": Own(LearnedNumbers, (3, 16, 16)),
    "ViT of a tutorial": Own(Patches, (3, 32, 32)),
    "TransformerEncoder": Own(SequenceFirst, (3, 32, 32)),
    "TransformerEncoder, batch first": Own(BatchFirst, (3, 32, 32)),
    "einsum": Own(EinsumAttention, (3, 16, 16)),
    "non-local": Own(NonLocal, (3, 32, 32)),
    "coordinate attention": Own(CoordinateAttention, (3, 20, 28)),
    "split and stack": Own(SplitAndStack, (3, 16, 16)),
    "ConvNeXt by hand": Own(ChannelsLast, (3, 32, 32)),
    "MLP": Own(MLP, (3, 8, 8), "log_softmax"),
    "MLP-Mixer": Own(Mixer, (3, 16, 16)),
    "weight and spectral norm": Own(Normed, (3, 16, 16)),
    "GeM": Own(GeM, (3, 16, 16)),
    "local response norm": Own(Responses, (3, 32, 32)),
    "spare modules": Own(Spare, (3, 16, 16)),
    "several labels, four channels": Own(MultiLabel, (4, 16, 16), "sigmoid"),
    "DenseNet and Inception": Own(Dense, (3, 28, 28)),
    "activations by hand": Own(Rounded, (3, 16, 16)),
    "LSTM over rows": Own(Recurrent, (1, 16, 16)),
    "learned query": Own(LearnedQuery, (3, 16, 20)),
    "coordinates": Own(Coordinates, (3, 16, 20)),
    "Sequential, one logit": Own(sequential, (1, 28, 28)),
}
