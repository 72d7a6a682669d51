"""Budgets: how small a network must become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from .cost import MEASURES, Cost
from .errors import BudgetError, nearest
from .groups import Selection


def targets(budget: Mapping[str, float], cost: Cost) -> dict[str, int]:
    """The absolute targets of a budget.

    Args:
        budget: 'macs', 'params' or 'units' -> the fraction kept if at most 1, else an absolute
            number. All of them must be met.
        cost: of the uncut network.

    Raises:
        BudgetError: an unknown measure, a value that is not positive, or one above 100%.
    """
    if not isinstance(budget, Mapping):
        raise BudgetError(f"the budget must look like {{'macs': 0.5}}, not {budget!r}")
    if not budget:
        raise BudgetError(f"the budget is empty; give one of {', '.join(MEASURES)}")
    out: dict[str, int] = {}
    for measure, given in budget.items():
        if measure not in MEASURES:
            raise BudgetError(f"no budget is called {measure!r}{nearest(measure, MEASURES)}")
        value = _number(given)
        if not value > 0:
            raise BudgetError(f"the {measure} budget must be a number above 0, not {given!r}")
        whole = cost.of(measure)
        if value > max(whole, 1):
            raise BudgetError(
                f"the {measure} budget {given:,} is above 100%: the network has {whole:,}; "
                "a value up to 1 is the fraction to keep, above 1 an absolute number"
            )
        out[measure] = int(value * whole) if value <= 1 else int(value)
    return out


def _number(given: Any) -> float:
    """Any real number as a float, NumPy's too; NaN for anything else."""
    return math.nan if isinstance(given, bool) or not isinstance(given, Real) else float(given)


def met(targets: Mapping[str, int], cost: Cost, cut: Selection | None = None) -> bool:
    """Whether a cut network is within every target."""
    return all(cost.of(measure, cut) <= target for measure, target in targets.items())


def check_reachable(targets: Mapping[str, int], cost: Cost, smallest: Selection) -> None:
    """Refuse a budget that no allowed cut can meet.

    Raises:
        BudgetError: names the smallest that can be reached.
    """
    for measure, target in targets.items():
        least, whole = cost.of(measure, smallest), cost.of(measure)
        if least > target:
            raise BudgetError(
                f"{measure} cannot be cut to {target:,} ({target / whole:.2%}): the smallest "
                f"reachable is {least:,} ({least / whole:.2%}) with what may be removed; raise the "
                "budget, or relax ignore, min_keep, max_remove or round_to"
            )
