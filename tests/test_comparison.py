"""What a comparison's records say: read strictly, and summarised as the naive loops do."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import comparisons

from secateurs.compare.comparison import Comparison
from secateurs.compare.statistics import (
    MOST,
    Bootstrap,
    Draws,
    Estimate,
    correlate,
    kendall,
    spearman,
)
from secateurs.errors import FileError


# ---------------------------------------------------------------------- the coefficients
def naive_ranks(values: list[float]) -> list[float]:
    """The rank of each from 1; equal values share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def naive_spearman(a: list[float], b: list[float]) -> float:
    x, y = naive_ranks(a), naive_ranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    xy = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    xx, yy = sum((p - mx) ** 2 for p in x), sum((q - my) ** 2 for q in y)
    return xy / math.sqrt(xx * yy) if xx * yy else math.nan


def naive_kendall(a: list[float], b: list[float]) -> float:
    same = other = only_a = only_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        p, q = (a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])
        same += p * q > 0
        other += p * q < 0
        only_a += p != 0
        only_b += q != 0
    return (same - other) / math.sqrt(only_a * only_b) if only_a * only_b else math.nan


COEFFICIENTS = [(spearman, naive_spearman), (kendall, naive_kendall)]


@pytest.mark.parametrize(("fast", "naive"), COEFFICIENTS)
@given(data=st.data())
def test_a_draw_has_the_coefficient_of_the_units_in_it(fast, naive, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 9))
    few = st.lists(st.integers(0, 4).map(float), min_size=size, max_size=size)  # many ties
    a, b = data.draw(few), data.draw(few)
    counts = data.draw(
        st.lists(st.lists(st.integers(0, 3), min_size=size, max_size=size), min_size=2, max_size=3)
    )
    found = fast(np.array(a), np.array(b), np.array(counts, float))
    for row, value in zip(counts, found, strict=True):
        drawn = [i for i, n in enumerate(row) for _ in range(n)]
        expected = naive([a[i] for i in drawn], [b[i] for i in drawn]) if drawn else math.nan
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_known_values() -> None:
    """The ten pairs of IQ and hours of television in Wikipedia's article on Spearman's ρ."""
    iq = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110.0])
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17.0])
    assert spearman(iq, hours, np.ones((1, 10)))[0] == pytest.approx(-29 / 165)
    assert kendall(iq, hours, np.ones((1, 10)))[0] == pytest.approx(-1 / 9)


@pytest.mark.parametrize(("fast", "naive"), COEFFICIENTS)
def test_layers_are_put_together_as_said(fast, naive) -> None:
    truth = comparisons.oracle().loss
    runs = [comparisons.noisy(comparisons.oracle(), "c", 1.0, seed).values for seed in range(3)]
    found = getattr(correlate("c", runs, truth), fast.__name__)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    for name, own in truth.items():
        values = [naive(run[name], own) for run in runs]
        assert found.layers[name].value == pytest.approx(mean(values))
        assert found.layers[name].spread == pytest.approx(np.std(values, ddof=1))
    per_layer = [mean([naive(run[name], own) for name, own in truth.items()]) for run in runs]
    assert found.per_layer.value == pytest.approx(mean(per_layer))
    assert found.per_layer.spread == pytest.approx(np.std(per_layer, ddof=1))
    flat = [v for own in truth.values() for v in own]
    raw = [[v for name in truth for v in run[name]] for run in runs]
    assert found.all_layers.value == pytest.approx(mean([naive(run, flat) for run in raw]))
    scaled = [
        [v / math.sqrt(sum(x * x for x in run[n])) for n in truth for v in run[n]] for run in runs
    ]
    assert found.all_l2.value == pytest.approx(mean([naive(run, flat) for run in scaled]))
    assert found.all_l2.value != pytest.approx(found.all_layers.value)


def test_scale_within_a_layer_matters_to_the_raw_coefficient_only() -> None:
    truth = comparisons.oracle().loss
    scores = comparisons.noisy(comparisons.oracle(), "c", 0.5).values
    scaled = {**scores, "fc": [1e4 * v for v in scores["fc"]]}
    a, b = (correlate("c", [one], truth).spearman for one in (scores, scaled))
    assert a.layers == b.layers
    assert a.all_l2.value == pytest.approx(b.all_l2.value)
    assert abs(a.all_layers.value - b.all_layers.value) > 0.05


# ---------------------------------------------------------------------- the intervals
def test_a_draw_keeps_the_units_of_each_layer() -> None:
    drawn = Draws.make([3, 5, 8], 50, seed=1)
    assert (drawn.counts[0] == 1).all()
    for start, stop in ((0, 3), (3, 8), (8, 16)):
        assert (drawn.counts[:, start:stop].sum(1) == stop - start).all()
    assert drawn.narrow == 1
    assert (Draws.make([3, 5, 8], 50, 1).counts == drawn.counts).all()
    assert (Draws.make([3, 5, 8], 50, 2).counts != drawn.counts).any()


def test_an_interval_is_the_quantiles_of_naive_draws() -> None:
    random = np.random.default_rng(5)
    a = random.normal(size=30)
    b = a + random.normal(size=30)
    [found] = correlate("c", [{"x": a.tolist()}], {"x": b.tolist()}).spearman.layers.values()
    values = []
    for _ in range(1000):
        drawn = random.integers(0, 30, 30)
        values.append(naive_spearman(a[drawn].tolist(), b[drawn].tolist()))
    assert [found.low, found.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.06)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Two normal variables with r = 0.6 have ρ = 6/π · asin(r/2); 200 samples of 40."""
    truth = 6 / math.pi * math.asin(0.3)
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        a = random.normal(size=40)
        b = 0.6 * a + 0.8 * random.normal(size=40)
        found = correlate("c", [{"x": a.tolist()}], {"x": b.tolist()}, Bootstrap(200, seed))
        [one] = found.spearman.layers.values()
        held += one.low <= truth <= one.high
    assert 0.87 <= held / 200 <= 0.99


def test_a_difference_is_paired_by_draw() -> None:
    """Two criteria that err alike: their difference is surer than either."""
    random = np.random.default_rng(5)
    truth = random.normal(size=40)
    first = truth + random.normal(size=40)
    second = first + 0.3 * random.normal(size=40)
    oracle = {"x": truth.tolist()}
    one, other = (correlate("c", [{"x": v.tolist()}], oracle).spearman for v in (first, second))
    found = one.all_layers - other.all_layers
    values = []
    for _ in range(1000):
        drawn = random.integers(0, 40, 40)
        a, b, c = (v[drawn].tolist() for v in (first, second, truth))
        values.append(naive_spearman(a, c) - naive_spearman(b, c))
    assert found.value == pytest.approx(one.all_layers.value - other.all_layers.value)
    assert [found.low, found.high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)
    assert found.high - found.low < (one.all_layers.high - one.all_layers.low) / 2
    assert one.all_layers - one.all_layers == Estimate(0, 0, 0)


def test_those_that_stand_for_many_give_as_narrow_an_interval() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=8 * MOST)
    b = a + random.normal(size=len(a))
    drawn = Draws.make([len(a)], 400, 0)
    assert drawn.counts.shape[1] == MOST
    few = drawn.of(spearman, a, b)
    counts = np.concatenate(
        [np.ones((1, len(a))), random.multinomial(len(a), [1 / len(a)] * len(a), 400)]
    )
    every = spearman(a, b, counts)
    assert few[0] == every[0]
    assert few[1:].std() == pytest.approx(every[1:].std(), rel=0.2)


def test_two_units_prove_nothing() -> None:
    [found] = correlate("c", [{"x": [1.0, 2]}], {"x": [3.0, 4]}).spearman.layers.values()
    assert (found.value, found.low, found.high) == (1, 0, 1)


# ---------------------------------------------------------------------- what has no coefficient
def test_what_cannot_be_ranked_is_named() -> None:
    truth = {
        "one": [1.0],
        "flat": [1.0, 2, 3],
        "same": [2.0, 2, 2],
        "left": [1.0, 2],
        "x": [1.0, 3, 2],
    }
    scores = {"one": [1.0], "flat": [7.0, 7, 7], "same": [1.0, 2, 3], "x": [1.0, 3, 2]}
    found = correlate("c", [scores], truth)
    assert found.skipped == {
        "left": "not scored by this criterion",
        "one": "one unit: nothing to rank",
        "flat": "to the criterion all units are equal",
        "same": "to the oracle all units are equal",
    }
    assert set(found.spearman.layers) == {"x"}
    assert found.spearman.per_layer.value == 1
    assert found.units == 10


def test_a_random_criterion_is_near_nothing() -> None:
    truth = {"x": np.random.default_rng(0).normal(size=300).tolist()}
    runs = [{"x": np.random.default_rng(s).normal(size=300).tolist()} for s in range(1, 6)]
    found = correlate("random", runs, truth)
    assert found.seeds == 5
    assert abs(found.spearman.all_layers.value) < 0.06
    assert found.spearman.all_layers.low < 0 < found.spearman.all_layers.high


def test_a_criterion_that_scores_nothing_has_no_coefficient() -> None:
    found = correlate("c", [{}], {"x": [1.0, 2.0]})
    assert found.spearman.per_layer is None
    assert found.spearman.all_layers is None
    assert found.skipped == {"x": "not scored by this criterion"}


def test_signs_and_the_metric_can_be_the_oracle() -> None:
    made = comparisons.typical()
    [first, *_] = made.lines
    exact = first.model_copy(update={"loss": first.loss})
    for against, scores in (
        ("loss", exact.loss),
        ("abs", {n: np.abs(v).tolist() for n, v in exact.loss.items()}),
        ("metric", {n: (-np.array(v)).tolist() for n, v in exact.metric.items()}),
    ):
        line = comparisons.noisy(exact, "taylor", 0).model_copy(update={"values": scores})
        [found] = Comparison(made.setting, [exact, line]).correlations(against)
        assert found.spearman.all_layers == Estimate(1, 1, 1)
        assert found.kendall.per_layer.value == pytest.approx(1)


# ---------------------------------------------------------------------- reading
def test_a_comparison_reads_back_as_it_was(tmp_path: Path) -> None:
    made = comparisons.typical()
    read = Comparison.load(comparisons.write(made, tmp_path / "c.jsonl"))
    assert read == made
    assert read.correlations() == made.correlations()
    assert read.refused() == {"batchnorm": "the network has no BatchNorm"}
    assert [c.criterion for c in read.correlations()] == ["taylor", "weight", "random"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    made = comparisons.typical()
    path = comparisons.write(made, tmp_path / "c.jsonl")
    data = path.read_bytes()
    start = data.rstrip(b"\n").rindex(b"\n") + 1
    for length in range(start, len(data)):
        path.write_bytes(data[:length])
        kept = len(made.lines) if length >= len(data) - 1 else len(made.lines) - 1
        assert Comparison.load(path).lines == made.lines[:kept]


def test_a_broken_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = comparisons.write(comparisons.typical(), tmp_path / "c.jsonl")
    lines = path.read_text().splitlines()

    def refuse(changed: list[str], match: str) -> None:
        path.write_text("\n".join(changed) + "\n")
        with pytest.raises(FileError, match=match):
            Comparison.load(path)

    refuse([], "it is empty")
    refuse(lines[1:], "line 1 is not a comparison")
    refuse(['{"format": "secateurs.record/1"}'], "line 1 is not a comparison")
    refuse([lines[0], lines[1][:50], *lines[2:]], "line 2 is not a comparison")
    refuse([lines[0], lines[1].replace('"loss"', '"lost"', 1)], "line 2")
    refuse([lines[0].replace('"size":6', '"size":7'), *lines[1:]], "line 2: 6 values .* has 7")
    refuse([lines[0], lines[-1].replace('"fc"', '"fd"')], "no group 'fd'")
    with pytest.raises(FileError, match="does not exist"):
        Comparison.load(tmp_path / "none.jsonl")


# ---------------------------------------------------------------------- curves
def test_curves_are_means_over_seeds() -> None:
    made = comparisons.typical()
    curves = {(curve.form, curve.criterion): curve for curve in made.curves()}
    assert len(curves) == 9
    for (form, criterion), curve in curves.items():
        assert [point.budget for point in curve.points] == [0.5, 0.25]
        for point in curve.points:
            values = [
                line.metric
                for line in made.lines
                if line.kind == "prune"
                and (line.form, line.criterion, line.budget) == (form, criterion, point.budget)
            ]
            assert sorted(point.values) == sorted(values)
            assert point.mean == pytest.approx(np.mean(values))
            assert point.spread == pytest.approx(np.std(values, ddof=1))


def test_a_later_line_takes_the_place_of_an_earlier() -> None:
    made = comparisons.typical()
    again = next(x for x in made.lines if x.kind == "prune").model_copy(update={"metric": 0.123})
    more = Comparison(made.setting, [*made.lines, again])
    [curve] = [c for c in more.curves() if (c.form, c.criterion) == (again.form, again.criterion)]
    assert curve.points[0].values[0] == 0.123
    assert len(curve.points[0].values) == 3


def test_sensitivity_starts_from_the_uncut_network() -> None:
    made = comparisons.typical()
    lines = made.sensitivities()
    assert [line.group for line in lines] == ["conv1", "conv2", "fc"]
    assert lines[0].points[0] == (0.0, 0.9)
    assert [x for x, _ in lines[0].points] == [0, 0.25, 0.5, 0.75]
