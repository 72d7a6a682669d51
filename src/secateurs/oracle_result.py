"""What the oracle found: exact changes of the loss and a metric, unit by unit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .errors import ConfigError, DataError, FileError
from .exact.sample import Sample
from .files.store import load_tensors, save_tensors
from .scores import Scores
from .tables import render

Array = npt.NDArray[np.float64]

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
            kind: 'abs' `|ΔC|` or 'loss' ΔC in the loss; 'metric' what the metric loses.
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
        """Whether the sample tells two units of a group apart in `|ΔC|`.

        It does where ΔC_i differs from both ΔC_j and −ΔC_j, each by a paired t test: the examples
        are the same for both units, so that what they share cancels. Both must hold, so that
        units of equal `|ΔC|` are told apart in no more than 1 − level of all samples (as nearly as
        the differences are normal).

        Raises:
            DataError: the oracle saw no sample; then every difference is exact.
        """
        return bool(self._apart(group, i, level)[j])

    def tied(self, group: str, unit: int | None = None, level: float = 0.95) -> list[int]:
        """The units not `distinguishable` from one: by default from that of the least `|ΔC|`."""
        unit = int(np.abs(self.loss[group]).argmin()) if unit is None else unit
        apart = self._apart(group, unit, level)
        return [j for j in range(len(apart)) if j != unit and not apart[j]]

    def _apart(self, group: str, unit: int, level: float) -> npt.NDArray[np.bool_]:
        if self.sample is None:
            raise DataError("all examples were seen, and differences are exact; pass examples=")
        rows, own = self.rows[group], self.rows[group][:, [unit]]
        return self.sample.apart(rows - own, level) & self.sample.apart(rows + own, level)

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
