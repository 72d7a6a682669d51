"""Many networks from one seed: what fails, and each kind of failure as small as it gets."""

from __future__ import annotations

import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .laws import check
from .network import Network
from .strategies import networks

Try = Callable[[Network, int], None]
SECONDS = 20


@dataclass
class Found:
    """What came of some networks.

    Attributes:
        tally: of the laws, over all networks.
        failures: kind of failure -> how often it was met.
        met: kind of failure -> the seed of a network that fails so.
    """

    tally: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    met: dict[str, int] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        self.tally += other.tally
        self.failures += other.failures
        self.met = {**other.met, **self.met}


def search(seeds: range) -> Found:
    """Try the network of each of these seeds."""
    torch.set_num_threads(1)
    found = Found()
    for number in seeds:
        try:
            found.tally += judged(*drawn(number))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
            kind = kind_of(error)
            found.tally["networks"] += 1
            found.failures[kind] += 1
            found.met.setdefault(kind, number)
    return found


def judged(network: Network, units: int) -> Counter[str]:
    """The laws on a network, in so many seconds of processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        return check(network, units)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def drawn(number: int) -> tuple[Network, int]:
    """The network of a seed, and a choice of its units."""
    examples: list[tuple[Network, int]] = []

    def note(network: Network, units: int) -> None:
        examples.append((network, units))

    draw(note, number, [Phase.generate])
    return examples[-1]


def draw(attempt: Try, number: int, phases: list[Phase]) -> None:
    """Call a function with a network and a choice of its units.

    It is called twice: Hypothesis begins with the simplest network of all. Left to draw more, it
    would draw many that are nearly alike.
    """
    decide = settings(
        max_examples=2, phases=phases, database=None, deadline=None, print_blob=False,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    seed(number)(decide(given(networks(), st.integers(0, 99))(attempt)))()


def shrunk(kind: str, number: int) -> str:
    """The smallest network found that fails in this way, as a test."""
    torch.set_num_threads(1)
    last: list[str] = []

    def again(network: Network, units: int) -> None:
        try:
            judged(network, units)
        except Exception as error:
            if kind_of(error) == kind:
                last[:] = [as_test(network, units, error)]
                raise

    try:
        draw(again, number, [Phase.generate, Phase.shrink])
    except Exception:  # noqa: BLE001 - it was noted where it was raised
        return last[0]
    return f"# not met again: {kind}\n"


def kind_of(error: Exception) -> str:
    """A failure without its numbers and names."""
    if isinstance(error, TimeoutError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = re.sub(r"'[^']*'|\{.*\}|[\d.e+-]*\d[\d.e+-]*", "…", str(error).partition("\n")[0])
    file = "the network" if place.filename.startswith("<") else place.filename.rpartition("/")[2]
    return f"{type(error).__name__} in {file}, {place.name}: {words[:120]}"


def as_test(network: Network, units: int, error: Exception) -> str:
    """A test to paste."""
    words = str(error).partition("\n")[0]
    inputs = "".join(f"{made}, " for _, made in network.inputs)
    weights = "" if network.by_weights else ", by_weights=False"
    return (
        f"# {type(error).__name__}: {words}\n{network.code}\n\n"
        f"def test_what_was_found() -> None:\n"
        f"    torch.manual_seed(1)\n"
        f"    inputs = doubled(({inputs}))\n"
        f"    Laws(doubled(Net()), inputs, {units}{weights}).check()\n"
    )
