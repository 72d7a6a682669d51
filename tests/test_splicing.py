"""The rules by which weights go and come back, against a loop over single weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.networks import NETWORKS, network
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import BudgetError, ConfigError, MaskError
from secateurs.process.options import SparsifyOptions
from secateurs.sparse.masks import Masks
from secateurs.sparse.splicing import Count, Pattern, Thresholds, standing, statistics
from secateurs.sparse.targets import Target, chosen, make_pools, reading_axes

BAND = (0.9, 1.1)
SHAPES = {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (4, 7), "b.bias": (4,)}


def drawn(seed: int, kept: float = 0.5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Saliencies and masks of two layers, the second on another scale."""
    generator = torch.Generator().manual_seed(seed)
    saliency = {
        name: torch.rand(shape, generator=generator, dtype=torch.float64) * (1 + 9 * ("b" in name))
        for name, shape in SHAPES.items()
    }
    masks = {name: torch.rand(shape, generator=generator) < kept for name, shape in SHAPES.items()}
    return saliency, masks


def stand(saliency, masks, *, splice=True):
    return {n: standing(saliency[n], masks[n], BAND, splice=splice) for n in saliency}


def the_paper(saliency: Tensor, mask: Tensor, t: float, *, splice: bool = True) -> Tensor:
    """Equation 4, one weight at a time."""
    out = mask.clone().flatten()
    for i, s in enumerate(saliency.flatten().tolist()):
        if s <= 0.9 * t:
            out[i] = False
        elif s > 1.1 * t and splice:
            out[i] = True
    return out.view(mask.shape)


def moments(saliency, layer):
    values = [v for n, s in saliency.items() if n[0] == layer for v in s.flatten().tolist()]
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def count(masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


# ---------------------------------------------------------------------- the paper's rule
@given(st.integers(0, 10_000), st.floats(-3, 2), st.booleans())
def test_given_thresholds_act_as_in_the_paper(seed, c, splice):
    saliency, masks = drawn(seed)
    rule = Thresholds({name: c / (1 + ("b" in name[0])) for name in SHAPES}, least=0)
    got = rule.choose(stand(saliency, masks, splice=splice), statistics(saliency), 1.0)
    for name in SHAPES:
        mean, deviation = moments(saliency, name[0])
        t = max(mean + rule.c[name] * deviation, 0.0)
        assert torch.equal(got[name], the_paper(saliency[name], masks[name], t, splice=splice))


@given(st.integers(0, 10_000), st.integers(4, 74))
def test_found_thresholds_are_the_papers_with_one_c(seed, keep):
    """The c is looked for here by bisection; the rule finds the masks without it."""
    saliency, masks = drawn(seed)
    got = Count(74, keep, least=0).choose(stand(saliency, masks), statistics(saliency), 1.0)
    low, high = -20.0, 20.0

    def at(c: float) -> dict[str, Tensor]:
        out = {}
        for name in SHAPES:
            mean, deviation = moments(saliency, name[0])  # no max(·, 0): with it nothing differs
            out[name] = the_paper(saliency[name], masks[name], mean + c * deviation)
        return out

    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if count(at(middle)) > keep else (low, middle)
    assert count(got) == keep
    if count(at(high)) == keep:
        assert all(torch.equal(got[name], mask) for name, mask in at(high).items())


@given(st.integers(0, 10_000), st.integers(2, 74))
def test_exactly_as_many_stay_as_are_asked_for_and_no_layer_is_emptied(seed, keep):
    saliency, masks = drawn(seed)
    saliency["b.weight"] *= 0  # equal ones
    saliency["b.bias"] *= 0
    terms = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    got = Count(74, keep, least=1).choose(stand(saliency, masks), terms, 1.0)
    assert count(got) == keep
    assert got["a.weight"].any()
    assert got["b.weight"].any()  # a bias alone would make no layer


@given(st.integers(0, 10_000), st.integers(2, 74))
def test_without_splicing_nothing_comes_back(seed, keep):
    saliency, masks = drawn(seed)
    masks["a.weight"][0, 0] = masks["b.weight"][0, 0] = True
    terms = statistics(saliency)
    got = Count(74, keep).choose(stand(saliency, masks, splice=False), terms, 1.0)
    assert not any((got[name] & ~masks[name]).any() for name in SHAPES)
    assert count(got) == min(keep, count(masks))


def test_the_way_to_the_target_is_that_of_zhu_and_gupta():
    saliency, masks = drawn(0, kept=1.1)
    rule, terms = Count(74, 10), statistics(saliency)
    for done in (0.0, 0.3, 0.9, 1.0):
        kept = count(rule.choose(stand(saliency, masks), terms, done))
        assert kept == round(74 - 64 * done)
    (pool,) = pools_of(compression=5, updates=101, ramp=0.5, stop=1.0)
    start, end, n = 0, round(101 * 0.5), pool.ramped
    assert (pool.begin, n, pool.stop) == (start, end, 100)
    for update in range(120):
        expected = 1 - (1 - min(update, n) / n) ** 3  # equation 1 with s_0 = 0, s_f = 1
        assert pool.done(update, "cubic") == pytest.approx(expected)
        assert pool.done(update, "linear") == pytest.approx(min(update, n) / n)
        assert pool.done(update, "one-shot") == 1


@given(st.integers(0, 10_000))
def test_below_zero_too_what_is_kept_stands_above_what_is_gone(seed):
    saliency = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = standing(saliency, torch.ones(40, dtype=torch.bool), BAND, splice=True)
    gone = standing(saliency, torch.zeros(40, dtype=torch.bool), BAND, splice=True)
    assert (kept > gone).all()
    rule = Count(40, 20)
    first = rule.choose({"a.weight": kept}, {"a": (0.0, 1.0)}, 1.0)["a.weight"]
    again = standing(saliency, first, BAND, splice=True)
    assert torch.equal(rule.choose({"a.weight": again}, {"a": (0.0, 1.0)}, 1.0)["a.weight"], first)


@given(st.integers(0, 10_000), st.integers(6, 60))
def test_what_shares_a_mask_is_chosen_once_and_counted_twice(seed, keep):
    saliency, masks = drawn(seed)
    saliency |= {"c.weight": torch.rand(7, 5, dtype=torch.float64) * 3}
    masks |= {"c.weight": masks["a.weight"]}
    terms, own = statistics(saliency), stand(saliency, masks)
    got = Count(109, keep, 0, (("a.weight", "c.weight"),)).choose(own, terms, 1.0)
    ranked = []  # the reference: a list of (worth, name, place, how often it counts)
    for name, values in own.items():
        of = [(own[n] - terms[n[0]][0]) / terms[n[0]][1] for n in ("a.weight", "c.weight")]
        mean, deviation = terms[name[0]]
        worth = sum(of) / 2 if name == "a.weight" else (values - mean) / deviation
        times = 1 + (name == "a.weight")
        ranked += [(w, name, i, times) for i, w in enumerate(worth.flatten().tolist())
                   if name != "c.weight"]  # fmt: skip
    room, expected = keep, set()
    for _, name, i, times in sorted(ranked, reverse=True):
        if times > room:
            break
        room -= times
        expected.add((name, i))
    assert torch.equal(got["a.weight"], got["c.weight"])
    assert keep - 1 <= count(got) <= keep
    assert expected == {(name, i) for name in SHAPES
                        for i in got[name].flatten().nonzero().flatten().tolist()}  # fmt: skip


def test_nothing_comes_back_to_an_emptied_layer_without_splicing():
    saliency, masks = drawn(0)
    masks["a.weight"][:] = False
    own, terms = stand(saliency, masks, splice=False), statistics(saliency)
    for rule in (Count(74, 20, 2), Thresholds(dict.fromkeys(SHAPES, 0.0), 2)):
        assert not rule.choose(own, terms, 1.0)["a.weight"].any()


def test_a_layer_whose_weights_are_all_alike_starves_no_other():
    saliency, _ = drawn(0)
    saliency["a.bias"] /= 10
    saliency |= {"b.weight": torch.full((4, 7), 0.1), "b.bias": torch.full((4,), 0.1)}
    everything = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    terms = statistics(saliency)
    assert terms["b"][1] == 0
    got = Count(74, 37).choose(stand(saliency, everything), terms, 1.0)
    assert got["a.weight"].sum() > 10
    assert got["b.weight"].sum() + got["b.bias"].sum() < 32


# ---------------------------------------------------------------------- in a run
def run(model, **settings):
    torch.manual_seed(0)
    x = torch.randn(32, model[0].in_features)
    y = torch.arange(32) % model[-1].out_features
    quick = {"updates": 20, "every": 1, "gamma": 0.0, "lr": 0.1, "progress": False}
    return sc.sparsify(
        model, x, train=[(x, y)], loss=nn.CrossEntropyLoss(), **(quick | settings)
    )  # fmt: skip


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))


def square() -> tuple[nn.Sequential, Masks]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    masks = Masks.full(model)
    masks.share("0.weight", "2.weight")
    return model, masks


def test_shared_masks_reach_the_target():
    model, masks = square()
    result = run(model, masks=masks, sparsity=0.5)
    assert result.masks.kept == 64
    assert torch.equal(result.masks["0.weight"], result.masks["2.weight"])


@pytest.mark.parametrize(
    "apart", [{"scope": "layer"}, {"turns": ("0", "2")}, {"ignore": ("0",), "sparsity": 0.2}]
)
def test_shared_masks_that_are_chosen_apart_are_refused(apart):
    model, masks = square()
    with pytest.raises(MaskError, match="chosen together"):
        run(model, masks=masks, **({"sparsity": 0.5} | apart))


def test_a_layer_that_starts_at_zero_is_pruned_like_any_other():
    model = small()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    kept = run(model, sparsity=0.8).masks.kept_by_layer()
    assert sum(kept.values()) == 160
    assert kept["0"] > 80
    assert kept["2"] > 8


def test_thresholds_are_in_deviations_whatever_the_saliency():
    result = run(small(), thresholds={"*": 0.5}, saliency="taylor", updates=3)
    assert 20 < result.masks.kept < 500  # held against t = 0.5, nothing would be


# ---------------------------------------------------------------------- n of m
@given(st.integers(0, 10_000), st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8)]), st.integers(0, 2))
def test_n_of_every_m_are_the_best_ones(seed, pattern, axis):
    n, m = pattern
    shape = [3, 5, 2]
    shape[axis] = 2 * m
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.5
    got = Pattern(n, m, {"w": axis}).choose(
        {"w": standing(saliency, mask, BAND, splice=True)}, {}, 1
    )
    lines = zip(
        got["w"].movedim(axis, -1).reshape(-1, 2, m),
        standing(saliency, mask, BAND, splice=True).movedim(axis, -1).reshape(-1, 2, m),
        strict=True,
    )
    for chosen_line, values in lines:
        for kept, own in zip(chosen_line, values, strict=True):
            assert int(kept.sum()) == n
            assert own[kept].min() >= own[~kept].max()


def test_a_pattern_lies_along_what_a_weight_reads():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up = nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 3, 2)
            self.lstm, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            x = self.up(self.conv(x)).mean(2).mT
            return self.head(self.lstm(x)[0])

    model, target = Odd(), Target(pattern="2:4")
    masks = Masks.full(model)
    names = chosen(masks, target, SparsifyOptions())
    axes, left = reading_axes(sc.trace(model, torch.randn(2, 4, 9, 9)), masks, names, target)
    assert axes == {"conv.weight": 1, "up.weight": 0, "lstm.weight_hh_l0": 1, "head.weight": 1}
    assert set(left) == {"lstm.weight_ih_l0"}
    assert "reads 3, no multiple of 4" in left["lstm.weight_ih_l0"]


# ---------------------------------------------------------------------- what is asked for
def pools_of(model=None, masks=None, **settings):
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)) if model is None else model
    named = {k: settings.pop(k) for k in list(settings) if k in Target.__dataclass_fields__}
    target, options = Target(**named), SparsifyOptions(**settings)
    whole = Masks.full(model) if masks is None else masks
    names = chosen(whole, target, options)
    return make_pools(whole if masks else Masks.full(model, names), names, target, options, {})


def test_a_target_counts_all_parameters_of_the_network():
    model = nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))  # 80 + 16 + 36
    (pool,) = pools_of(model, compression=4)
    assert pool.rule == Count(116, 132 // 4 - 16)
    (pool,) = pools_of(model, sparsity=0.2, ignore=("0",))
    assert pool.rule == Count(36, 105 - 96)
    first, second = pools_of(model, sparsity={"0": 0.75, "2": 0.5})
    assert (first.rule, second.rule) == (Count(80, 20), Count(36, 18))
    (only,) = pools_of(model, sparsity={"2": 0.5})
    assert only.names == ("2.weight", "2.bias")
    first, second = pools_of(model, compression=4, scope="layer")
    assert (first.rule.end, second.rule.end) == (80 * 17 // 116, 36 * 17 // 116)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.f, self.o = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.o.weight = self.e.weight


def test_a_tied_weight_belongs_to_the_layers_of_all_its_paths():
    def names(**settings):
        return {pool.names: pool.rule for pool in pools_of(Tied(), **settings)}

    (own,) = names(sparsity=0.2, ignore=("o",))
    assert own == ("e.bias", "f.weight", "f.bias")
    (own,) = names(sparsity=0.2, only=("o",))
    assert own == ("e.weight", "o.bias")
    assert list(names(sparsity=0.2, turns=("o", "*"))) == [
        ("e.weight", "o.bias"), ("e.bias", "f.weight", "f.bias")
    ]  # fmt: skip
    found = names(sparsity={"o": 0.5, "e": 0.0})
    assert {own: rule.end for own, rule in found.items()} == {
        ("e.weight",): 18, ("e.bias",): 6, ("o.bias",): 3
    }  # fmt: skip
    ((_, rule),) = names(thresholds={"o": 1.0, "e": 2.0}).items()
    assert rule.c == {"e.weight": 1.0, "e.bias": 2.0, "o.bias": 1.0}


def test_biases_may_be_left_out():
    (pool,) = pools_of(compression=3, biases=False)
    assert pool.names == ("0.weight", "2.weight")
    assert pool.rule == Count(104, 116 // 3 - 12)


def test_layers_in_turn_have_windows_that_follow_each_other():
    first, second = pools_of(compression=4, turns=("2", "0"), updates=1000, ramp=0.4, stop=0.8)
    assert (first.names[0], second.names[0]) == ("2.weight", "0.weight")
    assert (first.begin, first.ramped, first.stop) == (0, 200, 399)
    assert (second.begin, second.ramped, second.stop) == (400, 600, 799)
    assert (first.rule, second.rule) == (Count(36, 9), Count(80, 20))


@given(
    st.integers(0, 60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 2),
    st.sampled_from(["cubic", "one-shot"]),
)
def test_every_target_is_reached_within_the_updates(updates, a, b, turns, schedule):
    ramp, stop = sorted((a, b))
    patterns = ("0", "2")[:turns] if turns > 1 else ()
    for pool in pools_of(
        compression=4, updates=updates, ramp=ramp, stop=stop, turns=patterns, schedule=schedule
    ):
        assert 0 <= pool.begin <= pool.ramped <= pool.stop <= max(0, updates - 1)
        assert pool.done(pool.ramped, schedule) == 1


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_any_network_has_pools(name):
    model, inputs = network(name)
    target = Target(compression=2)
    masks = Masks.full(model)
    (pool,) = make_pools(masks, chosen(masks, target, SparsifyOptions()), target,
                         SparsifyOptions(), {})  # fmt: skip
    assert pool.rule.end + masks.beside == masks.total // 2
    assert inputs is not None


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, BudgetError, "none was given"),
        ({"compression": 2, "sparsity": 0.5}, BudgetError, "compression and sparsity"),
        ({"compression": 0.5}, BudgetError, "at least 1"),
        ({"compression": math.nan}, BudgetError, "at least 1"),
        ({"compression": "108"}, BudgetError, "at least 1"),
        ({"compression": 117}, BudgetError, "none of|0 of 116"),
        ({"compression": 100}, BudgetError, "keeps at least 1"),
        ({"sparsity": 1.0}, BudgetError, "below 1"),
        ({"sparsity": {"0": 1.5}}, BudgetError, "sparsity of '0'"),
        ({"sparsity": {"fc": 0.5}}, ConfigError, "matches no layer"),
        ({"compression": 2, "only": ("1",)}, ConfigError, "matches no layer"),
        ({"compression": 2, "ignore": ("*",)}, ConfigError, "no layer to mask"),
        ({"compression": 4, "ignore": ("0",)}, BudgetError, "less than 1.4"),
        ({"pattern": "4:2"}, BudgetError, "2:4"),
        ({"pattern": "half"}, BudgetError, "2:4"),
        ({"thresholds": {"0": math.inf}}, BudgetError, "number"),
    ],
)
def test_what_cannot_be_reached_is_refused(settings, error, words):
    with pytest.raises(error, match=words):
        pools_of(**settings)
