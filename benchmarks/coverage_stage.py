"""The record of one network, its stages, and what a stage may take."""

from __future__ import annotations

import gc
import json
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.atomic import write_text
from secateurs.errors import SecateursError
from secateurs.trace.model import as_call

LIMIT = 60  # seconds of processor that a stage may take; a lone thread has a core to itself


class StopError(Exception):
    """A stage failed; what is known is in the record."""


class Record(dict[str, Any]):
    """What is known of one network, written as JSON at the start and the end of every stage.

    A process that is ended from outside leaves what it knew, and the stage that it was in, with the
    processor seconds that it had taken.
    """

    def __init__(self, name: str, path: Path):
        super().__init__(name=name)
        self.path = path

    def write(self) -> None:
        self["processor"] = time.process_time()
        write_text(self.path, json.dumps(self))

    @contextmanager
    def stage(self, name: str, seconds: float = LIMIT) -> Iterator[None]:
        """Run a stage within its limit; what it raises is noted, with where, and ends the run.

        Raises:
            StopError: the stage failed.
        """
        self["stage"] = name
        self.write()
        try:
            with limited(seconds):
                yield
        except Exception as error:
            self["failed"] = name
            self["error"] = said(error)
            self["refused"] = isinstance(error, SecateursError)
            self["where"] = _frames(error)
            raise StopError from error
        finally:
            self.write()


def said(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _frames(error: BaseException) -> list[str]:
    """The last lines of code that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in frames]


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in code that takes more than these seconds of processor time."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def measured(record: Record) -> Iterator[None]:
    """Note the processor seconds, and the most MiB in memory above those at the start."""
    gc.collect()  # what imports left is not counted, on whichever side it would fall
    _forget_peak()
    memory, started = _resident("VmRSS"), time.process_time()
    try:
        yield
    finally:
        record["seconds"] = time.process_time() - started
        record["peak_mib"] = _resident("VmHWM") - memory


def _resident(key: str) -> float:
    """MiB in memory now (VmRSS), or at the most (VmHWM); NaN where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 2**10 if found else float("nan")


def _forget_peak() -> None:
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def run(model: nn.Module, inputs: Any) -> Any:
    """What the model gives, without gradients."""
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return model(*args, **kwargs)


def doubled(inputs: Any) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), inputs
    )


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class _Warm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x)[..., 1:-1, 1:-1], self.b(x)[..., 3:-3, 3:-3]], 1)
        return self.head(self.norm(x).relu().mean((2, 3)))


def warm_up(cut: Callable[[nn.Module, Tensor], object]) -> None:
    """Cut a small network, so that what PyTorch loads late is there before time is taken."""
    cut(_Warm().eval(), torch.zeros(1, 3, 8, 8))
