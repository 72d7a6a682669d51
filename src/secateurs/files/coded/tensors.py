"""Tensors with many zeros as places and values, all of them in one tensor of bytes.

The layout is in docs/guides/sparse-files.md, byte by byte. What is read is named and measured
first (`Coded`), and made only once its shape is known to be the one that belongs there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import FileError
from . import positions, values
from .stream import Cursor, block, count

# The tensor of bytes in a file, by which a sparse file is known.
NAME = "secateurs.sparse/1"
_AXES = 64  # no tensor of PyTorch has more
_SIGNED = 0.01  # of all numbers: so many zeros with a sign are worth a word


@dataclass(frozen=True)
class Coded:
    """A tensor that is still places and values.

    Attributes:
        name: its name in the state dict.
        dtype, shape: its own.
        form: how its places are written.
        kind: how its values are: values.EXACT, INT8 or CODEBOOK.
        stored: how many values there are; the rest is zero.
        places, numbers: the codes of both.
        where: the file and the tensor, for messages.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    form: positions.Form
    kind: int
    stored: int
    places: bytes
    numbers: bytes
    where: str = ""

    def tensor(self) -> Tensor:
        """The tensor, as large as its shape says: look at that first.

        Raises:
            FileError: its codes are damaged, or do not fit its shape.
        """
        at = positions.decode(Cursor(self.places, self.where), self.form, self.stored, self.shape)
        given = values.decode(Cursor(self.numbers, self.where), self.kind, self.stored, self.dtype)
        if at is None:
            return given.reshape(self.shape)
        bits = values.BITS[self.dtype]
        flat = torch.zeros(math.prod(self.shape), dtype=bits)
        flat[torch.from_numpy(at)] = given.view(bits)
        return flat.view(self.dtype).reshape(self.shape)

    def record(self) -> bytes:
        """Its bytes in the file."""
        name = block(self.name.encode())
        shape = count(len(self.shape)) + b"".join(map(count, self.shape))
        kinds = bytes([values.DTYPES.index(self.dtype), self.form.byte | self.kind << 4])
        return name + kinds + shape + count(self.stored) + block(self.places) + block(self.numbers)


# ---------------------------------------------------------------------- writing
def encode(tensors: Mapping[str, Tensor], kind: int) -> dict[str, Tensor]:
    """The tensors of a sparse file: what is shorter in codes as codes, the rest as it is.

    Args:
        tensors: on the CPU.
        kind: values.EXACT, or how the values of those of two or more axes are coded; vectors
            (biases, norms and their statistics) are exact always, and so is what is not finite.

    Warns:
        UserWarning: many zeros are -0.0, which is stored as any other value.
    """
    if NAME in tensors:
        raise FileError(f"a tensor is called {NAME!r}, the name of codes; rename it")
    dense, records, signed = {}, [], 0
    for name, tensor in tensors.items():
        coded = _coded(name, tensor, kind) if tensor.dtype in values.BITS else None
        record = coded.record() if coded else b""
        if coded and len(record) < tensor.nbytes:
            records.append(record)
            signed += coded.stored - int(tensor.count_nonzero())
        else:
            dense[name] = tensor
    if signed > _SIGNED * sum(tensor.numel() for tensor in tensors.values()):
        warnings.warn(
            f"{signed:,} of the values stored are -0.0, which a negative weight times 0 leaves; "
            "parameter.data += 0 makes them plain zeros, and the file smaller",
            stacklevel=3,
        )
    codes = np.frombuffer(b"".join(records), np.uint8).copy()
    return {**dense, NAME: torch.from_numpy(codes)}


def _coded(name: str, tensor: Tensor, kind: int) -> Coded:
    flat, shape = tensor.contiguous().reshape(-1), tuple(tensor.shape)
    if tensor.ndim < 2 or not bool(flat.isfinite().all()):
        kind = values.EXACT
    # -0.0 is a value of its own, unless it may be lost
    kept = (flat.view(values.BITS[tensor.dtype]) if kind == values.EXACT else flat) != 0
    form, places = positions.encode(kept.numpy().reshape(positions.matrix(shape)))
    kind, numbers = values.encode(flat[kept], kind)
    return Coded(name, tensor.dtype, shape, form, kind, int(kept.sum()), places, numbers)


# ---------------------------------------------------------------------- reading
def read(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor | Coded]:
    """The tensors of a file by their names: dense ones, and codes of the others.

    Args:
        tensors: all that is in the file, which need not be sparse.
        where: the file, for messages.

    Raises:
        FileError: the codes are damaged, or name a tensor twice.
    """
    found: dict[str, Tensor | Coded] = {n: t for n, t in tensors.items() if n != NAME}
    if NAME not in tensors:
        return found
    codes = tensors[NAME]
    if codes.dtype != torch.uint8 or codes.ndim != 1:
        raise FileError(f"{where}: its codes are no row of bytes")
    for coded in _records(Cursor(codes.numpy().tobytes(), f"{where}: the row of codes"), where):
        if coded.name in found:
            raise FileError(f"{where}: tensor {coded.name!r} stands twice")
        found[coded.name] = coded
    return found


def _records(code: Cursor, file: str) -> Iterator[Coded]:
    while code.left:
        try:
            name = code.block().decode()
        except UnicodeDecodeError as error:
            code.refuse(f"holds a name that is no text: {error}")
        dtype, kinds = code.take(2)
        form, kind = positions.Form.of(kinds & 15), kinds >> 4
        if dtype >= len(values.DTYPES) or form is None or kind >= len(values.KINDS):
            code.refuse(f"holds tensor {name!r} in a form that is not known here")
        axes = code.count()
        if axes > _AXES:
            code.refuse(f"holds tensor {name!r} of {axes} axes")
        shape = tuple(code.count() for _ in range(axes))
        stored = code.count()
        if stored > math.prod(shape):
            code.refuse(f"holds {stored} values for the {math.prod(shape)} places of {name!r}")
        where = f"{file}: the code of {name!r}"
        yield Coded(
            name, values.DTYPES[dtype], shape, form, kind, stored, code.block(), code.block(), where
        )


def decode(found: Mapping[str, Tensor | Coded]) -> dict[str, Tensor]:
    """All tensors, as large as their shapes say: look at those first.

    Raises:
        FileError: the codes of one are damaged, or do not fit its shape.
    """
    return {n: t.tensor() if isinstance(t, Coded) else t for n, t in found.items()}
