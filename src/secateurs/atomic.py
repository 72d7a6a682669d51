"""Whole files or none: writes that a crash cannot tear, reads that say what is wrong."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import FileError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    A link at `path` is replaced; what it points to is left alone.

    Raises:
        FileError: the system refuses (no room, no permission); what was there is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")  # the ending stays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's files have; some libraries narrow it
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}; nothing there was changed"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_with(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file, and put it in place whole."""
    with replacing(path) as temporary:
        write(temporary)


def check_file(path: str | Path) -> Path:
    """Refuse what is no file: a pipe would wait for ever, and a device has no end.

    Raises:
        FileError: it is missing, or something else.
    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        kind = "is no file" if path.exists() else "does not exist"
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {str(path)!r}: {error}") from error
    raise FileError(f"cannot read {path}: it {kind}")


def read_text(path: str | Path) -> str:
    """Read a text file.

    Raises:
        FileError: it is missing, unreadable or not text.
    """
    try:
        return check_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read {path}: {error}") from error


def parse_json(text: str, what: str, *, finite: bool = True) -> Any:
    """The data that a JSON text spells; a key that stands twice is an error.

    Args:
        text: JSON.
        what: how the user knows it, for the message.
        finite: refuse NaN and the infinities, which JSON does not know.

    Raises:
        FileError: the text is not JSON.

    >>> parse_json('{"units": [1, 2]}', "the plan")
    {'units': [1, 2]}
    """

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise ValueError(f"{text[:20]} is no finite number")
        return value

    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_float=number, parse_constant=number
        )
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} is not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return out
