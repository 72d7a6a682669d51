"""The criteria: which unit matters least. One file each; a new one is one line in the table."""

from __future__ import annotations

from ..errors import ConfigError, nearest
from .activation import Activation
from .activation_std import ActivationStd
from .apoz import Apoz
from .base import (
    NEEDS,
    Averaged,
    Criterion,
    Estimate,
    Fixed,
    GroupBatch,
    GroupInfo,
    Mean,
    Spread,
    pooled,
)
from .bn_scale import BnScale
from .fisher import Fisher
from .fpgm import Fpgm
from .information_gain import InformationGain
from .l1 import L1
from .l2 import L2
from .lamp import Lamp
from .obd import Obd
from .oracle import Oracle
from .random import Random
from .taylor import Taylor
from .taylor_squared import TaylorSquared
from .weight import Weight

_ALL: tuple[Criterion, ...] = (
    Taylor(),
    Taylor(gate=True),
    TaylorSquared(),
    TaylorSquared(order=2),
    Fisher(),
    Obd(),
    Obd(probes=1),
    Activation(),
    Activation(absolute=True),
    ActivationStd(),
    Apoz(),
    InformationGain(),
    Weight(),
    Weight("reads"),
    L1(),
    L1("reads"),
    L2(),
    L2("reads"),
    Fpgm(),
    Fpgm("reads"),
    Lamp(),
    Lamp("reads"),
    BnScale(),
    Random(),
    Oracle(),
    Oracle(signed=True),
)

CRITERIA: dict[str, Criterion] = {criterion.name: criterion for criterion in _ALL}


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The criterion of this name, or the object itself.

    Raises:
        ConfigError: no criterion has this name, the object is not one, or it needs something
            that no batch shows.
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ConfigError(f"no criterion is called {criterion!r}{nearest(criterion, CRITERIA)}")
        return CRITERIA[criterion]
    if not isinstance(criterion, Criterion):
        raise ConfigError(
            f"{criterion!r} is not a criterion: it needs name, needs, init, update, merge and score"
        )
    for need in criterion.needs - NEEDS:
        raise ConfigError(
            f"criterion {criterion.name!r} needs {need!r}, which is not there"
            f"{nearest(need, sorted(NEEDS))}"
        )
    return criterion


__all__ = [
    "CRITERIA",
    "Averaged",
    "Criterion",
    "Estimate",
    "Fixed",
    "GroupBatch",
    "GroupInfo",
    "Mean",
    "Spread",
    "find_criterion",
    "pooled",
]
