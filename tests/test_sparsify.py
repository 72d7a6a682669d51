"""Sparsify: what it reaches, what splicing does, that it resumes, and what it refuses."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from tests.networks import network
from tests.test_masks import Recurrent
from tests.test_prune import LOSS, data, net, same, weights
from torch import nn

import secateurs as sc
from secateurs.errors import BudgetError, ConfigError, DataError, FileError, MaskError
from secateurs.sparse.masks import Masks

X = torch.zeros(1, 1, 8, 8)
QUICK = {"updates": 24, "warmup": 2, "every": 2, "evaluate_every": 6, "lr": 0.05, "progress": False}


def sparsify(model=None, **changes):
    target = {} if {"sparsity", "pattern", "thresholds"} & changes.keys() else {"compression": 8}
    settings = {"train": data(), "loss": LOSS, **target, **QUICK, **changes}
    return sc.sparsify(net() if model is None else model, X, **settings)


def metric(model):
    return float(sum(p.abs().sum() for p in model.parameters()))


def zeros(model, masks) -> bool:
    own = dict(model.named_parameters())
    return all(not own[name][~mask].any() for name, mask in masks.items())


def same_masks(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------- what is reached
@pytest.mark.parametrize(
    "asked",
    [
        {"compression": 8},
        {"compression": 40, "scope": "layer"},
        {"sparsity": 0.9, "normalize": "none"},
        {"compression": 8, "schedule": "one-shot"},
        {"compression": 8, "turns": ("0", "4", "8", "10")},
        {"compression": 8, "statistics": "now", "splice": False},
        {"compression": 8, "saliency": "taylor", "score_batches": 1},
        {"compression": 8, "updates": 0},
    ],
)
def test_the_target_is_reached_and_not_overshot(asked):
    model = net()
    before = weights(model)
    result = sparsify(model, **asked)
    total = sum(p.numel() for p in model.parameters())
    target = total / asked["compression"] if "compression" in asked else total * 0.1
    masks = result.masks
    assert same(before, weights(model))
    assert result.stopped == "done"
    assert masks.total == total
    assert target - 4 < masks.kept <= target
    assert zeros(result.model, masks)
    assert result.history[-1]["kept"] == masks.kept
    assert all(masks[f"{layer}.weight"].any() for layer in (0, 4, 8, 10))


def test_layers_may_each_have_a_sparsity_and_others_are_left_whole():
    result = sparsify(sparsity={"0": 0.5, "8": 0.9})
    assert set(result.masks) == {"0.weight", "0.bias", "8.weight", "8.bias"}
    assert result.masks.kept_by_layer() == {"0": 60, "8": round(0.1 * 24 * 257 - 0.5)}


def test_a_warm_up_prunes_nothing_where_no_update_follows():
    result = sparsify(updates=0, warmup=8, evaluate_every=3)
    total = result.masks.total
    assert [record["kept"] for record in result.history] == [total] * 3 + [total // 8]


@pytest.mark.parametrize("pattern", ["2:4", "1:2"])
@pytest.mark.parametrize("saliency", ["magnitude", "taylor"])
def test_a_pattern_is_exact_and_says_what_it_cannot_cover(pattern, saliency):
    result = sparsify(pattern=pattern, saliency=saliency, score_batches=1)
    n, m = map(int, pattern.split(":"))
    assert set(result.left) == {"0.weight"}  # it reads one channel
    assert "no multiple" in str(result)
    for name in ("4.weight", "8.weight", "10.weight"):
        groups = result.masks[name].movedim(1, -1).unflatten(-1, (-1, m))
        assert (groups.sum(-1) == n).all()
    assert zeros(result.model, result.masks)


def test_the_papers_thresholds_hold_for_magnitudes():
    result = sparsify(thresholds={"8": 0.5, "4": -0.2}, warmup=0, gamma=0.0, stop=1.0, every=1,
                      lr=1e-4)  # fmt: skip
    start = net()
    for layer, c in (("8", 0.5), ("4", -0.2)):
        values = torch.cat([p.detach().abs().flatten() for p in start[int(layer)].parameters()])
        t = float(values.mean() + c * values.std(correction=0))
        for kind in ("weight", "bias"):
            mask, dense = result.masks[f"{layer}.{kind}"], result.dense[f"{layer}.{kind}"].abs()
            assert (dense[mask] > 0.85 * t).all()  # since the last look there was one more update
            assert (dense[~mask] < 1.15 * t).all()


@pytest.mark.parametrize("make", ["recurrent", "residual"])
def test_recurrent_tied_and_normalised_nets_are_sparsified_too(make):
    torch.manual_seed(0)
    if make == "recurrent":
        model = Recurrent()
        x, y = torch.randint(11, (16, 5)), torch.randint(11, (16, 5))
    else:
        model, x = network("residual")
        model.train()
        y = torch.randint(model(x).shape[-1], (len(x),))

    def objective(model, batch):
        return LOSS(model(batch[0]).flatten(0, -2), batch[1].flatten())

    result = sc.sparsify(
        model, x, train=[(x, y)], objective=objective, compression=3, **{**QUICK, "lr": 1e-3}
    )
    assert result.masks.total // 3 - 1 <= result.masks.kept <= result.masks.total / 3
    if make == "recurrent":
        assert result.model.head.weight is result.model.embed.weight
        assert zeros(result.model, result.masks)


# ---------------------------------------------------------------------- splicing
def test_splicing_brings_back_and_pruning_does_not():
    spliced, pruned = (sparsify(splice=splice, lr=0.3) for splice in (True, False))
    changes = [c for record in spliced.history for c in record["changes"]]
    assert sum(c["spliced"] for c in changes) > 0
    assert not any(c["spliced"] for record in pruned.history for c in record["changes"])
    for result in (spliced, pruned):
        kept = result.masks.total
        for record in result.history:
            for change in record["changes"]:
                kept += change["spliced"] - change["pruned"]
                assert (
                    change["kept"] == kept == sum(change["layers"].values()) + result.masks.beside
                )
        assert kept == result.masks.kept


def test_what_is_gone_goes_on_learning():
    start = net()
    result = sparsify(start, stop=0.5, ramp=0.25)
    gone = ~result.masks["8.weight"]
    assert not torch.equal(result.dense["8.weight"][gone], start[8].weight[gone])


def test_masks_change_with_the_chance_of_the_paper():
    settings = {"updates": 400, "every": 1, "stop": 1.0, "ramp": 0.0, "warmup": 0,
                "train": list(data())[:1], "evaluate_every": 400}  # fmt: skip
    always = sparsify(gamma=0.0, **settings)
    rarely = sparsify(gamma=0.05, power=1.0, **settings)
    looks = [c["update"] for c in rarely.history[-1]["changes"]]
    assert len(always.history[-1]["changes"]) == 400
    expected = sum(1 / (1 + 0.05 * i) for i in range(400))
    assert abs(len(looks) - expected) < 4 * expected**0.5
    assert sum(i < 200 for i in looks) > len(looks) / 2


def test_weights_that_share_a_mask_are_kept_together():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(16, 8)
    masks = Masks.full(model)
    masks.share("2.weight", "0.weight")
    result = sc.sparsify(
        model, x, train=[(x, x)], loss=nn.MSELoss(), compression=2, masks=masks, **QUICK
    )
    assert result.masks["0.weight"] is result.masks["2.weight"]
    assert 0 < result.masks.kept <= 72
    changes = [c for record in result.history for c in record["changes"]]
    assert 144 - sum(c["pruned"] - c["spliced"] for c in changes) == result.masks.kept


def test_a_user_may_bring_a_saliency_of_their_own():
    seen = []

    def first(weight, gradient):
        seen.append(gradient.abs().sum())
        return torch.arange(weight.numel(), 0, -1.0).view(weight.shape)

    result = sparsify(saliency=first, scope="layer", score_batches=1, schedule="one-shot")
    mask = result.masks["8.weight"].flatten()
    assert mask[: int(mask.sum())].all()
    assert all(total > 0 for total in seen)


# ---------------------------------------------------------------------- going on
def test_a_run_cut_short_at_any_update_resumes_to_the_same_result(tmp_path):
    settings = {"evaluate": metric, "optimizer": lambda p: torch.optim.Adam(p, lr=0.01),
                "scheduler": lambda o, n: torch.optim.lr_scheduler.OneCycleLR(
                    o, 0.02, total_steps=n + 1)}  # fmt: skip
    whole = sparsify(**settings)
    for stop in (0, 3, 6, 11, 25):
        calls = 0

        def loss(output, target, stop=stop):
            nonlocal calls
            calls += 1
            if calls == stop + 1:
                os.kill(os.getpid(), signal.SIGINT)
            return LOSS(output, target)

        out = tmp_path / str(stop)
        cut = sparsify(loss=loss, out=out, **settings)
        assert cut.stopped == ("interrupted" if stop < 25 else "done")
        assert zeros(cut.model, cut.masks)
        resumed = sparsify(out=out, resume=True, **settings)
        assert resumed.stopped == "done"
        assert same(weights(resumed.model), weights(whole.model))
        assert all(torch.equal(resumed.dense[n], t) for n, t in whole.dense.items())
        assert same_masks(resumed.masks, whole.masks)
        for a, b in zip(resumed.history, whole.history, strict=True):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.parametrize("end", ["floor", "nan"])
def test_a_resumed_run_goes_back_to_the_last_evaluation(tmp_path, end):
    def count(model):
        return float(sum(int((p != 0).sum()) for p in model.parameters()))

    def losing(calls, stop=None):
        """A loss that is interrupted at an update, and not finite after the 15th."""

        def loss(output, target):
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return LOSS(output, target) * (float("nan") if end == "nan" and calls > 15 else 1.0)

        return loss

    settings = {"evaluate": count, "floor": 2000 if end == "floor" else 0}
    whole = sparsify(loss=losing(0), **settings)
    assert whole.stopped == end
    last = whole.history[-1]["update"]
    assert 0 < last < 24
    sparsify(loss=losing(0, last + 2), out=tmp_path, **settings)
    resumed = sparsify(loss=losing(last + 2), out=tmp_path, resume=True, **settings)
    assert resumed.stopped == end
    assert [record["update"] for record in resumed.history] == list(range(0, last + 1, 6))
    assert same(weights(resumed.model), weights(whole.model))
    assert same_masks(resumed.masks, whole.masks)
    assert resumed.masks.kept == resumed.history[-1]["kept"]


class Drifting(nn.Module):
    """Takes a running mean of its activations away, which no state dict holds."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6), persistent=False)
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("order", torch.arange(6))
        self.register_buffer("view", self.order.view(2, 3), persistent=False)

    def forward(self, x):
        x = self.layer(x)
        if self.training:
            self.cache = torch.ones(2)
            self.mean.copy_(0.9 * self.mean + 0.1 * x.detach().mean(0))
        return self.out((x - self.mean).relu())


@pytest.mark.parametrize("end", ["done", "nan", "budget"])
def test_buffers_that_are_not_persistent_are_restored_too(tmp_path, end):
    torch.manual_seed(0)
    model, x, y = Drifting(), torch.randn(16, 6), torch.randn(16, 3)

    def loss(output, target, stop=0):
        nonlocal calls
        calls += 1
        if calls == stop:
            os.kill(os.getpid(), signal.SIGINT)
        scale = float("nan") if end == "nan" and calls > 8 else 1.0
        return (output - target).square().mean(1) * scale

    def run(loss, **changes):
        settings = {"train": [(x, y)], "loss": loss, "progress": False, **changes}
        if end == "budget":
            return sc.prune(model, x, budget={"units": 0.7}, step=1, warmup=3, updates=4, final=1,
                            score_batches=1, **settings)  # fmt: skip
        return sc.sparsify(model, x, sparsity=0.5, **{**QUICK, "updates": 10, **settings})

    calls = 0
    whole = run(loss)
    calls = 0
    cut = run(lambda *pair: loss(*pair, stop=5), out=tmp_path)
    assert cut.stopped == "interrupted"
    resumed = run(loss, out=tmp_path, resume=True)
    assert resumed.stopped == whole.stopped == end
    assert whole.model.mean.any()
    assert torch.equal(resumed.model.mean, whole.model.mean)
    assert same(weights(resumed.model), weights(whole.model))


def test_a_network_that_is_frozen_is_sparsified_as_it_is():
    model = net().requires_grad_(False)
    result = sparsify(model)
    assert result.stopped == "done"
    assert result.masks.kept == result.masks.total // 8
    assert all(torch.equal(result.dense[n], p) for n, p in model.named_parameters()
               if n in result.dense)  # fmt: skip


def test_a_crash_resumes_from_the_last_evaluation(tmp_path):
    class KilledError(Exception):
        pass

    def kill(record, model):
        if record["update"] == 18:
            raise KilledError

    whole = sparsify(saliency="taylor", score_batches=2)
    with pytest.raises(KilledError):
        sparsify(saliency="taylor", score_batches=2, out=tmp_path, callbacks=[kill])
    with pytest.raises(ConfigError, match="resume=True"):
        sparsify(saliency="taylor", score_batches=2, out=tmp_path)
    resumed = sparsify(saliency="taylor", score_batches=2, out=tmp_path, resume=True)
    assert same(weights(resumed.model), weights(whole.model))
    assert same_masks(resumed.masks, whole.masks)


def test_resume_refuses_other_runs(tmp_path):
    sparsify(out=tmp_path)
    with pytest.raises(FileError, match="other settings: value"):
        sparsify(out=tmp_path, resume=True, compression=9)
    with pytest.raises(FileError, match="not a checkpoint of this kind"):
        sc.prune(net(), X, train=data(), loss=LOSS, budget={"macs": 0.5}, out=tmp_path,
                 resume=True, progress=False)  # fmt: skip
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="cannot read"):
        sparsify(out=tmp_path, resume=True)


def test_splicing_goes_on_from_an_earlier_result():
    first = sparsify(compression=4)
    more = sparsify(first.unbaked(), compression=8, masks=first.masks, warmup=0)
    assert first.masks.kept == first.masks.total // 4
    assert more.masks.kept == more.masks.total // 8
    assert more.history[0]["kept"] == first.masks.kept


def test_a_nan_loss_keeps_the_last_good_state():
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += 1
        return LOSS(output, target) * (float("nan") if calls > 15 else 1.0)

    result = sparsify(loss=loss)
    assert result.stopped == "nan"
    assert [record["update"] for record in result.history] == [0, 6, 12]
    assert result.masks.kept == result.history[-1]["kept"]
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    assert zeros(result.model, result.masks)


def test_a_floor_gives_back_the_sparsest_that_held_it():
    values = iter([1.0, 0.9, 0.8, 0.3, 0.2, 0.1])
    result = sparsify(evaluate=lambda model: next(values), floor=0.7)
    assert result.stopped == "floor"
    assert [record["metric"] for record in result.history] == [1.0, 0.9, 0.8]
    assert result.masks.kept == result.history[-1]["kept"]


def test_evaluation_and_callbacks_see_the_masked_network():
    seen = []

    def count(model):
        return float(sum(int((p != 0).sum()) for p in model.parameters()))

    result = sparsify(evaluate=count, callbacks=[lambda r, model: seen.append(count(model))])
    assert seen == [record["metric"] for record in result.history]
    assert seen[-1] <= result.masks.kept


# ---------------------------------------------------------------------- with plans, and files
def test_it_composes_with_cuts(tmp_path):
    cut = sc.prune(net(), X, train=data(), loss=LOSS, budget={"units": 0.6}, updates=1, final=1,
                   step=0.3, progress=False)  # fmt: skip
    result = sparsify(cut.model, compression=4)
    assert result.masks.kept == sum(p.numel() for p in cut.model.parameters()) // 4
    plan = sc.trace(result.model, X).plan({"0": [0, 3], "8": [1]})
    small, masks = sc.apply(result.model, plan), result.masks.cut(plan)
    masks.check(small)
    assert zeros(small, masks)
    more = sc.sparsify(small, X, train=data(), loss=LOSS, compression=8, masks=masks, **QUICK)
    assert more.masks.kept <= sum(p.numel() for p in small.parameters()) // 8


def test_a_result_is_saved_and_loaded(tmp_path):
    result = sparsify(evaluate=metric, metric="size")
    loaded = sc.load(result.save(tmp_path), net(1))
    assert same(weights(loaded), weights(result.model))
    assert Masks.from_zeros(loaded).kept <= result.masks.kept + result.masks.beside
    text = str(result)
    assert "compressed 8.0×" in text
    assert "size" in text


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"sparsity": 0.5, "pattern": "2:4"}, BudgetError, "sparsity and pattern"),
        ({"compression": 1e6}, BudgetError, "stay"),
        ({"pattern": "2:4", "only": "0"}, BudgetError, "no layer can have the pattern"),
        ({"saliency": "magnitud"}, ConfigError, "did you mean 'magnitude'"),
        ({"ramp": 0.9, "stop": 0.5}, ConfigError, "ramp"),
        ({"band": (1.1, 0.9)}, ConfigError, "band"),
        ({"gama": 1}, ConfigError, "did you mean 'gamma'"),
        ({"only": "conv"}, ConfigError, "matches no layer"),
        ({"mode": "up"}, ConfigError, "mode"),
        ({"resume": True}, ConfigError, "needs out"),
        ({"floor": 0.5}, ConfigError, "needs evaluate"),
        ({"loss": None}, DataError, "one of the two"),
        ({"train": []}, DataError, "empty"),
        ({"loss": lambda a, b: LOSS(a.detach(), b)}, DataError, "no weight"),
        ({"loss": lambda a, b: LOSS(a, b) * float("nan")}, DataError, "not finite"),
        ({"masks": Masks.full(nn.Linear(3, 4))}, MaskError, "not of this model"),
    ],
)
def test_bad_input_is_refused_and_the_model_is_bit_identical(changes, error, words):
    model = net()
    before = copy.deepcopy(weights(model))
    with pytest.raises(error, match=words):
        sparsify(model, **changes)
    assert same(before, weights(model))
