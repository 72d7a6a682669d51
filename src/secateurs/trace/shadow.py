"""Run operations on shapes alone, so that a trace computes nothing and holds no memory.

Every tensor of the model and every input is shadowed by a meta tensor. Tensors that the code makes
by itself (index ranges, masks) stay real until they meet a shadow. The commonest operations take a
short cut: PyTorch's meta kernels are written in Python and cost more than a small convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

META = torch.device("meta")
aten = torch.ops.aten

_CONTRACTIONS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "mv"})

# Elementwise operations that keep the dtype of their floating operands.
_KEEP_DTYPE = frozenset(
    "add sub mul div relu hardtanh sigmoid silu gelu hardswish hardsigmoid clamp clamp_min tanh "
    "leaky_relu elu clone mish".split()
)

ShortCut: TypeAlias = Callable[[tuple[Any, ...]], Any]


class Shadow:
    """Executes operations on meta tensors that stand for real ones.

    Args:
        own: ids of the tensors of the model.
        device: where the real inputs are.
    """

    def __init__(self, own: set[int], device: torch.device):
        self.own, self.device = own, device
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}

    def twin(self, tensor: Tensor) -> Tensor:
        """The meta tensor that stands for this one."""
        if tensor.is_meta:
            return tensor
        known = self._twins.get(id(tensor))
        if known is None:
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META
            )
            known = self._twins[id(tensor)] = (tensor, made)
        return known[1]

    def run(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        """The operation's result, by shape.

        Args:
            func, args, kwargs: the operation.
            tensors: those among its arguments.

        Raises:
            TypeError: operands on two devices, or a contraction of two dtypes.
        """
        shadowed = any(t.is_meta or id(t) in self.own for t in tensors)
        if not shadowed:
            return func(*args, **kwargs)
        self._check(func, tensors)
        small = tuple(map(self._swap, args))
        name = func._schema.name[6:]
        if not kwargs:
            done = _short_cut(name, small)
            if done is not None:
                return done
        if "device" in kwargs:
            kwargs = {**kwargs, "device": META}
        return func(*small, **{key: self._swap(arg) for key, arg in kwargs.items()})

    def _check(self, func: Any, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if not tensor.is_meta and tensor.device != self.device and tensor.dim():
                raise TypeError(f"{func}: tensors on {tensor.device} and on {self.device}")
        if func._schema.name[6:] in _CONTRACTIONS and len({t.dtype for t in tensors}) > 1:
            dtypes = sorted({str(t.dtype) for t in tensors})
            raise TypeError(f"{func}: operands of {' and '.join(dtypes)}")

    def _swap(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.twin(arg)
        if type(arg) in (list, tuple) and any(type(item) is not int for item in arg):
            return [self._swap(item) for item in arg]
        return arg


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=META)


def _short_cut(name: str, args: tuple[Any, ...]) -> Any:
    """The result of a common operation on contiguous tensors; None where it is not one."""
    if name == "convolution":
        return _convolution(args)
    if name == "native_batch_norm" and not args[5] and args[0].is_contiguous():
        return _empty(args[0].shape, args[0]), _empty((0,), args[0]), _empty((0,), args[0])
    inplace = name[-1] == "_"
    if (name[:-1] if inplace else name) in _KEEP_DTYPE:
        return _elementwise(args, inplace)
    return None


def _elementwise(args: tuple[Any, ...], inplace: bool) -> Tensor | None:
    first = args[0]
    if not isinstance(first, Tensor) or not first.is_floating_point() or not first.is_contiguous():
        return None
    shape: tuple[int, ...] = tuple(first.shape)
    for other in args[1:]:
        if isinstance(other, Tensor):
            if other.dtype != first.dtype or not other.is_contiguous():
                return None
            if other.shape != first.shape:
                shape = torch.broadcast_shapes(shape, other.shape)
    if inplace:
        return first if shape == tuple(first.shape) else None
    return _empty(shape, first)


def _convolution(args: tuple[Any, ...]) -> Tensor | None:
    x, w, _, stride, padding, dilation, transposed, _, groups = args
    n = w.dim() - 2
    fits = x.dim() == n + 2 and x.is_contiguous() and x.shape[1] == w.shape[1] * groups
    if transposed or not fits:
        return None
    space = []
    for d in range(n):
        step, pad, spread = (v[d] if len(v) > 1 else v[0] for v in (stride, padding, dilation))
        size = (x.shape[2 + d] + 2 * pad - spread * (w.shape[2 + d] - 1) - 1) // step + 1
        if size < 1:
            return None
        space.append(size)
    return _empty((x.shape[0], w.shape[0], *space), x)
