"""The oracle of models that call the kernel of attention, beside those models with zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc
from secateurs.exact.changes import Engine

WIDTH, TOKENS, HEADS, DIM = 8, 5, 2, 4
BEFORE = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
attend = F.scaled_dot_product_attention
loss = nn.CrossEntropyLoss(reduction="none")

ATTEND: dict[str, Callable[..., Tensor]] = {
    "plain": attend,
    "causal": lambda q, k, v: attend(q, k, v, is_causal=True),
    "masked": lambda q, k, v: attend(q, k, v, BEFORE),
    "biased": lambda q, k, v: attend(q, k, v, (q @ k.mT).cos()),
    "scaled": lambda q, k, v: attend(q, k, v, scale=q.shape[-1] ** -0.25),
}


class Attention(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend, self.heads, self.dim = attend, HEADS, DIM
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * DIM) for _ in "qkv")
        self.out = nn.Linear(HEADS * DIM, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = (f(x).unflatten(-1, (self.heads, self.dim)) for f in (self.q, self.k, self.v))
        y = self.attend(*(head.transpose(1, 2) for head in heads))
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attn = Attention(attend)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, WIDTH, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Net(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers = nn.Sequential(Layer(attend), Layer(attend))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def zeroed(made: Callable[[], Net], group: str, unit: int) -> Net:
    """The network with zeros for the weights that a unit writes, or is read by."""
    net = made()
    path, _, kind = group.partition(":")
    layer = net.layers[int(path.split(".")[1])]
    attn, down = layer.attn, layer.mlp[2].weight
    with torch.no_grad():
        if path.endswith("attn"):
            attn.out.weight.zero_()
        elif path.endswith("mlp"):
            down.zero_()
        elif path.endswith("mlp.0"):
            down[:, unit] = 0
        elif kind and unit < DIM:  # of queries and keys
            attn.q.weight[unit::DIM], attn.q.bias[unit::DIM] = 0, 0
        elif kind:  # of values
            attn.out.weight[:, unit - DIM :: DIM] = 0
        else:
            attn.out.weight[:, unit * DIM : (unit + 1) * DIM] = 0
    return net


@pytest.mark.parametrize("name", ATTEND)
def test_the_oracle_is_the_loop_over_the_model_with_zeros(name: str) -> None:
    def made() -> Net:
        torch.manual_seed(0)
        return doubled(Net(ATTEND[name]))

    net, x, y = made(), torch.randn(6, TOKENS, WIDTH).double(), torch.randint(3, (6,))
    graph = sc.trace(net, x[:2])
    groups = [*graph.groups, *graph.blocks]
    engine = Engine(net, graph, loss, groups=groups)
    with torch.no_grad():
        whole = loss(net(x), y)
        for group, found in engine.changes((x, y)):
            assert found.how == "rows"
            for unit in range(found.loss.shape[1]):
                change = loss(zeroed(made, group, unit)(x), y) - whole
                assert float((found.loss[:, unit] - change).abs().max()) <= 1e-12
    recording = engine._recording(x).recording
    for cone in engine._recording(x).cones:
        names = [recording.node(position).name for position in cone.nodes]
        own = ":" in cone.group.name  # read within the call, which is then replayed in parts
        assert names.count("scaled_dot_product_attention") == 1 - int(cone.group.name.split(".")[1])
        assert names.count("_safe_softmax") == own
