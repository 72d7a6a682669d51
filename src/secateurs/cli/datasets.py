"""DATA on the command line: mnist, images:DIR, or 'package.module:callable'."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.utils.data import DataLoader

from ..data.batches import accuracy, batched
from ..data.images import ImageFolder
from ..data.mnist import load
from ..errors import ConfigError
from .objects import find_function, made

if TYPE_CHECKING:
    from .config import DataSection

SCHEMES = ("mnist", "images")

Use: TypeAlias = Literal["train", "evaluate"]


def is_built_in(spec: str) -> bool:
    """Whether DATA names a data set that is read here."""
    return spec == "mnist" or spec.partition(":")[0] in SCHEMES


def train_batches(data: DataSection, inputs: Any) -> Iterable[Any]:
    """What `[data] train` names.

    Args:
        data: the section.
        inputs: the model's example inputs, whose size images get.

    Raises:
        ConfigError, DataError, FileError: it is not there, or cannot be used.
    """
    if is_built_in(data.train):
        return _batches(data.train, "train", data, inputs)
    _refuse_folder(data.train, "train")
    batches: Iterable[Any] = made(data.train, "train")
    return batches


def evaluation(data: DataSection, inputs: Any) -> Callable[[torch.nn.Module], float] | None:
    """What `[data] evaluate` names: a function (model) -> metric; for a data set, the accuracy.

    Raises:
        ConfigError, DataError, FileError: it is not there, or cannot be used.
    """
    if data.evaluate is None:
        return None
    if is_built_in(data.evaluate):
        return functools.partial(
            accuracy, batches=_batches(data.evaluate, "evaluate", data, inputs)
        )
    _refuse_folder(data.evaluate, "evaluate")
    return find_function(data.evaluate, "evaluate")


def _batches(spec: str, use: Use, data: DataSection, inputs: Any) -> DataLoader[Any]:
    scheme, _, folder = spec.partition(":")
    shuffle = torch.Generator() if use == "train" else None  # the run seeds it
    if scheme == "mnist":
        images, labels = load("train" if use == "train" else "test", folder or None)
        return batched(images, labels, data.batch_size, shuffle)
    channels, *size = _image_shape(inputs, use)
    images_in = ImageFolder(
        folder,
        (size[0], size[1]),
        channels=channels,
        mean=data.mean,
        std=data.std,
        crop=data.crop,
        augment=data.augment and use == "train",
    )
    return DataLoader(images_in, data.batch_size, shuffle=shuffle is not None, generator=shuffle)


def _image_shape(inputs: Any, use: str) -> tuple[int, ...]:
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4:
        raise ConfigError(
            f"{use}: images are for a model of one input (batch, channels, height, width); for any "
            "other, name a package.module:callable"
        )
    return tuple(inputs.shape[1:])


def _refuse_folder(spec: str, use: str) -> None:
    if os.path.isdir(spec):
        raise ConfigError(f"{use} {spec!r} is a folder; for images in it, write images:{spec}")
