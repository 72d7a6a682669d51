"""Random networks, and the laws on each; see `laws`.

    python -m tests.generated --networks 5000 --seed 0 --jobs 2

Every network is drawn from a seed of its own: the same seed and count give the same networks, in
any number of processes. Every kind of failure is shrunk, and written to a file as a test.
"""

import argparse
import re
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from tests.generated.search import Found, search, shrunk

RUN = 50  # networks, between two lines that say how far it is


def main() -> None:
    """Exit with an error if any law was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    given = parser.parse_args()
    begun = time.perf_counter()
    seeds = range(1_000_000 * given.seed, 1_000_000 * given.seed + given.networks)
    runs = [seeds[start : start + RUN] for start in range(0, given.networks, RUN)]
    found = Found()
    with get_context("spawn").Pool(given.jobs, maxtasksperchild=20) as pool:
        for done in pool.imap_unordered(search, runs):
            found.add(done)
            print(f"{found.tally['networks']} networks, {found.failures.total()} failures",
                  file=sys.stderr, flush=True)  # fmt: skip
        tests = pool.starmap(shrunk, found.met.items())
    written = {kind: write(given.out, kind, test)
               for kind, test in zip(found.met, tests, strict=True)}  # fmt: skip
    for name, count in sorted(found.tally.items()):
        print(f"{count:>8}  {name}")
    for kind, count in found.failures.most_common():
        print(f"{count:>8}  FAILED: {kind}\n          {written[kind]}")
    print(f"seed {given.seed}, {found.failures.total()} failures, "
          f"{time.perf_counter() - begun:.0f} s")  # fmt: skip
    sys.exit(1 if found.failures else 0)


def write(folder: Path, kind: str, test: str) -> Path:
    """Put a test where it can be found."""
    path = folder / f"{re.sub(r'[^a-z]+', '-', kind.lower())[:80].strip('-')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(test)
    return path


if __name__ == "__main__":
    main()
