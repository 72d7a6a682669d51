"""Data in every form that `fit` takes, as batches for criteria and for the process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import torch

from ..errors import DataError
from .module import as_input

Batch: TypeAlias = "tuple[Any, Any]"


class Weighted(NamedTuple):
    """The target of a batch whose examples have weights."""

    y: Any
    weight: Any


def batches(
    data: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int = 32,
    seed: int | None = 0,
) -> Iterable[Batch]:
    """Pairs (inputs, target) of torch tensors, to be read again and again.

    Args:
        data: arrays with the examples first, alone or nested as the model takes them; or what
            gives batches (x,), (x, y) or (x, y, weight): a Keras, torch or TensorFlow data set, or
            a list of batches.
        y, sample_weight: of arrays only.
        batch_size: of arrays only.
        seed: the order of arrays is drawn from this; None draws from torch at every pass.

    Raises:
        DataError: the data is none of these, or its parts do not fit together.
    """
    if _is_array(data):
        return _Arrays(data, y, sample_weight, batch_size, seed)
    if y is not None or sample_weight is not None:
        raise DataError("y and sample_weight go with arrays; a data set gives (x, y, weight)")
    if isinstance(data, keras.utils.PyDataset):
        return _Batches(_Indexed(data))
    if not isinstance(data, Iterable) or isinstance(data, Iterator):
        raise DataError(
            f"data is read again and again: pass arrays, a data set or a list of batches, not "
            f"{type(data).__name__}"
        )
    return _Batches(data)


def _is_array(data: Any) -> bool:
    """Whether this is one array, or a nest of them: a list of tuples is one of batches."""
    if isinstance(data, dict):
        return bool(data) and all(map(_is_array, data.values()))
    if isinstance(data, list):
        return bool(data) and all(map(_is_leaf, data))
    return _is_leaf(data)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, np.ndarray) or torch.is_tensor(value) or keras.ops.is_tensor(value)


class _Arrays:
    """Arrays, cut into batches in an order of their own."""

    def __init__(self, x: Any, y: Any, weight: Any, size: int, seed: int | None):
        nest = (x, y) if weight is None else (x, y, weight)
        self._nest = _map(as_input, nest)
        lengths = {len(leaf) for leaf in keras.tree.flatten(self._nest) if leaf is not None}
        if len(lengths) != 1:
            told = ", ".join(map(str, sorted(lengths)))
            raise DataError(
                f"inputs, targets and weights hold different numbers of examples: {told}"
            )
        [self._length] = lengths
        self._size, self._seed = size, seed

    def __len__(self) -> int:
        return -(-self._length // self._size)

    def __iter__(self) -> Iterator[Batch]:
        draw = None if self._seed is None else torch.Generator().manual_seed(self._seed)
        for rows in torch.randperm(self._length, generator=draw).split(self._size):
            yield _pair(_map(lambda leaf, rows=rows: leaf[rows.to(leaf.device)], self._nest))


class _Batches:
    """What gives batches in any of their forms."""

    def __init__(self, source: Iterable[Any]):
        self.sampler = source  # where `Stream` looks for what draws the order

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.sampler:
            yield _pair(_map(as_input, keras.utils.unpack_x_y_sample_weight(batch)))


class _Indexed:
    """A Keras data set as an iterable, with what it does at the end of an epoch."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        if self._source.num_batches is None:
            raise TypeError("a data set without end has no length")
        return int(self._source.num_batches)

    def __iter__(self) -> Iterator[Any]:
        self._source.on_epoch_begin()
        for index in range(len(self)):
            yield self._source[index]
        self._source.on_epoch_end()


def _map(function: Any, nest: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), nest)


def _pair(parts: Any) -> Batch:
    x, y, *rest = parts
    x = tuple(x) if isinstance(x, list) else x  # several inputs are positional arguments
    weight = rest[0] if rest else None
    return x, y if weight is None else Weighted(y, weight)
