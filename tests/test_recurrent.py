"""Recurrent nets against naive ones written here, step by step, with zeros where units went."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import PlanError

from .support import call, doubled, relative_error

LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def tensors(layer: nn.RNNBase, k: int, reverse: bool) -> list[Tensor | None]:
    """Input and state weights, their biases, and the projection, of one layer and direction."""
    end = f"_l{k}" + "_reverse" * reverse
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [getattr(layer, name + end, None) for name in names]


def step(layer: nn.RNNBase, own: list[Tensor | None], x: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """One step of a cell, from the equations in PyTorch's documentation; c is changed in place."""
    w, u, a, b, project = own
    left, right = x @ w.T, h @ u.T
    if a is not None:
        left, right = left + a, right + b
    if isinstance(layer, nn.LSTM):
        i, f, g, o = (left + right).chunk(4, -1)
        c.copy_(f.sigmoid() * c + i.sigmoid() * g.tanh())
        new = o.sigmoid() * c.tanh()
        return new if project is None else new @ project.T
    if isinstance(layer, nn.GRU):
        (r, z, n), (hr, hz, hn) = left.chunk(3, -1), right.chunk(3, -1)
        r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
        return (1 - z) * (n + r * hn).tanh() + z * h
    return (left + right).tanh()


def naive(layer: nn.RNNBase, x: Tensor, kept: dict[tuple[int, bool], Tensor]) -> Tensor:
    """The layer's output, (batch, steps, features), its states multiplied by `kept` when read."""
    for k in range(layer.num_layers):
        sides = []
        for reverse in (False, True)[: 1 + layer.bidirectional]:
            own = tensors(layer, k, reverse)
            mask = kept[k, reverse]
            h, c = x.new_zeros(len(x), own[1].shape[1]), x.new_zeros(len(x), layer.hidden_size)
            out = [h] * x.shape[1]
            order = range(x.shape[1])
            for t in reversed(order) if reverse else order:
                h = step(layer, own, x[:, t], h, c) * mask
                out[t] = h
            sides.append(torch.stack(out, 1))
        x = torch.cat(sides, -1)
    return x


class Tagger(nn.Module):
    """A linear layer, a recurrent one, and a linear one at every step."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        width = (getattr(layer, "proj_size", 0) or layer.hidden_size) * (1 + layer.bidirectional)
        self.inner, self.layer = nn.Linear(5, layer.input_size), layer
        self.outer = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.layer(self.inner(x))[0])


@pytest.mark.parametrize(
    ("kind", "layers", "both"), list(product(LAYERS, (1, 2), (False, True))), ids=str
)
def test_units_go_as_if_never_read(kind: str, layers: int, both: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind](6, 6, layers, bidirectional=both, batch_first=True)
    net, x = doubled(Tagger(layer)), torch.randn(2, 4, 5, dtype=torch.float64)
    graph = sc.trace(net, x)
    group = graph["layer"]
    blocks = group.blocks()
    assert len(blocks) == layers * (1 + both)  # every layer and direction chooses its own
    units = [int(block[(i, 5 - i)[j]]) for i, block in enumerate(blocks) for j in (0, 1)]
    kept = {}
    for (name, dim), families in graph.families.items():  # which unit is which row of which weight
        if name.startswith("layer.weight_hh") and dim == 1:
            mask = torch.ones(6, dtype=torch.float64)
            gone = [int(group.units[u]) for u in units]
            mask[[i for i, u in enumerate(families[0][0].tolist()) if u in gone]] = 0
            kept[int(name.split("_l")[1][0]), "reverse" in name] = mask
    plan = graph.plan({"layer": units})
    small = sc.apply(net, plan)
    assert (small.layer.hidden_size, small.layer.input_size) == (4, 6)
    wanted = net.outer(naive(net.layer, net.inner(x), kept))
    assert all((mask == 0).sum() == 2 for mask in kept.values())
    assert relative_error([wanted.detach()], call(small, x)) < 1e-12
    assert group.exact
    assert sc.verify(net, small, plan, x).holds
    whole = {key: torch.ones_like(mask) for key, mask in kept.items()}
    other = net.outer(naive(net.layer, net.inner(x), whole)).detach()
    assert relative_error([other], call(small, x)) > 1e-4  # the reference can fail


def test_input_width_and_projection() -> None:
    net = doubled(Tagger(nn.LSTM(8, 8, 2, proj_size=5, batch_first=True)))
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    graph = sc.trace(net, x)
    projected = next(g for g in graph if "layer.weight_hr_l1[0]" in map(str, g.writes))
    plans = {
        "input_size": {"inner": [0, 3]},
        "hidden_size": {"layer": [1, 9]},
        "proj_size": {projected.name: [2, 7]},
    }
    for changed, units in plans.items():
        plan = graph.plan(units)
        small = sc.apply(net, plan)
        sizes = {n: getattr(small.layer, n) for n in ("input_size", "hidden_size", "proj_size")}
        assert [n for n, size in sizes.items() if size != getattr(net.layer, n)] == [changed]
        assert sc.verify(net, small, plan, x).holds
    joint = graph.random_plan(0.3)
    assert sc.verify(net, sc.apply(net, joint), joint, x).holds


def test_layers_of_one_size_lose_equally_many() -> None:
    graph = sc.trace(Tagger(nn.GRU(6, 6, 2, batch_first=True)), torch.randn(2, 4, 5))
    with pytest.raises(PlanError, match="balanced"):
        graph.plan({"layer": [0]})


class Last(nn.Module):
    """What remains of a sequence: the last states of both directions, or of a packed run."""

    def __init__(self, start: str):
        super().__init__()
        self.layer = nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True)
        self.outer, self.start = nn.Linear(12, 3), start
        self.first = nn.Parameter(torch.randn(4, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        states = None
        if self.start == "learned":
            h = self.first.expand(-1, len(x), -1).contiguous()
            states = h, torch.zeros_like(h)
        given = x
        if self.start == "packed":
            given = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
        _, (h, _) = self.layer(given, states)
        return self.outer(torch.cat([h[-2], h[-1]], -1))


@pytest.mark.parametrize(("start", "blocks"), [("zero", 4), ("learned", 1), ("packed", 4)])
def test_states_given_or_packed(start: str, blocks: int) -> None:
    net, x = doubled(Last(start)), torch.randn(2, 4, 5, dtype=torch.float64)
    graph = sc.trace(net, x)
    group = graph["layer"]
    assert (group.exact, len(group.blocks())) == (True, blocks)
    plan = graph.random_plan(0.4, seed=1)
    small = sc.apply(net, plan)
    assert (len(plan), small.layer.hidden_size) == (2 * blocks, 4)
    assert sc.verify(net, small, plan, x).max_relative_error < 1e-12


class Loop(nn.Module):
    """Two cells in a Python loop; the outputs go into a tensor made before, or a list."""

    def __init__(self, cell: type[nn.RNNCellBase], before: bool):
        super().__init__()
        self.one, self.two = cell(5, 6), cell(6, 7)
        self.outer, self.before = nn.Linear(7, 3), before

    def forward(self, x: Tensor) -> Tensor:
        a = b = None
        made = x.new_zeros(*x.shape[:2], 7) if self.before else None
        listed = []
        for t in range(x.shape[1]):
            a = self.one(x[:, t], a)
            b = self.two(a[0] if isinstance(a, tuple) else a, b)
            out = b[0] if isinstance(b, tuple) else b
            if made is None:
                listed.append(out)
            else:
                made[:, t] = out
        return self.outer(torch.stack(listed, 1) if made is None else made)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("before", [False, True])
def test_cells_in_a_loop(cell: type[nn.RNNCellBase], before: bool) -> None:
    net, x = doubled(Loop(cell, before)), torch.randn(2, 4, 5, dtype=torch.float64)
    graph = sc.trace(net, x)
    plan = graph.plan({"one": [1, 4], "two": [0]})
    small = sc.apply(net, plan)
    sizes = small.one.hidden_size, small.two.input_size, small.two.hidden_size
    assert sizes == (4, 4, 6)
    masked = [unit not in gone for gone, n in (([1, 4], 6), ([0], 7)) for unit in range(n)]
    with torch.no_grad():  # the reads of the units, zeroed in the model itself
        one, two = torch.tensor(masked[:6]), torch.tensor(masked[6:])
        wanted = doubled(Loop(cell, before))
        wanted.load_state_dict(net.state_dict())
        for weight, mask in (
            (wanted.one.weight_hh, one),
            (wanted.two.weight_ih, one),
            (wanted.two.weight_hh, two),
            (wanted.outer.weight, two),
        ):
            weight *= mask
    assert relative_error(call(wanted, x), call(small, x)) < 1e-12
    small(x).sum().backward()
