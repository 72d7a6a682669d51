"""The state of a run after a step, in one file that is written whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..files.store import load_tensors, save_tensors
from ..plan import Plan

NAME = "checkpoint.safetensors"
FORMAT = "secateurs.checkpoint/1"


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
        try:
            record = json.loads(metadata["checkpoint"])
            if record["format"] != FORMAT:
                raise ValueError(record["format"])
            return cls(
                int(record["step"]),
                Plan.from_dict(record["plan"]),
                _under(tensors, "model/"),
                _under(tensors, "optimizer/"),
                dict(record["numbers"]),
                (int(record["place"][0]), int(record["place"][1])),
                list(record["history"]),
                dict(record["settings"]),
                _under(tensors, "importance/"),
                str(record["finished"]),
                dict(record["extra"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise FileError(f"{path} is not a checkpoint of this library: {error!r}") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
