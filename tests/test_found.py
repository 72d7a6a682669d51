"""Networks that the generator found, each with the laws that one of them broke."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.generated.laws import Laws
from tests.support import doubled, snapshot
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import PlanError
from secateurs.selection import lost


class GroupedTransposed(nn.Module):
    """A transposed kernel of one row in each of its groups is not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 1, bias=False)
        self.up, self.out = nn.ConvTranspose1d(8, 2, 3, padding=1, groups=2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.conv(x)).mean(2))


class OneOfItsKind(nn.Module):
    """The gate of channel 0 is made by the same layer; no other unit is like it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(F.glu(torch.cat([x, torch.tanh(self.b(x))], 1), 1))


class Unflattened(nn.Module):
    """The first number of unflatten is an axis, and one size is left to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 4, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).unflatten(1, (2, -1)).mean(1))


class ScaledScores(nn.Module):
    """The scores of one projection's queries and keys are divided by a number from a size."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, -1).unbind(2)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
        return self.out(torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2))


class NumbersInARow(nn.Module):
    """One size in the code becomes what the other was."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 6, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).view(-1, 3, 2).sum(1))


class Counted(nn.Module):
    """Numbers that count pieces or name axes are no sizes, though they equal one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 3, 1)
        self.c, self.out = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x).chunk(2, 1)
        one = self.b(one * torch.tanh(two)).flatten(2, 3).mean(2)
        one, two, three = self.c(one).chunk(3, 1)
        return self.out(torch.cat([two, three, one], 1))


class Halves(nn.Module):
    """PyTorch counts where the halves begin, so equally many must go from both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(3, 4), nn.Linear(3, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x).tensor_split(2, 1)
        return self.out(self.b(one) * torch.tanh(self.c(two)))


class OneStep(nn.Module):
    """One step from zeros reads no state, but the kernel wants states of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.RNNCell(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x))


class AllButTheLast(nn.Module):
    """There is no slice that ends none before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x)[:, :-1], self.b(x)], 1))


class Narrowed(nn.Module):
    """A start and a length, which may reach the end."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.length = 2, 6
        self.a, self.out = nn.Linear(5, 8), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x)).narrow(1, self.start, self.length))


class Projected(nn.Module):
    """PyTorch takes a projection to the size of the state for none."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 3, proj_size=2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


class ManyStates(nn.Module):
    """All layers and directions state one size, so that their units are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0])


class LayersOfOneStep(nn.Module):
    """One step from zeros reads no state, but the kernel stacks what its layers make."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(4, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


class WideHead(nn.Module):
    """Its one head is as wide as the whole, and cut to less."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention = nn.Linear(5, 4), nn.MultiheadAttention(4, 1, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(x + self.attention(x, x, x)[0])


class Turned(nn.Module):
    """A grid is added to itself the other way round: each of its sides becomes the other."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.a, self.out = 3, nn.Linear(5, 9, bias=False), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(x + x.view(-1, self.side, self.side).transpose(1, 2).reshape(-1, 9))


class Shuffled(nn.Module):
    """However many groups its channels are shuffled in, there are as many of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 8, 1, bias=False), nn.ChannelShuffle(2)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.shuffle(self.conv(x)).mean((2, 3)))


class AsManyAsGroups(nn.Module):
    """Where a cut leaves as many channels as there were groups, a shuffle does nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 8, 1, bias=False), nn.ChannelShuffle(4)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.out(torch.cat([x, self.shuffle(x)], 1).mean((2, 3)))


class DividedBySize(nn.Module):
    """The last columns are divided by how many there are, which may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8, bias=False), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)[:, 6:]
        return self.out(torch.tanh(self.b(x / x.shape[1] ** 0.5)))


class OwnWidths(nn.Module):
    """Attention with queries and keys of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.b(x)
        return self.out(self.attention(self.a(x), keys, keys)[0].mean(1))


class LooksAtStates(nn.Module):
    """It looks at values: a proof calls it with other weights, which a GRU keeps in a list too."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.gru(x)[0])
        return y if bool(y.abs().max() < 9) else -y


FOUND = [(GroupedTransposed, (2, 3, 6)), (OneOfItsKind, (2, 5))]
FOUND += [(Unflattened, (2, 5)), (ScaledScores, (2, 4, 6)), (NumbersInARow, (2, 5))]
FOUND += [(Counted, (2, 3, 4, 4)), (Halves, (2, 5)), (OneStep, (2, 5)), (AllButTheLast, (2, 5))]
FOUND += [(Narrowed, (2, 5)), (Projected, (2, 3, 4)), (ManyStates, (2, 3, 4))]
FOUND += [(WideHead, (2, 3, 5)), (Turned, (2, 5)), (Shuffled, (2, 3, 4, 4))]
FOUND += [(AsManyAsGroups, (2, 3, 4, 4)), (DividedBySize, (2, 5)), (OwnWidths, (2, 4, 5))]


@pytest.mark.parametrize(("make", "shape"), FOUND, ids=[make.__name__ for make, _ in FOUND])
@pytest.mark.parametrize("seed", range(3))
def test_the_laws_hold_on_what_was_found(
    make: type[nn.Module], shape: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(0)
    assert Laws(doubled(make()), (torch.randn(shape).double(),), seed).check()["exact plans"]


def test_the_channels_before_a_grouped_transposed_convolution_can_go() -> None:
    torch.manual_seed(0)
    graph = sc.trace(doubled(GroupedTransposed()), torch.randn(2, 3, 6).double())
    assert [(g.name, len(g.blocks())) for g in graph] == [("conv", 2)]


def test_what_pytorch_halves_is_balanced() -> None:
    torch.manual_seed(0)
    graph = sc.trace(doubled(Halves()), torch.randn(2, 5).double())
    assert len(graph["a"].blocks()) == 2


def test_a_state_as_wide_as_its_projection_is_refused() -> None:
    torch.manual_seed(0)
    model, x = doubled(Projected()), torch.randn(2, 3, 4).double()
    graph = sc.trace(model, x)
    cell = next(g for g in graph if g.size == 3)
    with pytest.raises(PlanError, match="take the projection for none"):
        graph.plan({cell.name: [0]})


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_layers_traced_at_one_step_are_cut_as_for_many(layer: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = doubled(LayersOfOneStep(layer)), torch.randn(2, 5, 4).double()
    graph = sc.trace(model, x[:, :1])
    (group,) = graph
    assert (group.size, len(group.blocks())) == (12, 4)
    plan = graph.plan(
        {group.name: [int(block[i]) for block, i in zip(group.blocks(), (0, 2, 1, 2), strict=True)]}
    )
    assert sc.verify(model, sc.apply(model, plan), plan, x[:, :1]).holds
    many = sc.trace(model, x)
    units = lost(many, plan.tensors)
    assert many.plan(units).tensors == plan.tensors
    assert sc.verify(model, sc.apply(model, plan), many.plan(units), x).holds


def test_the_last_unit_before_which_a_slice_ends_stays() -> None:
    torch.manual_seed(0)
    graph = sc.trace(doubled(AllButTheLast()), torch.randn(2, 5).double())
    assert graph["a"].size == 5


class Named(nn.Module):
    """Rows and columns of a grid; where one row is left, the columns bear the name of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 8, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(x).unflatten(1, (2, -1))).sum(1))


def test_what_is_left_of_a_group_under_another_name_is_composed() -> None:
    torch.manual_seed(0)
    model, x = doubled(Named()), torch.randn(2, 5).double()
    graph = sc.trace(model, x)
    rows, columns = (next(g.name for g in graph if g.size == n) for n in (2, 4))
    first = graph.plan({rows: [0]})
    small = sc.apply(model, first)
    (left,) = sc.trace(small, x)
    assert (left.name, left.size) == (rows, 4)
    second = sc.trace(small, x).plan({left.name: [1, 3]})
    with pytest.raises(PlanError, match="graph of the original model"):
        first.then(second)
    both = first.then(second, graph)
    assert both.groups == {rows: [0], columns: [1, 3]}
    assert both == graph.plan(both.groups)
    assert torch.equal(sc.apply(model, both)(x), sc.apply(small, second)(x))
    with pytest.raises(PlanError, match="not of the model"):
        second.then(sc.trace(small, x).plan({}), graph)


class Picked(nn.Module):
    """Columns are picked by number, until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(12, 3)
        self.picks = True

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x), self.b(x)
        if self.picks:
            two = two[:, [0, 1, 2, 3]]
        return self.out(torch.cat([one, two], 1))


def test_what_only_the_smaller_model_offers_is_not_composed() -> None:
    torch.manual_seed(0)
    model, x = doubled(Picked()), torch.randn(2, 5).double()
    graph = sc.trace(model, x)
    assert [g.name for g in graph] == ["a"]
    first = graph.plan({"a": [0]})
    small = sc.apply(model, first)
    small.picks = False
    offered = sc.trace(small, x)
    with pytest.raises(PlanError, match=r"'b.weight\[0\]' that belong to no unit"):
        first.then(offered.plan({"a": [1], "b": [1]}), graph)
    assert first.then(offered.plan({"a": [1]}), graph) == graph.plan({"a": [0, 2]})


def test_a_proof_leaves_recurrent_layers_with_their_weights() -> None:
    torch.manual_seed(0)
    model, x = doubled(LooksAtStates()), torch.randn(2, 3, 4).double()
    graph, before = sc.trace(model, x), snapshot(model)
    plan = graph.plan({"gru": [1, 4]})
    assert sc.verify(model, sc.apply(model, plan), plan, x, graph=graph).holds
    assert snapshot(model) == before


def test_widths_that_became_equal_are_told_apart() -> None:
    torch.manual_seed(0)
    model, x = doubled(OwnWidths()), torch.randn(2, 4, 5).double()
    once = sc.apply(model, sc.trace(model, x).plan({"a": [0]}))
    assert once.attention.embed_dim == once.attention.kdim == 3
    plan = sc.trace(once, x).plan({"b": [1]})
    twice = sc.apply(once, plan)
    assert (twice.attention.embed_dim, twice.attention.kdim, twice.attention.vdim) == (3, 2, 2)
    assert sc.verify(once, twice, plan, x).holds
