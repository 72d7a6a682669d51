"""What a tensor loses, and how it is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from .trace.labels import Ints

# what stays along a dimension: its indices, and the numbers of equal runs and their length
Kept: TypeAlias = tuple[torch.Tensor, torch.Tensor, int]
# by the id of the list of indices that go, the size, and the device
Known: TypeAlias = dict[tuple[int, int, torch.device], Kept]

_CACHED = 1 << 20  # bytes that stay in a processor's cache from one pass to the next
_HUGE = 1 << 21  # bytes of a huge page, far quicker to fill than as much memory in small ones


def complement(indices: Sequence[int] | Ints, size: int) -> Ints:
    """The indices below `size` that are not among these."""
    mask = np.ones(size, dtype=bool)
    mask[np.asarray(indices, dtype=np.int64)] = False
    return np.flatnonzero(mask)


@dataclass(frozen=True)
class Slices:
    """What one tensor loses: per dimension, one list of indices, or one list per block.

    A dimension of a grouped kernel may lose other indices in each of `len(blocks)` equal runs of
    rows (dimension 0); all blocks lose equally many.

    Attributes:
        shape: of the tensor before the cut.
        removed: dimension -> the indices that go, one list per block.
    """

    shape: tuple[int, ...]
    removed: dict[int, list[list[int]]]

    @property
    def new_shape(self) -> tuple[int, ...]:
        """The tensor's shape after the cut."""
        return tuple(n - len(self.removed.get(d, [[]])[0]) for d, n in enumerate(self.shape))

    def axis(self, dim: int) -> tuple[int, int]:
        """How long the axis along a dimension is, before and after; over all its blocks."""
        blocks, size = self.removed[dim], self.shape[dim]
        return size * len(blocks), (size - len(blocks[0])) * len(blocks)

    def keep(self, dim: int) -> Ints:
        """The indices that stay along a dimension, (blocks, indices)."""
        gone = np.array(self.removed.get(dim, [[]]), dtype=np.int64)
        mask = np.ones((len(gone), self.shape[dim]), dtype=bool)
        np.put_along_axis(mask, gone, False, axis=1)
        return np.nonzero(mask)[1].reshape(len(gone), -1)

    def cut(self, tensor: torch.Tensor, known: Known | None = None) -> torch.Tensor:
        """The tensor without what it loses, in memory of its own.

        Args:
            tensor: of this shape.
            known: shares index tensors between the tensors of one plan.

        >>> Slices((2, 3), {1: [[0]]}).cut(torch.arange(6).reshape(2, 3)).tolist()
        [[1, 2], [4, 5]]
        """
        tensor, known = tensor.detach(), {} if known is None else known
        if not self.removed:
            return tensor.clone()
        if any(len(blocks) > 1 for blocks in self.removed.values()):
            return self._cut_blocks(tensor)
        kept = {dim: self._kept(dim, tensor.device, known) for dim in sorted(self.removed)}
        if tensor.nbytes <= _CACHED:
            return _select(tensor, kept).contiguous()
        out = _empty(self.new_shape, tensor)
        few = max(1, _CACHED * len(tensor) // tensor.nbytes)
        if 0 not in kept:
            for part, into in zip(tensor.split(few), out.split(few), strict=True):
                _select(part, kept, into)
        else:
            for rows, into in zip(kept[0][0].split(few), out.split(few), strict=True):
                _select(tensor, {**kept, 0: (rows, rows, 1)}, into)
        return out

    def _kept(self, dim: int, device: torch.device, known: Known) -> Kept:
        """What stays along a dimension that has one block.

        A flattened channel leaves as a run of columns: whole runs move faster than columns.
        """
        gone, size = self.removed[dim][0], self.shape[dim]
        key = (id(gone), size, device)
        if key not in known:
            mask = np.ones(size, dtype=bool)
            mask[gone] = False
            edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
            run = int(np.gcd.reduce(edges, initial=size)) or 1
            index = torch.from_numpy(np.flatnonzero(mask)).to(device)
            known[key] = index, index if run == 1 else index[::run] // run, run
        return known[key]

    def _cut_blocks(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same where blocks of rows lose other indices each."""
        rows = self.keep(0)[0]
        part = tensor.index_select(0, torch.from_numpy(rows).to(tensor.device))
        for dim in sorted(self.removed.keys() - {0}):
            keep, lines = self.keep(dim), part.movedim(dim, 1)
            of_row = keep[rows * len(keep) // self.shape[0]]
            index = np.arange(len(rows))[:, None] * self.shape[dim] + of_row
            chosen = torch.from_numpy(index.ravel()).to(tensor.device)
            part = lines.flatten(0, 1).index_select(0, chosen)
            part = part.unflatten(0, index.shape).movedim(1, dim)
        return part.contiguous()

    def then(self, other: Slices) -> Slices:
        """This cut followed by another, as one cut of the original tensor."""
        removed: dict[int, list[list[int]]] = {}
        for dim in sorted({*self.removed, *other.removed}):
            first, second = self.keep(dim), other.keep(dim)
            blocks = max(len(first), len(second))
            first, second = (np.tile(side, (blocks // len(side), 1)) for side in (first, second))
            removed[dim] = [
                complement(a[b], self.shape[dim]).tolist()
                for a, b in zip(first, second, strict=True)
            ]
        return Slices(self.shape, removed)


def _select(
    part: torch.Tensor, kept: dict[int, Kept], out: torch.Tensor | None = None
) -> torch.Tensor:
    """What stays of a tensor, cut dimension by dimension, and into `out` at last."""
    last = next(reversed(kept))
    for dim, (_, runs, run) in kept.items():
        into = out if dim == last else None
        if run > 1:
            part = part.unflatten(dim, (-1, run))
            into = None if into is None else into.unflatten(dim, (-1, run))
        part = torch.index_select(part, dim, runs, out=into)
        if run > 1:
            part = part.flatten(dim, dim + 1)
    return part


def _empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """An empty tensor of this shape, in huge pages where it fills most of one.

    NumPy asks for them in memory that holds two or more.
    """
    size = math.prod(shape) * like.itemsize
    if like.device.type != "cpu" or size < _HUGE * 3 // 4:
        return like.new_empty(shape)
    room = np.empty(size + 2 * _HUGE, dtype=np.uint8)
    start = -room.ctypes.data % _HUGE
    return torch.from_numpy(room[start : start + size]).view(like.dtype).view(shape)
