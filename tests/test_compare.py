"""Comparisons that run: the same numbers everywhere, nothing lost, and every refusal typed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import snapshot
from torch import Tensor, nn

import secateurs as sc
from secateurs.compare.bench import Bench
from secateurs.compare.comparison import Comparison
from secateurs.compare.engine import open_engine
from secateurs.compare.log import NAME, Log, Trial
from secateurs.compare.options import PRESETS, CompareOptions, compare_options
from secateurs.compare.record import (
    FORMS,
    Experiment,
    OracleLine,
    PruneLine,
    ScoresLine,
    SensitivityLine,
)
from secateurs.criteria import Fixed, GroupInfo
from secateurs.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FileError,
    MissingExtraError,
    NotFiniteError,
    UnscoredError,
    WorkerError,
)

LOSS = nn.CrossEntropyLoss(reduction="none")
CRITERIA_HERE = ["taylor", "weight", "random"]
QUICK: dict[str, Any] = {
    "criteria": CRITERIA_HERE, "budgets": [0.5], "seeds": [0, 1], "updates": 4, "rounds": 2,
    "forms": FORMS, "score_batches": 1, "sensitivity": [0.5], "shard": 2, "lr": 0.05,
    "progress": False,
}  # fmt: skip

ENGINES = [
    None,
    "processes",
    pytest.param("ray", marks=pytest.mark.skipif(not find_spec("ray"), reason="needs Ray")),
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(),
        nn.Linear(10, 3),
    ).eval()  # fmt: skip


def batches(count: int = 6, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (count * size,), generator=draw)
    images = torch.randn(count * size, 1, 6, 6, generator=draw) + labels[:, None, None, None]
    return list(zip(images.split(size), labels.split(size), strict=True))


def accuracy(model: nn.Module) -> float:
    right = [model(x).argmax(1) == y for x, y in batches()]
    return float(torch.cat(right).float().mean())


def compared(**changes: Any) -> Comparison:
    model = changes.pop("model", None) or net()
    settings = {"data": batches(), "loss": LOSS, "evaluate": accuracy, **QUICK, **changes}
    return sc.compare(model, torch.zeros(1, 1, 6, 6), **settings)


def facts(comparison: Comparison) -> dict[Trial, dict[str, Any]]:
    """All but what things took."""
    return {Trial.of(line): line.model_dump(exclude={"price"}) for line in comparison.lines}


def of(kind: type, comparison: Comparison) -> list[Any]:
    return [line for line in comparison.lines if isinstance(line, kind)]


@pytest.fixture(scope="module")
def whole() -> Comparison:
    """Computed once, in this process."""
    return compared()


# ---------------------------------------------------------------------- what is in it
def test_every_experiment_is_one_line(whole: Comparison) -> None:
    kinds = Counter(line.kind for line in whole.lines)
    assert kinds == {"oracle": 1, "scores": 3 * 2, "prune": 3 * 3 * 2, "sensitivity": 2}
    assert len(facts(whole)) == len(whole.lines)


def test_the_model_is_left_alone() -> None:
    model = net()
    before = snapshot(model)
    compared(model=model, criteria=["weight"], seeds=[0])
    assert snapshot(model) == before


def test_the_oracle_is_that_of_every_unit_gated_by_hand(whole: Comparison) -> None:
    """One forward per unit, with the unit's reads zeroed; the shards are merged to it."""
    [line] = of(OracleLine, whole)
    model = net().double().requires_grad_(False)
    x = torch.cat([x for x, _ in batches()]).double()
    y = torch.cat([y for _, y in batches()])
    base = LOSS(model(x), y).mean()
    for unit in range(6):
        maps = torch.relu(model[0](x))
        maps[:, unit] = 0
        change = LOSS(model[2:](maps), y).mean() - base
        assert line.loss["0"][unit] == pytest.approx(float(change), abs=1e-6)
    assert line.examples == len(x)


def test_split_scores_are_the_scores(whole: Comparison) -> None:
    graph = sc.trace(net(), torch.zeros(1, 1, 6, 6))
    expected = sc.score(net(), graph, batches(), loss=LOSS)
    line = next(x for x in of(ScoresLine, whole) if x.criterion == "taylor")
    for name in expected:
        np.testing.assert_allclose(line.values[name], expected[name], rtol=1e-6)


def test_a_one_shot_cut_is_what_prune_does_in_one_step(whole: Comparison) -> None:
    line = next(x for x in of(PruneLine, whole) if (x.criterion, x.form) == ("weight", "one-shot"))
    result = sc.prune(
        net(), torch.zeros(1, 1, 6, 6), train=batches(), budget={"macs": 0.5}, loss=LOSS,
        criterion="weight", step=16, updates=0, final=0, progress=False,
    )  # fmt: skip
    assert line.size == result.after
    assert line.metric == accuracy(result.model.eval())
    assert line.size["macs"] <= 0.5 * whole.setting.size["macs"]


def test_sensitivity_is_the_cut_of_the_least_important(whole: Comparison) -> None:
    [oracle] = of(OracleLine, whole)
    line = next(x for x in of(SensitivityLine, whole) if x.group == "0")
    order = np.argsort(np.abs(oracle.loss["0"]))[:3]
    graph = sc.trace(net(), torch.zeros(1, 1, 6, 6))
    small = sc.apply(net(), graph.plan({"0": sorted(order.tolist())})).requires_grad_(False)
    assert line.metric == accuracy(small)
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    assert line.loss == pytest.approx(float(LOSS(small(x), y).mean()), rel=1e-5)


def test_every_criterion_gets_the_same_updates_on_the_same_batches() -> None:
    """What the built-in training reads, and what a finetune function is asked for."""
    asked: list[int] = []
    compared(
        criteria=CRITERIA_HERE, forms=["fine-tuned", "iterative"], seeds=[0], oracle=False,
        sensitivity=[], finetune=lambda model, updates: asked.append(updates),
    )  # fmt: skip
    assert sum(asked) == 4 * len(CRITERIA_HERE) * 2
    # 4 updates in one go after one shot, 2 after each of two removals else
    assert asked[:3] == [4, 4, 4]

    losses: dict[str, list[float]] = {}

    def note(output: Tensor, target: Tensor) -> Tensor:
        losses.setdefault(current[0], []).append(float(target.double().sum()))
        return LOSS(output, target)

    current = [""]
    for name in CRITERIA_HERE:
        current[0] = name
        compared(criteria=[name], forms=["fine-tuned"], oracle=False, sensitivity=[], loss=note)
    training = {name: values[-4 - 6 :] for name, values in losses.items()}
    assert len({tuple(values) for values in training.values()}) == 1


def test_seeds_draw_other_data(whole: Comparison) -> None:
    few = compared(examples=16, forms=[], oracle=False, sensitivity=[])
    by_name = {(x.criterion, x.seed): x.values for x in of(ScoresLine, few)}
    assert by_name["taylor", 0] != by_name["taylor", 1]
    assert by_name["random", 0] != by_name["random", 1]
    assert by_name["weight", 0] == by_name["weight", 1]


def test_without_evaluate_the_metric_is_the_loss() -> None:
    found = compared(evaluate=None, criteria=["weight"], seeds=[0], forms=["one-shot"])
    assert (found.setting.metric_name, found.setting.mode) == ("loss", "min")
    assert found.setting.metric == found.setting.loss
    assert all(line.metric == line.loss for line in of(PruneLine, found))


def test_sensitivity_alone() -> None:
    found = sc.sensitivity(
        net(), torch.zeros(1, 1, 6, 6), data=batches(), loss=LOSS, evaluate=accuracy,
        fractions=[0.3, 0.6], criterion="weight", progress=False,
    )  # fmt: skip
    assert [s.group for s in found.sensitivities()] == ["0", "3"]
    assert all(len(s.points) == 3 for s in found.sensitivities())
    assert not of(PruneLine, found)


# ---------------------------------------------------------------------- criteria
@dataclass(frozen=True)
class OnlyLinear(Fixed):
    """Has a word on one group alone, and that does not reach far."""

    name: str = "only-linear"

    def init(self, group: GroupInfo) -> Tensor:
        if group.name != "3":
            raise UnscoredError("it is no linear layer")
        return torch.arange(group.size).double()


@dataclass(frozen=True)
class Nothing(Fixed):
    """Applies nowhere."""

    name: str = "nothing"

    def init(self, group: GroupInfo) -> Tensor:
        raise UnscoredError("it never does")


def test_a_criterion_that_does_not_apply_is_said(caplog: pytest.LogCaptureFixture) -> None:
    found = compared(criteria=["weight", Nothing(), OnlyLinear()], seeds=[0], forms=["one-shot"])
    assert found.refused() == {
        "nothing": next(x.refused for x in of(ScoresLine, found) if x.refused)
    }
    assert "never does" in found.refused()["nothing"]
    assert {line.criterion for line in of(PruneLine, found)} == {"weight"}
    assert "only-linear scores only 3" in caplog.text  # 50% of the MACs need more


def test_the_oracle_prunes_as_any_criterion() -> None:
    found = compared(criteria=["oracle", "weight"], seeds=[0])
    assert sum(line.criterion == "oracle" for line in of(PruneLine, found)) == 3
    assert not any(line.criterion == "oracle" for line in of(ScoresLine, found))


def test_names_of_criteria_are_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        compared(criteria=["tailor"])
    with pytest.raises(ConfigError, match="same name"):
        compared(criteria=["weight", "weight"])
    with pytest.raises(ConfigError, match="no criterion is given"):
        compared(criteria=[])


# ---------------------------------------------------------------------- engines
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_engines_give_the_same_bits(engine: Any, whole: Comparison, tmp_path: Path) -> None:
    """A worker is killed on the way, which changes nothing."""
    fuse, own = tmp_path / "fuse", os.getpid()

    def fragile(model: nn.Module) -> float:
        if os.getpid() != own and not fuse.exists():
            fuse.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        right = [model(x).argmax(1) == y for x, y in batches()]
        return float(torch.cat(right).float().mean())

    found = compared(engine=engine, jobs=2, evaluate=fragile)
    assert fuse.exists()
    assert facts(found) == facts(whole)


def test_views_of_the_data_are_sent_without_the_rest() -> None:
    images, labels = torch.randn(512, 1, 4, 4), torch.zeros(512, dtype=torch.int64)
    pairs = list(zip(images.split(8), labels.split(8), strict=True))
    bench = Bench(
        net(), images[:1], {0: pairs}, pairs, pairs, LOSS, None, None, {}, None, None, None,
        CompareOptions(),
    )  # fmt: skip
    sent = pickle.dumps(bench)
    assert len(sent) < 2 * (images.nbytes + labels.nbytes) + 100_000  # 64 times as much with all
    again = pickle.loads(sent)
    assert torch.equal(torch.cat([x for x, _ in again.pools[0]]), images)


def test_the_caller_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    with open_engine(None, lambda shared, job: torch.get_num_threads(), None) as run:
        assert dict(run([0])) == {0: 1}
    assert torch.get_num_threads() == before


def test_work_that_kills_its_workers_is_given_up() -> None:
    def die(shared: Any, job: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        pytest.raises(WorkerError, match="died 3 times"),
        open_engine("processes", die, None, 1) as run,
    ):
        list(run([1]))


def test_what_cannot_be_sent_is_named() -> None:
    opened = (b for b in batches())
    with pytest.raises(ConfigError, match=r"generator.*engine=None"):
        compared(train=opened, engine="processes", jobs=1)


def test_engines_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no engine is called 'rai'; did you mean 'ray'"):
        compared(engine="rai")
    with pytest.raises(ConfigError, match="at least 1"):
        compared(engine="processes", jobs=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"secateurs\[ray\]"):
        compared(engine="ray")


# ---------------------------------------------------------------------- resuming
def test_resuming_does_only_what_is_missing(whole: Comparison, tmp_path: Path) -> None:
    calls = []

    def counting(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return accuracy(model)

    with pytest.raises(KeyboardInterrupt):
        compared(evaluate=counting, out=tmp_path)
    path = tmp_path / NAME
    done = len(path.read_text().splitlines()) - 1
    assert 7 < done < len(whole.lines)
    path.write_text(path.read_text() + '{"kind":"prune","criterion":"tay')  # torn
    calls = [1] * 100
    found = compared(evaluate=counting, out=tmp_path, resume=True)
    assert len(calls) - 100 == len(whole.lines) - done + 1  # and once the uncut network
    assert facts(found) == facts(whole)
    assert facts(Comparison.load(path)) == facts(whole)
    again = compared(evaluate=accuracy, out=tmp_path, resume=True)
    assert [line.price for line in again.lines] == [line.price for line in found.lines]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"updates": 5}, "updates"),
        ({"budgets": [0.4]}, "budgets"),
        ({"criteria": ["taylor"]}, "criteria"),
        ({"model": nn.Sequential(net(), nn.Identity())}, "network|groups|weights"),
        ({"data": batches(size=4)}, "data"),
        ({"evaluate": lambda model: 0.5}, "metric"),
    ],
)
def test_resuming_another_comparison_is_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    small = {"forms": [], "oracle": False, "sensitivity": [], "seeds": [0]}
    compared(out=tmp_path, **small)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(FileError, match=named):
        compared(out=tmp_path, resume=True, **{**small, **change})
    assert (tmp_path / NAME).read_bytes() == before


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("something of the user's")
    with pytest.raises(ConfigError, match="resume=True"):
        compared(out=tmp_path)
    with pytest.raises(FileError, match="holds no comparison"):
        compared(out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="needs out="):
        compared(resume=True)
    assert (tmp_path / NAME).read_text() == "something of the user's"


def test_a_killed_run_is_resumed_to_the_same_lines(whole: Comparison, tmp_path: Path) -> None:
    code = "from tests.test_compare import compared; import sys; compared(out=sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, cwd=Path(__file__).parents[1]
    )
    path = tmp_path / NAME
    while run.poll() is None and not (path.exists() and path.read_text().count("\n") > 9):
        pass
    run.kill()
    run.wait()
    assert facts(compared(out=tmp_path, resume=True)) == facts(whole)


# ---------------------------------------------------------------------- options and errors
def test_presets_are_options_and_give_way() -> None:
    assert compare_options("quick", {}) != compare_options("full", {})
    for name, values in PRESETS.items():
        chosen = compare_options(name, {"lr": 0.5})
        assert chosen.lr == 0.5
        assert all(getattr(chosen, key) == value for key, value in values.items())
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        compared(preset="quik")
    with pytest.raises(ConfigError, match="did you mean 'budgets'"):
        compared(budget=[0.5])
    with pytest.raises(ConfigError, match=r"budgets.0: .*less than 1"):
        compared(budgets=[50])


def test_finetune_as_options() -> None:
    given = {"criteria": ["weight"], "seeds": [0], "forms": ["fine-tuned"], "sensitivity": []}
    one = compared(finetune={"updates": 3, "lr": 0.1}, **given)
    two = compared(**{**given, "updates": 3, "lr": 0.1})
    assert one.setting.updates == 3
    assert facts(one) == facts(two)


def test_errors_come_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot be cut"):
        compared(budgets=[0.001], out=tmp_path / "a")
    with pytest.raises(DataError, match="one of the two"):
        compared(loss=None, out=tmp_path / "a")
    with pytest.raises(DataError, match="empty"):
        compared(data=[], out=tmp_path / "a")
    with pytest.raises(ConfigError, match="mode"):
        compared(mode="least", out=tmp_path / "a")
    with pytest.raises(NotFiniteError, match="accuracy of the uncut network is nan"):
        compared(evaluate=lambda model: float("nan"), out=tmp_path / "a")
    broken = net()
    broken[0].weight.data[0] = float("nan")
    with pytest.raises(NotFiniteError, match="loss of the uncut network"):
        compared(model=broken, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_training_that_diverges_is_said() -> None:
    with pytest.raises(NotFiniteError, match=r"weight, fine-tuned to 50%, seed 0.*smaller lr"):
        compared(criteria=["weight"], forms=["fine-tuned"], lr=1e30, updates=20)


def test_a_full_disk_is_a_typed_error(whole: Comparison) -> None:
    log = Log(whole.setting, Path("/dev/full"))
    line: Experiment = whole.lines[0]
    with pytest.raises(FileError, match="cannot write"):
        log.add(line)
