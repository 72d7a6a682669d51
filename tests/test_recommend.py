"""The recommendation, on records made up for each verdict."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests import comparisons

from secateurs.compare.comparison import Comparison
from secateurs.compare.recommend import DEFAULTS, Recommendation, recommend
from secateurs.compare.record import Experiment
from secateurs.compare.statistics import Coefficients, Correlation, Estimate
from secateurs.process.options import Options

BOTH = ("one-shot", "fine-tuned")
NAMES = ("taylor", "weight", "random")


def judge(lines: list[Experiment], **setting: Any) -> Recommendation:
    return Comparison(comparisons.setting(**setting), lines).recommendation


def jitter(*key: object) -> float:
    """Between 0 and 1, the same for the same key."""
    return np.random.default_rng([ord(c) for c in repr(key)]).random()


def metric(ahead: dict[str, float], noise: float) -> comparisons.Metric:
    return lambda name, form, budget, seed: (
        ahead.get(name, 0.0) + budget / 2 + noise * jitter(name, form, budget, seed)
    )


def test_a_clear_winner() -> None:
    found = judge(comparisons.pruned(metric({"taylor": 0.2, "weight": 0.1}, 0.001)))
    assert (found.criterion, found.sure, found.basis) == ("taylor", "clear", "fine-tuned")
    assert found.headline == (
        "Use taylor: after fine-tuning it was clearly ahead of every other criterion."
    )
    assert found.tied == ()
    assert [(duel.other, duel.ahead, duel.runs) for duel in found.duels] == [
        ("weight", 6, 6),
        ("random", 6, 6),
    ]


def test_a_difference_is_paired_over_seeds() -> None:
    """A seed that is good to all is no noise; mean, error and verdict as a paired t-test gives."""
    luck = [0.0, 0.3, 0.1]
    value = lambda name, form, budget, seed: (  # noqa: E731
        luck[seed] + 0.02 * (name == "taylor") + 0.002 * jitter(name, budget, seed)
    )
    found = judge(comparisons.pruned(value, NAMES, ["fine-tuned"]))
    duel = next(duel for duel in found.duels if duel.other == "weight")
    each = [
        [value("taylor", "", b, s) - value("weight", "", b, s) for b in (0.5, 0.25)]
        for s in range(3)
    ]
    seeds = np.mean(each, axis=1)
    assert duel.difference == pytest.approx(seeds.mean())
    assert duel.error == pytest.approx(seeds.std(ddof=1) / math.sqrt(3))
    chance = stats.ttest_1samp(seeds, 0).pvalue
    assert chance < 0.025  # 5% over two rivals
    assert duel.verdict == "clear"


@pytest.mark.parametrize(("rivals", "verdict"), [(1, "clear"), (10, "clear"), (20, "likely")])
def test_the_best_of_many_needs_more_to_be_clear(rivals: int, verdict: str) -> None:
    differences = [0.9, 1.0, 1.1]
    chance = stats.ttest_1samp(differences, 0).pvalue
    assert 0.05 / 20 < chance < 0.05 / 10
    names = ["best", *(f"other{i}" for i in range(rivals))]
    found = judge(
        comparisons.pruned(
            lambda name, form, budget, seed: differences[seed] if name == "best" else 0.0,
            names,
            ["fine-tuned"],
            [0.5],
        )
    )
    assert found.sure == verdict


def test_a_tie_is_called_a_tie() -> None:
    found = judge(comparisons.pruned(metric({"taylor": 0.001, "random": -0.5}, 0.05)))
    assert found.sure == "tied"
    assert len(found.tied) == 1
    assert "cannot be told apart from" in found.headline
    assert "choice is free" in " ".join(found.reasons)
    assert "random" not in found.tied


def test_equal_results_are_a_tie() -> None:
    found = judge(comparisons.pruned(lambda *_: 0.5))
    assert found.sure == "tied"
    assert "Not even drawing units at random" in " ".join(found.reasons)


def test_without_fine_tuning_it_says_so() -> None:
    lines = comparisons.pruned(metric({"taylor": 0.2}, 0.001), forms=["one-shot"])
    for updates in (0, 50):
        found = judge(lines, updates=updates)
        assert (found.criterion, found.basis, found.sure) == ("taylor", "one-shot", "clear")
        assert "right after pruning" in found.headline
        assert any(reason.startswith("Nothing was fine-tuned") for reason in found.reasons)
        assert found.predicted is None


def test_one_seed_proves_nothing() -> None:
    found = judge(comparisons.pruned(metric({"taylor": 0.2}, 0.001), seeds=[0]))
    assert (found.criterion, found.sure) == ("taylor", "unknown")
    assert "luck is not known" in found.headline
    assert all(duel.error is None for duel in found.duels)
    assert any("at least three seeds" in reason for reason in found.reasons)


def test_seeds_that_repeat_each_other_prove_nothing() -> None:
    """Criteria that need no data prune alike from every seed, unless something is fine-tuned."""
    means = {"weight": 0.1, "l1": 0.3, "random": 0.0}
    lines = comparisons.pruned(
        lambda name, form, budget, seed: means[name] + budget / 3, tuple(means), ["one-shot"]
    )
    found = judge(lines)
    assert (found.criterion, found.sure) == ("l1", "unknown")
    assert {(duel.verdict, duel.error) for duel in found.duels} == {("unknown", None)}
    assert "luck is not known" in found.headline
    assert any("weight and random every seed gave the same" in why for why in found.reasons)


def test_it_says_that_seeds_do_not_draw_the_data_of_the_metric() -> None:
    why = " ".join(judge(comparisons.pruned(metric({"taylor": 0.2}, 0.001))).reasons)
    assert "not the data of the accuracy" in why
    assert "judge the final network on other" in why


@pytest.mark.parametrize(
    ("normalize", "said"),
    [
        ("none", "over all layers is 0.10"),
        ("l2", "its ℓ2 norm, is 0.20"),
        ("rank", "within layers is 0.30"),
        ("max", "within layers is 0.30"),
    ],
)
def test_the_correlation_is_that_of_scores_as_they_are_scaled(normalize: str, said: str) -> None:
    raw, scaled, within = (Estimate(v, v - 0.05, v + 0.05) for v in (0.1, 0.2, 0.3))
    rho = Coefficients({}, within, raw, scaled)
    one = Correlation("taylor", rho, rho, 1, 10, {})
    runs = comparisons.pruned(metric({"taylor": 0.2}, 0.001))
    found = recommend(comparisons.setting(normalize=normalize), runs, [one])
    assert any(said in reason for reason in found.reasons)


def contradiction(taylor_noise: float) -> Recommendation:
    truth = comparisons.oracle({"a": 100, "b": 100})
    scores = [
        comparisons.noisy(truth, "taylor", taylor_noise),
        comparisons.noisy(truth, "weight", 0.1),
    ]
    runs = comparisons.pruned(metric({"taylor": 0.2}, 0.001))
    return judge([truth, *scores, *runs], groups=groups({"a": 100, "b": 100}))


def groups(layers: dict[str, int]) -> Any:
    return comparisons.setting(layers).groups


def test_where_the_oracle_disagrees_the_metric_counts() -> None:
    found = contradiction(5.0)
    assert (found.criterion, found.sure) == ("taylor", "clear")
    assert any("contradicts, as weight follows" in reason for reason in found.reasons)
    agreed = contradiction(0.01)
    assert any("the highest of 2" in reason for reason in agreed.reasons)
    assert not any("contradicts" in reason for reason in agreed.reasons)


def test_random_is_never_recommended() -> None:
    found = judge(comparisons.pruned(metric({"random": 0.2, "taylor": 0.1}, 0.001)))
    assert found.criterion == "taylor"
    assert (
        found.headline == "None beat random after fine-tuning; of the others taylor came closest."
    )
    assert any("drawn at random did better" in reason for reason in found.reasons)
    alone = judge(comparisons.pruned(metric({}, 0.1), ["random"]))
    assert alone.criterion is None


def test_correlation_decides_where_nothing_was_pruned() -> None:
    truth = comparisons.oracle({"a": 200})
    lines: list[Experiment] = [truth, comparisons.noisy(truth, "oracle", 0)]
    lines += [comparisons.noisy(truth, name, n) for name, n in (("taylor", 0.1), ("weight", 9.0))]
    found = judge(lines, groups=groups({"a": 200}))
    assert (found.criterion, found.basis, found.sure) == ("taylor", "correlation", "clear")
    assert any(reason.startswith("Nothing was fine-tuned") for reason in found.reasons)
    close = [truth, *(comparisons.noisy(truth, name, 1.0) for name in ("taylor", "weight"))]
    assert judge(close, groups=groups({"a": 200})).sure == "tied"


def test_nothing_is_recommended_from_nothing() -> None:
    found = judge([])
    assert (found.criterion, found.basis) == (None, "nothing")
    assert found.headline.startswith("No recommendation")


def test_less_may_be_better() -> None:
    value = metric({"taylor": 0.2}, 0.001)
    lines = comparisons.pruned(value)
    assert judge(lines, mode="min").criterion == "weight"
    assert judge(lines, mode="max").criterion == "taylor"


def test_who_was_not_judged_is_named() -> None:
    lines = comparisons.pruned(metric({"taylor": 0.2}, 0.001))
    short = comparisons.pruned(metric({"half": 0.9}, 0), ["half"], seeds=[0], budgets=[0.5])
    nan = comparisons.pruned(lambda *_: math.nan, ["diverged"])
    found = judge([*lines, *short, *nan, comparisons.refused("bn", "no BatchNorm")])
    assert found.criterion == "taylor"
    assert found.left_out == {
        "half": "only 1 of 6 runs have a finite result",
        "diverged": "only 0 of 6 runs have a finite result",
        "bn": "no BatchNorm",
    }


def test_only_what_all_have_is_compared() -> None:
    """One run of the best is missing; it would have been its worst."""
    value = metric({"taylor": 0.2}, 0.001)
    lines = comparisons.pruned(value)
    gone = next(x for x in lines if x.kind == "prune" and x.form == "fine-tuned")
    found = judge([x for x in lines if x is not gone])
    assert {duel.runs for duel in found.duels} == {5}


# ---------------------------------------------------------------------- what predicts what
def test_how_well_the_cut_predicts_the_tuned_network() -> None:
    names = [f"c{i}" for i in range(6)]
    after = {name: i for i, name in enumerate(names)}
    loss = {0.5: [5, 4, 3, 2, 1, 0], 0.25: [5, 3, 4, 2, 0, 1]}
    lines = [
        line.model_copy(update={"loss": float(loss[line.budget][after[line.criterion]])})
        for line in comparisons.pruned(lambda name, *_: float(after[name]), names)
    ]
    found = judge(lines).predicted
    each = [stats.spearmanr(range(6), [-v for v in loss[b]]).statistic for b in (0.5, 0.25)]
    assert found.value == pytest.approx(np.mean(each))
    assert found.low < found.value <= found.high
    flipped = judge([x.model_copy(update={"loss": -x.loss}) for x in lines])
    assert flipped.predicted.value == pytest.approx(-np.mean(each))
    [said] = [reason for reason in flipped.reasons if "did not reliably predict" in reason]
    assert "takes the criteria as independent" in said
    assert judge(comparisons.pruned(metric({}, 0.1))).predicted is None  # three criteria are few


# ---------------------------------------------------------------------- what to type
def test_what_to_type_is_what_was_compared() -> None:
    lines = comparisons.pruned(metric({"taylor": 0.2}, 0.001))
    found = judge(lines)
    assert found.python == (
        "sc.prune(model, example_inputs, train=train, loss=loss, budget={'macs': 0.5}, "
        "criterion='taylor')"
    )
    assert found.shell == "secateurs prune run.toml --budget macs=0.5 --criterion taylor"
    other = judge(lines, normalize="max", cost_power=0.5, measure="params")
    assert "budget={'params': 0.5}" in other.python
    assert "normalize='max', cost_power=0.5" in other.python
    assert other.shell.endswith("--normalize max --cost-power 0.5")


def test_the_defaults_are_those_of_prune() -> None:
    options = Options()
    assert {name: getattr(options, name) for name in DEFAULTS} == DEFAULTS


def test_the_same_lines_in_another_order_give_the_same() -> None:
    made = comparisons.typical()
    other = Comparison(made.setting, made.lines[::-1])
    assert other.recommendation == made.recommendation
    assert re.search(r"0\.\d+ ± ", " ".join(made.recommendation.reasons))
