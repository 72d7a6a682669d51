"""The values of a tensor, in the order of their places: exact, in 8 bits, or from a codebook."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .stream import Cursor, count, squeeze

EXACT, INT8, CODEBOOK = 0, 1, 2
KINDS = ("exact", "int8", "codebook")
ENTRIES = 64  # of a codebook: 6 bits; Han et al. have 5 for linear layers, 8 for others
_ROUNDS = 100

# The numbers that can be coded, and the integers with the same bits.
BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
DTYPES = tuple(BITS)


def raw(values: Tensor) -> bytes:
    """Little-endian bytes of a flat tensor."""
    bits = values.contiguous().view(BITS[values.dtype]).numpy()
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).tobytes()


def from_raw(data: bytes, dtype: torch.dtype) -> Tensor:
    """The flat tensor of these bytes."""
    bits = np.frombuffer(data, np.dtype(f"<i{dtype.itemsize}"))
    return torch.from_numpy(bits.astype(bits.dtype.newbyteorder("="))).view(dtype)


# ---------------------------------------------------------------------- writing
def encode(values: Tensor, wanted: int) -> tuple[int, bytes]:
    """The shortest code that is as exact as wanted.

    Args:
        values: flat; finite, unless EXACT is wanted.
        wanted: EXACT, INT8, or CODEBOOK, which takes 8 bits where they are shorter.

    Returns:
        The kind, and the code.
    """
    kinds = range(wanted + 1) if len(values) else [EXACT]
    codes = [(kind, _ENCODERS[kind](values)) for kind in kinds]
    return min(codes, key=lambda code: len(code[1]))


def _exact(values: Tensor) -> bytes:
    """Plane by plane: every value's first byte, then every second, each as short as it goes."""
    planes = np.frombuffer(raw(values), np.uint8).reshape(len(values), values.itemsize)
    return b"".join(squeeze(plane.tobytes()) for plane in planes.T)


def _int8(values: Tensor) -> bytes:
    """The lowest value, the highest, and for each its step among the 255 between them."""
    ends = torch.stack([values.min(), values.max()])
    low, high = ends.double().tolist()
    half = values.double().numpy() / 2  # halves, whose difference does not overflow
    width = high / 2 - low / 2
    steps = np.rint((half - low / 2) / width * 255) if width else np.zeros(len(half))
    return raw(ends) + squeeze(steps.astype(np.uint8).tobytes())


def _codebook(values: Tensor) -> bytes:
    """How many entries there are, the entries, and the index of one for each value."""
    numbers = values.double().numpy()
    scale = int(np.frexp(np.abs(numbers).max())[1])  # their sums may overflow, those of these not
    numbers = np.ldexp(numbers, -scale)
    centres = np.ldexp(means(numbers, ENTRIES), scale)
    entries = torch.from_numpy(centres).to(values.dtype)
    centres = np.ldexp(entries.double().numpy(), -scale)
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, numbers)
    return count(len(entries)) + raw(entries) + squeeze(nearest.astype(np.uint8).tobytes())


def means(numbers: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """At most so many numbers, ascending, near to all of those given: k-means on a line.

    Started from even steps between the ends; as the numbers are sorted, each cluster is a run, and
    a round costs a search for the ends of the runs.

    Source: Han et al. 2016, Deep Compression, section 3.

    >>> means(np.array([0.0, 0.1, 5.0, 5.2, 9.0]), 3).round(2).tolist()
    [0.05, 5.1, 9.0]
    """
    line = np.sort(numbers)
    known = np.unique(line)
    if len(known) <= most:
        return known
    total = np.concatenate([[0.0], np.cumsum(line)])
    centres = np.linspace(line[0], line[-1], most)
    for _ in range(_ROUNDS):
        ends = np.searchsorted(line, (centres[1:] + centres[:-1]) / 2)
        runs = np.concatenate([[0], ends, [len(line)]])
        sizes = np.diff(runs)
        moved = (np.diff(total[runs]) / np.maximum(sizes, 1))[sizes > 0]
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


_ENCODERS: tuple[Callable[[Tensor], bytes], ...] = (_exact, _int8, _codebook)


# ---------------------------------------------------------------------- reading
def decode(code: Cursor, kind: int, size: int, dtype: torch.dtype) -> Tensor:
    """So many values, flat.

    Raises:
        FileError: the code is damaged, or of another number of values.
    """
    values = _DECODERS[kind](code, size, dtype)
    code.end()
    return values


def _read_exact(code: Cursor, size: int, dtype: torch.dtype) -> Tensor:
    planes = [np.frombuffer(code.squeezed(size), np.uint8) for _ in range(dtype.itemsize)]
    return from_raw(np.stack(planes, 1).tobytes(), dtype)


def _read_int8(code: Cursor, size: int, dtype: torch.dtype) -> Tensor:
    ends = from_raw(code.take(2 * dtype.itemsize), dtype)
    low, high = ends.double().tolist()
    if not (bool(ends.isfinite().all()) and low <= high):
        code.refuse(f"holds values between {low} and {high}")
    share = np.frombuffer(code.squeezed(size), np.uint8) / 255
    return torch.from_numpy(low * (1 - share) + high * share).to(dtype)


def _read_codebook(code: Cursor, size: int, dtype: torch.dtype) -> Tensor:
    known = code.count()
    entries = from_raw(code.take(known * dtype.itemsize), dtype)
    indices = np.frombuffer(code.squeezed(size), np.uint8)
    if size and int(indices.max()) >= known:
        code.refuse(f"names entry {int(indices.max())} of a codebook of {known}")
    return entries[torch.from_numpy(indices.astype(np.int64))]


_DECODERS: tuple[Callable[[Cursor, int, torch.dtype], Tensor], ...] = (
    _read_exact,
    _read_int8,
    _read_codebook,
)
