"""A small transformer with grouped queries, each of whose units has a gate by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from tests.references import Gated, Values
from tests.support import doubled
from torch import Tensor, nn

WIDTH, TOKENS = 16, 8
KV, EACH = 2, 3  # key/value heads, and the queries of each
DIM, VALUE = 5, 4  # of a head: of queries and keys, and of values


class Attentive(Gated):
    """Attention and an MLP around a residual stream, whose width is that of the input."""

    sizes: ClassVar = {
        "wq:kv-head": KV, "wq": KV * EACH, "wq:head-dim": DIM, "wv:head-dim": VALUE, "fc1": 5,
    }  # fmt: skip
    reads: ClassVar = {
        "wq:kv-head": ["wo"], "wq": ["wo"], "wq:head-dim": ["qk"], "wv:head-dim": ["wo"],
        "fc1": ["fc2"],
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.kv, self.dim, self.value = KV * EACH, KV, DIM, VALUE
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wq = nn.Linear(WIDTH, KV * EACH * DIM)
        self.wk, self.wv = nn.Linear(WIDTH, KV * DIM), nn.Linear(WIDTH, KV * VALUE)
        self.wo = nn.Linear(KV * EACH * VALUE, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)
        self.norm3 = nn.BatchNorm1d(5)
        self.head = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.heads, self.dim)
        q = self.by("qk", "wq:head-dim", q, 3)
        self.see("wq:head-dim", q.movedim(3, 1))
        k, v = self.wk(x).view(b, t, self.kv, self.dim), self.wv(x).view(b, t, self.kv, self.value)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        shape = (b, self.kv, self.heads // self.kv, t, -1)
        k, v = (y[:, :, None].expand(shape).flatten(1, 2) for y in (k, v))
        y = (q @ k.transpose(-2, -1) / math.sqrt(DIM)).softmax(-1) @ v
        self.see("wq:kv-head", y.reshape(b, self.kv, -1))
        self.see("wv:head-dim", self.see("wq", y).movedim(3, 1))
        y = self.by("wo", "wv:head-dim", self.read("wo", "wq", y), 3)
        y = self.read("wo", "wq:kv-head", y, EACH)
        return self.wo(y.transpose(1, 2).flatten(2))

    def by(self, reader: str, group: str, x: Tensor, dim: int) -> Tensor:
        """`read`, of a tensor that has the units in this dimension."""
        return self.read(reader, group, x.movedim(dim, 1)).movedim(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (TOKENS, WIDTH))
        x = x + self.attend(self.norm1(x))
        y = self.fc1(self.norm2(x)).transpose(1, 2)
        y = self.see("fc1", F.relu(self.norm3(y)))
        y = self.fc2(self.read("fc2", "fc1", y).transpose(1, 2))
        return self.head((x + y).mean(1))

    def scales(self) -> Values:
        return {"fc1": self.norm3.weight.detach()}

    def weights(self, side: str) -> dict[str, Callable[[int], list[Tensor]]]:
        if side == "reads":
            wo = self.wo.weight.unflatten(1, (KV, EACH, VALUE))
            return {
                "wq:kv-head": lambda u: [wo[:, u]],
                "wq": lambda u: [wo.flatten(1, 2)[:, u]],
                "wv:head-dim": lambda u: [wo[..., u]],
                "fc1": lambda u: [self.fc2.weight[:, u]],
            }
        wq = self.wq.weight.unflatten(0, (KV, EACH, DIM))
        wk = self.wk.weight.unflatten(0, (KV, DIM))
        wv = self.wv.weight.unflatten(0, (KV, VALUE))
        return {
            "wq:kv-head": lambda u: [wq[u], wk[u], wv[u]],
            "wq": lambda u: [wq.flatten(0, 1)[u]],
            "wq:head-dim": lambda u: [wq[:, :, u], wk[:, u]],
            "wv:head-dim": lambda u: [wv[:, u]],
            "fc1": lambda u: [self.fc1.weight[u]],
        }


def attentive() -> Attentive:
    torch.manual_seed(0)
    return doubled(Attentive())
