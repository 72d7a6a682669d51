"""A model of another library, as far as the rest of the library works on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .trace.program import Program
from .trace.record import record
from .trace.rules import supported

if TYPE_CHECKING:
    from .groups import Graph
    from .plan import Plan


class FrontEnd(nn.Module, ABC):
    """A module that stands for a model that is traced and cut in a way of its own.

    Its parameters are the tensors of that model, by the names that its groups and plans use. It is
    called with torch tensors, and its copies stand for copies of the model.
    """

    @abstractmethod
    def traced(self, example_inputs: Any) -> Graph:
        """See `gates.trace`."""

    @abstractmethod
    def recorded(self, example_inputs: Any) -> Program:
        """See `trace.record.record`."""

    @abstractmethod
    def cut(self, plan: Plan, *, inplace: bool) -> FrontEnd:
        """The same without the units of a plan; itself, standing for the smaller model, in place.

        Raises:
            SecateursError: the plan does not fit the model; nothing was changed.
        """

    @abstractmethod
    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Give the model's tensors these values, of their shapes."""

    @abstractmethod
    def maskable(self) -> set[str]:
        """The names of the weights that are masked unless others are named."""

    @abstractmethod
    def wrote(self, names: Iterable[str]) -> None:
        """Hear that the data of these tensors was exchanged, and hand it to the model."""


def recorded(model: nn.Module, example_inputs: Any) -> Program:
    """What one run of a model of either kind did; see `trace.record.record`."""
    if isinstance(model, FrontEnd):
        return model.recorded(example_inputs)
    return record(model, example_inputs, supported)
