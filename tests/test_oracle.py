"""The oracle against the slow loop: one replay of the whole network for every unit, in float64."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from tests.attentive import attentive
from tests.generated import Network, image_networks
from tests.networks import NETWORKS, network
from tests.references import LOSS, pairs
from tests.references import changes as changes_by_gates
from tests.support import doubled
from tests.zoo import zoo_model
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import secateurs as sc
from secateurs.errors import ConfigError, DataError, FileError, NotFiniteError
from secateurs.exact import changes
from secateurs.exact.changes import Engine
from secateurs.exact.sample import Sample, draw
from secateurs.gates import gate, statistics, tensors_of
from secateurs.groups import Selection
from secateurs.trace.model import input_tensors, model_tensors


def per_example(output: Any, target: Tensor) -> Tensor:
    flat = torch.cat([t.flatten(1) for t in tensors_of(output)], 1)
    return (flat - target[:, None]).square().mean(1)


def for_batch(output: Any, target: Tensor) -> Tensor:
    """No mean of what each example gives."""
    return per_example(output, target).mean().sqrt()


def naive(
    model: nn.Module, x: Any, y: Tensor, loss: Callable[..., Tensor], units: int = 1 << 30
) -> tuple[dict[str, Tensor], float]:
    """group -> (examples, units), one whole gated forward a unit; and max(C, max|ΔC|)."""
    graph = sc.trace(model, x)
    args = (x if isinstance(x, tuple) else (x,)) if not isinstance(x, dict) else ()
    inputs = input_tensors(x)
    found = {}
    with torch.no_grad():
        base = loss(model(*args, **(x if isinstance(x, dict) else {})), y)
        for group in graph:
            rows = []
            for unit in group.units[:units]:
                one = Selection(graph, [unit])
                output = graph.program.replay(
                    model_tensors(model), inputs, gate(graph, one), statistics(graph, one)
                )
                rows.append((loss(output, y) - base).reshape(-1))
            found[group.name] = torch.stack(rows, 1)
    largest = max(float(change.abs().max()) for change in found.values())
    return found, max(largest, float(base.abs().mean()))


def engine_on(model: nn.Module, x: Any, y: Tensor, **options: Any) -> dict[str, changes.Change]:
    return dict(Engine(model, sc.trace(model, x), **options).changes((x, y)))


def agree(found: dict, wanted: dict[str, Tensor], scale: float) -> None:
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert float((found[name].loss[:, : values.shape[1]] - values).abs().max()) <= 1e-10 * scale


def examples(name: str, n: int = 5) -> tuple[nn.Module, Any, Tensor]:
    model, x = network(name)
    draw = torch.Generator().manual_seed(3)
    x = pytree.tree_map_only(
        Tensor, lambda t: torch.randn(n, *t.shape[1:], dtype=t.dtype, generator=draw), x
    )
    return model, x, torch.randn(n, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("loss", [per_example, for_batch])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_oracle_is_the_naive_loop(name: str, loss: Callable[..., Tensor]) -> None:
    model, x, y = examples(name)
    found = engine_on(model, x, y, loss=loss)
    agree(found, *naive(model, x, y, loss))
    for group in sc.trace(model, x):
        assert found[group.name].how == ("rows" if group.exact else "units")


def test_the_oracle_of_heads_and_their_dims_is_that_of_gates_by_hand() -> None:
    net, (x, y) = attentive(), pairs(6)
    found, wanted = engine_on(net, x, y, loss=LOSS), changes_by_gates(net, x, y)
    assert {group: change.how for group, change in found.items()} == dict.fromkeys(
        net.sizes, "rows"
    )
    for group, values in wanted.items():
        assert float((found[group].loss.mean(0) - values).abs().max()) <= 1e-12


def test_the_check_sees_a_wrong_unit() -> None:
    """The negative control: two units' changes exchanged are refused."""
    model, x, y = examples("residual")
    found = engine_on(model, x, y, loss=per_example)
    wanted, scale = naive(model, x, y, per_example)
    wanted["a"] = wanted["a"][:, torch.arange(12).roll(1)]
    with pytest.raises(AssertionError):
        agree(found, wanted, scale)


@pytest.mark.parametrize("limit", [1, 3, 7])
@pytest.mark.parametrize("name", ["lenet", "unet", "grouped", "linear_3d"])
@pytest.mark.parametrize("loss", [per_example, for_batch])
def test_the_size_of_the_chunks_does_not_matter(
    name: str, loss: Callable[..., Tensor], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = examples(name)
    monkeypatch.setattr(Engine, "_limit", lambda self, cone: limit)
    agree(engine_on(model, x, y, loss=loss), *naive(model, x, y, loss))


@pytest.mark.parametrize("name", ["lenet", "residual", "squeeze_excite"])
def test_silent_samples_are_left_out_and_nothing_changes(name: str) -> None:
    model, x, y = examples(name)
    x[::2] *= 0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter -= 0.3
    kept = engine_on(model, x, y, loss=per_example, skip=False)
    found = engine_on(model, x, y, loss=per_example)
    wanted, scale = naive(model, x, y, per_example)
    agree(kept, wanted, scale)
    agree(found, wanted, scale)
    assert any(bool((change.loss == 0).any()) for change in found.values())


ZOO = ("resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "resnext50_32x4d",
       "shufflenet_v2_x1_0", "googlenet", "squeezenet1_1", "convnext_tiny")  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_the_oracle_on_the_zoo(name: str) -> None:
    """Three groups, early, in the middle and late; two units of each."""
    model, x = zoo_model(name)
    x = x[:, :, :32, :32] if name not in ("googlenet", "squeezenet1_1") else x
    y = torch.randn(2, dtype=torch.float64)
    graph = sc.trace(model, x)
    some = [graph.groups[i] for i in (0, len(graph) // 2, len(graph) - 1)]
    units = {group.name: range(min(2, group.size)) for group in some}
    found = dict(Engine(model, graph, loss=per_example).changes((x, y), units))
    assert set(found) == set(units)
    with torch.no_grad():
        base = per_example(model(x), y)
        for name, chosen in units.items():
            for unit in chosen:
                one = Selection(graph, [graph[name].units[unit]])
                output = graph.program.replay(
                    model_tensors(model), [x], gate(graph, one), statistics(graph, one)
                )
                change = per_example(output, y) - base
                scale = max(float(base.max()), float(change.abs().max()))
                assert float((found[name].loss[:, unit] - change).abs().max()) <= 1e-10 * scale


@settings(max_examples=12, deadline=None)
@given(image_networks())
def test_the_oracle_on_generated_networks(network: Network) -> None:
    torch.manual_seed(0)
    model = network.module()
    x, y = torch.randn(3, 3, 8, 8).double(), torch.randn(3).double()
    graph = sc.trace(model, x)
    assume(len(graph) > 0)
    if graph.program.looks:  # then units must be really cut, each alone, which a balance forbids
        assume(all(group.balance is None for group in graph))
    found = engine_on(model, x, y, loss=per_example)
    wanted, scale = naive(model, x, y, per_example, units=3)
    agree(found, wanted, scale)


class Normalised(nn.Module):
    """A norm reads the channels that it divides: no product with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.normalize(self.conv(x)).mean((2, 3)))


def test_a_norm_that_reads_its_channels() -> None:
    torch.manual_seed(0)
    model = doubled(Normalised())
    x, y = torch.randn(3, 3, 8, 8).double(), torch.randn(3).double()
    found = engine_on(model, x, y, loss=per_example)
    agree(found, *naive(model, x, y, per_example, units=4))


class Mixed(nn.Module):
    """Every example sees the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(F.relu(self.b(x - x.mean(0, keepdim=True))))


class Written(nn.Module):
    """A slice is written in place, and read under its other name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.view(-1, 8).relu_()
        return self.b(x)


class Looking(nn.Module):
    """What runs depends on values: as many examples join as have a positive output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x)))
        return x + x[: int((x[:, 0] > 0).sum())].sum(0)


@pytest.mark.parametrize(("make", "how"), [(Mixed, "units"), (Written, "forwards")])
def test_what_cannot_share_a_batch_runs_alone_and_says_so(make: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    model = doubled(make())
    x, y = torch.randn(6, 5).double(), torch.randn(6).double()
    found = engine_on(model, x, y, loss=per_example)
    agree(found, *naive(model, x, y, per_example))
    assert {change.how for change in found.values()} == {how}
    assert "batch" in found["a"].why or "in place" in found["a"].why


def test_a_model_that_looks_at_values_is_really_cut() -> None:
    torch.manual_seed(0)
    model = doubled(Looking())
    x, y = torch.randn(6, 5).double(), torch.randn(6).double()
    graph = sc.trace(model, x)
    found = dict(Engine(model, graph, loss=per_example).changes((x, y)))
    assert {change.how for change in found.values()} == {"forwards"}
    with torch.no_grad():
        for group in graph:
            for unit in range(group.size):
                small = sc.apply(model, graph.plan({group.name: [unit]}))
                wanted = per_example(small(x), y) - per_example(model(x), y)
                assert torch.allclose(found[group.name].loss[:, unit], wanted, atol=1e-12)


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias)


class LowRank(nn.Linear):
    """A linear layer with a product of two small matrices beside its weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.A, self.B = nn.Parameter(torch.randn(4, inputs)), nn.Parameter(torch.randn(outputs, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.B @ self.A, self.bias)


class Positioned(nn.Module):
    """One layer sees the examples, and a parameter; so does the one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.place = nn.Parameter(torch.randn(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x))))) + self.c(F.relu(self.b(self.place)))


def weight_normed(inputs: int, outputs: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(inputs, outputs))


# a network, the shape of its examples, and the groups that share no batch, with the reason
OF_WEIGHTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "weight standardisation": (
        lambda: nn.Sequential(
            Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 4, 3), nn.Flatten(), nn.Linear(16, 3)
        ),
        (3, 6, 6),
        {"0": "statistic"},
    ),
    "weight_norm": (
        lambda: nn.Sequential(
            weight_normed(5, 8), nn.ReLU(), weight_normed(8, 6), nn.ReLU(), nn.Linear(6, 3)
        ),
        (5,),
        {"0.parametrizations.weight": "share"},
    ),
    "low rank": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), LowRank(8, 6), nn.Linear(6, 3)),
        (5,),
        {"2:width": "product"},
    ),
    "a parameter as input": (Positioned, (5,), {"a": "product", "b": "product"}),
}


@pytest.mark.parametrize("loss", [per_example, for_batch])
@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_unit_read_in_a_value_that_all_examples_share(
    name: str, loss: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    make, shape, alone = OF_WEIGHTS[name]
    model = doubled(make())
    x, y = torch.randn(5, *shape).double(), torch.randn(5).double()
    found = engine_on(model, x, y, loss=loss)
    agree(found, *naive(model, x, y, loss))
    assert {group for group, change in found.items() if change.how == "units"} == set(alone)
    assert all(why in found[group].why for group, why in alone.items())


# ---------------------------------------------------------------------- the public function
def task(n: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    model, _ = network("lenet")
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(n, 1, 28, 28, generator=draw).double()
    return model, x, torch.randint(4, (n,), generator=draw)


cross_entropy = nn.CrossEntropyLoss(reduction="none")


def right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double()


def test_loss_and_metric_are_means_over_all_batches() -> None:
    model, x, y = task()
    graph = sc.trace(model, x[:2])
    data = list(zip(x.split(10), y.split(10), strict=True))
    found = sc.oracle(model, graph, data, loss=cross_entropy, metric=right)
    wanted, _ = naive(model, x, y, cross_entropy)
    accuracy, _ = naive(model, x, y, right)
    for name in wanted:
        assert np.allclose(found.loss[name], wanted[name].mean(0), atol=1e-12)
        assert np.allclose(found.metric[name], accuracy[name].mean(0), atol=1e-12)
    assert found.examples == 24
    assert found.base["loss"] == pytest.approx(cross_entropy(model(x), y).mean().item())
    assert (found.scores("abs")["fc1"] >= 0).all()
    assert np.array_equal(found.scores("metric")["fc1"], -found.metric["fc1"])
    assert "fc1" in str(found)
    with pytest.raises(ConfigError, match="not 'best'"):
        found.scores("best")  # type: ignore[arg-type]


def test_memory_splits_a_batch_and_changes_nothing() -> None:
    model, x, y = task()
    graph = sc.trace(model, x[:2])
    whole = sc.oracle(model, graph, [(x, y)], loss=cross_entropy)
    parts = Engine(model, graph, cross_entropy, memory=1_000_000).fit((x, y))
    assert len(parts) > 1
    assert sum(len(part[0]) for part in parts) == 24
    small = sc.oracle(model, graph, [(x, y)], loss=cross_entropy, memory="1 MB")
    for name in whole.loss:
        assert np.allclose(whole.loss[name], small.loss[name], atol=1e-13)
    with pytest.raises(DataError, match="cannot be split"):
        sc.oracle(model, graph, [(x, y)], loss=nn.CrossEntropyLoss(), memory="1 MB")


class Held(TorchDispatchMode):
    """Counts the bytes that the results of operations hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.users: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            storage = tensor.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            self.now += 0 if self.users[key] else size
            self.users[key] += 1
            weakref.finalize(tensor, self.free, key, size)
        self.most = max(self.most, self.now)
        return result

    def free(self, key: int, size: int) -> None:
        self.users[key] -= 1
        self.now -= 0 if self.users[key] else size


@pytest.mark.parametrize("megabytes", [2, 4, 16])
def test_the_memory_bound_is_kept(megabytes: int) -> None:
    model, x, y = task(60)
    engine = Engine(model, sc.trace(model, x[:2]), cross_entropy, memory=megabytes * 10**6)
    list(engine.changes((x[:5], y[:5])))  # recordings are made once, of a few examples
    with Held() as held:
        for part in engine.fit((x, y)):
            list(engine.changes(part))
    assert 0.05 * megabytes < held.most / 1e6 < megabytes


def test_an_objective_is_called_for_each_unit() -> None:
    model, x, y = task(6)
    graph = sc.trace(model, x)
    batch = {"image": x, "label": y}

    def objective(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model(batch["image"]), batch["label"])

    found = sc.oracle(model, graph, [batch], objective=objective)
    wanted = sc.oracle(model, graph, [(x, y)], loss=cross_entropy)
    for name in wanted.loss:
        assert np.allclose(found.loss[name], wanted.loss[name], atol=1e-12)
    assert "whole forward" in found.how["fc1"]


def test_a_sample_says_how_sure_it_is() -> None:
    model, x, y = task(400)
    graph = sc.trace(model, x[:2])
    data = list(zip(x.split(64), y.split(64), strict=True))
    truth = sc.oracle(model, graph, data, loss=cross_entropy)
    found = sc.oracle(model, graph, data, loss=cross_entropy, examples=80, seed=1)
    assert found.examples == 80
    assert found.rows["fc1"].shape == (80, 20)
    error = np.concatenate(list(found.error.values()))
    off = np.concatenate([found.loss[name] - truth.loss[name] for name in truth.loss])
    assert 0.5 < np.sqrt(((off[error > 1e-9] / error[error > 1e-9]) ** 2).mean()) < 2
    every = sc.oracle(model, graph, data, loss=cross_entropy, examples=400)
    assert np.allclose(every.loss["conv1"], truth.loss["conv1"], atol=1e-12)
    assert not every.error["conv1"].any()
    least = int(np.abs(found.loss["fc1"]).argmin())
    tied = found.tied("fc1")
    for j in set(range(20)) - {least}:
        assert found.distinguishable("fc1", least, j) == (j not in tied)
    assert not found.distinguishable("fc1", 0, 0)
    with pytest.raises(DataError, match="examples="):
        truth.tied("fc1")


@pytest.mark.parametrize(("strata", "each"), [(1, 2), (1, 5), (1, 10), (10, 2), (3, 3)])
def test_equal_units_are_told_apart_no_more_often_than_the_level_says(
    strata: int, each: int
) -> None:
    random, draws = np.random.default_rng(0), 500
    sample = Sample(np.repeat(np.arange(strata), each), np.full(strata, 10**6))
    apart = 0
    for sign in random.choice([-1, 1], draws):
        rows = 1e3 * np.array([1, sign, 2]) + random.normal(size=(strata * each, 3))
        found = sc.Oracle({"g": rows.mean(0)}, rows={"g": rows}, sample=sample)
        apart += found.distinguishable("g", 0, 1)
        assert found.distinguishable("g", 0, 2)  # the negative control
    assert apart / draws < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_the_test_of_a_sample_is_scipys() -> None:
    """In one stratum it is the t test of one sample."""
    rows = np.random.default_rng(1).normal(0.3, 1, size=(12, 40))
    sample = Sample(np.zeros(12, np.int64), np.array([10**9]))
    for level in (0.5, 0.9, 0.99):
        wanted = scipy.stats.ttest_1samp(rows, 0).pvalue < 1 - level
        assert 0 < wanted.sum() < 40
        assert np.array_equal(sample.apart(rows, level), wanted)


def test_a_sample_weights_loss_metric_and_uncut_network_alike() -> None:
    """12 of 101 examples in classes of unequal weights; the metric is the loss again."""
    model, x, _ = task(101)
    y = torch.arange(3).repeat_interleave(torch.tensor([61, 25, 15]))
    graph = sc.trace(model, x[:2])
    found = sc.oracle(
        model, graph, [(x, y)], loss=cross_entropy, metric=lambda o, t: cross_entropy(o, t),
        examples=12, seed=1,
    )  # fmt: skip
    assert found.sample is not None
    taken = np.bincount(found.sample.stratum)
    weights = (found.sample.sizes / 101 / taken)[found.sample.stratum]
    assert len(set(weights)) > 1
    for name, rows in found.rows.items():
        assert np.allclose(found.loss[name], weights @ rows, atol=1e-13)
        assert np.array_equal(found.metric[name], found.loss[name])
    assert found.base["metric"] == found.base["loss"]
    (images, labels), _ = draw([(x, y)], 12, 1)
    uncut = cross_entropy(model(images), labels).detach().numpy()
    assert found.base["loss"] == pytest.approx(weights @ uncut)
    with pytest.raises(DataError, match="metric of one value per example"):
        sc.oracle(
            model, graph, [(x, y)], loss=cross_entropy, metric=nn.CrossEntropyLoss(), examples=12
        )


def test_an_interrupted_oracle_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = task(12)
    graph = sc.trace(model, x[:2])
    data = list(zip(x.split(6), y.split(6), strict=True))
    whole = sc.oracle(model, graph, data, loss=cross_entropy)
    seen: list[str] = []
    plain = Engine._limit

    def stop(self: Engine, cone: Any) -> int:
        seen.append(cone.group.name)
        if len(seen) == 5:  # in the second batch
            raise KeyboardInterrupt
        return plain(self, cone)

    monkeypatch.setattr(Engine, "_limit", stop)
    with pytest.raises(KeyboardInterrupt):
        sc.oracle(model, graph, data, loss=cross_entropy, out=tmp_path)
    with pytest.raises(FileError, match="resume"):
        sc.oracle(model, graph, data, loss=cross_entropy, out=tmp_path)
    found = sc.oracle(model, graph, data, loss=cross_entropy, out=tmp_path, resume=True)
    assert seen[5:] == seen[4:5] + [n for n in ("conv1", "conv2", "fc1") if n not in seen[3:5]]
    for name in whole.loss:
        assert np.array_equal(whole.loss[name], found.loss[name])
    softer = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)  # of the same name
    with pytest.raises(FileError, match="another loss"):
        sc.oracle(model, graph, data, loss=softer, out=tmp_path, resume=True)
    model.fc2.weight.data += 1
    with pytest.raises(FileError, match="other weights"):
        sc.oracle(model, graph, data, loss=cross_entropy, out=tmp_path, resume=True)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x, y = task()
    graph = sc.trace(model, x[:2])
    found = sc.oracle(model, graph, [(x, y)], loss=cross_entropy, metric=right, examples=12)
    found.save(tmp_path / "oracle.safetensors")
    again = sc.Oracle.load(tmp_path / "oracle.safetensors")
    assert str(again) == str(found)
    assert again.to_dict() == found.to_dict()
    assert sc.Oracle.from_dict(found.to_dict()).to_dict() == found.to_dict()
    (tmp_path / "bad").write_bytes(b"not this")
    with pytest.raises(FileError):
        sc.Oracle.load(tmp_path / "bad")


def test_the_criterion_is_the_oracle_and_its_states_merge() -> None:
    model, x, y = task()
    graph = sc.trace(model, x[:2])
    truth = sc.oracle(model, graph, [(x, y)], loss=cross_entropy)
    data = list(zip(x.split(10), y.split(10), strict=True))
    found = sc.score(model, graph, data, loss=cross_entropy, criterion="oracle")
    signed = sc.score(model, graph, data, loss=cross_entropy, criterion="oracle-loss")
    for name in truth.loss:
        assert np.allclose(found[name], np.abs(truth.loss[name]), atol=1e-13)
        assert np.allclose(signed[name], truth.loss[name], atol=1e-13)


def test_the_model_and_the_mode_of_autograd_are_left_as_they_were() -> None:
    model, x, y = task(4)
    model.train()
    found = Engine(model, sc.trace(model, x), cross_entropy).changes((x, y))
    next(found)
    assert torch.is_grad_enabled()
    found.close()
    assert model.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sc.oracle(model, sc.trace(model, x), [(x, y)], loss=cross_entropy)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors_name_what_is_wrong() -> None:
    model, x, y = task(4)
    graph = sc.trace(model, x[:2])
    with pytest.raises(DataError, match="empty"):
        sc.oracle(model, graph, [], loss=cross_entropy)
    with pytest.raises(DataError, match="pairs"):
        sc.oracle(model, graph, [x], loss=cross_entropy)
    with pytest.raises(NotFiniteError, match="uncut"):
        sc.oracle(model, graph, [(x * torch.nan, y)], loss=cross_entropy)
    same = [(x, model(x)[:, 0].detach())]

    def fragile(output: Tensor, target: Tensor) -> Tensor:
        return torch.where((output[:, 0] - target).abs() < 1e-9, 1.0, torch.nan)

    with pytest.raises(NotFiniteError, match="without unit"):
        sc.oracle(model, graph, same, loss=fragile)
    with pytest.raises(DataError, match="shape"):
        sc.oracle(model, graph, [(x, y)], loss=lambda o, t: o)
    with pytest.raises(ConfigError, match="memory"):
        sc.oracle(model, graph, [(x, y)], loss=cross_entropy, memory="lots")
    with pytest.raises(DataError, match="one of the two"):
        sc.oracle(model, graph, [(x, y)])
