"""Run by `recorded.py` in a process of its own: record the model in a folder, with torch."""

from __future__ import annotations

import sys
from pathlib import Path

from .recorded import record_here

if __name__ == "__main__":
    record_here(Path(sys.argv[1]))
