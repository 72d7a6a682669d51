"""The comparison with the peer: its arithmetic, and one small run of our own side."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def record(side: str, seed: int, error: float) -> dict:
    return {
        "task": "lenet5", "criterion": "taylor", "macs": 0.5, "seed": seed, "side": side,
        "error": error,
    }  # fmt: skip


def test_differences_are_paired_by_seed():
    from versus_table import Estimate, pairs

    errors = {"ours": (1.0, 4.0, 2.0), "theirs": (1.5, 4.2, 2.8)}
    records = [record(side, seed, errors[side][seed]) for side in errors for seed in (2, 0, 1)]
    found = pairs(records)
    assert list(found) == [("lenet5", "taylor", 0.5)]
    estimate = Estimate.of([pair.difference for pair in found["lenet5", "taylor", 0.5]])
    assert estimate.mean == pytest.approx(-0.5)
    assert estimate.error == pytest.approx(0.3 / math.sqrt(3))  # deviations 0, 0.3 and −0.3
    assert not estimate.worse


@pytest.mark.parametrize(("values", "worse"), [((0.9, 1.0, 1.1), True), ((-1.0, 2.0, 1.0), False)])
def test_worse_is_by_more_than_two_standard_errors(values, worse):
    from versus_table import Estimate

    assert Estimate.of(values).worse is worse


@pytest.mark.parametrize("criterion", ["taylor", "l2"])
def test_our_side_meets_the_macs_and_uses_every_update(criterion, monkeypatch):
    import tasks
    import versus

    taken = []
    monkeypatch.setattr(tasks.Images, "error", lambda images, model: float("nan"))
    monkeypatch.setattr(
        versus, "fine_tune", lambda model, batches, updates, lr: taken.append(len(list(batches)))
    )
    cell = versus.Cell("lenet5", criterion, 0.5, 0, "ours", scale=0.1)
    back, record = versus.run(cell)
    assert back == cell
    assert record["macs_left"] <= 0.5 * record["macs_before"]
    assert record["macs_before"] == 2_293_000
    assert record["rounds"] == len(taken) - 1 > 1
    assert sum(taken) == versus.TASKS["lenet5"].updates * 0.1


def test_a_batch_is_drawn_from_its_seed_alone():
    import torch
    from tasks import TASKS

    from secateurs.process.stream import Stream

    train, _ = TASKS["lenet5"].data(validation=True)
    assert len(train.labels) == 55_000
    one, two = (list(Stream(train, 7).take(2)) for _ in range(2))
    other = list(Stream(train, 8).take(1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
