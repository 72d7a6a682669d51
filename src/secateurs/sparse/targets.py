"""What a user asks for, compression, sparsity, a pattern or thresholds, as pools of weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import BudgetError, ConfigError, MaskError, nearest
from ..groups import Graph
from .masks import Masks
from .splicing import Count, Pattern, Rule, Thresholds, layer_of, layers_of

if TYPE_CHECKING:
    from ..process.options import SparsifyOptions

Sparsity: TypeAlias = float | Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """What is asked for; exactly one of these.

    Attributes:
        compression: parameters of the network / those kept.
        sparsity: the fraction of the parameters that goes, of the network or of each layer of a
            pattern.
        pattern: 'n:m', at most n of every m weights along what a layer reads.
        thresholds: pattern of layers -> c in t = max(μ + c·σ, 0).
    """

    compression: float | None = None
    sparsity: Sparsity | None = None
    pattern: str | None = None
    thresholds: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise BudgetError(
                "say what to reach, by one of compression, sparsity, pattern and thresholds; "
                + (f"given were {' and '.join(given)}" if given else "none was given")
            )
        if self.compression is not None:
            _check("compression", self.compression, 1, math.inf, "must be at least 1, such as 10")
        values = self.sparsity if isinstance(self.sparsity, Mapping) else {"": self.sparsity}
        for name, value in values.items():
            if value is not None:
                where = f"sparsity of {name!r}" if name else "sparsity"
                _check(where, value, 0, 1, "must be at least 0 and below 1, such as 0.9")
        for name, value in (self.thresholds or {}).items():
            _check(f"thresholds[{name!r}]", value, -math.inf, math.inf, "must be a number")
        if self.pattern is not None:
            self.n_of_m()

    def n_of_m(self) -> tuple[int, int]:
        """The two numbers of the pattern.

        Raises:
            BudgetError: it is none.
        """
        match = re.fullmatch(r"(\d+):(\d+)", str(self.pattern))
        n, m = map(int, match.groups()) if match else (0, 0)
        if not 0 < n < m:
            raise BudgetError(f"pattern must look like '2:4' (2 of every 4), not {self.pattern!r}")
        return n, m

    @property
    def layers(self) -> tuple[str, ...] | None:
        """The patterns of layers that are named; None where none is."""
        named = self.sparsity if self.thresholds is None else self.thresholds
        return tuple(named) if isinstance(named, Mapping) else None

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain data."""
        (found,) = ((name, value) for name, value in vars(self).items() if value is not None)
        return {
            "target": found[0],
            "value": dict(found[1]) if isinstance(found[1], Mapping) else found[1],
        }


def _check(name: str, value: Any, low: float, high: float, words: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value < high:
        raise BudgetError(f"{name} {words}, not {value!r}")


@dataclass(frozen=True)
class Pool:
    """Weights that compete for what may stay, and when; updates count from the end of the warm-up.

    Attributes:
        names: paths of parameters.
        rule: how they are chosen.
        begin, ramped, stop: the first look, the one at which the target is reached, the last.
    """

    names: tuple[str, ...]
    rule: Rule
    begin: int
    ramped: int
    stop: int

    def done(self, update: int, schedule: str) -> float:
        """How much of the way is to be gone by an update.

        Source: Zhu, Gupta, To prune, or not to prune (2017), equation 1, for 'cubic'.

        >>> [round(Pool((), Pattern(2, 4, {}), 0, 4, 8).done(i, "cubic"), 2) for i in range(6)]
        [0.0, 0.58, 0.88, 0.98, 1.0, 1.0]
        """
        if schedule == "one-shot" or update >= self.ramped:
            return 1.0
        left = 1 - (update - self.begin) / (self.ramped - self.begin)
        return 1 - left**3 if schedule == "cubic" else 1 - left


# ---------------------------------------------------------------------- which layers
def chosen(masks: Masks, target: Target, options: SparsifyOptions) -> list[str]:
    """The parameters that are to be masked; what is tied belongs to the layers of all its paths.

    Raises:
        ConfigError: a pattern matches no layer.
    """
    layers = layers_of(path for name in masks for path in masks.paths(name))
    for pattern in (*options.only, *options.ignore, *options.turns, *(target.layers or ())):
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ConfigError(f"the pattern {pattern!r} matches no layer{nearest(pattern, layers)}")
    out = [
        name
        for name in masks
        if _first_of(masks, name, options.ignore) is None
        and all(
            _first_of(masks, name, patterns) is not None
            for patterns in (options.only or None, target.layers, options.turns or None)
            if patterns is not None
        )
    ]
    if target.pattern is not None or not options.biases:
        out = [name for name in out if masks[name].dim() > 1]
    if not out:
        raise ConfigError("only, ignore and turns leave no layer to mask")
    return out


def _first_of(masks: Masks, name: str, patterns: Iterable[str]) -> str | None:
    """The first of these patterns that a layer of the parameter matches, by any of its paths."""
    layers = [layer_of(path) for path in masks.paths(name)]
    matches = (p for p in patterns if any(fnmatchcase(layer, p) for layer in layers))
    return next(matches, None)


def reading_axes(
    graph: Graph, masks: Masks, names: list[str], target: Target
) -> tuple[dict[str, int], dict[str, str]]:
    """Along which dimension a pattern lies: the first one that the trace saw the weight read by.

    Where it saw none, in a recurrent cell for one, that is dimension 1, as in all of PyTorch's own;
    in a Keras model, where it may be any, the weight is left out.

    Returns:
        (parameter -> dimension, parameter -> why a pattern cannot be laid on it); nothing where no
        pattern is asked for.
    """
    axes: dict[str, int] = {}
    left: dict[str, str] = {}
    if target.pattern is None:
        return axes, left
    _, m = target.n_of_m()
    reads = {key for key, role in graph.analysis.roles.items() if role == "reads"}
    for name in names:
        shape = masks[name].shape
        dims = (d for d in range(len(shape)) for path in masks.paths(name) if (path, d) in reads)
        dim = next(dims, None if graph.rebuilt else 1)
        if dim is None:
            left[name] = "the trace saw no dimension that it is read along"
        elif shape[dim] % m:
            left[name] = f"it reads {shape[dim]}, no multiple of {m}"
        else:
            axes[name] = dim
    if not axes:
        raise BudgetError(f"no layer can have the pattern {target.pattern}: {_first(left)}")
    return axes, left


def _first(left: Mapping[str, str]) -> str:
    return next(f"{name}: {why}" for name, why in left.items())


# ---------------------------------------------------------------------- pools
def make_pools(
    masks: Masks,
    names: list[str],
    target: Target,
    options: SparsifyOptions,
    axes: Mapping[str, int],
) -> list[Pool]:
    """The pools of a run.

    Args:
        masks: as the run starts with them.
        names: the parameters whose masks may change.
        target, options: what is asked for, and how.
        axes: parameter -> the dimension that it is read along, for a pattern.

    Raises:
        BudgetError: a layer would be left with fewer weights than it must keep.
        MaskError: what shares a mask would not be chosen together.
    """
    turns = options.turns or ("*",)
    share = _share(masks, names, target)
    pools = [
        Pool(own, rule, *_span(turn, len(turns), options))
        for turn, pattern in enumerate(turns)
        for own, rule in _rules(
            masks,
            [name for name in names if _first_of(masks, name, turns) == pattern],
            target,
            share,
            options,
            axes,
        )
    ]
    for group in _shared(masks, list(masks)):
        if set(group) & set(names) and not any(set(group) <= set(pool.names) for pool in pools):
            raise MaskError(
                f"{' and '.join(group)} share a mask, so they must be chosen together: in the "
                "same turn, with scope='global', one sparsity for all, and none of them left out"
            )
    return pools


def _shared(masks: Masks, names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Those of some parameters that share a mask, in groups."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(id(masks[name]), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _span(turn: int, turns: int, options: SparsifyOptions) -> tuple[int, int, int]:
    part = options.updates / turns
    begin = min(round(part * turn * options.stop), max(0, options.updates - 1))
    last = max(begin, round(begin + part * options.stop) - 1)
    ramp = 0.0 if options.schedule == "one-shot" else part * options.ramp
    return begin, min(last, round(begin + ramp)), last


def _rules(
    masks: Masks,
    own: list[str],
    target: Target,
    share: float,
    options: SparsifyOptions,
    axes: Mapping[str, int],
) -> list[tuple[tuple[str, ...], Rule]]:
    """The parameters that choose together, and how."""
    if not own:
        return []
    if target.pattern is not None:
        return [(tuple(own), Pattern(*target.n_of_m(), axes))]
    if target.thresholds is not None:
        c = {name: target.thresholds[_pattern(masks, name, target)] for name in own}
        return [(tuple(own), Thresholds(c, options.min_keep))]
    together: dict[tuple[str, str], list[str]] = {}
    for name in own:
        apart = options.scope == "layer" or isinstance(target.sparsity, Mapping)
        key = (layer_of(name) if apart else "", _pattern(masks, name, target))
        together.setdefault(key, []).append(name)
    return [
        (tuple(group), _count(masks, group, target, share, options)) for group in together.values()
    ]


def _pattern(masks: Masks, name: str, target: Target) -> str:
    """That of the target which says what becomes of a parameter; '' where one holds for all."""
    return _first_of(masks, name, target.layers or ()) or ""


def _share(masks: Masks, names: list[str], target: Target) -> float:
    """The fraction of these parameters that stays, for a target of the whole network.

    Raises:
        BudgetError: what cannot go is more than may stay.
    """
    if target.compression is not None:
        part = 1 / target.compression
    elif isinstance(target.sparsity, float | int):
        part = 1 - target.sparsity
    else:
        return math.nan
    own = sum(masks[name].numel() for name in names)
    fixed = masks.kept - sum(int(masks[name].sum()) for name in names)
    keep = math.floor(masks.total * part + 1e-6)
    if keep <= fixed:
        raise BudgetError(
            f"{keep:,} of {masks.total:,} parameters would stay, and {fixed:,} stay in any case: "
            f"they have no mask, or it is not to change; ask for less"
            + (f" than {masks.total / fixed:,.1f}×" if fixed else "")
        )
    return (keep - fixed) / own


def _count(
    masks: Masks,
    names: list[str],
    target: Target,
    share: float,
    options: SparsifyOptions,
) -> Count:
    layers = layers_of(names)
    total = sum(masks[name].numel() for name in names)
    if isinstance(target.sparsity, Mapping):
        share = 1 - target.sparsity[_pattern(masks, names[0], target)]
    end = math.floor(total * share + 1e-6)
    least = options.min_keep * len(layers)
    if end < least:
        raise BudgetError(
            f"{end:,} of {total:,} parameters of {', '.join(layers)} would stay, and every layer "
            f"keeps at least {options.min_keep}: ask for less, or leave small layers out "
            f"(ignore=)"
        )
    start = sum(int(masks[name].sum()) for name in names)
    return Count(start, end, options.min_keep, _shared(masks, names))
