"""MNIST, read from the gzip IDX files in `data/`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

DATA = Path(__file__).parent / "data"
MEAN, STD = 0.1307, 0.3081  # of the training pixels, in [0, 1]
VALIDATION = 5_000  # images held out from the end of the training split

_PREFIX = {"train": "train", "test": "t10k"}
_UINT8 = 0x08


def _read_idx(path: Path) -> np.ndarray:
    """The uint8 array of any rank in one gzip IDX file."""
    content = gzip.decompress(path.read_bytes())
    zero, dtype, rank = int.from_bytes(content[:2], "big"), content[2], content[3]
    if zero or dtype != _UINT8:
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_bytes(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """One split of MNIST: 60,000 images to train on, 10,000 to test on.

    Returns:
        Images, uint8 (N, 1, 28, 28); labels, int64 (N,), the digits 0 to 9.
    """
    prefix = _PREFIX[split]
    pixels = torch.tensor(_read_idx(DATA / f"{prefix}-images-idx3-ubyte.gz"))
    labels = torch.tensor(_read_idx(DATA / f"{prefix}-labels-idx1-ubyte.gz"))
    return pixels.unsqueeze(1), labels.long()


def load(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """The same, with images float32 of mean about 0 and standard deviation about 1."""
    pixels, labels = load_bytes(split)
    return pixels.float().div_(255).sub_(MEAN).div_(STD), labels


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
    if validation:
        images, labels = load("train")
        train = TensorDataset(images[:-VALIDATION], labels[:-VALIDATION])
        held_out = TensorDataset(images[-VALIDATION:], labels[-VALIDATION:])
    else:
        train, held_out = TensorDataset(*load("train")), TensorDataset(*load("test"))
    shuffled = RandomSampler(train, generator=torch.Generator().manual_seed(seed))
    return (
        _batched(train, BatchSampler(shuffled, batch_size, drop_last=False)),
        _batched(held_out, BatchSampler(SequentialSampler(held_out), eval_batch_size, False)),
    )


def _batched(dataset: TensorDataset, batches: BatchSampler) -> DataLoader:
    """Index the tensors once a batch, not once an image."""
    return DataLoader(dataset, sampler=batches, batch_size=None)
