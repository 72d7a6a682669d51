"""The state of a run after a step, in one file that is written whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..atomic import parse_json
from ..errors import FileError
from ..files.store import load_tensors, save_tensors
from ..plan import Plan
from ..report.record import Count, Step

NAME = "checkpoint.safetensors"
FORMAT = "secateurs.checkpoint/1"
Stopped = Literal["", "budget", "floor", "nan", "interrupted", "exhausted"]


class _Step(Step):
    """What the history says of one step; a callback may have said more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Scores(BaseModel):
    """As `Scores.to_dict` gives them."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    criterion: str
    examples: Count
    assumed: str
    values: dict[str, list[float]]
    unscored: dict[str, str] = {}
    sites: dict[str, str] = {}
    error: dict[str, list[float]] = {}


class _Extra(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    stopped: Stopped
    scores: _Scores | None


class _Record(BaseModel):
    """The part of a checkpoint that is JSON, checked strictly."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal["secateurs.checkpoint/1"]
    step: Count
    plan: dict[str, Any]
    numbers: dict[str, Any]
    place: Annotated[list[Count], Field(min_length=2, max_length=2)]
    history: Annotated[list[_Step], Field(min_length=1)]
    settings: dict[str, Any]
    finished: Stopped
    extra: _Extra


@dataclass
class Checkpoint:
    """Everything that the rest of a run depends on.

    Attributes:
        step: how many removals are done.
        plan: what they removed, from the original model.
        model: the working model's tensors.
        optimizer, numbers: what the optimizer remembers, tensors and plain numbers.
        place: the stream's epoch and index.
        history: one record per step.
        settings: what the run was started with; another run refuses to resume it.
        importance: group -> (steps, units), what each removal was chosen by.
        finished: whether the budget was met, the floor crossed, and so on; empty while running.
    """

    step: int
    plan: Plan
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    numbers: dict[str, Any]
    place: tuple[int, int]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    importance: dict[str, Tensor]
    finished: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        tensors |= {f"importance/{name}": tensor for name, tensor in self.importance.items()}
        record = {
            "format": FORMAT,
            "step": self.step,
            "plan": self.plan.to_dict(),
            "numbers": self.numbers,
            "place": list(self.place),
            "history": self.history,
            "settings": self.settings,
            "finished": self.finished,
            "extra": self.extra,
        }
        save_tensors(directory / NAME, tensors, {"checkpoint": json.dumps(record)})

    @classmethod
    def load(cls, directory: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            FileError: it is missing, truncated or not a checkpoint.
        """
        path = directory / NAME
        tensors, metadata = load_tensors(path)
        data = parse_json(metadata.get("checkpoint", "null"), f"the record in {path}", finite=False)
        try:
            record = _Record.model_validate(data)
            plan = Plan.from_dict(record.plan)
        except (ValidationError, FileError) as error:
            raise FileError(
                f"{path} is not a checkpoint of this library: {_told(error)}"
            ) from error
        return cls(
            record.step,
            plan,
            _under(tensors, "model/"),
            _under(tensors, "optimizer/"),
            record.numbers,
            (record.place[0], record.place[1]),
            [step.model_dump() for step in record.history],
            record.settings,
            _under(tensors, "importance/"),
            record.finished,
            record.extra.model_dump(),
        )


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the record'}: {first['msg']}"


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
