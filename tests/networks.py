"""Small plain networks, each for one way in which axes are coupled, with inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn


def image(size: int = 16, channels: int = 3, examples: int = 2) -> Tensor:
    return torch.randn(examples, channels, size, size)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 10, 5)
        self.fc1, self.fc2 = nn.Linear(160, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """The stem's channels have three readers: a, the head, and (through the sum) b's writer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.b(F.relu(self.a(x)))).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(16)
        self.down2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        low = F.relu(self.norm(self.down2(skip)))
        return self.head(F.relu(self.out(torch.cat([self.up(low), skip], 1))))


class GroupNormResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm_a, self.norm_b = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(x)))
        return self.head((x + F.relu(self.norm_b(self.b(x)))).mean((2, 3)))


class NhwcFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


class HardView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 3, padding=1)
        self.head = nn.Linear(64 * 8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x))
        return self.head(x.view(-1, 64 * 8 * 8))


class Cbam(nn.Module):
    """A spatial gate made of the mean and the maximum over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head((x * torch.sigmoid(self.gate(pooled))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.out(x * gate[:, :, None, None]).mean((2, 3))


class LiteralSlice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.k = nn.Conv2d(3, 64, 3), 40
        self.a, self.b = nn.Conv2d(40, 4, 3), nn.Conv2d(24, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.a(x[:, :40]) + self.b(x[:, 40:])


class AttributeSlice(LiteralSlice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.a(x[:, : self.k]) + self.b(x[:, self.k :])


class Chunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.a, self.b = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.a(a) + self.b(b)


class Grouped(nn.Module):
    """Depthwise with a multiplier, grouped, and grouped transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8)
        self.grouped = nn.Conv2d(16, 32, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(32, 16, 2, groups=4)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(self.stem(x)))
        return self.head(F.relu(self.transposed(F.relu(self.grouped(x)))))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 32, 3), nn.PixelShuffle(2)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shuffle(self.conv(x))))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x)))))))


class Instance1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 3)
        self.norm, self.act = nn.InstanceNorm1d(8, affine=True), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.norm(self.conv(x))))


class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool3d(F.relu(self.norm(self.conv(x))), 1).flatten(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x) * self.b(y)))


class Dicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 6)
        self.mean, self.scale = nn.Linear(14, 2), nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        a, b = F.relu(self.a(left)), F.relu(self.b(right))
        return {"mean": self.mean(torch.cat([a, b], -1)), "more": (self.scale(a), {"n": 3})}


class Tied(nn.Module):
    """The second product uses the first one's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(6, 10), nn.Parameter(torch.zeros(6))
        self.alias = self.encode

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.encode(x)), self.alias.weight.t(), self.bias)


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 9)), nn.Parameter(torch.randn(9, 3))
        self.shift = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ self.first + self.shift) @ self.second


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        y = self.b(x)
        y += x
        return self.head(F.avg_pool2d(self.act(y), 2).mul_(0.5))


class LayerNormMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.b, self.head = nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.b(self.norm(F.gelu(self.a(x))))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "lenet": (LeNet, lambda: image(28, 1)),
    "residual": (Residual, image),
    "unet": (UNet, image),
    "groupnorm": (GroupNormResidual, image),
    "nhwc": (NhwcFlatten, lambda: image(8)),
    "hard_view": (HardView, image),
    "cbam": (Cbam, image),
    "squeeze_excite": (SqueezeExcite, image),
    "literal_slice": (LiteralSlice, image),
    "attribute_slice": (AttributeSlice, image),
    "chunks": (Chunks, image),
    "grouped": (Grouped, image),
    "shuffled": (Shuffled, image),
    "shared": (Shared, image),
    "instance1d": (Instance1d, lambda: torch.randn(2, 3, 12)),
    "conv3d": (Conv3d, lambda: torch.randn(2, 2, 6, 6, 6)),
    "two_inputs": (TwoInputs, lambda: (torch.randn(2, 5), torch.randn(2, 3))),
    "dicts": (Dicts, lambda: {"left": torch.randn(2, 5), "right": torch.randn(2, 5)}),
    "tied": (Tied, lambda: torch.randn(3, 6)),
    "bare_parameter": (BareParameter, lambda: torch.randn(3, 5)),
    "in_place": (InPlace, image),
    "layernorm_mlp": (LayerNormMlp, lambda: torch.randn(3, 5)),
    "linear_3d": (LayerNormMlp, lambda: torch.randn(2, 7, 5)),
}


def network(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """(model, example inputs) in float64, in eval mode, the same every time."""
    make, inputs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return doubled(make(), seed), doubled(inputs())
