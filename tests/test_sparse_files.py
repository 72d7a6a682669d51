"""Sparse files: bit-exact back, laid out as documented, and refused where they are not."""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateurs.files.coded import values
from secateurs.files.coded.stream import Cursor, count
from secateurs.files.coded.tensors import Coded, decode, encode, read

BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}


# ---------------------------------------------------------------------- as it is documented
class Layout:
    """A decoder that knows nothing but docs/guides/sparse-files.md, one number at a time."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        entry = json.loads(data[8 : 8 + size])["secateurs.sparse/1"]
        start, end = entry["data_offsets"]
        self.rest = list(data[8 + size + start : 8 + size + end])

    def count(self) -> int:
        byte = self.rest.pop(0)
        return byte if byte < 128 else byte - 128 + 128 * self.count()

    def take(self, size: int) -> bytes:
        out, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return out

    def bits(self, size: int) -> list[int]:
        data = self.take(math.ceil(size / 8))
        return [data[i // 8] >> i % 8 & 1 for i in range(size)]

    def squeezed(self, size: int) -> bytes:
        data = self.take(self.count())
        return data if len(data) == size else zlib.decompress(data, -15)

    def inner(self, data: bytes) -> Layout:
        out = object.__new__(Layout)
        out.rest = list(data)
        return out

    def tensors(self) -> dict[str, tuple[int, list[int], dict[int, int | float]]]:
        """Name -> dtype, shape, and the bits (or, coded with loss, the value) at each place."""
        out = {}
        while self.rest:
            name = self.take(self.count()).decode()
            dtype, kinds = self.take(2)
            shape = [self.count() for _ in range(self.count())]
            stored = self.count()
            where = self.inner(self.take(self.count())).places(kinds & 15, stored, shape)
            what = self.inner(self.take(self.count())).values(
                kinds >> 4, stored, (2, 2, 4, 8)[dtype]
            )
            out[name] = dtype, shape, dict(zip(where, what, strict=True))
        return out

    def places(self, form: int, stored: int, shape: list[int]) -> list[int]:
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // rows if rows else 0
        if form == 0:
            return list(range(stored))
        down, across = list(range(rows)), list(range(columns))
        if form & 4:
            live = self.bits(rows), self.bits(columns)
            down, across = ([i for i, bit in enumerate(bits) if bit] for bits in live)
        order = [(i, j) for i in down for j in across]
        if form & 8:
            order = [(i, j) for j in across for i in down]
        if form & 3 == 1:
            mask = self.inner(self.squeezed(math.ceil(len(order) / 8))).bits(len(order))
            chosen = [place for place, bit in zip(order, mask, strict=True) if bit]
        else:
            k, at, chosen = self.take(1)[0], -1, []
            low = self.bits(stored * k)
            unary = self.inner(self.take(self.count()))
            unary_bits = unary.bits(8 * len(unary.rest))
            for i in range(stored):
                quotient = unary_bits.index(1)
                del unary_bits[: quotient + 1]
                rest = sum(bit << j for j, bit in enumerate(low[i * k : i * k + k]))
                at += 1 + (quotient << k) + rest
                chosen.append(order[at])
        return [i * columns + j for i, j in chosen]

    def values(self, kind: int, stored: int, size: int) -> list[Any]:
        if kind == 0:
            planes = [self.squeezed(stored) for _ in range(size)]
            return [int.from_bytes(value, "little") for value in zip(*planes, strict=True)]
        form = {4: "f", 8: "d"}.get(size, "e")
        if kind == 1:
            low, high = struct.unpack(f"<2{form}", self.take(2 * size))
            return [low + (high - low) * step / 255 for step in self.squeezed(stored)]
        known = self.count()
        entries = struct.unpack(f"<{known}{form}", self.take(known * size))
        return [entries[index] for index in self.squeezed(stored)]


def bits(tensor: Tensor) -> list[int]:
    kind = {16: torch.int16, 32: torch.int32, 64: torch.int64}[BITS[tensor.dtype]]
    return [number % 2 ** BITS[tensor.dtype] for number in tensor.reshape(-1).view(kind).tolist()]


# ---------------------------------------------------------------------- bit-exact
def draw(shape: tuple[int, ...], dtype: torch.dtype, kept: float, live: float, seed: int) -> Tensor:
    """Random numbers where a random mask keeps them; -0.0, infinities and NaN of all kinds too."""
    rng = np.random.default_rng(seed)
    kind = {16: np.int16, 32: np.int32, 64: np.int64}[BITS[dtype]]
    any_bits = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind, endpoint=True)
    normal = torch.from_numpy(np.asarray(rng.normal(size=shape))).to(dtype)
    own = torch.from_numpy(np.asarray(any_bits)).view(dtype)
    tensor = torch.where(torch.from_numpy(np.asarray(rng.random(shape) < 0.1)), own, normal)
    mask = rng.random(shape) < kept
    if len(shape) > 1:
        mask &= (rng.random(shape[0]) < live).reshape(-1, *[1] * (len(shape) - 1))
    zeros = torch.zeros((), dtype=dtype)
    return torch.where(torch.from_numpy(np.asarray(mask)), tensor, zeros)


SHAPES = st.lists(st.integers(0, 12), max_size=4).map(tuple) | st.tuples(
    st.integers(1, 40), st.integers(1, 90)
)


@given(
    shape=SHAPES,
    dtype=st.sampled_from(sorted(BITS, key=str)),
    kept=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    live=st.sampled_from([0.2, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_every_bit_comes_back(
    shape: tuple[int, ...], dtype: torch.dtype, kept: float, live: float, seed: int
) -> None:
    tensor = draw(shape, dtype, kept, live, seed)
    back = decode(read(encode({"x": tensor}, values.EXACT), "the file"))["x"]
    assert (back.dtype, tuple(back.shape)) == (dtype, shape)
    assert bits(back) == bits(tensor)


@given(numbers=st.lists(st.integers(0, 2**63 - 1), max_size=5), width=st.integers(0, 40))
def test_counts_and_packed_numbers_come_back(numbers: list[int], width: int) -> None:
    code = Cursor(b"".join(map(count, numbers)), "the code")
    assert [code.count() for _ in numbers] == numbers
    code.end()


def test_what_has_no_codes_stays_as_it_is() -> None:
    tensors = {
        "steps": torch.zeros(100, dtype=torch.int64),
        "flags": torch.zeros(100, dtype=torch.bool),
        "dense": torch.randint(2**31, (40, 30), dtype=torch.int32).view(torch.float32),
        "x": torch.zeros(40, 30),
    }
    found = read(encode(tensors, values.EXACT), "the file")
    assert [name for name, tensor in found.items() if isinstance(tensor, Coded)] == ["x"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in decode(found).items())
