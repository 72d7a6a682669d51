"""The reproductions: their networks, and the arithmetic of their tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import comparisons

import secateurs as sc
from secateurs.compare.comparison import Comparison
from secateurs.criteria import CRITERIA

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("network", ["vgg", "alexnet"])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_networks_are_small_and_whole_layers_may_shrink(network, channels, size):
    import small_nets
    from tasks import count_macs

    example = torch.zeros(1, channels, size, size)
    model = getattr(small_nets, network)(channels, size).eval()
    assert model(example).shape == (1, 10)
    assert count_macs(model, example) <= 10_000_000
    weighted = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(sc.trace(model, example).groups) == len(weighted) - 1  # all but the classifier


def test_a_sample_is_drawn_without_replacement_from_its_seed():
    from tasks import Images

    pixels = torch.arange(200, dtype=torch.uint8).reshape(200, 1, 1, 1)
    images = Images(pixels, torch.arange(200), torch.tensor(0.0), torch.tensor(1.0))
    labels = torch.cat([labels for _, labels in images.sample(150, 0)])
    assert len(set(labels.tolist())) == 150
    assert not torch.equal(labels, torch.cat([y for _, y in images.sample(150, 1)]))
    first, own = images.sample(150, 0)[0]
    assert torch.allclose(first.flatten() * 255, own.float())


def test_twins_are_criteria_of_ours():
    from twins import TWINS

    assert {twin.ours for twin in TWINS.values()} <= set(CRITERIA)


def test_batchnorm_scales_are_compared_only_where_there_are_some():
    from criteria_versus import cells

    found = cells(("lenet5", "resnet8"), seeds=2, scale=1.0)
    assert {c.task for c in found if c.criterion == "bn-scale"} == {"resnet8"}
    assert {(c.validation, c.seed) for c in found} == {(True, 0), (False, 0), (False, 1)}
    assert all(bool(c.options) == (c.side == "ours") for c in found)


def test_a_criterion_is_chosen_on_held_out_images_alone():
    from criteria_versus import chosen

    def record(criterion: str, validation: bool, error: float) -> dict:
        return {
            "task": "lenet5", "side": "ours", "criterion": criterion, "validation": validation,
            "error": error,
        }  # fmt: skip

    records = [
        record("taylor", True, 2.0),
        record("l2", True, 1.0),
        record("taylor", False, 0.1),
        record("l2", False, 9.0),
    ]
    assert chosen(records) == {("lenet5", "ours"): "l2"}


def test_the_page_names_criteria_and_shows_the_macs_that_are_left():
    import criteria_versus

    records = [
        {
            "task": "lenet5", "criterion": "l2", "macs": 0.25, "seed": 0, "side": side,
            "validation": validation, "scale": 1.0, "error": 1.0, "macs_before": 200,
            "macs_left": left, "params_left": 7,
        }
        for validation in (True, False) for side, left in (("ours", 50), ("theirs", 48))
    ]  # fmt: skip
    choice, table = criteria_versus._choice(records), criteria_versus._table(records)
    assert "| `weight` | 1.00 | `GroupMagnitudeImportance` | 1.00 |" in choice
    assert "| 25.0% | 24.0% | 7 | 7 |" in table
    assert "l2" not in choice + table


def test_errors_are_read_where_a_run_crosses_a_fraction_of_the_macs():
    from flops import at, kept

    run = {"macs": [100, 80, 40], "error": [1.0, 3.0, 7.0]}
    assert at(run, 1.0) == 1.0
    assert at(run, 0.9) == pytest.approx(2.0)
    assert at(run, 0.5) == pytest.approx(6.0)
    history = [{"removed": {}}, {"removed": {"a": 2}}, {"removed": {"a": 1, "b": 4}}]
    assert kept({"a": 8, "b": 8}, history, 1) == {"a": 6, "b": 8}
    assert kept({"a": 8, "b": 8}, history, 2) == {"a": 5, "b": 4}


def test_what_is_said_of_lambda_follows_from_its_runs():
    import flops

    def run(errors: list[float], params: list[int]) -> dict:
        return {
            "macs": [100, 80, 40, 20, 5], "error": errors, "params": params, "sizes": {"a": 8},
            "kept": [{"a": n} for n in (8, 6, 4, 2, 1)],
        }  # fmt: skip

    none = run([1.0, 1.0, 2.0, 3.0, 9.0], [100, 80, 40, 20, 5])
    most = run([1.0, 2.0, 3.0, 4.0, 5.0], [100, 95, 60, 30, 5])
    runs = {0.0: [none], 0.1: [most]}
    assert [flops.steps(none, fraction) for fraction in flops.SHOWN] == [2, 2, 3, 4]
    verdict = flops._verdict(runs).splitlines()
    assert [line.endswith("no λ has less error than 0.") for line in verdict] == [True] * 3 + [
        False
    ]
    assert "against λ = 0, paired by seed" in verdict[3]
    assert "| 0.0 | 60 | 60 | 90 | 120 |" in flops._updates(runs, 30)
    assert "rise in 4 of 4 cases" in flops._trend(runs)
    assert "rise in 0 of 4 cases" in flops._trend({0.0: [most], 0.1: [none]})


def test_the_table_says_where_taylor_is_ahead_level_and_behind():
    import correlation

    truth = comparisons.oracle()
    rows = {}
    for taylor, weight in ((0.1, 3.0), (3.0, 0.1), (0.5, 0.5)):
        lines = [truth, *(comparisons.noisy(truth, *pair) for pair in
                          (("taylor", taylor), ("weight", weight), ("random", 1e6)))]  # fmt: skip
        found = {"lenet5": [Comparison(comparisons.setting(), lines)]}
        rows[taylor] = correlation._verdicts(found).splitlines()[-1]
    assert rows[0.1].count("ahead, +") == 3
    assert rows[3.0].count("behind, −") == 3
    assert rows[3.0].count("`weight`") == 3
    assert rows[0.5].count("level, ") == 3


def test_done_cells_are_not_run_again(tmp_path):
    import json

    from cells import read, run_cells
    from flops import Cell

    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"weight": 0.1, "seed": 2, "scale": 1.0, "task": "x", "e": 5}))
    cell = Cell(0.1, 2, 1.0, "x")
    assert list(read(path, Cell)) == [cell]
    [record] = run_cells(pytest.fail, [cell], path, 1, str)
    assert record["e"] == 5


def obd_record(seed: int, rises: float) -> dict:
    """A run in which the objective rises by so much from 60% deleted on."""
    import obd_digits as obd

    def steps(fractions, up):
        return [
            {
                "fraction": f,
                **dict.fromkeys(("train", "test", "error"), 1.0 + (up if f > 0.6 else 0.0)),
            }
            for f in fractions
        ]

    at_once = (*obd.FRACTIONS, *(f for f in obd.STAGES if f > 0.6))
    names = ("obd", "magnitude", "random", "gauss-newton")
    out = {
        "seed": seed, "form": "hidden", "validation": False, "scale": 1.0, "parameters": 5,
        "base": {"train": 1.0, "test": 1.0, "error": 1.0},
        "seconds": dict.fromkeys(names, 1.0),
        "predicted": {name: [f * (seed + 1) for f in at_once] for name in names},
        "at_once": {
            name: [{"fraction": f, "train": 1 + f**2, "test": 1 + f, "error": f} for f in at_once]
            for name in names
        },
        "retrained": {name: steps(obd.STAGES, rises) for name in ("obd", "magnitude", "random")},
    }  # fmt: skip
    out["retrained"]["obd"] = steps(obd.STAGES, rises / 2)
    out["retrained"]["dense"] = steps(obd.STAGES, 0.0)
    return out


def test_what_is_said_of_obd_follows_from_its_runs():
    import obd_digits as obd
    import obd_page

    records = [obd_record(0, 1.0), obd_record(1, 3.0)]
    fractions = np.array([f for f in obd.FRACTIONS if f <= 0.3 + 1e-9])
    wanted = np.corrcoef(fractions, fractions**2)[0, 1]
    assert obd.correlation(records[0], "obd") == pytest.approx(wanted)
    assert obd.changes(records[1], "obd", 0.3) == pytest.approx((0.6, 0.09))
    plain = [{**record, "form": "plain"} for record in records]
    page = obd_page.document(plain + records, "make obd")
    assert "`obd` up to 60% deleted in training and 60% in testing" in page
    assert "| training objective | −1.000 ± 0.707 |" in re.sub(r" +", " ", page)  # half less


def test_what_is_deleted_stays_away_and_the_lowest_goes_first():
    import obd_digits as obd

    net = obd.Pruned.__new__(obd.Pruned)
    net.model = obd.network("plain")
    net.kept = torch.ones(len(net.weights), dtype=torch.bool)
    saliency = torch.arange(len(net.weights)).flip(0).double()
    gone = net.delete(saliency, 0.1)
    assert gone.tolist() == [*range(len(net.weights) - 1, len(net.weights) - 249, -1)]
    again = net.delete(saliency.flip(0), 0.2)  # those that are gone count among the 20%
    assert set(gone.tolist()) < set(again.tolist())
    assert not net.weights[~net.kept].any()
    assert int((~net.kept).sum()) == round(0.2 * len(net.weights))
