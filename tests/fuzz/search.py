"""Read broken files, and see that nothing happens but a typed error."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.changes import BYTES
from tests.fuzz.readers import READERS, Reader, kinds_here, net, whole
from tests.support import snapshot

from secateurs.errors import SecateursError

SECONDS = 20  # that one file may take


# ---------------------------------------------------------------------- what must not happen
class LateError(BaseException):
    """A reader took too long."""


WATCHED = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen",
           "socket.connect", "shutil.rmtree", "os.symlink")  # fmt: skip


@dataclass
class Watch:
    """Sees commands, pickles, sockets and files that are opened to write, while it is on."""

    folder: str = ""
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in WATCHED:
            self.seen.append(f"{event} {args}")
        elif event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not args[0].startswith((self.folder, "/dev/null")):
                self.seen.append(f"{event} {args}")


@contextlib.contextmanager
def watched(watch: Watch, folder: Path) -> Iterator[None]:
    def late(*_: object) -> None:
        raise LateError(f"a file took more than {SECONDS} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    watch.folder, watch.on, watch.seen = str(folder), True, []
    try:
        yield
    finally:
        watch.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


WATCH = Watch()


def attempt(reader: Reader, folder: Path) -> str:
    """'refused' or 'valid'; else what went wrong."""
    model = net()
    before = snapshot(model)
    try:
        with watched(WATCH, folder):
            reader.read(folder, model)
        outcome = "valid"
    except SecateursError as error:
        outcome = "refused" if str(error) else "an error without words"
    except (Exception, LateError) as error:  # noqa: BLE001 - this is what the search is for
        outcome = f"{type(error).__name__}: {error}"
    if not (reader.fills and outcome == "valid") and snapshot(model) != before:
        outcome = f"the model was changed: {outcome}"
    return f"ran or wrote: {WATCH.seen}" if WATCH.seen else outcome


@dataclass
class Tally:
    """How many files of each kind were refused and read, and what else happened."""

    refused: Counter[str] = field(default_factory=Counter)
    valid: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: str, how: str) -> None:
        if outcome in ("refused", "valid"):
            (self.refused if outcome == "refused" else self.valid)[kind] += 1
        else:
            self.failures.append(f"{kind}, {how}: {outcome}")

    def __str__(self) -> str:
        lines = [f"{'reader':<18}{'files':>7}{'refused':>9}{'valid':>7}"]
        rows = [(kind, self.refused[kind], self.valid[kind]) for kind in kinds_here()]
        rows.append(("all", self.refused.total(), self.valid.total()))
        lines += [f"{kind:<18}{a + b:>7}{a:>9}{b:>7}" for kind, a, b in rows]
        return "\n".join([*lines, f"{len(self.failures)} failures", *self.failures])


def fuzz(files: int, seed: int, kinds: list[str]) -> Tally:
    """Make broken files, kind after kind, and read each."""
    if not WATCH.folder:
        sys.addaudithook(WATCH)  # once: it cannot be taken away
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "a" / "b"  # '../../x' would be beside it
        folder.mkdir(parents=True)
        whole(folder, kinds)
        originals = {kind: (folder / READERS[kind].name).read_bytes() for kind in kinds}
        for kind in kinds:
            if (outcome := attempt(READERS[kind], folder)) != "valid":
                tally.failures.append(f"{kind}, the whole file: {outcome}")
        for number in range(files):
            kind = kinds[number % len(kinds)]
            reader, original = READERS[kind], originals[kind]
            rng = random.Random(f"{seed} {number}")
            change = rng.choice([*BYTES, *reader.made, *reader.made])
            (folder / reader.name).write_bytes(change(original, rng))
            tally.add(kind, attempt(reader, folder), f"{change.__name__}, number {number}")
            (folder / reader.name).write_bytes(original)
        left = sorted(path.name for path in Path(name).rglob("x*"))
        if left:
            tally.failures.append(f"files were written: {left}")
    return tally
