"""Networks that once broke a law, or that the law alone does not see; see test_oddities.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Base(nn.Module):
    def __init__(self, width: int = 8, read: int = 8) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(read, 2, 1)


class ChangedThroughAView(Base):
    """What is changed in place is never read under its own name."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        first, _ = x.chunk(2, 1)
        first.mul_(2)
        return self.out(x)


class FilledIn(Base):
    """Two convolutions written into one buffer, each by a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x), self.other(x)
        room = torch.zeros_like(a)
        room[:] = a
        room += b
        return self.out(room)


class Standardised(Base):
    """A weight divided by its own deviation: zero over zero where a unit is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / self.weight.std((1, 2, 3), keepdim=True)
        return self.out(F.conv2d(self.conv(x), w, padding=1))


class Rolled(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).roll(1, 1))


class Picked(Base):
    """Channels picked by a list in the code: its numbers are data."""

    def __init__(self) -> None:
        super().__init__(read=4)
        self.after = nn.Conv2d(2, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.after(self.out(self.conv(x)[:, [3, 1, 0, 2]])))


class Functional(Base):
    """A function in an attribute that is given the module: no method, so nothing to rewrite."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.then = nn.Linear(512, 2), flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.then(self, self.conv(x)))


def flatten(module: nn.Module, x: Tensor) -> Tensor:
    return x.view(-1, 512)


class GroupedAfterGroups(Base):
    """GroupNorm's groups are the convolution's: whole ones cannot go, their insides can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.grouped = nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.grouped(F.relu(self.norm(self.conv(x)))))


class Convoluted(Base):
    """LayerNorm over channels and space of one size: three equal numbers, one of which changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([8, 8, 8])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)))


class SlicedByAFunction(Base):
    """A number out of reach fixes where the first channels end."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out(torch.cat([first_three(x), x[:, self.three :]], 1))

    three = 3


class SizedByAnother(Base):
    """A size is taken from a tensor whose channels are other ones."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.out(self.same(y).flatten(2).reshape(y.shape))


class SizedBySelf(Base):
    """Every size is taken from the very tensor, by shape, by size and by a product."""

    def __init__(self) -> None:
        super().__init__(width=6, read=6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h * w).transpose(1, 2).reshape(n, h, w, c)
        return self.out(x.permute(0, 3, 1, 2).reshape(x.size(0), x.shape[-1], h, -1))


def first_three(x: Tensor) -> Tensor:
    return x[:, :3] * 2


ODDITIES = (SizedByAnother, SizedBySelf,
    ChangedThroughAView, FilledIn, Standardised, Rolled, Picked, Functional, GroupedAfterGroups,
    Convoluted, SlicedByAFunction,
)  # fmt: skip
