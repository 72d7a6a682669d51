"""A comparison as it was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..atomic import read_text
from ..errors import FileError
from .record import Experiment, Setting

_EXPERIMENT: TypeAdapter[Experiment] = TypeAdapter(Experiment)


@dataclass
class Comparison:
    """What was compared, and every experiment.

    Attributes:
        setting: the network, the data, the budgets.
        lines: one experiment each.
    """

    setting: Setting
    lines: list[Experiment]

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read JSON lines; a torn last line is left out.

        Raises:
            FileError: the file is missing or is something else; names the line.
        """
        whole, _, _ = read_text(path).rpartition("\n")
        number = 1
        try:
            setting = Setting.model_validate_json(whole.split("\n")[0])
            lines = []
            for number, text in enumerate(whole.split("\n")[1:], 2):
                lines.append(_EXPERIMENT.validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            raise FileError(f"line {number} of {path} is not of a comparison: {first['msg']}") from error
        return cls(setting, lines)
