"""Masks: what they keep, how they act on a model, and that they go along with plans."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.networks import NETWORKS, network
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import secateurs as sc
from secateurs.errors import FileError, MaskError
from secateurs.sparse.masks import Masks
from secateurs.trace.model import as_call

LOSS = nn.CrossEntropyLoss()


class Recurrent(nn.Module):
    """An embedding, an LSTM and a head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 6), nn.LSTM(6, 6, batch_first=True)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 11)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.lstm(self.embed(x))[0]))


def recurrent() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent()


def randomly(model: nn.Module, keep: float = 0.5, seed: int = 0) -> Masks:
    """Masks of which each keeps about this share."""
    generator = torch.Generator().manual_seed(seed)
    masks = Masks.full(model)
    for name, mask in masks.items():
        masks.set(name, torch.rand(mask.shape, generator=generator) < keep)
    return masks


# ---------------------------------------------------------------------- what is masked
def test_weights_and_biases_of_layers_are_masked_and_norms_are_not():
    masks = Masks.full(recurrent())
    assert set(masks) == {
        "embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0",
        "lstm.bias_hh_l0", "head.bias",
    }  # fmt: skip
    assert set(masks.others) == {"norm.weight", "norm.bias"}
    assert masks.layers()["lstm"] == [n for n in masks if n.startswith("lstm.")]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_all_parameters_are_counted_once(name):
    model, _ = network(name)
    masks = Masks.full(model)
    assert masks.total == masks.kept == sum(p.numel() for p in model.parameters())
    assert (masks.sparsity, masks.compression) == (0, 1)


def test_a_tied_weight_has_one_mask_under_both_paths():
    model = recurrent()
    masks = Masks.full(model)
    assert masks["head.weight"] is masks["embed.weight"]
    assert "head.weight" in masks
    assert "head.weight" not in list(masks)
    masks.set("head.weight", torch.zeros(11, 6))
    assert not masks["embed.weight"].any()
    assert masks.total - masks.kept == 66


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_norms_of_any_dimensions_and_reparametrised_layers_have_no_mask():
    net = nn.Sequential(
        nn.Linear(4, 4),
        nn.LayerNorm([3, 4]),
        nn.utils.weight_norm(nn.Linear(4, 4)),
        nn.utils.spectral_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    )
    assert list(Masks.full(net)) == ["0.weight", "0.bias"]


def test_counts_follow_the_masks_and_what_has_none_counts_as_kept():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    masks = Masks.full(net, ["2.weight", "2.bias"])
    masks.set("2.weight", torch.eye(5)[:2])
    assert (masks.kept, masks.total) == (25 + 10 + 4, 25 + 10 + 12)
    assert masks.compression == pytest.approx(47 / 39)
    assert masks.sparsity == pytest.approx(8 / 47)
    assert str(masks).splitlines()[0] == "compressed 1.2×"
    assert str(masks).splitlines()[-1].split() == ["all", "47", "39", "82.98%"]


def test_masks_put_together_by_hand_count_the_whole_model():
    model, tied = recurrent(), torch.zeros(11, 6, dtype=torch.bool)
    masks = Masks({"head.weight": tied}).of(model)
    assert masks.total == sum(p.numel() for p in model.parameters())
    assert masks.total - masks.kept == 66
    assert masks["embed.weight"] is tied
    assert list(masks) == ["embed.weight"]
    with pytest.raises(MaskError, match="differ"):
        Masks({"head.weight": tied, "embed.weight": ~tied}).of(model)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(8, 20)
    result = sc.sparsify(
        net, x, train=[(x, torch.arange(8) % 4)], loss=LOSS, sparsity=0.5, updates=2,
        masks=Masks({"0.weight": torch.ones(32, 20, dtype=torch.bool)}), progress=False,
    )  # fmt: skip
    assert (result.masks.total, result.masks.kept) == (804, 402)


def test_masks_that_share_change_together_and_are_counted_each():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    masks = Masks.full(net)
    masks.share("1.weight", "0.weight")
    masks.set("1.weight", torch.eye(4))
    assert torch.equal(masks["0.weight"], torch.eye(4, dtype=torch.bool))
    masks.set("0.weight", torch.zeros(4, 4))
    assert not masks["1.weight"].any()
    assert masks.total - masks.kept == 32
    other = masks.to("cpu")
    other.set("0.weight", torch.eye(4))
    assert int(other["1.weight"].sum()) == 4
    assert not masks["1.weight"].any()


# ---------------------------------------------------------------------- on a model
def test_baking_zeroes_what_is_gone_and_is_read_back():
    model, _ = network("residual")
    dense = copy.deepcopy(model)
    masks = randomly(model)
    assert masks.bake(model) is model
    for (name, p), q in zip(model.named_parameters(), dense.parameters(), strict=True):
        expected = torch.where(masks[name], q, 0) if name in masks else q
        assert torch.equal(p, expected)
    back = Masks.from_zeros(model)
    assert all(torch.equal(back[name], masks[name] & (dict(dense.named_parameters())[name] != 0))
               for name in masks)  # fmt: skip


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_inside_the_outputs_are_those_of_the_baked_net_and_outside_the_dense_one(name):
    model, inputs = network(name)
    masks = randomly(model)
    args, kwargs = as_call(inputs)
    before = {n: (p, p.data_ptr(), p.clone()) for n, p in model.named_parameters()}
    baked = masks.bake(copy.deepcopy(model))(*args, **kwargs)
    with masks.applied(model):
        inside = model(*args, **kwargs)
    torch.testing.assert_close(inside, baked, rtol=0, atol=0)
    for n, p in model.named_parameters():
        assert p is before[n][0]
        assert p.data_ptr() == before[n][1]
        assert torch.equal(p, before[n][2])


def test_the_dense_weights_are_back_after_an_error():
    net = nn.Linear(3, 3)
    before = net.weight.detach().clone()
    masks = randomly(net, 0.0)
    with pytest.raises(RuntimeError, match="shapes"), masks.applied(net):
        net(torch.ones(1, 4))
    assert torch.equal(net.weight, before)


def test_a_weight_that_is_gone_is_zero_even_if_it_is_infinite():
    net = nn.Linear(2, 1, bias=False)
    net.weight.data[:] = torch.tensor([[torch.inf, 2.0]])
    masks = Masks({"weight": torch.tensor([[False, True]])})
    with masks.applied(net):
        assert net.weight.tolist() == [[0.0, 2.0]]


def straight_through(model, masks, x, y):
    model.zero_grad()
    with masks.applied(model):
        LOSS(model(x).flatten(0, -2), y.flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [recurrent, lambda: network("lenet")[0]])
def test_the_gradient_is_that_of_the_masked_weights_for_all_weights(make):
    model = make()
    masks = randomly(model, 0.3)
    if isinstance(model, Recurrent):
        x = torch.randint(11, (4, 7))
        y = torch.randint(11, (4, 7))
    else:
        x, y = torch.randn(4, 1, 28, 28).double(), torch.randint(4, (4,))
    got = straight_through(model, masks, x, y)
    baked = masks.bake(copy.deepcopy(model))  # the reference: an ordinary net with these zeros
    baked.zero_grad()
    LOSS(baked(x).flatten(0, -2), y.flatten()).backward()
    for name, parameter in baked.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=0, atol=0)
    gone = torch.cat([got[name][~mask].flatten() for name, mask in masks.items()])
    assert (gone != 0).any()


def test_a_parametrisation_by_w_times_mask_would_kill_that_gradient():
    """The negative control: the same layer, the mask as an operation that autograd sees."""

    class Masked(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def forward(self, w):
            return w * self.mask

    layer = nn.Linear(5, 3, bias=False)
    masks = randomly(layer)
    gone = ~masks["weight"]
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    assert (straight_through(layer, masks, x, y)["weight"][gone] != 0).all()
    register_parametrization(layer, "weight", Masked(masks["weight"]))
    layer.zero_grad()
    LOSS(layer(x), y).backward()
    assert not layer.parametrizations.weight.original.grad[gone].any()


# ---------------------------------------------------------------------- with plans
@pytest.mark.parametrize("name", ["residual", "grouped", "tied", "squeeze_excite", "nhwc"])
def test_to_mask_and_cut_is_to_cut_and_mask(name):
    model, inputs = network(name)
    masks = randomly(model)
    plan = sc.trace(model, inputs).random_plan(0.3, 0)
    assert plan
    cut = masks.cut(plan)
    one = sc.apply(masks.bake(copy.deepcopy(model)), plan)
    other = cut.bake(sc.apply(model, plan))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert cut.total == sum(p.numel() for p in other.parameters())
    assert masks.total == sum(p.numel() for p in model.parameters())  # as it was


def test_masks_that_share_and_lose_the_same_still_share():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    masks = Masks.full(net)
    masks.share("2.weight", "0.weight")
    uncut = masks.cut(sc.trace(net, torch.randn(2, 4)).plan({}))
    uncut.set("0.weight", torch.eye(4))
    assert int(uncut["2.weight"].sum()) == 4
    cut = masks.cut(sc.trace(net, torch.randn(2, 4)).plan({"0": [1]}))
    assert (cut["0.weight"].shape, cut["2.weight"].shape) == ((3, 4), (4, 3))


# ---------------------------------------------------------------------- packed
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 100))
def test_packed_bits_come_back(rows, columns, seed):
    net = nn.Linear(columns, rows)
    masks = randomly(net, seed=seed)
    tensors = masks.to_tensors()
    assert sum(t.numel() for t in tensors.values()) <= (masks.total + 14) // 8
    back = Masks.from_tensors(tensors, net)
    assert all(torch.equal(back[name], masks[name]) for name in masks)


def test_the_order_of_the_bits_is_that_of_the_words():
    net = nn.Linear(4, 3, bias=False)
    masks = Masks.full(net)
    masks.set("weight", torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0]).view(3, 4))
    assert masks.to_tensors()["weight"].tolist() == [1, 3]


# ---------------------------------------------------------------------- what is refused
def test_what_does_not_fit_is_refused():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    masks = Masks.full(net)
    with pytest.raises(MaskError, match=r"did you mean '0\.weight'"):
        masks.set("0.weigth", torch.ones(5, 4))
    with pytest.raises(MaskError, match="shape"):
        masks.set("0.weight", torch.ones(4, 5))
    with pytest.raises(MaskError, match="zeros and ones"):
        masks.set("0.weight", torch.full((5, 4), 0.5))
    with pytest.raises(MaskError, match="cannot share"):
        masks.share("0.weight", "2.weight")
    with pytest.raises(MaskError, match="no parameter"):
        Masks.full(net, ["1.weight"])
    with pytest.raises(MaskError, match="no weight to mask"):
        Masks.full(nn.BatchNorm1d(3))
    with pytest.raises(KeyError):
        masks["3.weight"]
    small = sc.apply(net, sc.trace(net, torch.zeros(1, 4)).plan({"0": [1]}))
    with pytest.raises(MaskError, match=r"masks\.cut\(plan\)"), masks.applied(small):
        pass
    with pytest.raises(MaskError, match="another network"):
        masks.cut(sc.trace(small, torch.zeros(1, 4)).plan({"0": [1]}))
    with pytest.raises(FileError, match="another model"):
        Masks.from_tensors({"a": torch.zeros(1, dtype=torch.uint8)}, net)
    with pytest.raises(FileError, match="20 bits"):
        Masks.from_tensors({"0.weight": torch.zeros(2, dtype=torch.uint8)}, net)
