"""The networks that the oracle is timed on, for CIFAR images of 32 × 32 pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16() -> nn.Module:
    """VGG-16 in its CIFAR form: 13 convolutions with batch normalisation, two linear layers.

    Source: Simonyan, Zisserman 2014, configuration D; the head of 512 units as usual for CIFAR.
    """
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG16:
        if width:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU())
            before = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, *head)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.more:  # the shortcut without weights: zeros for the new channels
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 with shortcuts that have no weights (He et al. 2015, section 4.2, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2), *[(32, 32, 1)] * 2, (32, 64, 2)]
        widths += [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*(_Block(*width) for width in widths))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """He-initialised, with batch statistics of these images; in eval mode."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over the batches seen
    with torch.no_grad():
        model.train()(images)
    return model.eval()
