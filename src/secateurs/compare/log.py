"""The file of a comparison, written a line at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..atomic import write_text
from ..errors import FileError
from .record import Experiment, Line, Setting

NAME = "comparison.jsonl"


class Trial(NamedTuple):
    """What names an experiment: two lines of one trial would say the same."""

    kind: str
    criterion: str = ""
    seed: int = 0
    form: str = ""
    budget: float = 1.0
    group: str = ""
    removed: float = 0.0

    @classmethod
    def of(cls, line: Experiment) -> Trial:
        """The trial whose result a line holds."""
        own = type(line).model_fields
        return cls(**{name: getattr(line, name) for name in cls._fields if name in own})


class Log:
    """The lines of a comparison, in memory and, if it has a path, in a file.

    Every line is on the disk before the next experiment ends; a line that a crash tore off is
    dropped when the file is read again.
    """

    def __init__(self, setting: Setting, path: Path | None):
        self.setting, self.path = setting, path
        self.lines: dict[Trial, Experiment] = {}

    def start(self) -> None:
        """Write the setting and the lines so far; what was at the path is replaced.

        Raises:
            FileError: the system refuses.
        """
        if self.path is not None:
            every: Iterable[Line] = (self.setting, *self.lines.values())
            write_text(self.path, "".join(map(_text, every)))

    def add(self, line: Experiment) -> None:
        """Keep one more line.

        Raises:
            FileError: the system refuses.
        """
        self.lines[Trial.of(line)] = line
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_text(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error


def _text(line: Line) -> str:
    return line.model_dump_json() + "\n"
