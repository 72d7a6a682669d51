"""How a file is broken: every change takes the bytes of a whole file and gives others."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from secateurs.files.coded.tensors import NAME
from secateurs.files.store import load_tensors, save_tensors

KB = 1024

Change: TypeAlias = Callable[[bytes, random.Random], bytes]


# ---------------------------------------------------------------------- changes of bytes
def cut(data: bytes, rng: random.Random) -> bytes:
    """Truncated at a kilobyte, or anywhere."""
    where = rng.choice([rng.randrange(len(data)), KB * rng.randrange(len(data) // KB + 1)])
    return data[:where]


def flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 8, 64])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_early(data: bytes, rng: random.Random) -> bytes:
    """A flip where the header is."""
    head = min(len(data), 200)
    return flip(data[:head], rng) + data[head:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([1, 16, KB]))
    fill = rng.choice([b"\0", b"\xff", b"9", b"[", bytes([rng.randrange(256)])])
    return data[:start] + fill * (end - start) + data[end:]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A part is lost, or stands twice."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice([data[:a] + data[b:], data[:b] + data[a:]])


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0", data, rng.randbytes(100), b"}"])


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 8, KB]))


FOREIGN = (
    b"{}", b"[]", b"null", b"\xef\xbb\xbf{}", b"PK\x03\x04", b"\x80\x04\x95.", b"<html></html>",
    b'{"format": "secateurs.plan/9"}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000,
    b'{"name": "package", "version": "1.0.0", "dependencies": {}}', b"\x1f\x8b\x08\0",
    b"cos\nsystem\n(S'touch hacked'\ntR.",
)  # fmt: skip


def foreign(data: bytes, rng: random.Random) -> bytes:
    """Another format, other JSON, a pickle that would run a command."""
    return rng.choice(FOREIGN)


BYTES: tuple[Change, ...] = (cut, cut, flip, flip, flip_early, overwrite, splice, append, noise,
                             foreign)  # fmt: skip


# ---------------------------------------------------------------------- changes of JSON
def deep(levels: int) -> Any:
    out: Any = 1
    for _ in range(levels):
        out = [out]
    return out


NASTY = (
    None, True, False, -1, 0, 1, 2, 1.5, "", "x", [], {}, [[]], {"": 1}, 10**30, -(10**30), 2**31,
    2**63, 10**400, float("inf"), float("nan"), "../../x", "/etc/passwd", "\0", "\ud800",
    "x" * 9999, "0", "__class__.__bases__", "conv.__dict__", deep(50), deep(200), [0] * 999,
)  # fmt: skip
UNWRITTEN = (b"1e400", b"-1e400", b"NaN", b"Infinity", b"9" * 5000, b"[" * 5000 + b"]" * 5000,
             b"0x10", b"00", b"1.", b"'a'")  # fmt: skip


def nasty(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(NASTY))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a nest."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


def change(data: Any, rng: random.Random) -> Any:
    """A nest of plain data with one thing wrong."""
    for _ in range(rng.choice([1, 1, 1, 3])):
        holder, key = rng.choice(list(places(data)) or [([0], 0)])
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(["", "extra", "../../x", "0", "__init__"])] = copy.deepcopy(
                rng.choice(NASTY)
            )
        elif kind == 2 and isinstance(holder, dict):
            holder[rng.choice(["../../x", "a.b", key + "x", "\0"])] = holder.pop(key)
        elif kind == 3 and type(holder[key]) is int:
            holder[key] += rng.choice([-1, 1, 10**6, 10**12])
        else:
            holder[key] = nasty(rng)
    return data


def json_value(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(change(json.loads(data), rng)).encode()


def json_text(data: bytes, rng: random.Random) -> bytes:
    """What no JSON writer writes: a key twice, 1e400, an integer of 5,000 digits."""
    if rng.random() < 0.4 and data.startswith(b"{"):
        first = next(iter(json.loads(data)))
        return b"{" + json.dumps(first).encode() + b": 0, " + data[1:]
    mark = b'"\\u0000nasty"'
    whole = json.loads(data)
    holder, key = rng.choice(list(places(whole)))
    holder[key] = "\0nasty"
    return json.dumps(whole).encode().replace(mark, rng.choice(UNWRITTEN))


JSON = (json_value, json_value, json_value, json_text)


# ---------------------------------------------------------------------- changes of safetensors
def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def wild_size(data: bytes, rng: random.Random) -> bytes:
    """A header that claims another length."""
    return struct.pack("<Q", rng.choice([0, 1, 2**63, 2**64 - 1, 10**8, len(data)])) + data[8:]


def wild_header(data: bytes, rng: random.Random) -> bytes:
    """Offsets, dtypes and shapes that do not fit; names that climb out of a folder."""
    header, body = split(data)
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    kind = rng.randrange(7)
    if kind == 0:
        entry["dtype"] = rng.choice(["F64", "I64", "F7", "BOOL", "", 3, "F8_E4M3", "C64", "F4"])
    elif kind == 1:
        entry["shape"] = rng.choice([[2**63, 2], [-1], [0, 2**62], [], [10**30], "x", [1.5]])
    elif kind == 2:
        offsets = [[0, 2**63], [10, 5], [-1, 4], [0, 0], [len(body), len(body) + 4], [1], None]
        entry["data_offsets"] = rng.choice(offsets)
    elif kind == 3:
        header[rng.choice(["../../x", "/etc/passwd", "", "\0", "a/../../b"])] = header.pop(name)
    elif kind == 4:
        header[name] = nasty(rng)
    elif kind == 5:
        header["__metadata__"] = rng.choice([{"a": 1}, [], "x", {"format": None}, None])
    else:
        other = rng.choice(names)
        entry["data_offsets"] = header[other]["data_offsets"]
    return joined(json.dumps(header).encode(), body)


def resealed(data: bytes, rng: random.Random) -> bytes:
    """Other tensors or other words with a digest that fits: only what they mean can be wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        tensors, metadata = load_tensors(path, foreign=True)
        tensors = dict(tensors)
        kind = rng.randrange(6)
        name = rng.choice(sorted(tensors))
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors[rng.choice(["../../x", "extra", "model/x", "optimizer/x/y"])] = torch.zeros(3)
        elif kind == 2:
            wild = [tensors[name].long(), torch.zeros(0), torch.zeros(()), torch.zeros(1, 2, 3)]
            tensors[name] = rng.choice(wild)
        elif kind == 3:
            tensors[name] = torch.full_like(tensors[name].float(), rng.choice([np.nan, np.inf]))
        elif "checkpoint" in metadata:
            words = json.loads(metadata["checkpoint"])
            metadata["checkpoint"] = json.dumps(change(words, rng))
        else:
            metadata[rng.choice(sorted(metadata) or ["plan"])] = rng.choice(["", "0" * 64, "\0"])
        save_tensors(path, tensors, metadata)
        return path.read_bytes()


TENSORS = (wild_size, wild_header, wild_header, resealed, resealed)


def recoded(data: bytes, rng: random.Random) -> bytes:
    """A sparse file whose codes say something else, under a digest that fits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        tensors, metadata = load_tensors(path, foreign=True)
        codes = tensors[NAME].numpy().tobytes()
        change = rng.choice([cut, flip, flip, flip_early, flip_early, overwrite, splice, append])
        new = np.frombuffer(change(codes, rng), np.uint8).copy()
        save_tensors(path, {**tensors, NAME: torch.from_numpy(new)}, metadata)
        return path.read_bytes()


CODES = (*TENSORS, recoded, recoded, recoded, recoded, recoded)


# ---------------------------------------------------------------------- changes of the others
def toml_value(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if " = " in line])
    key = lines[at].partition(" = ")[0]
    wrong = ["1e400", "nan", "-1", "true", "[]", "[[[]]]", "{}", '""', '"../../x"', '"\\u0000"',
             "9" * 5000, "[" * 3000, "1979-05-27", "0x7fffffffffffffffffff", '"' + "x" * 9999 + '"',
             "'''", "[1, 'a', 2.0]", "{a.b.c = 1}", "1.5"]  # fmt: skip
    kind = rng.randrange(5)
    if kind == 0:
        lines.insert(at, lines[at])
    elif kind == 1:
        lines[at] = lines[at].replace(key, rng.choice([key + "x", "", "..", "a.b.c", '"\\u0000"']))
    elif kind == 2:
        lines.insert(at, rng.choice(["[model]", "[[model]]", "[other]", "[", "[a.b]"]))
    else:
        lines[at] = f"{key} = {rng.choice(wrong)}"
    return "\n".join(lines).encode()


def idx(data: bytes, rng: random.Random) -> bytes:
    """A header that does not fit what follows, or a small file that unpacks to gigabytes."""
    content = bytearray(gzip.decompress(data))
    if rng.random() < 0.3:
        return gzip.compress(bytes(content[:16]) + b"\0" * (100 << 20), 1)
    content[rng.randrange(16)] = rng.randrange(256)
    return gzip.compress(bytes(content))


def bomb(data: bytes, rng: random.Random) -> bytes:
    """A picture that claims more pixels than memory holds."""
    width, height = rng.choice([(2**31 - 1, 2**31 - 1), (0, 5), (100_000, 100_000)])
    return data[:16] + struct.pack(">II", width, height) + data[24:]


def zipped(data: bytes, rng: random.Random) -> bytes:
    """An archive with another entry: a bomb, a path that climbs out, a pickle, a name twice."""
    out = io.BytesIO(data)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        name, content = rng.choice([
            ("net/data/bomb", b"\0" * (64 << 20)),
            ("../../x", b"x"),
            ("/etc/passwd", b"x"),
            (archive.namelist()[0], b"x"),
            ("net/data/constants/custom_obj_0", FOREIGN[-1]),
            ("net/data/sample_inputs/model.pt", FOREIGN[-1]),
        ])  # fmt: skip
        archive.writestr(name, content)
    return out.getvalue()


def inside(data: bytes, rng: random.Random) -> bytes:
    """An archive whose program or tensors say something else."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice([name for name in old.namelist() if name.endswith(".json")])
        for info in old.infolist():
            content = old.read(info)
            if info.filename == chosen:
                content = rng.choice([*JSON, *BYTES])(content, rng)
            new.writestr(info.filename, content)
    return out.getvalue()
