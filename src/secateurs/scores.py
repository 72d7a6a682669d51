"""The importance of every unit, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """One importance per unit per group, higher = keep.

    Attributes:
        values: group -> (units,) float64; `scores[group]` is the same.
        criterion: its name.
        examples: how many examples were seen.
        assumed: how the loss was read: one value per example, or the mean over examples.
        unscored: group -> why the criterion does not apply to it. Ranking leaves it alone.
        sites: group -> where its activation was read, by criteria that look at activations.
        error: group -> (units,) standard errors, by criteria that draw numbers; empty where a
            single draw tells none.

    >>> import numpy as np
    >>> scores = Scores({"conv1": np.array([0.2, 0.1, 0.3])}, "taylor", examples=64)
    >>> scores["conv1"].argsort()[:2].tolist()  # the two least important units
    [1, 0]
    """

    values: dict[str, Array]
    criterion: str
    examples: int = 0
    assumed: str = ""
    unscored: dict[str, str] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    error: dict[str, Array] = field(default_factory=dict)

    def __getitem__(self, group: str) -> Array:
        """The importance of each unit of a group, (units,)."""
        return self.values[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """The scores that `to_dict` described."""
        arrays = {key: _arrays(data.get(key, {})) for key in ("values", "error")}
        return cls(**{**data, **arrays})

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data."""
        lists = {
            key: {name: array.tolist() for name, array in getattr(self, key).items()}
            for key in ("values", "error")
        }
        return {f.name: lists.get(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)}


def _arrays(values: dict[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(v, dtype=np.float64) for name, v in values.items()}
