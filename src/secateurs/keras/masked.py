"""Weight updates by `fit` under masks: the forward pass sees w⊙T, and all of w is updated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from torch import Tensor

from ..process.options import Training
from ..process.stream import Stream, seed_update
from .carry import native
from .fit import FitTrainer, Source, Watch, reseed, synced
from .layers import variables_of
from .working import Working


class MaskedTrainer(FitTrainer):
    """A trainer whose updates keep the dense weights beside the masked ones.

    Args:
        model, data, settings, options: as for `FitTrainer`.
        masks: those that hold now.
    """

    def __init__(
        self,
        model: Working,
        data: Iterable[Any],
        settings: Mapping[str, Any],
        options: Training,
        masks: Callable[[], Mapping[str, Tensor]],
    ):
        super().__init__(model, data, settings, options)
        self.masks, self._first = masks, 0
        self._running: _UnderMasks | None = None

    def train(
        self, updates: int, each: Callable[[], bool], *, done: int = 0, of: int | None = None
    ) -> float:
        """See `Trainer.train`; `each` is called before every update."""
        self.losses, self._first = [], done
        if not updates or not each():
            return float("nan")
        try:
            return super().train(updates, each)
        finally:
            self._running = None

    def _watch(self, source: Source, each: Callable[[], bool], updates: int) -> Watch:
        self._running = _UnderMasks(self, source, each, updates)
        return self._running

    def settle(self) -> None:
        """See `Trainer.settle`."""
        if self._running is not None:
            self._running.show()
            self.model.stand_for(self.model.model)

    def drawn(self, count: int) -> Iterator[Any]:
        """See `Trainer.drawn`: from a stream of its own, for `fit` may read ahead in the other."""
        done = self._running.source.used if self._running is not None else 0
        stream = Stream(self.stream.loader, self.options.seed)
        stream.seek(self._first + done, 0)
        return map(self.to_device, stream.take(count))

    def reseed(self, done: int) -> None:
        """Set what the next update draws from, so that each of them is a safe point."""
        numbers = (self.options.seed, 2, self._first + done)
        if keras.backend.backend() == "torch":
            seed_update(self.device, *numbers)  # a Dropout without a seed draws from it
        reseed(self.model.model, *numbers)


class _UnderMasks(Watch):
    """Hides what is gone before every update, and adds to the dense weights what it changed.

    Where a weight is gone the update starts from zero, so that what it leaves there is the change
    itself. With every optimizer whose steps do not depend on the weights that is the step from w.
    """

    def __init__(
        self, trainer: MaskedTrainer, source: Source, each: Callable[[], bool], updates: int
    ):
        super().__init__(source, each)
        self._trainer, self._updates = trainer, updates
        self._variables = variables_of(trainer.model.model)
        self._dense: dict[str, Any] = {}
        self._masks: dict[str, tuple[Tensor, Any]] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Go over to the masked weights."""
        self._dense = {name: self._value(name) for name in self._trainer.masks()}
        self._hide()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Draw as this update would in any other run."""
        self._trainer.reseed(self.source.used)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Take up what the update changed, and ask for the next one."""
        synced(self.model)
        for name, (_, mask) in self._masks.items():
            new, old = self._value(name), self._dense[name]
            self._dense[name] = keras.ops.where(mask, new, old + new)
        self.source.use()
        if self.source.used < self._updates:
            self.ask()
        self._hide()

    def close(self) -> None:
        """Leave the model with its dense weights."""
        super().close()
        self.show()

    def show(self) -> None:
        """Put the dense weights into the model."""
        for name, dense in self._dense.items():
            self._variables[name].assign(dense)

    def _hide(self) -> None:
        """Put the masked weights into the model."""
        for name, mask in self._trainer.masks().items():
            if name not in self._masks or self._masks[name][0] is not mask:
                self._masks[name] = (mask, keras.ops.convert_to_tensor(native(mask)))
            own, dense = self._masks[name][1], self._dense[name]
            self._variables[name].assign(keras.ops.where(own, dense, 0))

    def _value(self, name: str) -> Any:
        """A copy of a variable as it is."""
        return keras.ops.copy(keras.ops.stop_gradient(self._variables[name]))
