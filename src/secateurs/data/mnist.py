"""MNIST, read from its four gzip IDX files."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..atomic import check_file
from ..errors import DataError, FileError

MEAN, STD = 0.1307, 0.3081  # of the training pixels, in [0, 1]
FOLDER_VARIABLE = "SECATEURS_MNIST"
CHECKOUT = Path("examples/mnist/data")

_PREFIX = {"train": "train", "test": "t10k"}
_SIDE, _MOST = 28, 60_000


def find_folder(folder: str | Path | None = None) -> Path:
    """Where MNIST lies: the folder given, else $SECATEURS_MNIST, else that of a checkout.

    A checkout is looked for in the current directory and where an editable install points to; a
    wheel does not hold the data.

    Raises:
        DataError: it is in none of them.
    """
    named = folder or os.environ.get(FOLDER_VARIABLE)
    places = [named] if named else [CHECKOUT, Path(__file__).parents[3] / CHECKOUT]
    for place in map(Path, places):
        if os.path.isfile(place / _name("train", "images")):
            return place
    raise DataError(
        f"MNIST is not in {' or '.join(map(str, places))}; it is four files, "
        f"{_name('train', 'images')} and so on: name their folder, mnist:DIR, or set "
        f"{FOLDER_VARIABLE}"
    )


def load_bytes(
    split: Literal["train", "test"], folder: str | Path | None = None
) -> tuple[Tensor, Tensor]:
    """One split of MNIST: 60,000 images to train on, 10,000 to test on.

    Args:
        split: 'train' or 'test'.
        folder: where the files lie; see `find_folder`.

    Returns:
        Images, uint8 (N, 1, 28, 28); labels, int64 (N,), the digits 0 to 9.

    Raises:
        DataError: MNIST is not found.
        FileError: a file is missing, damaged or something else.
    """
    place = find_folder(folder)
    pixels = read_idx(place / _name(split, "images"), 3)
    labels = read_idx(place / _name(split, "labels"), 1)
    if pixels.shape[1:] != (_SIDE, _SIDE) or len(labels) != len(pixels) or labels.max() > 9:
        raise FileError(f"{place} does not hold MNIST: its images or labels are something else")
    images = torch.from_numpy(pixels.copy()).unsqueeze(1)
    return images, torch.from_numpy(labels.astype(np.int64))


def load(
    split: Literal["train", "test"], folder: str | Path | None = None
) -> tuple[Tensor, Tensor]:
    """The same, with images float32 of mean about 0 and standard deviation about 1."""
    images, labels = load_bytes(split, folder)
    return images.float().div_(255).sub_(MEAN).div_(STD), labels


def read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """The array of bytes in one gzip IDX file, of at most MNIST's size.

    Raises:
        FileError: it is missing, damaged or something else.
    """
    most = 4 + 4 * rank + _MOST * (_SIDE * _SIDE if rank > 1 else 1)
    try:
        with gzip.open(check_file(path)) as file:
            content = file.read(most + 1)  # what a small file unpacks to may have no end
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}") from error
    header = 4 + 4 * rank
    shape = np.frombuffer(content[4:header], ">u4").astype(np.int64)
    size = int(np.prod(shape.astype(object))) if len(shape) == rank else 0
    if content[:4] != bytes([0, 0, 8, rank]) or not size or header + size != len(content):
        raise FileError(f"{path} is not an IDX file of {rank} dimensions of unsigned bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _name(split: Literal["train", "test"], kind: str) -> str:
    return f"{_PREFIX[split]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"
