"""Broken and hostile files for every reader: each is refused by a typed error, or read as valid.

    python -m tests.fuzz --files 1000 --seed 0

A reader must raise a `SecateursError` and nothing else, run no code, write nothing, and leave the
model as it was to the bit. A file that is broken and yet valid may be read; the last column counts
them.
"""

import argparse
import sys
import time

from tests.fuzz.readers import kinds_here
from tests.fuzz.search import fuzz


def main() -> None:
    """Exit with an error if any file was met by anything but a typed error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=kinds_here())
    given = parser.parse_args()
    begun = time.perf_counter()
    tally = fuzz(given.files, given.seed, [given.only] if given.only else kinds_here())
    print(f"{tally}\nseed {given.seed}, {time.perf_counter() - begun:.0f} s")
    sys.exit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
