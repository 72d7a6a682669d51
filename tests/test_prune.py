"""The greedy loop: budgets, options, determinism, resumption, and what it refuses."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cost import Cost
from secateurs.errors import BudgetError, ConfigError, DataError, FileError
from secateurs.process.stream import Stream, seed_everything
from secateurs.process.training import Trainer

X = torch.zeros(1, 1, 8, 8)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(256, 24),
        nn.ReLU(),
        nn.Linear(24, 3),
    )


def data(examples: int = 96, batch: int = 16, *, shuffle: bool = True):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, 1, 8, 8, generator=generator)
    y = torch.randint(3, (examples,), generator=generator)
    dataset = torch.utils.data.TensorDataset(x, y)
    return torch.utils.data.DataLoader(dataset, batch, shuffle=shuffle)


LOSS = nn.CrossEntropyLoss(reduction="none")
QUICK = {"updates": 2, "final": 3, "warmup": 1, "score_batches": 2, "progress": False, "step": 0.1}


def prune(model=None, **changes):
    settings = {"train": data(), "loss": LOSS, "budget": {"macs": 0.5}, **QUICK, **changes}
    return sc.prune(net() if model is None else model, X, **settings)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------- budgets
@pytest.mark.parametrize("measure", ["macs", "params", "units"])
@pytest.mark.parametrize("fraction", [0.7, 0.25])
def test_a_budget_is_met_and_not_much_overshot(measure, fraction):
    model = net()
    before = Cost(sc.trace(model, X)).of(measure)
    result = prune(model, budget={measure: fraction}, step=3)
    after = Cost(sc.trace(result.model, X)).of(measure)
    assert result.stopped == "budget"
    assert after == result.after[measure] <= fraction * before
    # one move less would not have met it
    assert after > fraction * before - 0.2 * before


def test_an_absolute_budget_equals_its_fraction():
    whole = Cost(sc.trace(net(), X)).of("macs")
    absolute, fraction = (prune(budget={"macs": b}) for b in (whole // 2, 0.5))
    assert absolute.plan == fraction.plan


def test_several_budgets_are_all_met():
    result = prune(budget={"macs": 0.6, "params": 0.3})
    assert result.after["macs"] <= 0.6 * result.before["macs"]
    assert result.after["params"] <= 0.3 * result.before["params"]


def test_a_loss_that_is_no_function_is_refused():
    with pytest.raises(DataError, match="not 'cross_entropy'"):
        prune(loss="cross_entropy")


def test_an_unreachable_budget_names_the_smallest_reachable():
    with pytest.raises(BudgetError, match=r"smallest reachable is [\d,]+ \(") as error:
        prune(budget={"macs": 0.001})
    named = int(str(error.value).split("reachable is ")[1].split(" ")[0].replace(",", ""))
    reached = prune(budget={"macs": named}, step=0.9)
    assert reached.after["macs"] == named


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, "empty"),
        ({"mac": 0.5}, "did you mean 'macs'"),
        ({"macs": 0}, "above 0"),
        ({"macs": float("nan")}, "above 0"),
        ({"macs": "half"}, "above 0"),
        ({"macs": 1e12}, "above 100%"),
        ({"units": 1.5}, "smallest reachable"),
        (0.5, "must look like {'macs': 0.5}"),
    ],
)
def test_a_malformed_budget_is_refused_before_anything_changes(budget, words):
    model = net()
    before = weights(model)
    with pytest.raises(BudgetError, match=words):
        prune(model, budget=budget)
    assert same(before, weights(model))


# ---------------------------------------------------------------------- the loop
def test_the_result_is_the_original_cut_by_the_plan_and_the_original_is_untouched():
    model = net()
    before = weights(model)
    result = prune(model)
    assert same(before, weights(model))
    assert model.training
    expected = sc.apply(model, result.plan).state_dict()
    assert {n: t.shape for n, t in result.model.state_dict().items()} == {
        n: t.shape for n, t in expected.items()
    }
    assert result.proof.holds
    assert not same(weights(sc.apply(model, result.plan)), weights(result.model))  # it learnt


def test_the_loop_is_deterministic_under_a_seed_and_the_seed_matters():
    a, b, c = prune(seed=3), prune(seed=3), prune(seed=4)
    assert a.plan == b.plan
    assert same(weights(a.model), weights(b.model))
    assert not same(weights(a.model), weights(c.model))


def test_units_removed_per_step_follow_the_step_option():
    result = prune(step=4, budget={"units": 0.5})
    removed = [sum(r["removed"].values()) for r in result.history if r["removed"]]
    assert removed[:-1] == [4] * (len(removed) - 1)
    assert 0 < removed[-1] <= 4


def test_a_geometric_schedule_removes_in_proportion_to_what_is_left():
    result = prune(step=0.25, schedule="geometric", budget={"units": 0.4})
    removed = [sum(r["removed"].values()) for r in result.history if r["removed"]]
    left = 12 + 16 + 24
    for count in removed[:-1]:
        assert count == round(0.25 * left)
        left -= count
    assert len(removed) > 2


def test_least_important_units_go_first():
    model = net()
    scores = sc.score(model, sc.trace(model, X), criterion="weight")
    result = prune(
        model, criterion="weight", warmup=0, updates=0, final=0, only="8", step=5,
        budget={"units": 47}, flops_weight=0.0,
    )  # fmt: skip
    assert result.plan.groups == {"8": sorted(scores["8"].argsort()[:5].tolist())}


def test_only_ignore_min_keep_max_remove_and_round_to_are_held():
    base = {group.name: group.size for group in sc.trace(net(), X).groups}
    assert base == {"0": 12, "4": 16, "8": 24}
    only = prune(only="8", budget={"params": 0.5})
    assert set(only.plan.groups) == {"8"}
    ignored = prune(ignore=["8"], budget={"macs": 0.3})
    assert "8" not in ignored.plan.groups
    kept = prune(min_keep=9, budget={"units": 0.6}, step=5)
    assert all(base[g] - len(u) >= 9 for g, u in kept.plan.groups.items())
    limited = prune(max_remove=0.5, budget={"units": 0.55}, step=5)
    assert all(len(u) <= base[g] / 2 for g, u in limited.plan.groups.items())
    rounded = prune(round_to=4, budget={"units": 0.5}, step=5)
    assert rounded.plan.groups
    assert all((base[g] - len(u)) % 4 == 0 for g, u in rounded.plan.groups.items())


def test_a_balanced_group_is_cut_evenly():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip
    result = prune(model, budget={"units": 0.5})
    small = sc.trace(result.model, X)
    assert result.proof.holds
    assert all(group.size % 4 == 0 for group in small.groups)


def test_a_floor_on_the_metric_stops_and_returns_the_smallest_that_held_it():
    values = iter([1.0, 0.9, 0.8, 0.4, 0.3, 0.2, 0.1])
    result = prune(
        evaluate=lambda model: next(values), metric="accuracy", floor=0.7, budget={"macs": 0.2},
        step=3, final=0,
    )  # fmt: skip
    assert result.stopped == "floor"
    assert [r["metric"] for r in result.history] == [1.0, 0.9, 0.8]
    assert len(result.plan) == 6
    assert Cost(sc.trace(result.model, X)).all() == result.after


def test_objective_finetune_optimizer_scheduler_and_callbacks_are_used():
    calls: dict[str, list] = {"finetune": [], "callback": [], "schedule": []}

    def scheduler(optimizer, total):
        calls["schedule"].append(total)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / total)

    result = prune(
        loss=None,
        objective=lambda model, batch: LOSS(model(batch[0]), batch[1]),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        scheduler=scheduler,
        callbacks=[lambda record, model: calls["callback"].append(record["step"])],
    )
    assert calls["schedule"][0] == 1
    assert calls["schedule"][-1] == 3
    assert len(calls["callback"]) == len(result.history)
    own = prune(finetune=lambda model, updates: calls["finetune"].append(updates))
    assert calls["finetune"] == [1, *[2] * (len(own.history) - 2), 3]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_what_the_optimizer_remembers_is_cut_with_the_weights(optimizer):
    model = net()
    kw = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    trainer = Trainer(
        model, data(), LOSS, None, lambda p: optimizer(p, lr=0.01, **kw), None, make_options()
    )
    trainer.train(3, lambda: True)
    before = {name: dict(trainer.optimizer.state[p]) for name, p in model.named_parameters()}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    plan = sc.trace(model, X).plan({"0": [1, 5], "4": [2], "8": [0]})
    sc.apply(model, plan, inplace=True)
    trainer.cut_optimizer(plan, shapes)
    for name, p in model.named_parameters():
        for key, value in trainer.optimizer.state[p].items():
            old = before[name][key]
            if isinstance(old, torch.Tensor) and old.dim():
                expected = plan.tensors[name].cut(old) if name in plan.tensors else old
                assert torch.equal(value, expected)
    assert math.isfinite(trainer.train(2, lambda: True))


def make_options(**values):
    from secateurs.process.options import make_options

    return make_options(**values)


# ---------------------------------------------------------------------- the stream
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 5, 6, 7, 13])
def test_a_stream_goes_on_where_it_was(shuffle, taken):
    whole = Stream(data(shuffle=shuffle), seed=5)
    list(whole.take(taken))
    place = whole.place
    rest = [x for x, _ in whole.take(9)]
    resumed = Stream(data(shuffle=shuffle), seed=5)
    resumed.seek(*place)
    seed_everything(99)
    assert all(torch.equal(a, b) for a, (b, _) in zip(rest, resumed.take(9), strict=True))


def test_a_stream_reshuffles_every_epoch():
    batches = [x for x, _ in Stream(data(), seed=0).take(12)]
    assert not torch.equal(batches[0], batches[6])
    assert torch.equal(
        torch.cat(batches[:6]).flatten().sort()[0], torch.cat(batches[6:]).flatten().sort()[0]
    )


# ---------------------------------------------------------------------- resuming
def test_a_run_cut_short_at_any_step_resumes_to_the_same_result(tmp_path):
    whole = prune(evaluate=lambda m: float(m[8].weight.abs().sum()), step=3)
    steps = whole.history[-1]["step"]
    for stop in range(0, steps + 1, 2):

        class KilledError(Exception):
            pass

        def kill(record, model, stop=stop):
            if record["step"] == stop:
                raise KilledError

        out = tmp_path / str(stop)
        settings = {"evaluate": lambda m: float(m[8].weight.abs().sum()), "out": out, "step": 3}
        with pytest.raises(KilledError):
            prune(callbacks=[kill], **settings)
        resumed = prune(resume=True, **settings)
        assert resumed.plan == whole.plan
        assert same(weights(resumed.model), weights(whole.model))
        assert [r["metric"] for r in resumed.history] == [r["metric"] for r in whole.history]
        for name, rows in whole.importance.items():
            np.testing.assert_array_equal(resumed.importance[name], rows)


def test_resuming_a_finished_run_gives_its_result(tmp_path):
    first = prune(out=tmp_path)
    again = prune(out=tmp_path, resume=True)
    assert again.plan == first.plan
    assert same(weights(again.model), weights(first.model))


def test_resume_refuses_a_run_with_other_settings_and_a_broken_file(tmp_path):
    prune(out=tmp_path)
    with pytest.raises(FileError, match="other settings"):
        prune(out=tmp_path, resume=True, budget={"macs": 0.4})
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="cannot read"):
        prune(out=tmp_path, resume=True)


def test_ctrl_c_keeps_what_is_done(tmp_path):
    def interrupt(record, model):
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    result = prune(callbacks=[interrupt], out=tmp_path, step=3)
    assert result.stopped == "interrupted"
    assert len(result.plan) == 3
    whole, resumed = prune(step=3), prune(out=tmp_path, resume=True, step=3)
    assert resumed.plan == whole.plan
    assert same(weights(resumed.model), weights(whole.model))


def test_a_killed_process_resumes_to_the_same_result(tmp_path):
    """SIGKILL at a moment that depends on the machine; `make soak` does it 20 times."""
    script = Path(__file__).with_name("killed_run.py")
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, str(script), str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(3):  # three steps are reported, then it is killed in the fourth
        process.stdout.readline()
    process.kill()
    process.wait()
    resumed = subprocess.run(
        [sys.executable, str(script), str(out)], capture_output=True, text=True, check=True
    )
    whole = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "whole")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert resumed.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]


# ---------------------------------------------------------------------- bad input
def test_a_nan_loss_stops_and_keeps_the_last_good_state():
    count = 0

    def loss(output, target):
        nonlocal count
        count += 1
        return LOSS(output, target) * (float("nan") if count > 12 else 1.0)

    result = prune(loss=loss, step=3)
    assert result.stopped == "nan"
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    assert Cost(sc.trace(result.model, X)).all() == result.after
    assert result.history[-1]["units"] == result.after["units"]


def test_a_nan_loss_from_the_start_is_refused():
    with pytest.raises(DataError, match="not finite"):
        prune(loss=lambda output, target: LOSS(output, target) * float("nan"))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"train": []}, DataError, "empty"),
        ({"loss": None}, DataError, "one of the two"),
        ({"objective": LOSS}, DataError, "one of the two"),
        ({"criterion": "tailor"}, ConfigError, "did you mean 'taylor'"),
        ({"update": 3}, ConfigError, "did you mean 'updates'"),
        ({"step": -1}, ConfigError, "step"),
        ({"normalize": "l3"}, ConfigError, "normalize"),
        ({"only": "conv"}, ConfigError, "matches no module"),
        ({"mode": "up"}, ConfigError, "mode"),
        ({"resume": True}, ConfigError, "needs out"),
        ({"floor": 0.5}, ConfigError, "needs evaluate"),
    ],
)
def test_bad_input_is_refused_and_the_model_is_bit_identical(changes, error, words):
    model = net()
    before = weights(model)
    with pytest.raises(error, match=words):
        prune(model, **changes)
    assert same(before, weights(model))


def test_the_loader_may_be_a_list_but_not_an_iterator_that_runs_out():
    assert prune(train=list(data())).stopped == "budget"
    with pytest.raises(DataError, match="runs out"):
        prune(train=iter(list(data())))


def test_a_model_with_frozen_parameters_is_pruned_and_they_stay_frozen():
    model = net()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(model[0].weight)
    result = prune(model)
    kept = [i for i in range(12) if i not in result.plan.groups.get("0", [])]
    assert not result.model[0].weight.requires_grad
    assert torch.equal(result.model[0].weight, before[kept])


# ---------------------------------------------------------------------- what review found
class Noisy(torch.utils.data.Dataset):
    """Draws at random for every example, from the global generator."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.randn(1, 8, 8), i % 3


def test_random_augmentation_resumes_too():
    def loader():
        return torch.utils.data.DataLoader(Noisy(), 8, shuffle=True)

    whole = Stream(loader(), seed=5)
    list(whole.take(7))
    resumed = Stream(loader(), seed=5)
    resumed.seek(*whole.place)
    seed_everything(1)
    for (a, _), (b, _) in zip(whole.take(6), resumed.take(6), strict=True):
        assert torch.equal(a, b)


def test_workers_take_turns():
    batches = [x for x, _ in Stream(data(), seed=0).take(6)]
    for worker in (0, 1):
        mine = [x for x, _ in Stream(data(), 0, worker, 2).take(3)]
        assert all(torch.equal(a, b) for a, b in zip(mine, batches[worker::2], strict=True))


def test_the_surroundings_decide_nothing_and_are_left_alone():
    results = []
    for ambient in (1, 2):
        model = net()
        torch.manual_seed(ambient)
        before = torch.get_rng_state()
        results.append(prune(model, warmup=3))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*(weights(r.model) for r in results))


def test_nan_weights_are_never_kept():
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += 1
        return LOSS(Poison.apply(output) if calls == 10 else output, target)

    result = prune(loss=loss, step=3, updates=3)
    assert result.stopped == "nan"
    assert all(torch.isfinite(t).all() for t in result.model.state_dict().values())


def test_a_floor_survives_a_restart(tmp_path):
    def run(**changes):
        return prune(
            evaluate=lambda m: float(m[8].weight.shape[0] + m[4].weight.shape[0]), floor=30,
            step=3, budget={"macs": 0.1}, **changes,
        )  # fmt: skip

    class KilledError(Exception):
        pass

    whole = run()
    assert whole.stopped == "floor"
    count = len(whole.history) - 1

    def kill(record, model):
        if len(seen) == count:
            raise KilledError
        seen.append(record)

    seen: list = []
    with pytest.raises(KilledError):
        run(out=tmp_path, callbacks=[kill])
    resumed = run(out=tmp_path, resume=True)
    assert resumed.plan == whole.plan
    assert same(weights(resumed.model), weights(whole.model))


def test_a_layer_kept_in_eval_mode_stays_so_and_the_result_is_plain():
    model = net()
    model[1].eval()
    result = prune(model)
    kept = [i for i in range(12) if i not in result.plan.groups.get("0", [])]
    assert torch.equal(result.model[1].running_mean, model[1].running_mean[kept])
    assert not result.model[1].training
    assert "_is_accelerate_prepared" not in result.model.__dict__
    assert "forward" not in result.model.__dict__


def test_tied_weights_with_momentum_are_checkpointed(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.d(self.c(self.b(self.a(x))).relu())

    torch.manual_seed(0)
    batch = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    result = sc.prune(Tied(), batch[0][0], train=batch, loss=LOSS, budget={"units": 0.7},
                      out=tmp_path, **QUICK)  # fmt: skip
    assert result.proof.holds


def test_an_optimizer_with_factored_state_starts_anew_where_it_was_cut():
    result = prune(optimizer=lambda p: torch.optim.Adafactor(p, lr=1e-3))
    assert result.stopped == "budget"
