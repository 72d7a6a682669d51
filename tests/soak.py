"""Kill a run at random moments, resume it each time, and compare with a run left alone."""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("killed_run.py")
KILLS = 20


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(out)], stdout=subprocess.PIPE)


def main() -> None:
    """Exit with an error if any resumed run ends otherwise than the one left alone."""
    root = Path(tempfile.mkdtemp())
    begun = time.perf_counter()
    whole = start(root / "whole").communicate()[0].splitlines()[-1]
    seconds = time.perf_counter() - begun
    rng = random.Random(0)
    differ = 0
    for i in range(KILLS):
        out = root / str(i)
        process = start(out)
        moment = rng.uniform(0.3, 1.0) * seconds
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        end = start(out).communicate()[0].splitlines()[-1]
        differ += end != whole
        state = "differs" if end != whole else "same plan, metric and weights"
        print(f"killed after {moment:.1f} s of {seconds:.1f} s: {state}", flush=True)
    sys.exit(f"{differ} of {KILLS} resumed runs differ" if differ else 0)


if __name__ == "__main__":
    main()
