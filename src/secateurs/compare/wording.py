"""A recommendation in words, for one who must act on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..report.words import NAMES, rounded
from .record import Setting
from .statistics import Estimate

if TYPE_CHECKING:
    from .recommend import Basis, Duel, Metrics, Sure

MANY = 5  # names that a sentence bears
WHEN = {
    "fine-tuned": "after fine-tuning",
    "one-shot": "right after pruning",
    "correlation": "in correlation with the oracle",
}
WHERE = {"none": "over all layers", "l2": "over all layers, each with its ℓ2 norm,"}


def headline(best: str, sure: Sure, basis: Basis, duels: Sequence[Duel]) -> str:
    """The answer in a sentence."""
    when = WHEN[basis]
    if not duels:
        return f"{best}: nothing else could be compared with it."
    if duels[0].difference < 0:  # only the baseline can be ahead of the best
        return f"None beat {duels[0].other} {when}; of the others {best} came closest."
    if sure == "clear":
        return f"Use {best}: {when} it was clearly ahead of every other criterion."
    if sure == "likely":
        return f"Use {best}: {when} it was likely ahead of every other criterion."
    tied = [duel.other for duel in duels if duel.verdict == "tied"]
    if sure == "tied":
        return f"{best} came out best {when}, but cannot be told apart from {listed(tied)}."
    return f"{best} came out best {when}, but how much of that is luck is not known."


def reasons(
    setting: Setting,
    basis: Basis,
    best: str,
    duels: Sequence[Duel],
    support: Mapping[str, Estimate],
    metrics: Metrics,
    predicted: Estimate | None,
    seconds: Mapping[str, float],
) -> Iterator[str]:
    """The grounds and the reservations."""
    if basis != "correlation":
        yield from _runs(setting, best, duels, metrics)
    yield from _indifferent(best, duels, seconds)
    if basis != "fine-tuned":
        yield (
            "Nothing was fine-tuned. A network that is fine-tuned after pruning may prefer another "
            "criterion: what is left right after the cut tells little of what comes back. Compare "
            "with fine-tuning before you rely on this."
        )
    yield from _oracle(setting, basis, best, support)
    if predicted is not None:
        yield prediction(predicted)


def _runs(setting: Setting, best: str, duels: Sequence[Duel], metrics: Metrics) -> Iterator[str]:
    cells = list(metrics[best])
    seeds, budgets = len({seed for *_, seed in cells}), sorted({budget for _, budget, _ in cells})
    forms = listed([*dict.fromkeys(form for form, *_ in cells)])
    mean = abs(sum(metrics[best].values()) / len(cells))
    yield (
        f"Its mean {setting.metric_name} was {mean:.4g} over {len(cells)} runs: {forms}, at "
        f"{listed([f'{budget:.0%}' for budget in budgets])} of the {NAMES[setting.measure]}, "
        f"{seeds} seed{'s' * (seeds > 1)}."
    )
    rivals = [duel for duel in duels if duel.other != "random"]
    if rivals:
        yield f"Against the next best: {against(rivals[0], setting.metric_name)}"
    if seeds == 1:
        yield "With one seed there is no spread to judge by: compare over at least three seeds."
    elif seeds == 2:
        yield "Two seeds can hardly show a difference: compare over at least three."
    repeats = [duel.other for duel in duels if duel.verdict == "unknown"]
    if seeds > 1 and repeats:
        yield (
            f"Against {listed(repeats)} every seed gave the same difference, so there is no spread "
            "to judge by: a criterion that needs no data, or sees all of it, repeats itself where "
            "nothing is fine-tuned."
        )
    yield (
        "Seeds draw the data of the scores and the order of fine-tuning, not the data of the "
        f"{setting.metric_name}: its chance is in no error. The criterion was picked by that data; "
        "judge the final network on other."
    )


def against(duel: Duel, metric: str) -> str:
    """One duel in words."""
    error = "" if duel.error is None else f" ± {duel.error:.2g} (standard error over seeds)"
    return (
        f"{duel.other}, by {duel.difference:.2g}{error} of {metric}, ahead in {duel.ahead} of "
        f"{duel.runs} runs."
    )


def _indifferent(best: str, duels: Sequence[Duel], seconds: Mapping[str, float]) -> Iterator[str]:
    """What a tie means for one who must choose."""
    baseline = next((duel for duel in duels if duel.other == "random"), None)
    if baseline is not None and baseline.difference < 0:
        yield (
            "Units drawn at random did better. At these budgets the criterion does not matter, or "
            "fine-tuning makes up for any choice; try smaller budgets or fewer updates."
        )
    elif baseline is not None and baseline.verdict == "tied":
        yield (
            "Not even drawing units at random can be told apart from it: at these budgets, with "
            "this fine-tuning, the criterion hardly matters. Smaller budgets or more seeds would "
            "tell more."
        )
    tied = [duel.other for duel in duels if duel.verdict == "tied" and duel.other != "random"]
    timed = {name: seconds[name] for name in (best, *tied) if name in seconds}
    if tied:
        yield "Between those that cannot be told apart the choice is free" + (
            f": the cheapest is {min(timed, key=lambda name: timed[name])} "
            f"({min(timed.values()):.2g} s; the dearest, {max(timed, key=lambda n: timed[n])}, "
            f"takes {max(timed.values()):.2g} s)."
            if max(timed.values(), default=0) > 2 * min(timed.values(), default=0)
            else "."
        )


def _oracle(
    setting: Setting, basis: Basis, best: str, support: Mapping[str, Estimate]
) -> Iterator[str]:
    """Whether the correlation speaks for it or against it."""
    judged = {name: own for name, own in support.items() if name != "oracle"}
    if best not in judged:
        return
    own, top = judged[best], max(judged, key=lambda name: judged[name].value)
    where = WHERE.get(setting.normalize, "within layers")
    said = f"Its rank correlation with the oracle {where} is {estimate(own)}"
    if top == best:
        yield f"{said}, the highest of {len(judged)}."
    elif own.high < judged[top].low:
        yield (
            f"{said}: the correlation contradicts, as {top} follows the oracle more closely "
            f"({estimate(judged[top])}). The metric counts more, for it is what you want."
        )
    elif basis != "correlation":
        yield f"{said}; that of {top} is {estimate(judged[top])}, not clearly higher."


def prediction(found: Estimate) -> str:
    """How far one may trust a network that was not fine-tuned."""
    if found.low <= 0:
        strength = "did not reliably predict"
    elif found.value < 0.7:
        strength = "predicted only weakly"
    else:
        strength = "predicted well"
    return (
        f"In these runs the result right after pruning {strength} the one after fine-tuning: "
        f"rank correlation over criteria {estimate(found)}. The interval takes the criteria as "
        "independent; where some are near copies (taylor and taylor-gate), it is too narrow."
    )


def estimate(found: Estimate) -> str:
    """A coefficient with its interval.

    >>> estimate(Estimate(0.5, 0.25, 0.75))
    '0.50 (0.25 to 0.75)'
    """
    return f"{rounded(found.value)} ({rounded(found.low)} to {rounded(found.high)})"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of many the first.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    >>> listed(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d and 3 more'
    """
    if len(names) > MANY:
        names = [*names[: MANY - 1], f"{len(names) - MANY + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
