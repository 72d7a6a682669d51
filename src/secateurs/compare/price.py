"""What a stretch of code takes: seconds, and the most memory beyond what was taken before it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from .record import Price


class Meter:
    """A context; afterwards `price` holds what it took.

    The memory is what PyTorch allocated on the device, or on a CPU the resident memory as Linux
    keeps it; None where it cannot be read.

    >>> with Meter(torch.device("cpu")) as meter:
    ...     _ = torch.zeros(10)
    >>> meter.price.seconds > 0
    True
    """

    price: Price

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._before: int | None = None

    def __enter__(self) -> Meter:
        self._before = self._reset()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self._started
        peak = None if self._before is None else max(self._most() - self._before, 0)
        self.price = Price(seconds=seconds, peak_bytes=peak)

    def _reset(self) -> int | None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            return _resident("VmRSS")
        except OSError:
            return None

    def _most(self) -> int:
        return torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")


def _resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def total(prices: list[Price]) -> Price:
    """Of parts done one after another, or side by side on workers of their own."""
    peaks = [price.peak_bytes for price in prices if price.peak_bytes is not None]
    return Price(
        seconds=sum(price.seconds for price in prices), peak_bytes=max(peaks, default=None)
    )
