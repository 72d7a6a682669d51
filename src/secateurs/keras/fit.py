"""Weight updates by `fit`: optimizer, loss and schedule are those of the compiled model."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import torch

from ..errors import ConfigError, DataError, FileError, NotFiniteError, nearest
from ..plan import Plan
from ..process.options import Training
from ..process.stream import Stream
from ..process.training import Trainer, check_finite, make_accelerator
from .carry import native
from .data import Weighted
from .module import as_tensor
from .working import Working

_OURS = ("epochs", "steps_per_epoch", "class_weight", "callbacks", "verbose")
_VALIDATION = ("validation_data", "validation_steps", "validation_batch_size", "validation_freq")


class FitTrainer(Trainer):
    """A trainer that calls `fit` of the working model's Keras model.

    Args:
        model: the working model.
        data: from `data.batches`; read in an order that a resumed run repeats.
        settings: further arguments of `fit`, such as callbacks or validation_data.
        options: of the run; how weights are updated is none of theirs.
    """

    shows = True
    model: Working

    def __init__(
        self,
        model: Working,
        data: Iterable[Any],
        settings: Mapping[str, Any],
        options: Training,
    ):
        self.options, self.settings = options, dict(settings)
        for name in settings:
            if name not in (*_OURS, *_VALIDATION):
                known = (*_OURS, *_VALIDATION)
                raise ConfigError(
                    f"finetune: fit is not called with {name!r}{nearest(name, known)}"
                )
        self.weights = contextlib.nullcontext
        self.accelerator = make_accelerator(options)
        own = next(iter(model.parameters()), torch.zeros(0))
        self.device = own.device
        self.stream = Stream(data, options.seed)
        self.model = model

    def replace_model(self, model: Any) -> None:
        """See `Trainer.replace_model`; the model has its own optimizer."""
        self.model = model

    def train(
        self, updates: int, each: Callable[[], bool], *, done: int = 0, of: int | None = None
    ) -> float:
        """See `Trainer.train`; where the updates make whole epochs, they are shown as such."""
        if not updates:
            return float("nan")
        model, epochs = self.model.model, self._epochs(updates)
        reseed(model, self.options.seed, *self.stream.place)
        watch = self._watch(Source(self.stream, updates // epochs), each, updates)
        given = {
            **{key: value for key, value in self.settings.items() if key != "steps_per_epoch"},
            "epochs": epochs,
            "callbacks": [watch, *(self.settings.get("callbacks") or ())],
        }
        history = model.fit(watch.source, shuffle=False, **given)
        watch.close()
        self.losses = [float(value) for value in history.history["loss"]]
        if not np.isfinite(self.losses).all():
            raise NotFiniteError("the training loss is not finite (NaN or infinite)")
        self.model.stand_for(model)
        check_finite(self.model)
        return float(np.mean(self.losses))

    def _watch(self, source: Source, each: Callable[[], bool], updates: int) -> Watch:
        """What goes along with so many updates."""
        return Watch(source, each)

    def _epochs(self, updates: int) -> int:
        each = epoch_length(self.stream.loader, self.settings) or updates
        return updates // each if updates % each == 0 else 1

    # ------------------------------------------------------------------ optimizer state
    def cut_optimizer(self, plan: Plan, shapes: dict[str, torch.Size]) -> None:
        """See `Trainer.cut_optimizer`: done, as the smaller model was made."""

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See `Trainer.optimizer_state`."""
        own = self.model.model.optimizer
        variables = own.variables if own is not None else ()
        return {str(i): as_tensor(v).detach().clone() for i, v in enumerate(variables)}, {}

    def restore_optimizer(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """See `Trainer.restore_optimizer`."""
        model = self.model.model
        if not tensors:
            return
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = model.optimizer.variables
        if [tuple(tensors[key].shape) for key in sorted(tensors, key=int)] != [
            tuple(v.shape) for v in variables
        ]:
            raise FileError("the checkpoint's optimizer is of another kind than the model's")
        for index, variable in enumerate(variables):
            variable.assign(native(tensors[str(index)]))


_COMPILED = ("lr", "accumulate", "device", "precision", "trackers")


def in_updates(options: Mapping[str, Any], name: str, updates: int | None) -> dict[str, Any]:
    """The options of a run, with the epochs that were asked for in updates.

    Args:
        options: as they were given.
        name: of the option that says how many updates are made.
        updates: from `final_updates`.

    Raises:
        ConfigError: an option is of a training that is none of `fit`, or both are given.
    """
    for own in _COMPILED:
        if own in options:
            raise ConfigError(
                f"{own}: a Keras model is fine-tuned as it is compiled; compile it otherwise"
            )
    if updates is None:
        return dict(options)
    if name in options:
        raise ConfigError(f"say finetune=dict(epochs=…) or {name}=…, one of the two")
    return {**options, name: updates}


def check_compiled(model: Any, copy: Any) -> None:
    """Refuse a model that cannot be fine-tuned as it is compiled, it or its copies.

    Raises:
        ConfigError: why not.
    """
    if not model.compiled:
        raise ConfigError(
            f"the model {model.name!r} is fine-tuned as it is compiled: compile it first"
        )
    if model.steps_per_execution > 1:
        raise ConfigError(
            f"the model {model.name!r} is compiled with steps_per_execution="
            f"{model.steps_per_execution}, and between those steps nothing can be seen; say 1"
        )
    if not copy.compiled:
        raise ConfigError(
            f"the model {model.name!r} is compiled with what cannot be stored, so that a smaller "
            "one cannot be compiled alike; register its loss and metrics with "
            "keras.saving.register_keras_serializable"
        )


def epoch_length(data: Any, settings: Mapping[str, Any]) -> int | None:
    """How many batches an epoch has; None if the data does not tell."""
    given = settings.get("steps_per_epoch")
    if given is not None:
        return int(given)
    try:
        return len(data)
    except TypeError:
        return None


def final_updates(data: Any, settings: Mapping[str, Any]) -> int | None:
    """The updates of the epochs that are asked for; None if none are.

    Raises:
        ConfigError: how long an epoch is cannot be told.
    """
    if settings.get("epochs") is None:
        return None
    length = epoch_length(data, settings)
    if length is None:
        raise ConfigError("the data does not tell its length: say finetune=dict(steps_per_epoch=…)")
    if not length:
        raise DataError("the training data is empty")
    return length * int(settings["epochs"])


class Source(keras.utils.PyDataset):
    """The next batches of a stream, as many an epoch, as `fit` reads them on any backend.

    Keras looks at the first ones before it begins, and TensorFlow reads ahead, in a thread that
    shares what is drawn from with this one. What was read and not used is there for the next to
    ask.

    Attributes:
        used: batches that an update was made with.
        turn: held while a batch is drawn.
    """

    def __init__(self, stream: Stream, length: int):
        super().__init__()
        self._stream, self._length = stream, length
        self._ahead: deque[tuple[Any, tuple[int, int]]] = deque()  # with the place behind each
        self._place, self._closed = stream.place, False
        self._start = self.used = 0
        self.turn = threading.Lock()

    @property
    def num_batches(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        with self.turn:
            ahead = self._start + index - self.used
            while len(self._ahead) <= ahead and not self._closed:
                [batch] = self._stream.take(1)
                self._ahead.append((_for_fit(batch), self._stream.place))
            return self._ahead[ahead][0]

    def on_epoch_end(self) -> None:
        self._start = self.used

    def use(self) -> None:
        """Hear that an update was made with the next batch."""
        with self.turn:
            _, self._place = self._ahead.popleft()
            self.used += 1

    def close(self) -> None:
        """Draw no more, and put the stream behind the batches that were used."""
        with self.turn:
            self._closed = True
            if self._ahead:
                self._stream.seek(*self._place)


def _for_fit(batch: Any) -> tuple[Any, ...]:
    """A batch as Keras takes it: (x, y) or (x, y, weights), of NumPy arrays."""
    x, y = batch
    parts = (x, y.y, y.weight) if isinstance(y, Weighted) else (x,) if y is None else (x, y)
    return tuple(keras.tree.map_structure(lambda tensor: tensor.cpu().numpy(), parts))


def synced(model: Any) -> Any:
    """A model that `fit` is training, with its weights as they are: JAX keeps them until asked."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    return model


class Watch(keras.callbacks.Callback):
    """Tell that an update is done, and stop where no more are wanted."""

    def __init__(self, source: Source, each: Callable[[], bool]):
        super().__init__()
        self.source, self._each = source, each

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count, and ask."""
        self.source.use()
        self.ask()

    def ask(self) -> None:
        """Stop, if no more updates are wanted."""
        with self.source.turn:
            if not self._each():
                self.model.stop_training = True

    def close(self) -> None:
        """Hear that `fit` came to its end."""
        self.source.close()


def reseed(model: Any, *numbers: int) -> None:
    """Set what dropout and noise draw from, so that a resumed run draws the same."""
    weights = {id(variable) for variable in model.weights}
    drawing = [v for v in model.variables if id(v) not in weights]
    words = np.random.SeedSequence(numbers).generate_state(max(len(drawing), 1))
    for variable, word in zip(drawing, words, strict=False):
        if tuple(variable.shape) == (2,):
            variable.assign(np.array([int(word) & 0x7FFFFFFF, 0]))
