"""The state of a run of `sparsify` between two updates, in one file that is written whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..report.record import Count
from .checkpoint import Place, read, write

FORMAT = "secateurs.sparsify/1"
PARTS = ("model", "masks", "good", "good_masks", "optimizer")
Stopped = Literal["", "done", "floor", "nan", "interrupted"]


class Change(BaseModel):
    """What one change of the masks did.

    Attributes:
        update: after how many weight updates.
        pruned, spliced: how many weights went, and how many came back.
        kept: parameters of the network that are kept now.
        layers: layer -> how many of its parameters are kept now.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    update: Count
    pruned: Count
    spliced: Count
    kept: Count
    layers: dict[str, Count]


class _Record(BaseModel):
    """The part of a checkpoint that is JSON, checked strictly; a callback may have said more."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal["secateurs.sparsify/1"]
    update: Count
    numbers: dict[str, Any]
    place: Place
    history: Annotated[list[dict[str, Any]], Field(min_length=1)]
    settings: dict[str, Any]
    terms: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]
    losses: list[float]
    changes: list[Change]
    stopped: Stopped
    finished: bool


@dataclass
class MaskCheckpoint:
    """Everything that the rest of a run depends on.

    Attributes:
        update: how many weight updates are done, those of the warm-up among them.
        model: the tensors of the working model, the dense weights among them.
        masks: as `Masks.to_tensors` packs them.
        good, good_masks: the same at the last evaluation, to go back to; empty where that is now.
        optimizer, numbers: what the optimizer remembers, tensors and plain numbers.
        place: the stream's epoch and index.
        history: one record per evaluation.
        settings: what the run was started with; another run refuses to resume it.
        terms: layer -> mean and deviation, where they were taken at the start.
        losses, changes: since the last evaluation.
        stopped, finished: why the run stopped, and whether for good.
    """

    update: int
    model: dict[str, Tensor]
    masks: dict[str, Tensor]
    good: dict[str, Tensor]
    good_masks: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    numbers: dict[str, Any]
    place: tuple[int, int]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    terms: dict[str, tuple[float, float]]
    losses: list[float]
    changes: list[dict[str, Any]]
    stopped: str
    finished: bool

    @property
    def over(self) -> bool:
        """Whether the run came to its end."""
        return self.finished

    def save(self, directory: Path) -> None:
        """Write it to a directory, whole or not at all."""
        record = {name: value for name, value in vars(self).items() if name not in PARTS}
        parts = {name: getattr(self, name) for name in PARTS}
        write(directory, {"format": FORMAT, **record}, parts)

    @classmethod
    def load(cls, directory: Path) -> MaskCheckpoint:
        """Read a checkpoint.

        Raises:
            FileError: it is missing, truncated or not a checkpoint of `sparsify`.
        """
        record, parts = read(directory, _Record)
        plain = record.model_dump(exclude={"format"})
        plain["place"] = tuple(record.place)
        plain["terms"] = {layer: tuple(pair) for layer, pair in record.terms.items()}
        return cls(**plain | {name: parts[name] for name in PARTS})
