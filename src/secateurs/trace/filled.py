"""Tensors that hold one number everywhere: the initial states of recurrent nets, masks of ones."""

from __future__ import annotations

from .program import Node, Ref

_CREATE = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0} | dict.fromkeys(
    ("ones", "ones_like", "new_ones"), 1.0
)
_FULL = frozenset({"full", "full_like", "new_full"})
_KEEP = frozenset(
    "alias clone contiguous detach _to_copy lift_fresh view _unsafe_view reshape _reshape_alias "
    "unsqueeze squeeze flatten permute transpose t expand repeat select unbind slice split "
    "split_with_sizes unsafe_split unsafe_split_with_sizes cat stack flip roll".split()
)


class Filled:
    """Which values of a program hold one number everywhere, and which number.

    Which units such a tensor loses does not matter, only how many.
    """

    def __init__(self) -> None:
        self._number: dict[int, float] = {}
        self._base: dict[int, int] = {}

    def __contains__(self, ident: int) -> bool:
        return ident in self._number

    def zero(self, ident: int) -> bool:
        """Whether this value is zero everywhere."""
        return self._number.get(ident) == 0

    def follow(self, node: Node, name: str) -> None:
        """Take note of what a node makes, or writes over."""
        if node.op._schema.is_mutable:
            self._forget(node.inputs[0])
            return
        number = self._made(node, name)
        if number is None:
            return
        base = self._base.get(node.inputs[0]) if node.inputs and name in _KEEP else None
        for out in node.outputs:
            if out is not None:
                self._number[out] = number
                self._base[out] = out if base is None else base

    def _made(self, node: Node, name: str) -> float | None:
        if name in _CREATE:
            return _CREATE[name]
        if name in _FULL:
            number = node.kwargs.get("fill_value", node.args[-1])
            return float(number) if isinstance(number, (int, float)) else None
        if name in _KEEP and node.inputs and not any(isinstance(a, Ref) for a in node.args[1:]):
            numbers = {self._number.get(ident) for ident in node.inputs}
            return numbers.pop() if len(numbers) == 1 else None
        return None

    def _forget(self, ident: int) -> None:
        """What is written to under one name changes under all of them."""
        base = self._base.get(ident)
        for known in [i for i, own in self._base.items() if own == base]:
            del self._base[known], self._number[known]
