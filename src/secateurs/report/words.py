"""Numbers, times and names in the words of a report."""

from __future__ import annotations

import re

NAMES = {"macs": "MACs", "params": "parameters", "units": "units"}


def printable(text: str) -> str:
    """Text without control characters: a name from a file must not steer a terminal.

    >>> printable("conv1\\x1b[2J")
    'conv1�[2J'
    """
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "�", text)


def times(old: float, new: float) -> str:
    """How many times smaller.

    >>> times(10, 4), times(10, 0)
    ('2.5×', '')
    """
    return f"{old / new:,.1f}×" if new else ""


def number(value: float | None) -> str:
    """A measured number, to five digits.

    >>> number(0.123456), number(None)
    ('0.12346', '–')
    """
    return "–" if value is None else f"{value:,.5g}"


def rounded(coefficient: float) -> str:
    """A coefficient between −1 and 1, to two digits.

    >>> rounded(-0.5), rounded(-0.001)
    ('−0.50', '0.00')
    """
    return f"{round(coefficient, 2) + 0.0:.2f}".replace("-", "−")


def size(count: int) -> str:
    """Bytes, in decimal units.

    >>> size(999), size(1_724_320)
    ('999 B', '1.72 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def when(time: str) -> str:
    """A point in time of a record, for reading.

    >>> when("2026-05-04T12:30:01+00:00")
    '2026-05-04 12:30 UTC'
    """
    return f"{time[:10]} {time[11:16]} UTC"


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "axis"), count(1200, "group")
    ('1 axis', '1,200 groups')
    """
    plural = {"axis": "axes", "criterion": "criteria"}.get(what, f"{what}s")
    return f"{number:,} {what if number == 1 else plural}"
