"""Fashion-MNIST, from the Debian package that holds it, fetched once."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from torch import Tensor

from secateurs.atomic import write_with
from secateurs.data import mnist

CACHE = Path(__file__).parents[1] / ".cache" / "fashion-mnist"
PACKAGE = "dataset-fashion-mnist"  # four files as MNIST has them, in usr/share/datasets
MARKER = "train-labels-idx1-ubyte.gz"  # the last by name of the four: it marks the end
MEAN, STD = 0.2860, 0.3530  # of the training pixels, in [0, 1]


def load(split: Literal["train", "test"], cache: Path = CACHE) -> tuple[Tensor, Tensor]:
    """60,000 training images, or 10,000 test images.

    Returns:
        Images, uint8 (N, 1, 28, 28); labels, int64 (N,), 0 to 9.
    """
    if not (cache / MARKER).exists():
        _fetch(cache)
    return mnist.load_bytes(split, cache)


def _fetch(cache: Path) -> None:
    """Unpack the package without installing it; apt must know the archives of Debian or Ubuntu."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "--quiet", PACKAGE], cwd=folder, check=True)
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg", "-x", package, Path(folder, "unpacked")], check=True)
        for file in sorted(Path(folder, "unpacked").glob("usr/share/datasets/*/*.gz")):
            write_with(cache / file.name, lambda path, file=file: shutil.copyfile(file, path))
