"""Find the integers in a model that state sizes, and what they must become after a cut.

While the model was traced, its attributes and its tensors' sizes were handed out with their
provenance. Every torch function that states a size after the cut gives an equation: what it was
given must become the new size. Attributes are solved from these equations; a number written in the
code of a module is rewritten for that module alone; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ..errors import MendError
from ..trace.analyse import Analysis
from ..trace.labels import leaves
from ..trace.program import Call, Node
from ..trace.sizes import Cut
from ..trace.tagged import Attribute, Size, Source, TaggedInt, evaluate, leaves_of
from .describe import Axes, descriptions, repeats
from .edits import Edit, left, site_of, spot_of, written
from .fold import Computed, Folder, Scale, computed_factors
from .given import Given, given_sizes, sized_nodes
from .known import Known, matched, turned
from .restate import Restated

Equation: TypeAlias = tuple[Source, int, Call, int]  # what is given, what is needed, where
Restatements: TypeAlias = dict[tuple[str, str, int, int], Restated]


@dataclass(frozen=True)
class Mended:
    """What else a cut changes, beside the tensors that it shortens.

    Attributes:
        attributes: attribute -> (before, after).
        scales: rows of weights that take up a number which the code computes from a size.
        restated: sizes that the code computes from others which no longer agree.
        edits: numbers in the code, and views that find such a size by themselves.
    """

    attributes: dict[Attribute, tuple[int, int]]
    scales: list[Scale]
    restated: list[Restated]
    edits: list[Edit]


class Solved(NamedTuple):
    """Attributes' sizes after a cut, sizes to state anew, and numbers in the code."""

    attributes: dict[Attribute, int]
    restated: list[Restated]
    edits: list[Edit]


def mend(analysis: Analysis, cut: Cut, axes: Axes) -> Mended:
    """What a cut changes beside the tensors.

    Args:
        analysis: of the uncut network.
        cut: what goes.
        axes: (tensor, dim) -> the size of every axis that is cut, before and after.

    Raises:
        MendError: a size is fixed by something that cannot be rewritten.
    """
    solved, restated, edits = solve(analysis, cut, sized_nodes(analysis))
    before, compared = analysis.program.attributes, analysis.program.compared
    after = {**descriptions(analysis, axes, solved), **repeats(analysis, cut), **solved}
    equal = matched(Known(analysis, cut, after), compared)
    after, solved = after | equal, solved | equal
    changed = {a: (before[a], n) for a, n in after.items() if before[a] != n}
    turn = turned(Known(analysis, cut, after), compared)
    if turn:
        raise MendError(turn)
    computed = computed_factors(analysis)
    scales = rescale(analysis, cut, solved, computed, Folder(analysis))
    return Mended(changed, scales, restated, edits)


def rescale(
    analysis: Analysis,
    cut: Cut,
    solved: Mapping[Attribute, int],
    computed: Iterable[Computed],
    folder: Folder,
) -> list[Scale]:
    """What makes up for numbers that the code computes from sizes which the cut changes.

    Raises:
        MendError: nothing can.
    """
    known = Known(analysis, cut, solved)
    out = []
    for position, number, source, power in computed:
        try:
            new = evaluate(source, known)
            factor = (number / new) ** power
        except ZeroDivisionError as error:
            raise MendError("the code divides by a size of which the cut leaves nothing") from error
        if new != number:
            out += [Scale(*place, factor) for place in folder.places(position)]
    return out


def solve(analysis: Analysis, cut: Cut, nodes: Iterable[Node]) -> Solved:
    """What these nodes' functions need after a cut.

    Raises:
        MendError: as for `mend`.
    """
    equations: list[Equation] = []
    numbers: list[tuple[Given, int]] = []
    restated: Restatements = {}
    for given in given_sizes(analysis, cut, nodes):
        call, place, old, new = given
        if place is None:
            raise MendError(
                f"{call.place} computes the size {old} by itself, and would not make {new} of what "
                "the cut leaves"
            )
        stated = call.sizes[place]
        if isinstance(stated, TaggedInt):
            equations.append((stated.source, new, call, place))
        else:
            numbers.append((given, place))
    after, views = _solve(equations, Known(analysis, cut), restated)
    return Solved(after, list(restated.values()), [*_numbers(numbers), *views])


def _numbers(numbers: Sequence[tuple[Given, int]]) -> list[Edit]:
    """Numbers in the code that become others.

    Raises:
        MendError: one is not written there, or is needed as it is in another run of the same code.
    """
    changed = {_instruction(given.call) for given, _ in numbers if given.old != given.new}
    needed: dict[Any, int] = {}
    out: dict[Any, Edit] = {}
    for (call, _, old, new), place in numbers:
        site = site_of(call)
        if _instruction(call) not in changed or (site is None and old == new):
            continue
        spot = spot_of(call, place, sure=old != new)
        if site is None or spot is None:
            raise _unwritten(call, old, new)
        at = (site.key, spot)
        if needed.setdefault(at, new) != new:
            raise MendError(
                f"{call.place} is given {old} where the cut needs {needed[at]} in one run and "
                f"{new} in another; use two attributes instead of the number"
            )
        if old != new and at not in out:
            edit = written(call, place, new)
            if edit is None:
                raise _unwritten(call, old, new)
            out[at] = edit
    return list(dict.fromkeys(out.values()))


def _unwritten(call: Call, old: int, new: int) -> MendError:
    what = "beside one that the cut changes" if old == new else f"which the cut would make {new}"
    return MendError(
        f"{call.place} is given the size {old}, {what}, and where that number comes from cannot be "
        "found in this very call; write it there, or take it from x.shape or a module attribute"
    )


def _instruction(call: Call) -> tuple[Any, ...]:
    """What is the same for all runs of one call in the code of a module."""
    return call.owner, call.code, call.at


def demands(analysis: Analysis, cut: Cut, nodes: Iterable[Node]) -> dict[Attribute, int]:
    """What a cut asks of the attributes that state a size by themselves, where it shrinks."""
    return {
        given.source: new
        for call, place, old, new in given_sizes(analysis, cut, nodes)
        if place is not None
        and isinstance(given := call.sizes[place], TaggedInt)
        and isinstance(given.source, Attribute)
        and new < old
    }


def _solve(
    equations: list[Equation], known: Known, restated: Restatements
) -> tuple[dict[Attribute, int], list[Edit]]:
    """The attributes' new values that satisfy every equation but those to be stated anew."""
    views: dict[int, Edit] = {}
    for source, value, call, _ in equations:
        if isinstance(source, Attribute) and known.setdefault(source, value) != value:
            raise MendError(
                f"{source} states two sizes that this plan makes different ({known[source]} and "
                f"{value}, at {call.place}); delete equally many units of both"
            )
    while any(_inverted(source, value, known) for source, value, *_ in equations):
        pass  # what one sets, others are given
    for source, value, call, place in equations:
        if evaluate(source, known) != value:
            view = left(call, place)
            if view is not None and views.setdefault(id(call), view) == view:
                continue
            given = evaluate(source, known)
            if not _fixed(known.analysis, source):
                raise _disagree(call, given, value)
            _restate(restated, known, call, place, given, value)
    return dict(known), list(dict.fromkeys(views.values()))


def _inverted(source: Source, value: int, known: Known) -> bool:
    """Whether an attribute that was not known is what it must be for the source to give this."""
    if evaluate(source, known) == value:
        return False
    for attribute in leaves_of(source):
        if isinstance(attribute, Attribute) and attribute not in known:
            found = _invert(source, value, attribute, known)
            if found is not None:
                known[attribute] = found
                return True
    return False


def _restate(
    restated: Restatements, known: Known, call: Call, place: int, given: int, value: int
) -> None:
    """Have a call given another size.

    Raises:
        MendError: it needs two.
    """
    earlier = (a for a in known.analysis.program.attributes if a[:2] == (call.module, "stated"))
    number = sum(1 for _ in earlier) + sum(r.module == call.module for r in restated.values())
    new = Restated(call.module, call.name, call.ordinal, place, value, number)
    if restated.setdefault(new.key, new).new != value:
        raise _disagree(call, given, value)


def _disagree(call: Call, given: int, value: int) -> MendError:
    return MendError(
        f"{call.place} computes a size that would be {given} after "
        f"the cut where {value} is needed; delete units so that the two agree"
    )


def _fixed(analysis: Analysis, source: Source) -> bool:
    """Whether a size is the same for all inputs: computed from weights and attributes alone.

    Of a tensor that is read for its shape alone, nothing is known.
    """
    sizes = [leaf for leaf in leaves_of(source) if isinstance(leaf, Size)]
    if any(size.value not in analysis.axes for size in sizes):
        return False
    axes = [leaf for s in sizes for leaf in leaves(analysis.axes[s.value][s.dim])]
    return analysis.weighted.issuperset(axes)


def _invert(source: Source, value: int, attribute: Attribute, known: Known) -> int | None:
    """The smaller number that the attribute must be for the source to give this value."""
    for trial in range(1, known[attribute]):
        known[attribute] = trial
        try:
            if evaluate(source, known) == value:
                return trial
        except ZeroDivisionError:
            continue
        finally:
            del known[attribute]
    return None
