"""Random convolutional networks: a Hypothesis strategy for their specification, and the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

KINDS = ("plain", "residual", "concat", "depthwise", "grouped", "squeeze", "chunk", "shuffle",
         "bottleneck", "transposed", "shared", "dense_add")  # fmt: skip
NORMS = ("batch", "group", "instance", "none")
HEADS = ("pool", "flatten", "hard_view", "nhwc", "conv", "max_pool")


@dataclass(frozen=True)
class Spec:
    """What a generated network is made of: widths are multiples of 4, images are 8×8."""

    blocks: tuple[tuple[str, int, str], ...]
    head: str
    bias: bool
    act: str


def specs() -> st.SearchStrategy[Spec]:
    block = st.tuples(st.sampled_from(KINDS), st.sampled_from([4, 8, 12]), st.sampled_from(NORMS))
    return st.builds(
        Spec,
        st.lists(block, min_size=1, max_size=5).map(tuple),
        st.sampled_from(HEADS),
        st.booleans(),
        st.sampled_from(["relu", "silu", "prelu", "sigmoid", "in_place"]),
    )


def norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "group":
        return nn.GroupNorm(4, width)
    return nn.InstanceNorm2d(width, affine=True) if kind == "instance" else nn.Identity()


def act(kind: str, width: int) -> nn.Module:
    if kind == "prelu":
        return nn.PReLU(width)
    table = {"relu": nn.ReLU(), "silu": nn.SiLU(), "sigmoid": nn.Sigmoid()}
    return table.get(kind, nn.ReLU(inplace=True))


class Block(nn.Module):
    def __init__(self, kind: str, before: int, width: int, normed: str, spec: Spec) -> None:
        super().__init__()
        self.kind = kind
        self.out_width = before + width if kind == "concat" else width
        groups = {"depthwise": before, "grouped": 4}.get(kind, 1)
        if kind == "depthwise":
            width = self.out_width = before * (1 + (width > before))
        if kind in ("residual", "shared"):
            width = self.out_width = before
        inner = width * 4 if kind == "shuffle" else width
        if kind == "bottleneck":
            self.reduce = nn.Conv2d(before, 4, 1, bias=spec.bias)
            before = 4
        if kind == "transposed":
            self.conv = nn.ConvTranspose2d(before, inner, 3, padding=1, bias=spec.bias)
        else:
            self.conv = nn.Conv2d(before, inner, 3, padding=1, groups=groups, bias=spec.bias)
        self.norm, self.act = norm(normed, inner), act(spec.act, inner)
        if kind == "squeeze":
            self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        if kind == "chunk":
            self.left = nn.Conv2d(width // 2, width, 1)
            self.right = nn.Conv2d(width // 2, width, 1)
        if kind == "dense_add":
            self.side = nn.Conv2d(before, width, 1, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x) if self.kind == "bottleneck" else x
        y = self.act(self.norm(self.conv(y)))
        if self.kind == "residual":
            return x + y
        if self.kind == "concat":
            return torch.cat([x, y], 1)
        if self.kind == "squeeze":
            return y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        if self.kind == "chunk":
            a, b = y.chunk(2, dim=1)
            return self.left(a) * self.right(b)
        if self.kind == "shuffle":
            return F.avg_pool2d(F.pixel_shuffle(y, 2), 2)
        if self.kind == "shared":
            return self.act(self.norm(self.conv(y)))
        return y + self.side(x) if self.kind == "dense_add" else y


class Generated(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.head, self.stem = spec.head, nn.Conv2d(3, 8, 3, padding=1, bias=spec.bias)
        blocks, width = [], 8
        for kind, wanted, normed in spec.blocks:
            blocks.append(Block(kind, width, wanted, normed, spec))
            width = blocks[-1].out_width
        self.blocks = nn.ModuleList(blocks)
        size = 1 if spec.head in ("pool", "max_pool") else 16
        self.wide = width * size
        self.out = nn.Conv2d(width, 3, 1) if spec.head == "conv" else nn.Linear(width * size, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        for block in self.blocks:
            x = block(x)
        if self.head == "conv":
            return self.out(x)
        if self.head == "pool":
            return self.out(x.mean((2, 3)))
        if self.head == "max_pool":
            return self.out(F.adaptive_max_pool2d(x, 1).flatten(1))
        if self.head == "nhwc":
            return self.out(x.permute(0, 2, 3, 1).reshape(x.shape[0], -1))
        return self.out(x.flatten(1) if self.head == "flatten" else x.view(-1, self.wide))
