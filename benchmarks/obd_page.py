"""The page and the pictures of `obd_digits.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from cells import machine, spread_over
from obd_digits import (
    EPOCHS,
    FORMS,
    FRACTIONS,
    HELD,
    HELD_OUT,
    JUDGED,
    METHODS,
    PREDICTED,
    RATE,
    RETRAIN,
    RETRAIN_RATE,
    STAGES,
    TRAIN,
    changes,
    correlation,
    spread,
    values,
)
from versus_table import markdown

from secateurs.atomic import write_with
from secateurs.report.figures import KINDS

SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
AFTER = tuple(f for f in STAGES if f > HELD + 1e-9)
TRIAL = """The network with hidden neurons is a second choice. Deleting in stages was first tried on
the plain one, on images with their border, after 40 epochs of training and with 3 of Adam at 0.001
a stage (seed 0; the command above no longer runs it). The training objective held up to about 20%
only: from 0.685 before deletion, `obd` came to 0.681 at 20%, 0.703 at 40% and 0.809 at 60%
(held-out images: 0.740; 0.736, 0.753, 0.846). `magnitude` was level or ahead (0.796 at 60%), except
at 80% and 85%. All that follows is of the network with hidden neurons, with more retraining.

With the border, which never changes, that network's r was 0.76 in the mean of three seeds, 0.64 the
least: its neurons sum what is constant until they are saturated, and many weights which one by one
do no harm do it together. It was left out after r on the networks of seeds 0 and 2."""
LEAST = 1e-5  # of the change that is drawn
WHAT = {"train": "training objective", "test": "test objective", "error": "test error (%)"}


def document(records: Sequence[dict], command: str) -> str:
    """The page, in Markdown."""
    plain, hidden = ([r for r in records if r["form"] == form] for form in FORMS)
    return "\n\n".join(
        (
            "# Optimal Brain Damage on digits",
            *_setting(plain, hidden, command),
            "## Predicted and true change",
            *_prediction(plain, hidden),
            "## Deleting with and without retraining",
            *_deletion(hidden),
            f"{machine()}.\n",
        )
    )


def _setting(plain: Sequence[dict], hidden: Sequence[dict], command: str) -> list[str]:
    first, scale = hidden[0], hidden[0]["scale"]
    measured = f"{HELD_OUT:,} held-out images" if first["validation"] else "the test images"
    rows = [
        [name, *(spread([r["base"][key] for r in own]) for key in WHAT)]
        for name, own in (("plain", plain), ("with hidden neurons", hidden))
    ]
    return [
        f"""`{command}` trains the networks, deletes their weights, draws the pictures and writes
this page: figures 1 and 2 of LeCun, Denker and Solla (1990) on open data. Digits are MNIST
without its border of 4 pixels, at 16 × 16. The plain network is a LeNet-1 in small, like that of
the paper, with {plain[0]["parameters"]:,} parameters, biases included: 4 maps of 5 × 5, averaged
by 2 × 2, 12 maps of 3 × 3, 10 outputs, tanh between them. The other has 30 hidden neurons before
the outputs and {first["parameters"]:,} parameters. The objective is the squared error
summed over the outputs, with targets 1 and −1, mean over the images.
{round(TRAIN * scale):,} training images are drawn by the seed; Adam at {RATE:g},
{round(EPOCHS * scale)} epochs. Settings, and the network that is retrained, were chosen on
{HELD_OUT:,} other training images of seed 0; the figures are on {measured}. They are
{spread_over(len(hidden))}.""",
        "Before deletion:",
        markdown(["network", *WHAT.values()], rows),
    ]


def _prediction(plain: Sequence[dict], hidden: Sequence[dict]) -> list[str]:
    longer = [r["seconds"]["gauss-newton"] / r["seconds"]["obd"] for r in plain]
    judged = sum(f <= JUDGED + 1e-9 for f in FRACTIONS)
    return [
        f"""Weights go at once, the lowest saliency first, over all layers. Predicted is the sum of
½ h w² of those that went, true is the change of the training objective. Pearson's r is over
{judged} fractions up to {JUDGED:.0%}.""",
        "![Predicted against true change of the training objective](obd-predicted.svg)",
        f"The plain network:\n\n{_predicted(plain)}",
        _verdict_predicted(plain),
        f"With hidden neurons:\n\n{_predicted(hidden)}",
        _verdict_predicted(hidden),
        f"The exact diagonal takes {spread(longer, '.0f')} times as long as the recursion on the "
        "plain network.",
    ]


def _deletion(records: Sequence[dict]) -> list[str]:
    epochs = max(1, round(RETRAIN * records[0]["scale"]))
    return [
        TRIAL,
        f"""With retraining, weights go in stages, those of the columns, with the saliencies taken
anew before each and {epochs} epochs of Adam at {RETRAIN_RATE:g} after it. In the last line of each
table the same network has as many updates and nothing is deleted.""",
        "![Objective against the fraction deleted](obd-deleted.svg)",
        _tables(records),
        _verdict_held(records),
        _verdict_ahead(records),
    ]


def _predicted(records: Sequence[dict]) -> str:
    rows = []
    for name in PREDICTED:
        found = [[changes(r, name, f) for r in records] for f in SHOWN]
        for i, what in enumerate(("predicted", "true")):
            rows.append([f"`{name}`, {what}", *(spread([c[i] for c in own]) for own in found), ""])
        rows[-1][-1] = spread([correlation(r, name) for r in records], ".4f")
    return markdown(["", *(f"{f:.0%} deleted" for f in SHOWN), "r"], rows)


def _verdict_predicted(records: Sequence[dict]) -> str:
    lines = []
    for name in PREDICTED:
        ratios = [np.divide(*changes(r, name, JUDGED)) for r in records]
        least = min(correlation(r, name) for r in records)
        lines.append(
            f"`{name}`: the least r of any seed is {least:.4f}; at {JUDGED:.0%} deleted it "
            f"foretells {spread(ratios, '.2f')} of the true change."
        )
    return " ".join(lines)


def _tables(records: Sequence[dict]) -> str:
    parts = []
    for key, what in WHAT.items():
        rows = []
        for of, how in (("at_once", "at once"), ("retrained", "retrained")):
            for name in (*METHODS, "dense"):
                if name in records[0][of]:
                    cells = [spread(values(records, of, name, f, key), ".2f") for f in STAGES]
                    label = "nothing deleted" if name == "dense" else f"`{name}`, {how}"
                    rows.append([label, *cells])
        title = what[0].upper() + what[1:]
        parts.append(f"{title}:\n\n{markdown(['', *(f'{f:.0%}' for f in STAGES)], rows)}")
    return "\n\n".join(parts)


def _verdict_held(records: Sequence[dict]) -> str:
    """How far the objective holds with retraining."""
    lines = []
    for name in METHODS:
        held = [0.0]
        for key in ("train", "test"):
            base = mean(values(records, "retrained", name, 0, key))
            good = [f for f in STAGES if mean(values(records, "retrained", name, f, key)) <= base]
            upto = [f for f in STAGES if all(g in good for g in STAGES if g <= f)]
            held.append(max(upto, default=0.0))
        lines.append(
            f"`{name}` up to {held[1]:.0%} deleted in training and {held[2]:.0%} in testing"
        )
    text = "; ".join(lines)
    return f"With retraining, the mean objective is no higher than before deletion: {text}."


def _verdict_ahead(records: Sequence[dict]) -> str:
    """OBD against magnitude above what holds, paired by seed."""
    lines = []
    for key in ("train", "test"):
        cells = []
        for f in AFTER:
            two = (values(records, "retrained", name, f, key) for name in ("obd", "magnitude"))
            paired = [a - b for a, b in zip(*two, strict=True)]
            cells.append(spread(paired, "+.3f"))
        lines.append([WHAT[key], *cells])
    return (
        f"OBD less magnitude with retraining, paired by seed (below zero, OBD is ahead):\n\n"
        f"{markdown(['', *(f'{f:.0%}' for f in AFTER)], lines)}"
    )


def draw(records: Sequence[dict], page: Path) -> None:
    """Both pictures, in the style of the report's."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "secateurs", "font.size": 9}):
        figure = Figure(figsize=(7.4, 3.4), layout="constrained")
        pairs = zip(FORMS, figure.subplots(1, 2, sharey=True), strict=True)
        for form, axes in pairs:
            own = [r for r in records if r["form"] == form]
            for n, name in enumerate(PREDICTED):
                found = np.array([[changes(r, name, f) for f in FRACTIONS] for r in own]).mean(0)
                for i, (what, style) in enumerate((("predicted", "--"), ("true", "-"))):
                    line, label = np.maximum(found[:, i], LEAST), f"{name}, {what}"
                    axes.plot(_percent(FRACTIONS), line, style, color=f"C{n}", label=label)
            axes.set_yscale("log")
            axes.set_xlabel("deleted at once (%)")
            axes.set_title("plain" if form == "plain" else "with hidden neurons", fontsize=9)
        figure.axes[0].set_ylabel("change of the training objective")
        axes.legend(frameon=False)
        _write(figure, page.with_name(f"{page.stem}-predicted.svg"))

        records = [r for r in records if r["form"] == "hidden"]
        figure = Figure(figsize=(7.4, 3.4), layout="constrained")
        for key, axes in zip(("train", "test"), figure.subplots(1, 2, sharey=True), strict=True):
            for i, name in enumerate(METHODS):
                for of, style in (("at_once", ":"), ("retrained", "-")):
                    fractions = (0.0, *STAGES)
                    rows = np.array([values(records, of, name, f, key) for f in fractions])
                    how = "" if of == "retrained" else " at once"
                    axes.plot(
                        _percent(fractions), rows.mean(1), style, color=f"C{i}", label=name + how
                    )
                    if rows.shape[1] > 1:
                        width = rows.std(1, ddof=1)
                        band = (rows.mean(1) - width, rows.mean(1) + width)
                        axes.fill_between(_percent(fractions), *band, color=f"C{i}", alpha=0.12)
            axes.set_yscale("log")
            axes.set_xlabel("deleted (%)")
            axes.set_title(WHAT[key], fontsize=9)
        axes.legend(frameon=False)
        _write(figure, page.with_name(f"{page.stem}-deleted.svg"))


def _percent(fractions: Sequence[float]) -> list[float]:
    return [100 * f for f in fractions]


def _write(figure: object, path: Path) -> None:
    write_with(path, lambda place: figure.savefig(place, format="svg", **KINDS["svg"]))  # type: ignore[attr-defined]
