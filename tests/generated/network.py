"""A generated network: the code of a plain module, which can be run, printed and pasted."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn

_NORMS = ("F.normalize", "weight_norm", "spectral_norm", "torch.sum")


@dataclass(frozen=True)
class Module:
    """A class of modules: the lines of its two methods, and the arguments of `forward`."""

    name: str
    init: tuple[str, ...]
    forward: tuple[str, ...]
    arguments: tuple[str, ...]

    @property
    def code(self) -> str:
        """The source of the class."""
        made = "".join(f"        {line}\n" for line in ("super().__init__()", *self.init))
        run = "".join(f"        {line}\n" for line in self.forward)
        arguments = ", ".join(f"{name}: Tensor" for name in self.arguments)
        return (
            f"class {self.name}(nn.Module):\n    def __init__(self) -> None:\n{made}\n"
            f"    def forward(self, {arguments}) -> Any:\n{run}"
        )


@dataclass(frozen=True)
class Network:
    """What is in a module, and how its inputs are made.

    Attributes:
        modules: its classes, that of the whole last.
        inputs: name of each argument -> the expression that makes it.
    """

    modules: tuple[Module, ...]
    inputs: tuple[tuple[str, str], ...]

    @property
    def code(self) -> str:
        """The source of its classes."""
        return "\n\n".join(module.code for module in self.modules)

    @property
    def by_weights(self) -> bool:
        """Whether units are read by weights alone: a norm reads what it divides by, a sum all."""
        return not any(name in self.code for name in _NORMS)

    def __repr__(self) -> str:
        return f"\n{self.code}\n\nINPUTS = ({''.join(f'{made}, ' for _, made in self.inputs)})\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis would show the fields

    def module(self) -> nn.Module:
        """The module, in float64 and eval mode, with weights that hide nothing."""
        name = f"<network {hash(self.code)}>"  # its lines are shown where it raises
        linecache.cache[name] = (len(self.code), None, self.code.splitlines(True), name)
        names: dict[str, Any] = {"nn": nn, "torch": torch, "F": F, "Tensor": Tensor, "Any": Any}
        exec(compile(self.code, name, "exec", dont_inherit=True), names)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return doubled(names["Net"]())

    def example(self) -> tuple[Tensor, ...]:
        """Inputs: numbers in float64, or indices."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return doubled(tuple(eval(text, {"torch": torch}) for _, text in self.inputs))
