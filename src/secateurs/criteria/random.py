"""Random importance: the baseline that every criterion should beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fixed, GroupInfo


@dataclass(frozen=True)
class Random(Fixed):
    """Θ uniform in [0, 1), fixed by the seed and the group's name; the same on every machine.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    >>> graph = sc.trace(net, torch.zeros(1, 4))
    >>> one, two = (sc.score(net, graph, criterion="random", seed=s)["0"] for s in (0, 1))
    >>> bool((one == two).any())
    False
    """

    @property
    def name(self) -> str:
        return "random"

    def init(self, group: GroupInfo) -> Tensor:
        seed = zlib.crc32(f"{group.seed}/{group.name}".encode())
        return torch.rand(
            group.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
