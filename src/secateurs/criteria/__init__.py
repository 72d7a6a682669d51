"""The criteria: which unit matters least. One file each; a new one is one line in the table."""

from __future__ import annotations

from ..errors import ConfigError, nearest
from .activation import Activation
from .base import Criterion, GroupBatch, GroupInfo, Mean
from .random import Random
from .taylor import Taylor
from .weight import Weight

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion for criterion in (Taylor(), Weight(), Activation(), Random())
}


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The criterion of this name, or the object itself.

    Raises:
        ConfigError: no criterion has this name, or the object is not one.
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ConfigError(f"no criterion is called {criterion!r}{nearest(criterion, CRITERIA)}")
        return CRITERIA[criterion]
    if not isinstance(criterion, Criterion):
        raise ConfigError(
            f"{criterion!r} is not a criterion: it needs name, needs, init, update, merge and score"
        )
    return criterion


__all__ = [
    "CRITERIA",
    "Criterion",
    "GroupBatch",
    "GroupInfo",
    "Mean",
    "find_criterion",
]
