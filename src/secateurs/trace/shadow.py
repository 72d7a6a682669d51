"""Run operations on shapes alone, so that a trace computes nothing and holds no memory.

Every tensor of the model and every input is shadowed by a meta tensor. Tensors that the code makes
by itself (index ranges, masks) stay real until they meet a shadow. The commonest operations take a
short cut: PyTorch's meta kernels are written in Python and cost more than a small convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

META = torch.device("meta")
aten = torch.ops.aten

_CONTRACTIONS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "mv"})

# Elementwise operations that keep the dtype of their floating operands.
_KEEP_DTYPE = (
    "add sub mul div relu hardtanh sigmoid silu gelu hardswish hardsigmoid clamp clamp_min tanh "
    "leaky_relu elu clone mish".split()
)

Args: TypeAlias = tuple[Any, ...]


class Shadow:
    """Executes operations on meta tensors that stand for real ones.

    Args:
        device: where the real inputs are.

    Attributes:
        own: the ids of real tensors that operations are given: those of the model.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.own: set[int] = set()
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}
        self._origins: dict[int, int] = {}
        self._stale: set[int] = set()

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
            self._origins[storage(made)] = storage(tensor)
        return known[1]

    def storage(self, tensor: Tensor) -> int:
        """The memory that a tensor views; a shadow views that of what it stands for."""
        own = storage(tensor)
        return self._origins.get(own, own)

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
        own, stale = self.own, self._stale
        real = [t for t in tensors if not t.is_meta]
        if len(real) == len(tensors) and not any(
            id(t) in own or (stale and storage(t) in stale) for t in real
        ):
            return func(*args, **kwargs)
        name, mutable, short_cut = _facts(func)
        if mutable and not tensors[0].is_meta:
            stale.add(storage(tensors[0]))  # what is written to it has no values
        for tensor in real:
            if tensor.device != self.device and tensor.dim():
                raise TypeError(f"{name}: tensors on {tensor.device} and on {self.device}")
        if name in _CONTRACTIONS and len({t.dtype for t in tensors}) > 1:
            dtypes = sorted({str(t.dtype) for t in tensors})
            raise TypeError(f"{name}: operands of {' and '.join(dtypes)}")
        if short_cut is not None and not kwargs:
            done = short_cut(args)
            if done is not None:
                return done
        if "device" in kwargs:
            kwargs = {**kwargs, "device": META}
        return func(*map(self._swap, args), **{k: self._swap(arg) for k, arg in kwargs.items()})

    def _swap(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.twin(arg)
        if type(arg) in (list, tuple) and any(type(item) is not int for item in arg):
            return [self._swap(item) for item in arg]
        return arg


@functools.cache
def _facts(func: Any) -> tuple[str, bool, Callable[[Args], Any] | None]:
    """The name of an operation, whether it changes an operand, and its short cut."""
    name = func._schema.name[6:]
    return name, func._schema.is_mutable, _SHORT_CUTS.get(name)


def storage(tensor: Tensor) -> int:
    """A number for the memory that a tensor views."""
    return int(tensor.untyped_storage()._cdata)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=META)


@functools.cache
def _nothing(dtype: torch.dtype) -> Tensor:
    return torch.empty((0,), dtype=dtype, device=META)


def _plain(x: Any) -> bool:
    """Whether this is a contiguous tensor of floats, and so is what is made from it."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.is_contiguous()


def _elementwise(args: Args) -> Tensor | None:
    first = args[0]
    if not _plain(first):
        alone = not any(isinstance(other, Tensor) for other in args[1:])
        laid_out = alone and isinstance(first, Tensor) and first.is_floating_point()
        return torch.empty_like(first, device=META) if laid_out else None
    shape: tuple[int, ...] = tuple(first.shape)
    for other in args[1:]:
        if isinstance(other, Tensor):
            if other.dtype != first.dtype or not other.is_contiguous():
                return None
            if other.shape != first.shape:
                shape = torch.broadcast_shapes(shape, other.shape)
    return _empty(shape, first)


def _inplace(args: Args) -> Tensor | None:
    first = args[0]
    if not _plain(first) or not first.is_meta:
        return None
    same = all(
        other.dtype == first.dtype and other.shape == first.shape
        for other in args[1:]
        if isinstance(other, Tensor)
    )
    return first if same else None


def _convolution(args: Args) -> Tensor | None:
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


def _batch_norm(args: Args) -> tuple[Tensor, ...] | None:
    x, training = args[0], args[5]
    if not _plain(x) or (training and x.dtype in _HALVES):
        return None
    kept = _empty(x.shape[1:2], x) if training else _nothing(x.dtype)
    return _empty(x.shape, x), kept, kept.clone() if training else kept


def _layer_norm(args: Args) -> tuple[Tensor, ...] | None:
    x, normalized = args[0], args[1]
    last = x.dim() - len(normalized)
    if not x.is_floating_point() or x.dtype in _HALVES or list(x.shape[last:]) != list(normalized):
        return None
    shape = (*x.shape[:last], *(1 for _ in normalized))
    return _empty(x.shape, x), _empty(shape, x), _empty(shape, x)


def _group_norm(args: Args) -> tuple[Tensor, ...] | None:
    x, _, _, batch, channels, space, groups, _ = args
    fits = groups > 0 and channels % groups == 0 and x.numel() == batch * channels * space
    if not fits or not _plain(x) or x.dtype in _HALVES:
        return None
    return _empty(x.shape, x), _empty((batch, groups), x), _empty((batch, groups), x)


def _cat(args: Args) -> Tensor | None:
    first, dim = args[0][0], args[1] if len(args) > 1 else 0
    rests = {(x.dtype, *x.shape[:dim], None, *x.shape[dim:][1:]) for x in args[0]}
    fits = len(rests) == 1 and -first.dim() <= dim < first.dim()
    if not fits or not all(map(_plain, args[0])):
        return None
    shape = list(first.shape)
    shape[dim] = sum(x.shape[dim] for x in args[0])
    return _empty(tuple(shape), first)


def _addmm(args: Args) -> Tensor | None:
    bias, a, b = args
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]
    return _empty((a.shape[0], b.shape[1]), a) if fits else None


def _mean(args: Args) -> Tensor | None:
    x, dims, keep = (*args, None, False)[:3] if len(args) < 3 else args
    if not dims or not _plain(x):
        return None
    gone = {dim % x.dim() for dim in dims}
    shape = [1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone]
    return _empty(tuple(shape), x)


_HALVES = frozenset({torch.float16, torch.bfloat16})
_SHORT_CUTS: dict[str, Callable[[Args], Any]] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "addmm": _addmm,
    "cat": _cat,
    "mean": _mean,
    "_softmax": _elementwise,
    "_safe_softmax": _elementwise,
    **dict.fromkeys(_KEEP_DTYPE, _elementwise),
    **dict.fromkeys((f"{name}_" for name in _KEEP_DTYPE), _inplace),
}
