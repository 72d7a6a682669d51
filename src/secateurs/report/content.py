"""What a report says and shows, described once: page, figures and text each draw it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .charts import Chart, Mark, Series
from .record import FrozenAxis, Record, Seconds, Step
from .words import NAMES, number, size, times

Floats = npt.NDArray[np.float64]

MAPS = 96  # as many heat maps are drawn; of more, nobody would look at the last
STOPPED = {
    "budget": "the budget was met",
    "floor": "the metric reached its floor",
    "nan": "the loss was not finite; the last good network was kept",
    "interrupted": "it was interrupted",
    "exhausted": "nothing more could be removed",
}


@dataclass(frozen=True)
class Fact:
    """One line of before and after; `spread` says how sure each of the two is."""

    name: str
    before: str
    after: str
    change: str
    spread: tuple[str, str] | None = None


@dataclass(frozen=True)
class Bar:
    """What stayed of a layer's units."""

    name: str
    before: int
    after: int

    @property
    def share(self) -> float:
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class HeatMap:
    """The importance of a group's units over the steps.

    Attributes:
        before, after: its units.
        values: (steps, units) ranks within the step from 0, least important, to 1; NaN where a
            unit has no score any more. The units that went first come first, then by last score.
    """

    name: str
    before: int
    after: int
    values: Floats

    def binned(self, rows: int, columns: int) -> Floats:
        """The same in at most so many steps, the last among them, and so many means of units."""
        height, width = self.values.shape
        kept = self.values[np.unique(np.linspace(height - 1, 0, rows).round().astype(int))]
        if width <= columns:
            return kept
        edges = np.linspace(0, width, columns + 1).round().astype(int)[:-1]
        there = np.isfinite(kept)
        totals = np.add.reduceat(np.where(there, kept, 0.0), edges, axis=1)
        counts = np.add.reduceat(there.astype(float), edges, axis=1)
        return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class Held:
    """Axes that are frozen for one reason, or for reasons that differ in their numbers only."""

    reason: str
    axes: list[FrozenAxis]
    reasons: list[str]


def headline(record: Record) -> str:
    """The run in a sentence.

    A ratio above 1 is how many times smaller the network became.
    """
    before, after = record.run.before, record.run.after
    smaller = ", ".join(
        f"{times(getattr(before, measure), getattr(after, measure))} fewer {NAMES[measure]}"
        for measure in ("macs", "params")
    )
    first, last = metrics(record)
    judged = f"; {record.run.metric} {number(first)} → {number(last)}" if first is not None else ""
    return f"{smaller}{judged}; {STOPPED.get(record.run.stopped, record.run.stopped)}."


def metrics(record: Record) -> tuple[float | None, float | None]:
    """The metric before and after; None where it was not measured."""
    return record.history[0].metric, record.history[-1].metric


def facts(record: Record) -> Iterator[Fact]:
    """Before and after, line by line."""
    before, after = record.run.before, record.run.after
    for name, old, new in (
        ("parameters", before.params, after.params),
        ("MACs", before.macs, after.macs),
        ("FLOPs (2 · MACs)", 2 * before.macs, 2 * after.macs),
        ("units", before.units, after.units),
    ):
        yield Fact(name, f"{old:,}", f"{new:,}", times(old, new))
    yield Fact(
        "size of the weights", size(before.bytes), size(after.bytes),
        times(before.bytes, after.bytes),
    )  # fmt: skip
    for name, (old_time, new_time) in record.run.latency.items():
        change = times(old_time.median, new_time.median)
        spread = (quartiles(old_time), quartiles(new_time))
        yield Fact(f"latency, {name}", median(old_time), median(new_time), change, spread)
    first, last = metrics(record)
    if first is not None or last is not None:
        change = "" if first is None or last is None else f"{last - first:+.3g}"
        yield Fact(record.run.metric, number(first), number(last), change)


def steps(record: Record, most: int = 400) -> list[Step]:
    """The history; of a very long one so many entries, evenly spread, with the first and last."""
    chosen = np.unique(np.linspace(0, len(record.history) - 1, most).round().astype(int))
    return [record.history[i] for i in chosen.tolist()]


def bars(record: Record) -> list[Bar]:
    """The units of each layer, in the order of the model."""
    out = []
    for layer in record.run.network.layers:
        slices = record.plan.tensors.get(layer.tensor)
        after = layer.size if slices is None else slices.new_shape[layer.dim]
        out.append(Bar(layer.name, layer.size, after))
    return out


def charts(record: Record) -> list[Chart]:
    """The metric (or else the loss) against each budget, and the budgets step by step."""
    out = []
    judged, values = record.run.metric, [step.metric for step in record.history]
    if not any(_drawable(value) for value in values):
        judged, values = "training loss", [step.loss for step in record.history]
    for measure, target in record.run.targets.items():
        kept, name = _kept(record, measure), NAMES[measure]
        pairs = zip(kept, values, strict=True)
        points = [(x, y) for x, y in pairs if y is not None and _drawable(y)]
        if points:
            out.append(
                Chart(
                    f"metric-{measure}",
                    f"{judged} against {name}",
                    f"{name} kept (%)",
                    judged,
                    [Series(judged, points)],
                    [Mark("x", _share(record, measure, target), "budget")],
                    falling=True,
                )
            )
    out.append(
        Chart(
            "steps",
            "What is left after each step",
            "step",
            "kept (%)",
            [
                Series(name, list(enumerate(_kept(record, measure))), colour=i)
                for i, (measure, name) in enumerate(NAMES.items())
            ],
            [
                Mark("y", _share(record, m, target), f"budget of {NAMES[m]}")
                for m, target in record.run.targets.items()
            ],
        )
    )
    return out


def _kept(record: Record, measure: str) -> list[float]:
    return [_share(record, measure, getattr(step, measure)) for step in record.history]


def _share(record: Record, measure: str, value: int) -> float:
    """A value of a measure, in percent of what it was."""
    return 100 * value / (getattr(record.run.before, measure) or 1)


def _drawable(value: float | None) -> bool:
    return value is not None and abs(value) < 1e100


def heat_maps(record: Record) -> list[HeatMap]:
    """The importance of every group that was scored, those that lost most first."""
    out = []
    for group in record.run.network.groups:
        values = record.importance.get(group.name)
        if values is None or not np.isfinite(values).any():
            continue
        gone = np.zeros(group.size, bool)
        gone[record.plan.groups.get(group.name, [])] = True
        after = group.size - int(gone.sum())
        out.append(HeatMap(group.name, group.size, after, _ranked(values, gone)))
    return sorted(out, key=lambda m: m.after - m.before)


def _ranked(values: npt.NDArray[np.float32], gone: npt.NDArray[np.bool_]) -> Floats:
    """Scores as ranks among those of their step, in the order of a heat map."""
    there = np.isfinite(values)
    ranks = np.full(values.shape, np.nan)
    for rank, row, own in zip(ranks, values, there, strict=True):
        scores, place = np.unique(row[own], return_inverse=True)
        rank[own] = place / max(len(scores) - 1, 1)
    seen = there.sum(axis=0)
    last = np.where(seen > 0, values[np.maximum(seen - 1, 0), np.arange(values.shape[1])], -np.inf)
    order = np.lexsort((last, np.where(gone, seen, len(values) + 1)))
    return ranks[:, order]


def held(record: Record) -> list[Held]:
    """The frozen axes by reason, most first."""
    by_shape: dict[str, list[str]] = {}
    for reason in record.run.network.frozen:
        by_shape.setdefault(re.sub(r"\d+", "…", reason), []).append(reason)
    out = []
    for shape, reasons in by_shape.items():
        axes = [axis for reason in reasons for axis in record.run.network.frozen[reason]]
        out.append(Held(reasons[0] if len(reasons) == 1 else shape, axes, reasons))
    return sorted(out, key=lambda h: -len(h.axes))


def places(axes: list[FrozenAxis]) -> list[str]:
    """Axes by tensor: 'conv1.weight [2, 3]'."""
    dims: dict[str, list[int]] = {}
    for axis in axes:
        dims.setdefault(axis.tensor, []).append(axis.dim)
    return [f"{tensor} {sorted(own)}" for tensor, own in dims.items()]


def median(time: Seconds) -> str:
    """A latency, in milliseconds."""
    return f"{1e3 * time.median:.2f} ms"


def quartiles(time: Seconds) -> str:
    """Between which half of the measurements lay, in milliseconds."""
    return f"{1e3 * time.low:.2f}–{1e3 * time.high:.2f}"
