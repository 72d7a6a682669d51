"""The page on dynamic network surgery, from the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from cells import machine
from correlation import told
from tasks import BATCH, HELD_OUT, TASKS
from versus_table import Estimate, markdown

# Guo et al. (2016), tables 1 and 2: error before and after (%), compression, weights kept (%)
PAPER = {
    "lenet5": (0.91, 0.91, 108, (14.2, 3.1, 0.7, 4.3)),
    "lenet-300-100": (2.28, 1.99, 56, (1.8, 1.8, 5.5)),
}
PAPER |= dict.fromkeys(
    ("alexnet-quarter", "alexnet-full"),  # on ImageNet
    (43.42, 43.09, 17.7, (53.8, 40.6, 29.0, 32.3, 32.5, 3.7, 6.6, 4.6)),
)
Record = Mapping


def document(
    records: Sequence[Record], command: str, recipes: Mapping[str, str], planned: int
) -> str:
    """The page, in Markdown; it says if fewer runs than planned are done."""
    seeds = len({record["seed"] for record in records})
    held = records[0]["validation"]
    measured = f"the last {HELD_OUT:,} training images, held out" if held else "the test images"
    nets = dict.fromkeys(record["net"] for record in records)
    head = HEAD.format(command=command, seeds=seeds, measured=measured)
    if len(records) < planned:
        head += f"\n**{len(records)} of {planned} runs are done.**\n"
    own = {name: [r for r in records if r["net"] == name] for name in nets}
    return "\n".join([head, *(_network(name, own[name], recipes[name]) for name in nets)])


HEAD = """# Dynamic network surgery

`{command}` runs everything below and writes this page. {seeds} seeds, each with its own base
network, which the command trains (LeNet-5's are those that `make train` gives, in
`examples/mnist/weights`); errors are on {measured}. Compression is weights and biases
of the network over those that are kept: what is counted is what `sc.sparsify` and then
`sc.remove_dead` leave. How the settings were chosen:
[decision 20](../decisions/0020-splicing-recipe.md).
"""


def _network(name: str, records: Sequence[Record], recipe: str) -> str:
    """The part on one network."""
    task = TASKS[name]
    before, after, ratio, _ = PAPER[name]
    updates = records[0]["updates"]
    return f"""
## {task.title}

{records[0]["total"]:,} weights and biases; {updates:,} updates of {BATCH} images in every
run. In the paper: {before}% → {after}% at {ratio}×.

{recipe}

{_errors(records)}

{_splicing(records)}
Weights kept of each layer (%), without biases:

{_layers(name, records)}

{machine()}.
"""


def _errors(records: Sequence[Record]) -> str:
    seeds = sorted({record["seed"] for record in records})
    base = {record["seed"]: record["base"] for record in records}
    rows = [["base", "1.0×", *_over(seeds, base)]]
    for title, own in _runs(records).items():
        ratio = f"{mean(record['total'] / record['kept'] for record in own.values()):.1f}×"
        rows.append([title, ratio, *_over(seeds, {s: r["error"] for s, r in own.items()}, base)])
    columns = ["", "compression", *(f"seed {seed} (%)" for seed in seeds)]
    return markdown([*columns, "mean", "worst", "lost, mean", "worst"], rows)


def _over(
    seeds: Sequence[int],
    errors: Mapping[int, float],
    base: Mapping[int, float] | None = None,
) -> list[str]:
    """The cells of a row: each seed, their mean and worst, and what is lost to the base."""
    cells = [f"{errors[seed]:.2f}" if seed in errors else "" for seed in seeds]
    cells += [told(list(errors.values())), f"{max(errors.values()):.2f}"]
    if base is None:
        return [*cells, "", ""]
    lost = [errors[seed] - base[seed] for seed in errors]
    return [*cells, *(f"{value:+.2f}".replace("-", "−") for value in (mean(lost), max(lost)))]


def _runs(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """What was done -> seed -> its record."""
    out: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["compression"] == 1:
            title = "dense, trained on for as long"
        else:
            title = "spliced" if record["splice"] else "without splicing"
            title += f", {record['compression']:g}×"
        out.setdefault(title, {})[record["seed"]] = record
    return out


def _splicing(records: Sequence[Record]) -> str:
    """With and without splicing at equal compression; nothing where one side is missing."""
    pairs: dict[float, dict[int, dict[bool, float]]] = {}
    for record in records:
        own = pairs.setdefault(record["compression"], {}).setdefault(record["seed"], {})
        own[record["splice"]] = record["error"]
    rows = []
    for compression, seeds in sorted(pairs.items()):
        both = [pair for pair in seeds.values() if len(pair) == 2]
        if both:
            on, off = ([pair[side] for pair in both] for side in (True, False))
            more = Estimate.of([b - a for a, b in zip(on, off, strict=True)])
            rows.append([f"{compression:g}×", told(on), told(off), str(more)])
    if not rows:
        return ""
    table = markdown(["compression", "spliced (%)", "without (%)", "without − spliced"], rows)
    return f"The difference is paired by seed, ± its standard error.\n\n{table}\n"


def _layers(name: str, records: Sequence[Record]) -> str:
    """The share of weights that is left, beside the paper's."""
    *_, ratio, shares = PAPER[name]
    runs = {title: list(own.values()) for title, own in _runs(records).items() if "×" in title}
    layers = list(next(iter(runs.values()))[0]["layers"])
    rows = [["the paper's", f"{ratio}×", *(f"{share:.1f}" for share in shares)]]
    for title, own in runs.items():
        ratios = mean(record["total"] / record["kept"] for record in own)
        kept = [mean(record["layers"][layer] for record in own) for layer in layers]
        rows.append([title, f"{ratios:.1f}×", *(f"{100 * share:.2f}" for share in kept)])
    return markdown(["", "compression", *(f"`{layer}`" for layer in layers)], rows)
