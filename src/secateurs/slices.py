"""What a tensor loses, and how it is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from .trace.labels import Ints

# (id of a list of indices, size) -> which runs of one length stay, and that length
Known: TypeAlias = dict[tuple[int, int], tuple[torch.Tensor, int]]

_CACHED = 1 << 21  # bytes that stay in a processor's cache from one pass to the next
_LINE = 32  # bytes from which a copy costs less than to look up where it is from
_HUGE = 1 << 22  # bytes from which NumPy asks for huge pages, which are far quicker to fill


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

    def keep(self, dim: int) -> list[Ints]:
        """The indices that stay along a dimension, per block."""
        return [complement(gone, self.shape[dim]) for gone in self.removed.get(dim, [[]])]

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
        if 0 in self.new_shape:
            return tensor.new_empty(self.new_shape)
        dims, blocks = list(self.removed), max([len(gone) for gone in self.removed.values()])
        if blocks == 1 and (len(dims) == 1 or tensor.nbytes <= _CACHED):
            return self._select(tensor, dims, 0, known).contiguous()
        if blocks == 1 and sorted(dims) == [0, 1]:
            index, run = self._kept(tensor, 1, 0, known)
            if run * tensor[0, 0].nbytes >= _LINE:
                return self._cut_lines(tensor, index, run)
        out, done = _empty(self.new_shape, tensor), 0
        columns = [dim for dim in sorted(dims) if dim]
        few = max(1, _CACHED // tensor[0].nbytes)
        for block, rows in enumerate(np.split(self.keep(0)[0], self._bounds(blocks))):
            for chosen in torch.from_numpy(rows).to(tensor.device).split(few):
                piece = self._select(tensor.index_select(0, chosen), columns, block, known)
                out[done : done + len(chosen)] = piece
                done += len(chosen)
        return out

    def _bounds(self, blocks: int) -> Ints:
        """Where each block but the first begins among the rows that stay."""
        return np.searchsorted(self.keep(0)[0], np.arange(1, blocks) * (self.shape[0] // blocks))

    def _select(
        self, part: torch.Tensor, dims: Iterable[int], block: int, known: Known
    ) -> torch.Tensor:
        for dim in dims:
            index, run = self._kept(part, dim, block, known)
            if run == 1:
                part = part.index_select(dim, index)
            else:
                runs = part.unflatten(dim, (-1, run)).index_select(dim, index)
                part = runs.flatten(dim, dim + 1)
        return part

    def _kept(
        self, part: torch.Tensor, dim: int, block: int, known: Known
    ) -> tuple[torch.Tensor, int]:
        """What stays along a dimension, as the numbers of equal runs, and their length."""
        gone = self.removed[dim][block % len(self.removed[dim])]
        key = (id(gone), self.shape[dim])
        if key not in known:
            kept, run = _runs(complement(gone, self.shape[dim]), self.shape[dim])
            known[key] = (torch.from_numpy(kept).to(part.device), run)
        return known[key]

    def _cut_lines(self, tensor: torch.Tensor, columns: torch.Tensor, run: int) -> torch.Tensor:
        """Rows and columns cut in one pass; a column is `run` indices and all that follows."""
        rows = torch.from_numpy(self.keep(0)[0]).to(tensor.device)
        index = (rows[:, None] * (self.shape[1] // run) + columns).flatten()
        out = _empty(self.new_shape, tensor)
        lines = tensor.reshape(self.shape[0] * self.shape[1] // run, -1)
        torch.index_select(lines, 0, index, out=out.view(len(index), -1))
        return out

    def then(self, other: Slices) -> Slices:
        """This cut followed by another, as one cut of the original tensor."""
        removed: dict[int, list[list[int]]] = {}
        for dim in sorted({*self.removed, *other.removed}):
            first, second = self.keep(dim), other.keep(dim)
            blocks = max(len(first), len(second))
            first, second = (side * (blocks // len(side)) for side in (first, second))
            removed[dim] = [
                complement(a[b], self.shape[dim]).tolist()
                for a, b in zip(first, second, strict=True)
            ]
        return Slices(self.shape, removed)


def _runs(kept: Ints, size: int) -> tuple[Ints, int]:
    """The same indices as the numbers of equal runs, as long as can be, and their length.

    A flattened channel leaves as a run of columns: whole runs move faster than columns.
    """
    breaks = np.flatnonzero(kept[1:] - kept[:-1] != 1) + 1
    edges = (np.array([size, len(kept), kept[0]]), kept[breaks], breaks)
    run = int(np.gcd.reduce(np.concatenate(edges)))
    return kept[::run] // run, run


def _empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """An empty tensor of this shape."""
    out = torch.empty(shape, dtype=like.dtype, device="meta")
    if like.device.type != "cpu" or out.nbytes < _HUGE:
        return torch.empty_like(out, device=like.device)
    return torch.from_numpy(np.empty(out.nbytes, np.uint8)).view(like.dtype).view(shape)
