"""Batches of training data, again and again, from a place that can be written down."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from ..errors import DataError


def seed_everything(*numbers: int) -> None:
    """Seed every generator from a tuple of numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    set_seed(seed)


def seed_update(device: torch.device, *numbers: int) -> None:
    """Seed what an update may draw from; on a CPU ten times as fast as `seed_everything`."""
    if device.type != "cpu":
        seed_everything(*numbers)
        return
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a model may draw from it
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def own_randomness(*numbers: int) -> Iterator[None]:
    """Draw from a seed of one's own, and leave every generator as it was."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - loaders may use it
    with torch.random.fork_rng():
        seed_everything(*numbers)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


class Stream:
    """An endless stream of batches whose place is two numbers, so that it can be resumed.

    What is drawn depends on the seed, the epoch and the batch's number alone: the order of an
    epoch, and what the data set draws for a batch. Data parallel workers take turns.
    """

    def __init__(self, loader: Iterable[Any], seed: int, worker: int = 0, workers: int = 1):
        self.loader, self.seed = loader, seed
        self.worker, self.workers = worker, workers
        self.epoch = self.index = 0
        self._batches: Iterator[Any] | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.epoch, self.index

    def seek(self, epoch: int, index: int) -> None:
        self.epoch, self.index, self._batches = epoch, index, None

    def take(self, count: int) -> Iterator[Any]:
        """The next batches.

        Raises:
            DataError: the loader is empty.
        """
        for _ in range(count):
            every = [self._next() for _ in range(self.workers)]
            yield every[self.worker]

    def _next(self) -> Any:
        if self._batches is None:
            with own_randomness(self.seed, 1, self.epoch):
                self._batches = self._open()  # the order of the epoch is drawn with batch 0
                batch = next(self._batches, _END)
                for _ in range(self.index - 1):
                    if next(self._batches, _END) is _END:
                        break
            if self.index:
                batch = self._draw(self._batches)
        else:
            batch = self._draw(self._batches)
        if batch is _END:
            if self.index == 0:
                raise DataError(
                    "the training data is empty; pass a DataLoader or a list of batches, not an "
                    "iterator that runs out"
                )
            self.seek(self.epoch + 1, 0)
            return self._next()
        self.index += 1
        return batch

    def _draw(self, batches: Iterator[Any]) -> Any:
        with own_randomness(self.seed, 1, self.epoch, self.index):
            return next(batches, _END)

    def _open(self) -> Iterator[Any]:
        for holder in _samplers(self.loader):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(int(torch.randint(1 << 62, ()).item()))
        return iter(self.loader)


_END = object()


def _samplers(loader: Any) -> Iterator[Any]:
    """A loader and the samplers inside it: whatever may own a generator."""
    todo, seen = [loader], set()
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        todo += [getattr(item, name, None) for name in ("sampler", "batch_sampler")]
