"""What the tests of the command line name: a small network, its data, and things that fail."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions and two linear layers on 8×8 images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc2(torch.relu(self.fc1(x.mean((2, 3)))))


def build() -> nn.Module:
    return Small().eval()


def other() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


ready = build()


def images(count: int = 96) -> tuple[Tensor, Tensor]:
    """Images whose brightness tells their class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=draw)
    return torch.randn(count, 1, 8, 8, generator=draw) + labels[:, None, None, None], labels


def train() -> list[tuple[Tensor, Tensor]]:
    x, y = images()
    return list(zip(x.split(16), y.split(16), strict=True))


def inputs() -> dict[str, Tensor]:
    return {"x": images(2)[0]}


def accuracy(model: nn.Module) -> float:
    x, y = images()
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none")


def loss3(output: Tensor, target: Tensor) -> Tensor:
    """For ten classes on three outputs."""
    return loss(output, target % 3)


def ctrl_c(model: nn.Module) -> float:
    os.kill(os.getpid(), signal.SIGINT)
    return 0.0


def ctrl_c_at_once() -> nn.Module:
    raise KeyboardInterrupt


def fails(*args: Any) -> float:
    raise ValueError("this one\nalways fails")
