"""The exact oracle: what the loss and a metric do when each unit goes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .batches import Loss, Objective
from .errors import ConfigError, DataError, FileError
from .exact.changes import Change, Engine, count_examples
from .exact.sample import Sample, draw
from .files.parts import Parts
from .files.store import load_tensors, save_tensors
from .groups import Graph
from .score import Scores
from .tables import render

if TYPE_CHECKING:
    from .process.progress import Meter

Array = npt.NDArray[np.float64]
Metric = Callable[[Any, Any], Any]

_FORMAT = "secateurs-oracle-1"
_ARRAYS = ("loss", "metric", "error", "rows")


@dataclass(frozen=True)
class Oracle:
    """C(g_i = 0) − C(1) of every unit, signed: how much it grows when the unit goes.

    Attributes:
        loss: group -> (units,), the change of the mean loss.
        metric: the same for the metric; empty without one.
        base: 'loss' and 'metric' -> the mean of the uncut network.
        examples: how many were seen.
        error: group -> (units,), the standard error of `loss`, where the examples are a sample.
        rows: group -> (examples, units), each example's change, where they are a sample.
        sample: which strata the examples of a sample are from.
        how: group -> how it was computed, if not by rows, and why.

    >>> oracle = Oracle({"conv1": np.array([0.5, -0.1, 0.3])}, base={"loss": 1.0}, examples=64)
    >>> oracle.scores()["conv1"].argsort()[:2].tolist()  # the two least important units
    [1, 2]
    """

    loss: dict[str, Array]
    metric: dict[str, Array] = field(default_factory=dict)
    base: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    error: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    sample: Sample | None = None
    how: dict[str, str] = field(default_factory=dict)

    def scores(
        self, kind: Literal["abs", "loss", "metric"] = "abs", *, mode: Literal["max", "min"] = "max"
    ) -> Scores:
        """One importance per unit, higher = keep.

        Args:
            kind: 'abs' |ΔC| or 'loss' ΔC in the loss; 'metric' what the metric loses.
            mode: whether a metric is better at its 'max' or its 'min'.

        Raises:
            ConfigError: another kind, or 'metric' where there is none.
        """
        if kind not in ("abs", "loss", "metric"):
            raise ConfigError(f"scores('abs'), ('loss') or ('metric'), not {kind!r}")
        if kind == "metric" and not self.metric:
            raise ConfigError("the oracle has no metric; call oracle(..., metric=...)")
        if kind == "metric":
            sign = -1.0 if mode == "max" else 1.0
            values = {name: sign * change for name, change in self.metric.items()}
        else:
            values = {n: np.abs(c) if kind == "abs" else c for n, c in self.loss.items()}
        name = "oracle" if kind == "abs" else f"oracle-{kind}"
        return Scores(values, name, examples=self.examples)

    def distinguishable(self, group: str, i: int, j: int, level: float = 0.95) -> bool:
        """Whether the sample tells two units of a group apart, by the differences it sees in pairs.

        The examples are the same for both units, so that what they share cancels.

        Raises:
            DataError: the oracle saw no sample; then every difference is exact.
        """
        return bool(self._apart(group, i, level)[j])

    def tied(self, group: str, unit: int | None = None, level: float = 0.95) -> list[int]:
        """The units that cannot be told apart from one: by default the least important in |ΔC|."""
        unit = int(np.abs(self.loss[group]).argmin()) if unit is None else unit
        apart = self._apart(group, unit, level)
        return [j for j in range(len(apart)) if j != unit and not apart[j]]

    def _apart(self, group: str, unit: int, level: float) -> npt.NDArray[np.bool_]:
        if self.sample is None:
            raise DataError("all examples were seen, and differences are exact; pass examples=")
        rows = self.rows[group]
        differences = rows - rows[:, [unit]]
        error = self.sample.error(differences)
        limit = NormalDist().inv_cdf(0.5 + level / 2)
        return np.abs(self.sample.mean(differences)) > limit * error

    def __str__(self) -> str:
        columns = ["group", "units", "least |Δ|", "median |Δ|", "most |Δ|", "lower the loss"]
        columns += ["worst metric"] if self.metric else []
        columns += ["tied with the least"] if self.sample else []
        table = []
        for name, change in self.loss.items():
            size = np.abs(change)
            row = [name, len(change), *(f"{q:.2e}" for q in np.quantile(size, [0, 0.5, 1]))]
            row.append(int((change < 0).sum()))
            if self.metric:
                row.append(f"{max(self.metric[name], key=abs):+.4f}")
            if self.sample:
                row.append(len(self.tied(name)))
            table.append(row)
        uncut = ", ".join(f"{what} {value:.4g}" for what, value in self.base.items())
        seen = "a sample of " if self.sample else ""
        title = f"oracle over {seen}{self.examples:,} examples; uncut: {uncut}"
        notes = [f"{name}: {why}" for name, why in self.how.items()]
        return "\n".join([render(title, columns, table), *notes])

    # ------------------------------------------------------------------ files
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        arrays = {
            key: {name: array.tolist() for name, array in getattr(self, key).items()}
            for key in _ARRAYS
        }
        sample = self.sample and {
            "stratum": self.sample.stratum.tolist(),
            "sizes": self.sample.sizes.tolist(),
        }
        rest = {"base": self.base, "examples": self.examples, "how": self.how}
        return {**arrays, **rest, "sample": sample}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Oracle:
        """The oracle that `to_dict` described."""
        arrays: dict[str, Any] = {
            key: {name: np.asarray(v, dtype=np.float64) for name, v in data[key].items()}
            for key in _ARRAYS
        }
        sample = data["sample"] and Sample(
            np.asarray(data["sample"]["stratum"]), np.asarray(data["sample"]["sizes"])
        )
        rest = {key: data[key] for key in ("base", "examples", "how")}
        return cls(**arrays, **rest, sample=sample or None)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        plain = self.to_dict()
        tensors = {
            f"{key}/{name}": torch.from_numpy(np.ascontiguousarray(array))
            for key in _ARRAYS
            for name, array in getattr(self, key).items()
        }
        for key in _ARRAYS:
            plain[key] = sorted(plain[key])
        save_tensors(path, tensors, {"format": _FORMAT, "oracle": json.dumps(plain)})

    @classmethod
    def load(cls, path: str | Path) -> Oracle:
        """Read what `save` wrote.

        Raises:
            FileError: it is missing, damaged, or something else.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise FileError(f"{path} holds no oracle")
        data = json.loads(metadata["oracle"])
        for key in _ARRAYS:
            data[key] = {name: tensors[f"{key}/{name}"].numpy() for name in data[key]}
        return cls.from_dict(data)


def oracle(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    objective: Objective | None = None,
    metric: Metric | None = None,
    batches: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    memory: int | str = "1 GB",
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Oracle:
    """What the loss, and a metric, do when each unit goes: exact, for every unit of every group.

    Values up to a unit's first readers are computed once; a reader's result changes by one rank;
    only what lies downstream is computed anew, for many units and examples at once, and not for
    examples in which the unit is silent. Where the network takes a statistic over the units, or
    mixes the examples of a batch, one unit at a time runs; `Oracle.how` says so.

    Args:
        model: the model that was traced; it runs in eval mode and is left untouched.
        graph: its trace.
        data: batches; pairs (input, target) for `loss`, anything for `objective`.
        loss: loss(output, target) -> one value per example, (examples,), or one for the batch.
        objective: objective(model, batch) -> the same, where a batch is no pair; it is called once
            for each unit.
        metric: metric(output, target) -> the same as a loss; accuracy, for example.
        batches: use at most so many batches.
        examples: use a sample of so many, stratified by class, with its standard error.
        seed: of the draw.
        memory: what it may take beyond the model and the data: bytes, or such as '2 GB'.
        out: a folder in which finished groups are kept, so that nothing is lost.
        resume: go on with what is there.
        progress: show a bar with the time left.

    Raises:
        DataError: no data, no pairs, a loss of another shape, or a batch that cannot be split and
            does not fit the memory.
        NotFiniteError: a loss or metric is NaN or infinite.
        FileError: `out` holds the parts of another oracle.
        ConfigError: `memory` is no number of bytes.

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
    >>> cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    >>> found = sc.oracle(net, sc.trace(net, x), [(x, y)], loss=cross_entropy)
    >>> found.loss["0"].shape, found.examples
    ((8,), 16)
    """
    from .process.progress import Meter  # brings Rich along

    engine = Engine(model, graph, loss, objective, metric, memory=bytes_of(memory))
    source: Iterator[Any] = itertools.islice(data, batches)
    sample = None
    total = None if examples is not None else _length(data, batches)
    if examples is not None:
        if objective is not None:
            raise DataError("examples= needs loss(output, target), not an objective")
        batch, sample = draw(source, examples, seed)
        source, total = iter([batch]), 1
    parts = Parts(out, model, graph, _told(loss, objective, metric, sample), resume=resume)
    sums = _Sums(graph, sample)
    with Meter(progress, "the oracle") as meter:
        for number, batch in enumerate(source):
            pieces = engine.fit(batch)
            for index, piece in enumerate(pieces):
                engine.report = _way(meter, number + index / len(pieces), len(pieces), total)
                for name, change in _changes(engine, parts, piece):
                    sums.add(name, change, count_examples(piece))
    return sums.result()


def _way(meter: Meter, start: float, pieces: int, batches: int | None) -> Callable[[float], None]:
    """Move the bar as a piece of a batch goes on; it stays where the batches are not counted."""

    def report(done: float) -> None:
        meter.way((start + done / pieces) / batches if batches else 0.0, "")

    return report


def _changes(engine: Engine, parts: Parts, batch: Any) -> Iterator[tuple[str, Change]]:
    """The change of each group on a batch: read where it is done, else computed and kept."""
    known = parts.read(batch)
    yield from known.items()
    rest = {g.name: range(g.size) for g in engine.graph.groups if g.name not in known}
    if rest:
        for name, change in engine.changes(batch, rest):
            parts.write(batch, name, change)
            yield name, change


def _told(*what: Any) -> list[str]:
    """What can be said of the functions, so that another oracle's parts are refused."""
    return [getattr(one, "__qualname__", type(one).__name__) for one in what]


def _length(data: Iterable[Any], batches: int | None) -> int | None:
    try:
        length = len(data)  # type: ignore[arg-type]
    except TypeError:
        return batches
    return length if batches is None else min(length, batches)


class _Sums:
    """Sums over examples, group by group."""

    def __init__(self, graph: Graph, sample: Sample | None):
        self._sample = sample
        self._order = [group.name for group in graph.groups]
        self._loss: dict[str, Any] = {}
        self._metric: dict[str, Any] = {}
        self._rows: dict[str, list[Array]] = {}
        self._base: dict[str, Any] = {}
        self._seen: dict[str, int] = {}
        self._how: dict[str, str] = {}

    def add(self, name: str, change: Change, n: int) -> None:
        """One more batch of n examples."""
        loss = change.loss.numpy()
        if self._sample is not None:
            if len(loss) != n:
                raise DataError("examples= needs a loss of one value per example")
            self._rows.setdefault(name, []).append(loss)
        self._loss[name] = self._loss.get(name, 0) + n * loss.mean(0)
        if change.metric is not None:
            self._metric[name] = self._metric.get(name, 0) + n * change.metric.numpy().mean(0)
        self._base[name] = self._base.get(name, 0) + n * np.array(change.base)
        self._seen[name] = self._seen.get(name, 0) + n
        if change.why:
            self._how[name] = f"{_HOW[change.how]}: {change.why}"

    def result(self) -> Oracle:
        """The means.

        Raises:
            DataError: no batch was seen.
        """
        if not self._seen:
            raise DataError("the data is empty: no batch was given")
        examples = max(self._seen.values())
        base = dict(
            zip(("loss", "metric"), next(iter(self._base.values())) / examples, strict=False)
        )
        names = [name for name in self._order if name in self._seen]
        found = Oracle(
            {name: self._loss[name] / examples for name in names},
            {name: self._metric[name] / examples for name in names if self._metric},
            {what: float(value) for what, value in base.items()},
            examples,
            how=self._how,
        )
        if self._sample is None:
            return found
        rows = {name: np.concatenate(self._rows[name]) for name in names}
        return dataclasses.replace(
            found,
            loss={name: self._sample.mean(each) for name, each in rows.items()},
            error={name: self._sample.error(each) for name, each in rows.items()},
            rows=rows,
            sample=self._sample,
        )


_HOW = {"units": "one unit at a time, from its readers on", "forwards": "a whole forward a unit"}


def bytes_of(memory: int | str) -> int:
    """A number of bytes, from a number or a text such as '500 MB' or '2 GB'.

    Raises:
        ConfigError: it is neither, or not positive.

    >>> bytes_of("1.5 GB")
    1500000000
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kMG]?)B?\s*", str(memory))
    try:
        value = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if value < 1:
        raise ConfigError(f"memory is a number of bytes, or such as '2 GB', not {memory!r}")
    return int(value)
