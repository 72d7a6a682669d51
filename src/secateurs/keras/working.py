"""A Keras model as the criteria, the oracle and the process work on it."""

from __future__ import annotations

from typing import Any

import torch

from ..frontend import FrontEnd
from ..groups import Graph
from ..plan import Plan
from ..trace.program import Program
from .carry import carry, native
from .cut import apply, trace
from .layers import Layer, variables_of
from .module import Module
from .rebuild import Change, Rebuilt
from .recorded import program_of


class Working(Module, FrontEnd):
    """The module that stands for a Keras model, and is traced, cut and copied as that is.

    Attributes:
        model: the Keras model; to cut it in place is to put the smaller one here.
    """

    model: Layer

    def traced(self, example_inputs: Any) -> Graph:
        """See `FrontEnd.traced`."""
        return trace(self.model, example_inputs)

    def recorded(self, example_inputs: Any) -> Program:
        """See `FrontEnd.recorded`."""
        return program_of(self.model, example_inputs)

    def cut(self, plan: Plan, *, inplace: bool) -> Working:
        """See `FrontEnd.cut`."""
        small = apply(self.model, plan)
        if not inplace:
            return Working(small)
        self.stand_for(small)
        return self

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `FrontEnd.fill`."""
        for name, variable in variables_of(self.model).items():
            variable.assign(native(tensors[name]))
        self.stand_for(self.model)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """The weights, each once, by the names of the variables."""
        return {name: p for name, p in self._parameters.items() if p is not None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Working:
        return Working(copied(self.model))


def copied(model: Layer) -> Layer:
    """The model built anew, with its weights and its compiled state."""
    return carry(model, Rebuilt(model, Change()), {}, {})
