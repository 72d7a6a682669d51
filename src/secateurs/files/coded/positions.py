"""Which places of a tensor hold a value: all, a bitmask, or the gaps between them.

The tensor is read as a matrix of its first axis by all others, row by row; rows and columns
without any value may be named first and left out of it. Whatever is shortest is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .stream import Bits, Cursor, Ints, block, pack, pack_bits, squeeze

ALL, MASK, GAPS = 0, 1, 2
_KINDS = ("all", "mask", "gaps")


@dataclass(frozen=True, order=True)
class Form:
    """How the places of one tensor are written.

    Attributes:
        kind: ALL, MASK or GAPS.
        live: rows and columns without a value are named first and left out.
    """

    kind: int
    live: bool = False

    @property
    def byte(self) -> int:
        """The form as a number below 8."""
        return self.kind | self.live << 2

    @classmethod
    def of(cls, byte: int) -> Form | None:
        """The form that a number stands for; None if for none."""
        form = cls(byte & 3, bool(byte & 4))
        known = (cls(ALL), cls(MASK), cls(MASK, True), cls(GAPS), cls(GAPS, True))
        return form if byte < 8 and form in known else None

    def __str__(self) -> str:
        return _KINDS[self.kind] + " of live rows and columns" * self.live


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the matrix as which a tensor of this shape is read."""
    size = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else 1
    return rows, size // rows if rows else 0


# ---------------------------------------------------------------------- writing
def encode(kept: Bits) -> tuple[Form, bytes]:
    """The shortest code of the places that hold a value.

    Args:
        kept: (rows, columns), true where one is.
    """
    if kept.all():
        return Form(ALL), b""
    return min(_codes(kept), key=lambda code: (len(code[1]), code[0]))


def _codes(kept: Bits) -> Iterator[tuple[Form, bytes]]:
    rows, columns = np.any(kept, 1), np.any(kept, 0)
    parts = [(False, b"", kept)]
    if not (rows.all() and columns.all()):
        parts.append((True, pack_bits(rows) + pack_bits(columns), kept[np.ix_(rows, columns)]))
    for live, named, part in parts:
        yield Form(GAPS, live), named + gaps(np.flatnonzero(part))
        yield Form(MASK, live), named + squeeze(pack_bits(part.reshape(-1)))


def gaps(places: Ints) -> bytes:
    """Ascending places as the gaps before each, in the code of Golomb and Rice.

    A gap g is its quotient g >> k, in unary (so many zeros and a one), and its k lowest bits. All
    lowest bits come first, then all quotients. k is the best for these gaps.

    Source: Rice and Plaunt 1971, Adaptive variable-length coding.
    """
    steps = np.diff(places, prepend=-1) - 1
    k = _best_width(steps)
    ends = np.cumsum((steps >> k) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, bool)
    unary[ends] = True
    return bytes([k]) + pack(steps, k) + block(pack_bits(unary))


def _best_width(steps: Ints) -> int:
    if not len(steps):
        return 0
    middle = int(steps.mean()).bit_length()
    return min(
        range(max(middle - 3, 0), middle + 2),
        key=lambda k: k * len(steps) + int((steps >> k).sum()),
    )


# ---------------------------------------------------------------------- reading
def decode(code: Cursor, form: Form, size: int, shape: tuple[int, ...]) -> Ints | None:
    """The places in the flat tensor, ascending; None for all of them.

    Args:
        code: what `encode` gave.
        form: and its form.
        size: how many places there are.
        shape: of the tensor.

    Raises:
        FileError: the code is damaged, or names other places than the tensor has.
    """
    rows, columns = matrix(shape)
    if form.kind == ALL:
        if size != rows * columns:
            code.refuse(f"holds {size} values for {rows * columns} places")
        code.end()
        return None
    read = _read_mask if form.kind == MASK else _read_gaps
    if form.live:
        down, across = (np.flatnonzero(code.bits(n)) for n in (rows, columns))
        row, column = np.divmod(read(code, size, len(down) * len(across)), max(len(across), 1))
        places = down[row] * columns + across[column]
    else:
        places = read(code, size, rows * columns)
    code.end()
    return places


def _read_mask(code: Cursor, size: int, room: int) -> Ints:
    packed = code.squeezed((room + 7) // 8)
    places = np.flatnonzero(Cursor(packed, code.where).bits(room))
    if len(places) != size:
        code.refuse(f"marks {len(places)} places for {size} values")
    return places


def _read_gaps(code: Cursor, size: int, room: int) -> Ints:
    k = code.take(1)[0]
    if room >> k == 0 and k:
        code.refuse(f"has gaps of {k} bits among {room} places")
    low = code.numbers(size, k)
    unary = code.block()
    ends = np.flatnonzero(Cursor(unary, code.where).bits(8 * len(unary)))
    if len(ends) != size:
        code.refuse(f"holds {len(ends)} gaps for {size} values")
    high = np.diff(ends, prepend=-1) - 1
    # as floats: what lies about its gaps may add up to more than an integer holds
    if high.sum(dtype=float) * 2.0**k + low.sum(dtype=float) + size > room:
        code.refuse(f"has gaps that lead beyond its {room} places")
    return np.cumsum((high << k | low) + 1) - 1
