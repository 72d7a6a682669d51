"""What networks beyond the coverage table do, each in its smallest form."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from tests.generated.laws import Laws
from tests.support import doubled
from torch import Tensor, nn

import secateurs as sc


class Unused(nn.Module):
    """What the pooler makes is not returned, but it is made all the same (BigBird, SigLIP)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.norm, self.pooler = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        torch.tanh(self.pooler(self.norm(x))).reshape(-1, 2, 2)
        return self.out(torch.relu(self.b(x)))


class Rotary(nn.Module):
    """A frequency turns four dimensions of q and k, and v has as many as they (DeepSeek's ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 3 * 2 * 8), nn.Linear(2 * 8, 3)
        self.register_buffer("bands", torch.tensor([1.0, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        places = torch.stack([torch.arange(t) // 2, torch.arange(t) % 2], -1).to(x.dtype)
        angles = (places[..., None] * self.bands.to(x.dtype)).reshape(t, -1)
        angles = torch.cat([angles, angles], -1)
        q, k = (self.turn(each, angles) for each in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))

    @staticmethod
    def turn(x: Tensor, angles: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-other, one], -1) * angles.sin()


class Masked(nn.Module):
    """A mask of two dimensions picks along one, and its rows are put back (HiggsAudio, VITS)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = x[..., 0] > 0
        x = self.a(x)
        y = x.clone()
        y[mask] = self.b(x[mask])
        return self.out(torch.tanh(y))


class Empty(nn.Module):
    """A parameter that has no elements (DINOv3 without register tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.tokens = nn.Parameter(torch.zeros(2, 0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.b(torch.cat([self.tokens, self.a(x)], 1))))


class LearnedQuery(nn.Module):
    """The scores of a query that is a parameter are divided by √d too (AIMv2)."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query.expand(x.shape[0], -1, -1)
        q, k, v = (
            each.unflatten(-1, (2, -1)).transpose(1, 2) for each in (q, self.k(x), self.v(x))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Rms(nn.Module):
    """PyTorch's own RMS norm, which runs in pieces that state no size (DiffLlama)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.other = nn.Linear(5, 8), nn.RMSNorm(8), nn.Linear(8, 12)
        self.two, self.b = nn.RMSNorm((2, 6), elementwise_affine=False), nn.Linear(12, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.one(self.a(x))).unflatten(-1, (2, -1))
        return self.out(torch.relu(self.b(self.two(x).flatten(-2))))


CASES = [
    (Rms, (2, 5)),
    (Unused, (2, 5)),
    (Rotary, (2, 4, 6)),
    (Masked, (2, 4, 5)),
    (Empty, (2, 4, 5)),
]
CASES += [(LearnedQuery, (2, 4, 6))]


@pytest.mark.parametrize(("make", "shape"), CASES, ids=[make.__name__ for make, _ in CASES])
@pytest.mark.parametrize("seed", range(3))
def test_the_laws_hold_beyond(make: type[nn.Module], shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(0)
    laws = Laws(doubled(make()), (torch.randn(shape).double(),), seed, by_weights=False)
    assert laws.check()["exact plans"]


def test_units_that_no_output_depends_on_are_no_group() -> None:
    graph = sc.trace(Unused(), torch.randn(2, 5))
    assert [(group.name, group.exact) for group in graph] == [("a", True), ("b", True)]
    reasons = {axis.reason for axis in graph.frozen if axis.tensor == "pooler.bias"}
    assert reasons == {"no output in eval mode depends on it"}


def test_a_frequency_weighs_as_much_as_it_takes() -> None:
    graph = sc.trace(Rotary().double(), torch.randn(2, 4, 6).double())
    group = next(group for group in graph if group.kind == "head-dim")
    assert sorted(map(len, group.blocks())) == [2] * 5  # two frequencies; eight of v in four


class Looks(nn.Module):
    """It looks at its input, and hides from the trace what it divides by (DeBERTa)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if 7.0 in x:
            raise ValueError("padding")
        x = torch.relu(self.a(x))
        return self.out(torch.relu(self.b(x / torch.tensor(math.sqrt(int(x.shape[-1]))))))


def test_a_look_at_the_input_hides_no_number_that_a_cut_changes() -> None:
    graph = sc.trace(Looks(), torch.randn(2, 5))
    assert graph.program.looks
    assert [group.name for group in graph] == ["b"]


class Rounds(nn.Module):
    """Its norm computes in float32, whatever it is given (Llama 4, Falcon-H1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(self.a(x).float(), (8,)).to(x.dtype)
        return self.out(torch.relu(self.b(x)).float().to(x.dtype))


@pytest.mark.parametrize(("make", "tolerance"), [(Rounds, 1e-3), (Unused, 1e-9)])
def test_a_proof_knows_what_the_model_rounds_to(make: type[nn.Module], tolerance: float) -> None:
    model, x = make().double(), torch.randn(2, 5).double()
    graph = sc.trace(model, x)
    plan = graph.plan({"b": [1]})
    assert sc.verify(model, sc.apply(model, plan), plan, x, graph=graph).tolerance == tolerance


class Draws(nn.Module):
    """It leaves out what it draws by lot, in eval mode too (ViT-MAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(x * torch.rand(x.shape[0], 1))))


def test_a_proof_draws_the_same_lot_twice() -> None:
    model, x = Draws().double(), torch.randn(4, 5).double()
    plan = sc.trace(model, x).plan({"a": [0, 3]})
    assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error < 1e-12


class LooksInside(Looks):
    """It looks at what its weights made, so that a cut may take it another way."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if bool(self.a(x).max() < 99) else -y


@pytest.mark.parametrize(("make", "swayed"), [(Looks, False), (LooksInside, True)])
def test_a_look_at_what_weights_make_is_told_apart(make: type[nn.Module], swayed: bool) -> None:
    assert sc.trace(make(), torch.randn(2, 5)).program.swayed == swayed


class Plain(nn.Module):
    """A norm without weights, whose `num_features` is compared with what comes in (MONAI)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 3, 1)
        self.norm = nn.InstanceNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x))))


class Sliced(nn.Module):
    """One attribute says where all slices begin and end (WaveRNN of torchaudio)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(4, 6), nn.Linear(10, 3)
        self.n = 4

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        first, second = (x[:, self.n * i : self.n * (i + 1)] for i in range(2))
        return self.out(torch.cat([self.b(first), second], 1))


class Turned(nn.Module):
    """A group norm of channels that come last in memory (UNet2D of diffusers)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 8, 1), nn.GroupNorm(2, 8), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x).flatten(2)))


class Listed(nn.Module):
    """Its sizes stand in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)
        self.sizes = {"heads": 2}

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.sizes["heads"], -1).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        x = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)
        return self.out(x.flatten(2))


class Rearranged(Listed):
    """einops: heads from an attribute in a function, and in a layer that keeps them to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.merge = 2, Rearrange("b h t d -> b t (h d)", h=2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "b t (h d) -> b h t d", h=self.h) for t in self.qkv(x).chunk(3, -1))
        return self.out(self.merge((q @ k.transpose(-1, -2)).softmax(-1) @ v))


BEYOND = {
    Plain: (torch.randn(2, 2, 5), {"a"}),
    Sliced: (torch.randn(2, 5), {"a", "b"}),
    Turned: (torch.randn(2, 2, 5, 5).to(memory_format=torch.channels_last), {"a:channel"}),
    Listed: (torch.randn(2, 4, 6), {"qkv", "qkv:head-dim"}),
    Rearranged: (torch.randn(2, 4, 6), {"qkv", "qkv:head-dim"}),
}


@pytest.mark.parametrize("make", BEYOND, ids=lambda make: make.__name__)
def test_it_is_cut_where_it_stands(make: type[nn.Module]) -> None:
    model, (x, names) = doubled(make()), BEYOND[make]
    x = x.double()
    run(model, x)  # einops keeps what it computed
    graph = sc.trace(model, x)
    assert names <= {group.name for group in graph}
    for seed in range(4):
        plan = graph.random_plan(0.4, seed=seed)
        small = copy.deepcopy(sc.apply(model, sc.Plan.from_json(plan.to_json())))
        assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12
        again = sc.trace(small, x).random_plan(0.2, seed=seed)
        assert sc.verify(small, sc.apply(small, again), again, x).max_relative_error <= 1e-12


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


class Pooled(nn.Module):
    """A functional attention that takes the size of a head from its input (CLIP's ResNets)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        return F.multi_head_attention_forward(
            x, x, x, x.shape[-1], 2, None, torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            None, None, False, 0.0, self.out.weight, self.out.bias, use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )[0]  # fmt: skip


def test_a_functional_attention_is_cut_by_nothing_that_it_sizes_itself() -> None:
    model, x = doubled(Pooled()), torch.randn(4, 2, 5).double()
    graph = sc.trace(model, x)
    assert "a" in {group.name for group in graph}
    for group in graph:
        plan = graph.plan({group.name: [int(block[0]) for block in group.blocks()]})
        assert sc.verify(model, sc.apply(model, plan), plan, x).max_relative_error <= 1e-12


class Chosen(nn.Module):
    """Values decide how many rows there are (VITS, ATS)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(2, 4), nn.Linear(2, 3)
        nn.init.ones_(self.a.weight)
        nn.init.ones_(self.a.bias)
        self.b = nn.Linear(4, 1)
        nn.init.ones_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        keep = self.b(self.a(x))[:, 0] > 14
        return self.out(x[keep] + torch.ones(2, 2, dtype=x.dtype))


def test_a_proof_without_a_reference_says_so() -> None:
    model = doubled(Chosen())
    x = torch.tensor([[1.5, 1.5], [1.5, 2.0], [0.1, 0.1]]).double()
    plan = sc.trace(model, x).plan({"a": [0]})
    with pytest.raises(sc.errors.LawError, match="values decide a shape"):
        sc.verify(model, sc.apply(model, plan), plan, x)


class Lots(nn.Module):
    """It draws by lot in eval mode, along a width that can be cut (Tacotron 2, an autoencoder)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.dropout(self.a(x), 0.5))
        return self.out(x + torch.randn_like(x) * torch.empty_like(x).bernoulli_(self.p))


@pytest.mark.parametrize("name", ["a", "b"])
def test_both_sides_of_a_proof_draw_the_same(name: str) -> None:
    model, x = doubled(Lots()), torch.randn(64, 3).double()
    plan = sc.trace(model, x).plan({name: [0, 3]})
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, x).max_relative_error <= 1e-12
    getattr(small, name).bias.data[1] += 0.1  # the proof is not blind for that
    assert not sc.verify(model, small, plan, x).holds


def test_a_proof_sees_that_another_distribution_is_drawn_from() -> None:
    model, x = doubled(Lots()), torch.randn(64, 3).double()
    plan = sc.trace(model, x).plan({"b": [0, 3]})
    small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, x).holds
    small.p = 0.9
    assert not sc.verify(model, small, plan, x).holds
