"""A program that went through JSON is analysed and replayed as it was."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.gates import gated_output
from secateurs.groups import Graph
from secateurs.trace.analyse import Analysis
from secateurs.trace.data import decode, encode, from_data, to_data
from secateurs.trace.program import Ref


class Attention(nn.Module):
    """Sizes from attributes and from shapes, and a scale computed from one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 8
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        b, t, _ = x.shape
        shape = (b, t, self.heads, self.width // self.heads)
        q, k, v = (y.reshape(shape).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) * (self.width // self.heads) ** -0.5).softmax(-1)
        return {"y": self.out((weights @ v).transpose(1, 2).reshape(b, t, self.width))}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "attention": lambda: (Attention(), torch.randn(2, 5, 6)),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(),
            nn.Linear(24, 2),
        ),
        torch.randn(2, 2, 6, 6),
    ),
    "recurrent": lambda: (nn.LSTM(3, 4), torch.randn(5, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_survives_json(name: str) -> None:
    model, x = NETWORKS[name]()
    graph = sc.trace(model, x)
    program = graph.program
    data = json.loads(json.dumps(to_data(program)))
    again = from_data(data, program.constants)
    assert to_data(again) == to_data(program)
    one, other = Graph(Analysis(program), rebuilt=True), Graph(Analysis(again), rebuilt=True)
    assert one.records() == other.records()
    units = {group.name: [0] for group in one if group.balance is None}
    plans = [made.plan(units) for made in (one, other)]
    assert plans[0] == plans[1]
    wanted, given = (gated_output(g, model, plans[0], x) for g in (one, other))
    assert repr(wanted) == repr(given)


def test_every_kind_of_argument_survives() -> None:
    nest = [Ref(3), (1, None, -0.5), torch.float32, torch.device("cpu"), torch.strided]
    nest += [{"a": [torch.channels_last]}, "text", True, float("inf")]
    assert decode(json.loads(json.dumps(encode(nest)))) == nest
    with pytest.raises(TypeError, match="no plain data"):
        encode(object())
