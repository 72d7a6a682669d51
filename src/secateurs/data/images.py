"""A folder of images, one folder a class, decoded by Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_MODES = {1: "L", 3: "RGB"}
_SMALLEST_CROP = 0.6  # of a side, when training on random crops


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """(image, class) for every image in the folders of a folder, in the order of their names.

    The class is the number of its folder. An image is (channels, height, width), float32: a crop
    of the size's proportions, resized, its channels less `mean` over `std`.

    Args:
        folder: holds one folder for each class; images may lie in folders within.
        size: (height, width) of what the model takes.
        channels: 3 for colour, 1 for grey.
        mean, std: one number a channel, for pixels in [0, 1].
        crop: how much of the largest crop's sides is kept, around the middle.
        augment: crop at random instead, and mirror every other image.

    Raises:
        ConfigError: Pillow is not installed, or the options do not fit one another.
        DataError: the folder holds no folders with images.
    """

    def __init__(
        self,
        folder: str | Path,
        size: tuple[int, int],
        *,
        channels: int = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crop: float = 0.875,
        augment: bool = False,
    ):
        self.pillow = _pillow()
        self.classes, self.files = _scan(Path(folder))
        if channels not in _MODES:
            raise ConfigError(f"images have 1 or 3 channels, but the model takes {channels}")
        if not len(mean) == len(std) == channels:
            raise ConfigError(
                f"mean and std must have one number for each of {channels} channels; "
                f"they have {len(mean)} and {len(std)}"
            )
        self.size, self.crop, self.augment = size, crop, augment
        self.mode = _MODES[channels]
        self.mean, self.std = (torch.tensor(v).reshape(-1, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its class.

        Raises:
            DataError: the file is damaged or no image.
        """
        path, label = self.files[index]
        height, width = self.size
        try:
            with self.pillow.open(path) as image:
                pixels = np.array(
                    image.convert(self.mode).resize((width, height), box=self._box(*image.size))
                )
        except Exception as error:
            raise DataError(f"cannot read the image {path}: {error}; mend or remove it") from error
        tensor = torch.from_numpy(pixels).reshape(height, width, -1).permute(2, 0, 1).float() / 255
        if self.augment and torch.rand(()) < 0.5:
            tensor = tensor.flip(2)
        return (tensor - self.mean) / self.std, label

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The crop (left, top, right, bottom) of an image."""
        share, across, down = self.crop, 0.5, 0.5
        if self.augment:
            drawn, across, down = torch.rand(3).tolist()
            share = _SMALLEST_CROP + (1 - _SMALLEST_CROP) * drawn
        scale = share * min(width / self.size[1], height / self.size[0])
        wide, high = self.size[1] * scale, self.size[0] * scale
        left, top = across * (width - wide), down * (height - high)
        return left, top, min(left + wide, width), min(top + high, height)


def _scan(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes and the (file, class) pairs of a folder."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}")
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        found = {
            name: sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES)
            for name in classes
        }
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error}") from error
    empty = [name for name, files in found.items() if not files]
    if empty or not classes:
        what = f"its folder {empty[0]!r} holds no image" if empty else "it holds no folder"
        raise DataError(
            f"{folder} is no image folder: {what}; each class is a folder of images in it"
        )
    return classes, [(file, i) for i, name in enumerate(classes) for file in found[name]]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ConfigError(
            "images are decoded by Pillow, which is not installed; pip install 'secateurs[images]'"
        ) from error
    return Image
