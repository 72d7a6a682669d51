"""What sizes and attributes are after a cut, and which way the code then goes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ..trace.analyse import Analysis
from ..trace.labels import leaves
from ..trace.sizes import Cut
from ..trace.tagged import Attribute, Comparison, Size, evaluate, leaves_of

_NONE: Mapping[Attribute, int] = MappingProxyType({})


class Known(dict[Any, int]):
    """What every source leaf is after the cut: sizes by themselves, attributes as solved."""

    def __init__(self, analysis: Analysis, cut: Cut, attributes: Mapping[Attribute, int] = _NONE):
        super().__init__(attributes)
        self.analysis, self.cut = analysis, cut

    def __missing__(self, key: Attribute | Size) -> int:
        if isinstance(key, Attribute):
            return self.analysis.program.attributes[key]
        axes = self.analysis.axes.get(key.value)
        old = self.analysis.program.values[key.value].shape[key.dim]
        return old if axes is None else self.cut.size(axes[key.dim])


def turned(known: Known, compared: Iterable[Comparison]) -> str:
    """Why the code would go another way than it did: a comparison that comes out otherwise.

    Empty if none does.
    """
    for function, left, right, outcome, place in compared:
        try:
            new = evaluate(left, known), evaluate(right, known)
            same = bool(function(*new)) == outcome
        except ZeroDivisionError:
            new, same = (0, 0), False
        if not same and not (new[0] == new[1] and _repeats_once(known)):
            return (
                f"{place} compares numbers that the cut would make {new[0]} and {new[1]}, and the "
                "code would then go another way than it did"
            )
    return ""


def matched(known: Known, compared: Iterable[Comparison]) -> dict[Attribute, int]:
    """The attributes that nothing else sets, and that the code found equal to sizes: they stay so.

    `nn.InstanceNorm2d` without weights compares the channels of its input with `num_features`.
    """
    out: dict[Attribute, int] = {}
    for function, left, right, outcome, _ in compared:
        for one, other in ((left, right), (right, left)):
            if (
                isinstance(one, Attribute)
                and one not in known
                and function is (operator.eq if outcome else operator.ne)
                and all(isinstance(leaf, Size) for leaf in leaves_of(other))
                and (new := evaluate(other, known)) != known[one]
            ):
                out[one] = new
    return out


def _repeats_once(known: Known) -> bool:
    """Whether the cut leaves one of what was repeated: code asks for that, to repeat no more."""
    cut = known.cut
    return any(part.size > cut.size((part,)) == 1 for part in leaves(known.analysis.repeated))
