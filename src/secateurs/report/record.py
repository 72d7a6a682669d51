"""The record of a pruning run: what a report is made from, and nothing else.

`record.json` holds what is small, `scores.safetensors` the importance of every unit at every step;
the plan and the history stand in their own files beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from ..atomic import read_text, write_text
from ..errors import FileError
from ..files.store import HISTORY, PLAN, load_tensors, save_tensors
from ..plan import Plan

RECORD, SCORES = "record.json", "scores.safetensors"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Scored = Mapping[str, npt.NDArray[np.float32]]
T = TypeVar("T")


class Part(BaseModel):
    """A part of a record; an unknown key or a wrong type is an error."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants"
    )


class GroupRecord(Part):
    """A group of the uncut network.

    Attributes:
        why_inexact: the statistic that is taken over it; empty for an exact group.
        allowed: whether the limits of the run let its units go.
        members: the paths of the modules that it touches.
    """

    name: str
    kind: str
    size: Count
    why_inexact: str
    allowed: bool
    members: list[str]


class Layer(Part):
    """An axis of a weight along which a layer makes its units."""

    tensor: str
    dim: Count
    size: Count

    @property
    def name(self) -> str:
        return self.tensor.removesuffix(".weight")


class FrozenAxis(Part):
    """A parameter axis that cannot be cut."""

    tensor: str
    dim: Count
    size: Count


class Network(Part):
    """What a trace found in the uncut network.

    Attributes:
        name: of its class.
        inputs: type and shape of each tensor that it was traced and counted with.
        bytes: of its parameters and buffers.
        frozen: reason -> the axes that are frozen for it.
    """

    name: str
    inputs: list[str]
    bytes: Count
    groups: list[GroupRecord]
    layers: list[Layer]
    frozen: dict[str, list[FrozenAxis]]


class Size(Part):
    """What a network costs; `macs` are of one run on the example inputs."""

    macs: Count
    params: Count
    units: Count
    bytes: Count


class Deviation(Part):
    """The proof: how far the cut network is from the original gated at its reads."""

    exact: bool
    max_error: float
    max_relative_error: float
    tolerance: float
    replay: bool = False

    @property
    def holds(self) -> bool:
        return self.max_relative_error <= self.tolerance


class Seconds(Part):
    """Seconds of one forward pass: median and quartiles."""

    median: Annotated[float, Field(gt=0)]
    low: float
    high: float


class Origin(Part):
    """Where a run was made, and with what."""

    versions: dict[str, str]
    platform: str
    device: str
    threads: Count
    command: str
    finished: str


class Run(Part):
    """All that `record.json` holds.

    Attributes:
        latency: what was timed -> before and after.
        targets: measure -> what was to be reached.
        stopped: why the run ended.
        options: see `secateurs.process.options.Options`.
    """

    format: Literal["secateurs.record/1"]
    network: Network
    before: Size
    after: Size
    proof: Deviation
    latency: dict[str, tuple[Seconds, Seconds]]
    targets: dict[Literal["macs", "params", "units"], Count]
    criterion: str
    metric: str
    mode: Literal["max", "min"]
    stopped: str
    options: dict[str, JsonValue]
    origin: Origin


class Step(BaseModel):
    """One entry of the history; callbacks may have added others, which are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    step: Count
    removed: dict[str, Count]
    macs: Count
    params: Count
    units: Count
    loss: float | None
    metric: float | None
    seconds: float


@dataclass(frozen=True)
class Record:
    """A finished run, as plain data.

    Attributes:
        run: the network, before and after, the proof, options and versions.
        plan: everything that was removed.
        history: the network before the first removal, and after every step.
        importance: group -> (steps, units) float32, what each removal was chosen by; NaN for units
            that were gone by then, or that were the last of their group.
    """

    run: Run
    plan: Plan
    history: list[Step]
    importance: Scored

    def __str__(self) -> str:
        from .text import render_text

        return render_text(self)

    def save(self, directory: str | Path) -> None:
        """Write `record.json` and `scores.safetensors` beside plan and history."""
        tensors = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in self.importance.items()}
        save_tensors(Path(directory) / SCORES, tensors)
        write_text(Path(directory) / RECORD, self.run.model_dump_json(indent=1))

    @classmethod
    def load(cls, directory: str | Path) -> Record:
        """Read what `result.save` wrote.

        Raises:
            FileError: a file is missing, truncated, foreign, or at odds with the others.
        """
        folder = Path(directory)
        if not (folder / RECORD).is_file():
            raise FileError(
                f"{folder} holds no {RECORD}; name a folder that result.save or "
                "`secateurs prune` wrote (sc.save keeps a network, not how it came about)"
            )
        record = cls(
            _read(folder / RECORD, TypeAdapter(Run)),
            Plan.load(folder / PLAN),
            _read(folder / HISTORY, TypeAdapter(list[Step])),
            {name: t.numpy() for name, t in _scores(folder / SCORES).items()},
        )
        record.check(folder)
        return record

    def check(self, where: object) -> None:
        """Refuse parts that are not of one run.

        Raises:
            FileError: names what does not fit.
        """
        groups = {group.name: group.size for group in self.run.network.groups}
        layers = {(layer.tensor, layer.dim): layer.size for layer in self.run.network.layers}
        slices = self.plan.tensors
        if not self.history:
            raise FileError(f"{where}: the history is empty")
        for name, size in self.plan.sizes.items():
            if groups.get(name) != size:
                raise FileError(f"{where}: group {name!r} of the plan is not in {RECORD}")
        for (tensor, dim), size in layers.items():
            shape = slices[tensor].shape if tensor in slices else None
            if shape is not None and (dim >= len(shape) or shape[dim] != size):
                raise FileError(f"{where}: {tensor!r} of the plan is not the one in {RECORD}")
        for name, values in self.importance.items():
            if values.ndim != 2 or values.shape[1] != groups.get(name):
                raise FileError(f"{where}: the scores of group {name!r} do not fit {RECORD}")
            if len(values) > self.history[-1].step:
                raise FileError(f"{where}: there are more scores than steps of group {name!r}")


def _scores(path: Path) -> dict[str, torch.Tensor]:
    tensors, _ = load_tensors(path)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise FileError(f"{path}: the scores of group {name!r} are {tensor.dtype}, not float32")
    return tensors


def _read(path: Path, kind: TypeAdapter[T]) -> T:
    """A JSON file of this form.

    Raises:
        FileError: it is missing or something else, and where.
    """
    text = read_text(path)
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        where = "; ".join(f"{_place(e)}{e['msg']}" for e in error.errors()[:3])
        raise FileError(f"{path} is not a record of this version: {where}") from error


def _place(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: " if place else ""
