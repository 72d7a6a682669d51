"""Torch functions that are called again on shapes, with what a cut leaves."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..trace.analyse import Analysis
from ..trace.operations import decompose
from ..trace.program import Call, Ref
from ..trace.rules import supported
from ..trace.sizes import Cut
from .restate import with_sizes


class Again:
    """Calls a function again, on shapes alone, with what the cut leaves."""

    def __init__(self, analysis: Analysis, call: Call, cut: Cut):
        self.analysis, self.cut, self.call = analysis, cut, call
        self.known = True
        invocation = call.invocation
        self.function: Any = invocation.function if invocation else None
        self.given = (invocation.args, invocation.kwargs) if invocation else ((), {})
        self.args, self.kwargs = pytree.tree_map_only(Ref, self._left, self.given)
        result = pytree.tree_leaves(invocation.result if invocation else None)
        self.wanted = [self._shape(ref) for ref in result]

    def _left(self, ref: Ref) -> torch.Tensor | None:
        shape = self._shape(ref)
        if shape is None:
            self.known = False
            return None
        return torch.empty(shape, dtype=self.analysis.program.values[ref.id].dtype, device="meta")

    def _shape(self, ref: Any) -> list[int] | None:
        """What the cut leaves of a value; None if nothing is known of it."""
        axes = self.analysis.axes.get(ref.id) if isinstance(ref, Ref) else None
        return None if axes is None else [self.cut.size(axis) for axis in axes]

    @functools.cached_property
    def _steps(self) -> list[list[int] | None]:
        """What the cut leaves of every value that the function makes on the way."""
        program = self.analysis.program
        nodes = [n for n in (*program.nodes, *program.aside.nodes) if n.call is self.call]
        return [self._shape(Ref(i)) for n in nodes for i in n.outputs if i is not None]

    def fits(self, sizes: Mapping[int, int], *, sure: bool) -> bool:
        """Whether it makes what the cut needs, given these sizes, by their places.

        A shuffle of channels makes as many of them, whatever it is given: what is made on the
        way tells, where the uncut function is taken apart as it was in the trace. If what it is
        given makes it go another way, that is left open, unless it must be sure.
        """
        args, kwargs = with_sizes(self.args, self.kwargs, sizes)
        try:
            made, way = self._called(args, kwargs)
        except Exception:  # noqa: BLE001 - whatever it is, it cannot run so
            return False
        if not _agree(made, self.wanted):
            return False
        if not self._followed or len(way) != len(self._steps):
            return not (sure and self._followed)
        return _agree(way, self._steps)

    @functools.cached_property
    def _followed(self) -> bool:
        """Whether it is taken apart here, uncut, as it was in the trace."""
        args, kwargs = pytree.tree_map_only(Ref, self._whole, self.given)
        return len(self._called(args, kwargs)[1]) == len(self._steps)

    def _called(self, args: Any, kwargs: Any) -> tuple[list[list[int]], list[list[int]]]:
        """The shapes of what it returns, and of all that it makes on the way."""
        with _Made() as way:
            made = self.function(*args, **kwargs)
        return [list(leaf.shape) for leaf in pytree.tree_leaves(made)], way.shapes

    def _whole(self, ref: Ref) -> torch.Tensor:
        value = self.analysis.program.values[ref.id]
        return torch.empty(value.shape, dtype=value.dtype, device="meta")


class _Made(TorchDispatchMode):
    """Notes the shapes of what is made, by operations taken apart as in a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[list[int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not supported(func):
            decomposed = decompose(self, func, args, kwargs or {})
            if decomposed is not NotImplemented:
                return decomposed
        made = func(*args, **kwargs or {})
        leaves = pytree.tree_leaves(made)
        self.shapes += [list(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return made


def _agree(made: Sequence[list[int]], wanted: Sequence[list[int] | None]) -> bool:
    """Whether all shapes are those that are wanted; None where nothing is known of one."""
    return len(made) == len(wanted) and all(
        want is None or shape == want for shape, want in zip(made, wanted, strict=True)
    )
