"""MNIST, from the files in `data/`."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from secateurs.data import mnist
from secateurs.data.batches import batched
from secateurs.data.mnist import MEAN, STD

__all__ = ["MEAN", "STD", "load", "load_bytes", "loaders"]

VALIDATION = 5_000  # images held out from the end of the training split

FOLDER = Path(__file__).parent / "data"
load = functools.partial(mnist.load, folder=FOLDER)
load_bytes = functools.partial(mnist.load_bytes, folder=FOLDER)


def loaders(
    batch_size: int = 64,
    eval_batch_size: int = 1000,
    seed: int = 0,
    validation: bool = False,
) -> tuple[DataLoader, DataLoader]:
    """A shuffled loader to train on and an ordered one to evaluate on.

    Args:
        batch_size: images in a training batch.
        eval_batch_size: images in an evaluation batch.
        seed: of the order of the training images.
        validation: evaluate on the last 5,000 training images, held out, and leave the test
            split alone.

    Returns:
        Loaders of (images, labels) batches, of the shapes that `load` gives.
    """
    images, labels = load("train")
    if validation:
        held_out = images[-VALIDATION:], labels[-VALIDATION:]
        images, labels = images[:-VALIDATION], labels[:-VALIDATION]
    else:
        held_out = load("test")
    shuffle = torch.Generator().manual_seed(seed)
    return batched(images, labels, batch_size, shuffle), batched(*held_out, eval_batch_size)
