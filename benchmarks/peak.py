"""The most memory that a stretch of code takes beyond what was taken before it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_MB = 2**20


class Peak:
    """A context; afterwards `megabytes` holds the peak, or None where it cannot be read.

    On a GPU it is what PyTorch allocated there; on a CPU the resident memory, as Linux keeps it.
    """

    megabytes: float | None = None

    def __init__(self, device: str):
        self.gpu = device != "cpu"

    def __enter__(self) -> Peak:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            except OSError:
                self.before = None
            else:
                self.before = _resident("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        if self.before is not None:
            most = torch.cuda.max_memory_allocated() if self.gpu else _resident("VmHWM")
            self.megabytes = (most - self.before) / _MB


def _resident(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", status).group(1))
