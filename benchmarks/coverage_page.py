"""The page of the coverage table, from its records."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from cells import machine
from coverage_stage import LIMIT
from versus_table import markdown

LAW = 1e-9
Record = dict  # of one process, as in the results
Note = Callable[[str], str]  # a sentence -> its mark in the table

COLUMNS = (
    "network", "groups", "can go", "law", "all groups", "cut", "trains", "torch.export", "ONNX",
    "seconds", "MiB", "Torch-Pruning", "its seconds",
)  # fmt: skip


def verdict(ours: Record) -> str:
    """How a network was cut, or why not."""
    failed = ours.get("failed")
    if failed in (None, "train"):
        if not ours["gone"]:
            return "nothing offered"
        if ours.get("replay"):
            return "replay"
        return f"mended ({ours['mended']})" if ours["mended"] else "in place"
    if failed == "law":
        return "wrong" if "BROKEN" in ours["error"] else "does not run"
    return "refused" if ours.get("refused") else "failed"


def good(ours: Record) -> bool:
    """Cut with the law kept to rounding in float64, and trained after it."""
    lawful = ours.get("dtype") == "float64" and ours.get("law", 1) <= LAW
    return lawful and bool(ours["gone"]) and ours.get("trains") == "yes"


def peer_verdict(theirs: Record) -> str:
    """What Torch-Pruning did, called generically."""
    if "failed" in theirs and theirs["failed"] != "law":
        if "TimeoutError" in theirs["error"] or "no end" in theirs["error"]:
            return "no end"
        return "does not run after it" if theirs["failed"] == "run" else "fails"
    if theirs["left"] == 1:
        return "cuts nothing"
    if not theirs["shape"]:
        return "cuts the output"
    if theirs.get("wrong"):
        return f"wrong in {theirs['wrong']} of {theirs['checked']} groups"
    return "ok"


def row(name: str, parts: dict[str, Record], notes: list[str]) -> tuple[str, ...]:
    """A line of the table; what needs a sentence goes to the notes."""
    ours, theirs, exports = (parts.get(part, {}) for part in ("ours", "theirs", "exports"))
    cells = [name, *["–"] * (len(COLUMNS) - 1)]
    if ours:
        cells[1:7] = _cut_cells(ours, lambda text: _note(notes, name, text))
        cells[9:11] = [_number(ours.get("seconds")), _number(ours.get("peak_mib"), 0)]
    for i, key in ((7, "pt2"), (8, "onnx")):
        found = exports.get(key) or _why(exports)
        if found:
            cells[i] = _yes(found, lambda text: _note(notes, name, text))
    if theirs:
        cells[11:13] = [peer_verdict(theirs), _number(theirs.get("seconds"))]
    return tuple(cells)


def _cut_cells(ours: Record, note: Note) -> list[str]:
    said = verdict(ours)
    if "failed" in ours:
        said += note(_why(ours))
    elif said == "replay":
        said += note(f"not mended: {ours['unmended']}")
    elif said == "nothing offered":
        said += note("; ".join(why for why, _ in reasons([ours])[:3]))
    whole = "" if ours.get("all", "yes") == "yes" else note(f"every group: {ours['all']}")
    return [
        str(ours.get("groups", "–")),
        f"{ours['prunable']:.0%}" if "prunable" in ours else "–",
        _error(ours.get("law")) + (" (float32)" if ours.get("dtype") == "float32" else ""),
        _error(ours.get("law_all")) + whole if "all" in ours else "same",
        said,
        _yes(ours["trains"], note) if "trains" in ours else "–",
    ]


def _why(record: Record) -> str:
    """Which stage failed, and how; nothing if none did."""
    return f"{record['failed']}: {record['error']}" if "failed" in record else ""


def _yes(text: str, note: Note) -> str:
    said = _in_short(text)
    return said if said == "yes" else said + note(text)


def _in_short(text: str) -> str:
    return "yes" if text == "yes" else "nor uncut" if text.startswith("nor uncut") else "no"


def _note(notes: list[str], name: str, text: str) -> str:
    """A mark in the table, and its text at the foot; one for all rows that say the same."""
    short = shorten(text)
    if short not in notes:
        notes.append(short)
    return f" [{notes.index(short) + 1}]"


def shorten(text: str) -> str:
    """An error in a line or two, with no path of this machine."""
    text = re.sub(r"(/[\w.+-]+)+/([\w.-]+\.py)", r"\2", " ".join(text.split()))
    text = text.replace("|", "\\|").replace("<", "‹").replace(">", "›")
    return text[:240] + (" …" if len(text) > 240 else "")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def reasons(records: Iterable[Record]) -> list[tuple[str, int]]:
    """Why axes of parameters are frozen, most first; those of nature left out."""
    plain = ("kernel axis", "an axis of one index", "input of the network", "output of the network")
    count: dict[str, int] = {}
    for record in records:
        for why, times in record.get("frozen", {}).items():
            if why not in plain:
                short = re.sub(r"\d+", "N", shorten(why))
                count[short] = count.get(short, 0) + times
    return sorted(count.items(), key=lambda item: -item[1])


def named_rows(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """One line for each kind of axis on the lists written by hand, and a last one for them all."""
    out, sums = [], [0, 0]
    for record in records:
        for what, (have, named) in (record.get("named") or {}).items():
            out.append((record["name"], what, str(named), str(have)))
            sums = [sums[0] + have, sums[1] + named]
    if sums[1]:
        out.append(("all", "", str(sums[1]), f"{sums[0]} ({sums[0] / sums[1]:.0%})"))
    return out


def summary(names: Sequence[str], records: dict[tuple[str, str], Record]) -> str:
    """What the table comes to."""
    ours = [records[n, "ours"] for n in names if (n, "ours") in records]
    theirs = [records[n, "theirs"] for n in names if (n, "theirs") in records]
    exports = [records[n, "exports"] for n in names if (n, "exports") in records]
    cut = sum(map(good, ours))
    wrong = sum(verdict(r) == "wrong" for r in ours)
    lines = [
        f"{len(ours)} of {len(names)} networks were measured. {sum('groups' in r for r in ours)} "
        f"were traced; {cut} ({cut / max(1, len(ours)):.0%}) were cut with the law kept within\n"
        f"{LAW:.0e} in float64 and trained after it.",
        _tally("Ours", [re.sub(r" \(\d+\)", "", verdict(r)) for r in ours]),
        *(
            _tally(whose, [_in_short(r.get(key, "")) for r in exports])
            for whose, key in (("torch.export", "pt2"), ("ONNX", "onnx"))
        ),
        _tally("Torch-Pruning", [re.sub(r" in .*", "", peer_verdict(r)) for r in theirs]),
        _times(names, records),
        _took(records.values()),
    ]
    if wrong:
        lines.append(f"In {wrong} networks the law is broken: do not cut these yet.")
    return "\n\n".join(line for line in lines if line)


def _tally(whose: str, words: list[str]) -> str:
    counts = sorted(((words.count(w), w) for w in set(words)), reverse=True)
    said = ", ".join(f"{w} {n}" for n, w in counts)
    return f"{whose}, of {len(words)} networks: {said}." if counts else ""


def _took(records: Iterable[Record]) -> str:
    """The minutes of processor time of all processes."""
    minutes = dict.fromkeys(("ours", "exports", "theirs"), 0.0)
    for record in records:
        minutes[record["part"]] += record.get("processor", 0) / 60
    said = ", ".join(f"{part} {m:.0f}" for part, m in minutes.items())
    return f"All processes took {sum(minutes.values()):.0f} minutes of processor time: {said}."


def _times(names: Sequence[str], records: dict[tuple[str, str], Record]) -> str:
    """The ratio of times where both run."""
    pairs = [
        (records[n, "ours"]["seconds"], records[n, "theirs"]["seconds"])
        for n in names
        if {(n, "ours"), (n, "theirs")} <= records.keys()
        and records[n, "ours"].get("failed") in (None, "law", "train")
        and peer_verdict(records[n, "theirs"]) == "ok"
    ]
    if not pairs:
        return ""
    ratios = [ours / theirs for ours, theirs in pairs]
    return (
        f"Where both run ({len(pairs)} networks), ours takes {statistics.median(ratios):.2f} of "
        f"Torch-Pruning's time in the median ({min(ratios):.2f} to {max(ratios):.2f}); the longest "
        f"of ours is {max(ours for ours, _ in pairs):.1f} s, of theirs "
        f"{max(theirs for _, theirs in pairs):.1f} s."
    )


def page(names: Sequence[str], cells: Iterable[Record]) -> str:
    """The whole page."""
    records = {(r["name"], r["part"]): r for r in cells}
    notes: list[str] = []
    rows = []
    for name in names:
        parts = {p: records[name, p] for p in ("ours", "theirs", "exports") if (name, p) in records}
        rows.append(row(name, parts, notes))
    ours = [records[name, "ours"] for name in names if (name, "ours") in records]
    frozen = [(str(n), why) for why, n in reasons(ours)[:25]]
    numbered = "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))
    return TEXT.format(
        limit=LIMIT,
        summary=summary(names, records),
        table=markdown(COLUMNS, rows),
        notes=numbered or "None.",
        named=markdown(("network", "what", "axes named", "axes offered"), named_rows(ours)),
        lists=sum(bool(record.get("named")) for record in ours),
        frozen=markdown(("axes", "reason"), frozen),
        machine=machine(),
        versions=", ".join(_version(p) for p in ("timm", "transformers", "torchvision")),
        peer=_version("torch-pruning"),
    )


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


TEXT = """# Coverage: what can be cut, network by network

`make zoo`. Networks of torchvision (`tv`), timm, transformers (`hf`, tiny configurations) and plain
ones written for this page (`benchmarks/coverage_nets.py`), with random weights and a small input.
Every vector and running statistic is drawn away from 0 and 1, so that a slice left out shows. Each
network has processes of its own; to trace, to plan, to cut and to check may take {limit} seconds of
processor time each, an export 180.

{summary}

- **groups**: families of units that can be cut.
- **can go**: elements of parameters that lie on an index which some group cuts, of all elements. It
  says what is within reach, not what may go at once: a unit of every group stays.
- **law**: a random 30% of every exact group is cut at once (as many from each block of a balanced
  one; of every group where none is exact); the largest difference, in float64, between the cut
  network and the uncut one with every read of those units multiplied by zero, over the largest
  output.
- **all groups**: the same with 30% of the inexact groups gone too, against the network with its
  statistics taken over the units that stay; 'same' where there are none.
- **cut**: 'in place' if slicing tensors was enough, 'mended (n)' if n integers of the model, sizes
  in its code or scales of its weights were changed too, 'replay' if that was refused, or nothing
  offered, and a static program serves it; else why not: 'refused' before anything changed, 'nothing
  offered', 'does not run' after the cut, 'wrong' if it runs and breaks the law.
- **trains**: a step of descent in training mode, with finite gradients. 'nor uncut': the original
  cannot do it either; so for the exports. '–': not measured.
- **seconds, MiB**: trace, groups, plan and apply in float32, in place, on one thread: processor
  time, and the most memory above what the process had before. A small network is cut first, so that
  what PyTorch loads once is not counted, nor is the garbage of imports. Neither side scores: the
  units that go are random.
- **Torch-Pruning**: {peer}, told which tensors are the outputs and to leave the last layer
  alone, 30% at random. Each of its groups is checked too where that is possible: the network
  with the group's reads zeroed against the network without it. 'no end': more than {limit} seconds.

{table}

## Notes

{notes}

## Axes that a person would name

For twelve networks the axes that somebody would want to prune were written down from the papers
and the code of the models (`benchmarks/coverage_named.json`), with the number of slices that go
with a unit: all rows of a head, or one of every head for a head dim. Offered means that a group
cuts that axis in just such units. {lists} of the twelve are measured here.

{named}

## Why the rest is frozen

Axes of parameters of all networks, without kernel axes, inputs and outputs; numbers are written N.

{frozen}

{machine}; {versions}.
"""
