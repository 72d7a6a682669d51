"""The state of a run of `prune` after a step, in one file that is written whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..atomic import parse_json
from ..errors import FileError
from ..files.store import load_tensors, save_tensors
from ..plan import Plan
from ..report.record import Count, Step

NAME = "checkpoint.safetensors"
FORMAT = "secateurs.checkpoint/1"
R = TypeVar("R", bound=BaseModel)
Parts: TypeAlias = dict[str, dict[str, Tensor]]
Place = Annotated[list[Count], Field(min_length=2, max_length=2)]
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
    place: Place
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

    @property
    def over(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.finished)

    def save(self, directory: Path) -> None:
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
        parts = {"model": self.model, "optimizer": self.optimizer, "importance": self.importance}
        write(directory, record, parts)

    @classmethod
    def load(cls, directory: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            FileError: it is missing, truncated or not a checkpoint.
        """
        record, parts = read(directory, _Record)
        try:
            plan = Plan.from_dict(record.plan)
        except FileError as error:
            raise _foreign(directory, str(error)) from error
        return cls(
            record.step,
            plan,
            parts["model"],
            parts["optimizer"],
            record.numbers,
            (record.place[0], record.place[1]),
            [step.model_dump() for step in record.history],
            record.settings,
            parts["importance"],
            record.finished,
            record.extra.model_dump(),
        )


def write(directory: Path, record: dict[str, Any], parts: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a checkpoint: a record of plain data, and tensors in parts of a name each."""
    tensors = {f"{part}/{n}": t for part, own in parts.items() for n, t in own.items()}
    save_tensors(directory / NAME, tensors, {"checkpoint": json.dumps(record)})


def read(directory: Path, kind: type[R]) -> tuple[R, Parts]:
    """What `write` wrote, with a record of this kind.

    Raises:
        FileError: it is missing, truncated or not such a checkpoint.
    """
    tensors, metadata = load_tensors(directory / NAME)
    where = f"the record in {directory / NAME}"
    data = parse_json(metadata.get("checkpoint", "null"), where, finite=False)
    try:
        record = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        raise _foreign(directory, f"{place}: {first['msg']}") from error
    parts: Parts = defaultdict(dict)
    for path, tensor in tensors.items():
        part, _, name = path.partition("/")
        parts[part][name] = tensor
    return record, parts


def _foreign(directory: Path, why: str) -> FileError:
    return FileError(f"{directory / NAME} is not a checkpoint of this kind of run: {why}")
