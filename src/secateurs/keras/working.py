"""A Keras model as the criteria, the oracle and the process work on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..frontend import FrontEnd
from ..groups import Graph
from ..plan import Plan
from ..sparse.splicing import layers_of as by_layer
from ..trace.program import Program
from .carry import carry, native
from .cut import apply, trace
from .layers import Layer, layers_of, variables_of
from .module import Module
from .rebuild import Change, Rebuilt
from .recorded import program_of

# Layers whose weights stand for themselves, or are made anew as the model is trained.
_WHOLE = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
    keras.layers.SpectralNormalization,
)


class Working(Module, FrontEnd):
    """The module that stands for a Keras model, and is traced, cut and copied as that is.

    Attributes:
        model: the Keras model; to cut it in place is to put the smaller one here.
    """

    model: Layer
    _programs: dict[Any, Program]

    def stand_for(self, model: Layer, names: Iterable[str] | None = None) -> None:
        """See `Module.stand_for`."""
        if self.__dict__.get("model") is not model:
            self.__dict__["_programs"] = {}  # shapes of the inputs -> what the model does with them
        super().stand_for(model, names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `Module.forward`; what derivatives are taken of is replayed with torch."""
        derived = any(p.requires_grad for p in self.parameters()) and torch.is_grad_enabled()
        if keras.backend.backend() == "torch" or not derived:
            return super().forward(*args, **kwargs)
        inputs = kwargs or args
        leaves, spec = pytree.tree_flatten(inputs)
        key = (str(spec), *((tuple(leaf.shape), leaf.dtype) for leaf in leaves))
        if key not in self._programs:
            self._programs[key] = self.recorded(inputs)
        return self._programs[key].replay(self.state_dict(), leaves)

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

    def maskable(self) -> set[str]:
        """See `FrontEnd.maskable`."""
        leaves = layers_of(self.model).values()
        whole = {id(v) for leaf in leaves if isinstance(leaf, _WHOLE) for v in leaf.weights}
        sizes = {
            name: tuple(variable.shape)
            for name, variable in variables_of(self.model).items()
            if variable.trainable and variable.shape and id(variable) not in whole
        }
        layers = by_layer(sizes).values()
        return {name for own in layers if any(len(sizes[n]) > 1 for n in own) for name in own}

    def wrote(self, names: Iterable[str]) -> None:
        """See `FrontEnd.wrote`; on the torch backend the tensors are the model's own."""
        if keras.backend.backend() != "torch":
            own, tensors = variables_of(self.model), self.state_dict()
            for name in names:
                own[name].assign(native(tensors[name]))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights, each once, by the names of the variables."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                yield (f"{prefix}.{name}" if prefix else name), parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """The weights, each once, by the names of the variables."""
        return {name: p for name, p in self._parameters.items() if p is not None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Working:
        return Working(copied(self.model))


def copied(model: Layer) -> Layer:
    """The model built anew, with its weights and its compiled state."""
    return carry(model, Rebuilt(model, Change()), {}, {})
