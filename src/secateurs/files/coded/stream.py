"""Bytes in the order in which they are written: counts, packed bits, deflated bytes."""

from __future__ import annotations

import zlib
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import FileError

Ints: TypeAlias = npt.NDArray[np.int64]
Bits: TypeAlias = npt.NDArray[np.bool_]

_LARGEST = 2**63 - 1


# ---------------------------------------------------------------------- writing
def count(number: int) -> bytes:
    """A whole number as LEB128: seven bits a byte, lowest first; the last byte is below 128.

    >>> count(300).hex()
    'ac02'
    """
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def block(data: bytes) -> bytes:
    """Bytes with their length before them."""
    return count(len(data)) + data


def pack_bits(bits: Bits) -> bytes:
    """Eight bits a byte, the first in the lowest place; the last byte is filled with zeros."""
    return np.packbits(bits, bitorder="little").tobytes()


def pack(numbers: Ints, width: int) -> bytes:
    """Numbers of so many bits each, the lowest first, without gaps."""
    bits = np.empty((len(numbers), width), bool)
    for place in range(width):
        bits[:, place] = numbers >> place & 1
    return pack_bits(bits.reshape(-1))


def squeeze(data: bytes) -> bytes:
    """A block of these bytes, as raw deflate (RFC 1951) where that is shorter, else as they are.

    Whoever reads it knows how many bytes come out: a block of so many is not deflated.
    """
    best = data
    # Weights repeat nothing: to look for more than runs is slow, and what it finds costs more than
    # it saves.
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        press = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        best = min(best, press.compress(data) + press.flush(), key=len)
    return block(best)


# ---------------------------------------------------------------------- reading
class Cursor:
    """A place in some bytes, which goes forward as they are read.

    Args:
        data: the bytes.
        where: how the user knows them, for messages.
    """

    def __init__(self, data: bytes, where: str):
        self._data, self.where, self._at = data, where, 0

    def refuse(self, what: str) -> NoReturn:
        """Raise: these bytes are not what a writer writes."""
        raise FileError(f"{self.where} {what}")

    @property
    def left(self) -> int:
        """How many bytes are still to be read."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            FileError: there are fewer.
        """
        if size > self.left:
            self.refuse(f"is cut short: {size} bytes are wanted where {self.left} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def count(self) -> int:
        """The next whole number, below 2^63."""
        number, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if number > _LARGEST or shift > 63:
                self.refuse("holds a number above 2^63")
            if byte < 128:
                return number
            shift += 7

    def block(self) -> bytes:
        """The bytes that follow their length."""
        return self.take(self.count())

    def bits(self, size: int) -> Bits:
        """So many packed bits."""
        data = np.frombuffer(self.take((size + 7) // 8), np.uint8)
        return np.unpackbits(data, count=size, bitorder="little").view(bool)

    def numbers(self, size: int, width: int) -> Ints:
        """So many numbers of so many bits each."""
        bits = self.bits(size * width).reshape(size, width)
        out = np.zeros(size, np.int64)
        for place in range(width):
            out |= bits[:, place].astype(np.int64) << place
        return out

    def squeezed(self, size: int) -> bytes:
        """The bytes, so many, of a block that `squeeze` wrote.

        Raises:
            FileError: another number of bytes comes out; no more than these are ever made.
        """
        data = self.block()
        if len(data) >= size:
            if len(data) > size:
                self.refuse(f"holds {len(data)} bytes where {size} belong")
            return data
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            out = inflate.decompress(data, size)
            if len(out) == size and not inflate.eof:  # the end may be left, but nothing before it
                out += inflate.decompress(inflate.unconsumed_tail, 1)
        except zlib.error as error:
            self.refuse(f"holds bytes that do not inflate: {error}")
        if len(out) != size or not inflate.eof or inflate.unused_data:
            self.refuse(f"holds deflated bytes that do not inflate to {size}")
        return out

    def end(self) -> None:
        """Refuse what follows the last byte that was expected."""
        if self.left:
            self.refuse(f"holds {self.left} bytes too many")
