"""Draw what a trace finds in a small residual network, as SVG: `make pictures` writes docs/images.

Nothing is drawn by hand: operations, shapes, groups, frozen axes, reads and cut slices are those of
a real trace and a real plan.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.plan import Slices
from secateurs.trace.labels import leaves

IMAGES = Path(__file__).parent / "images"
WIDTH = 420
COLOURS = ("#0f766e", "#b45309")  # of the groups, in their order
FROZEN, INK, PAPER, FAINT = "#94a3b8", "#1e293b", "#ffffff", "#e2e8f0"
STYLE = "font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px"


class Residual(nn.Module):
    """A residual network as small as can be: one skip, one normalisation, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.conv2(self.norm(self.conv1(x)).relu())
        return self.head(x.relu().mean((2, 3)))


# ---------------------------------------------------------------------- shapes
def text(x: float, y: float, words: str, *, colour: str = INK, anchor: str = "start") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def box(x: float, y: float, w: float, h: float, fill: str, *, rim: str = "none", r: int = 4) -> str:
    size = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
    return f'<rect {size} rx="{r}" fill="{fill}" stroke="{rim}"/>'


def arrow(path: str, colour: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="3"/>'


def page(title: str, height: float, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img" style="{STYLE}">'
    )
    name, sheet = f"<title>{escape(title)}</title>", box(0, 0, WIDTH, height, PAPER, r=8)
    return "\n".join([head, name, sheet, *parts, "</svg>", ""])


def legend(graph: sc.Graph, y: float) -> list[str]:
    words = [(f"group '{g.name}'", colour) for g, colour in zip(graph, COLOURS, strict=True)]
    out = []
    for i, (word, colour) in enumerate([*words, ("frozen", FROZEN)]):
        out += [box(16 + 136 * i, y, 12, 12, colour), text(34 + 136 * i, y + 11, word)]
    return out


# ---------------------------------------------------------------------- the trace
def draw_trace(graph: sc.Graph) -> str:
    """Every operation that ran, in order; a line is a tensor, in the colour of its channels."""
    program, reads = graph.program, {(r.position, r.value) for r in graph.analysis.reads}
    tensors = {ident: name for name, ident in program.tensors.items()}
    places = dict.fromkeys(program.inputs, -1)  # value -> the row that made it
    rows: list[str] = []
    lines: list[str] = []
    ran = [n for n, node in enumerate(program.nodes) if program.values[_made(node)].live]
    for row, number in enumerate(ran):
        node, top = program.nodes[number], 64 + 60 * row
        names = [tensors[ident] for ident in node.inputs if ident in tensors]
        module = names[0].rpartition(".")[0] if names else node.module
        rows += [
            box(110, top, 200, 30, FAINT),
            text(120, top + 20, node.name.removeprefix("native_")),
            text(300, top + 20, module, colour="#475569", anchor="end"),
        ]
        for ident in (i for i in node.inputs if i in places):
            colour, skip = _colour(graph, ident), row - places[ident] > 1
            start = 94 + 60 * places[ident]
            way = f"M 210 {start} V {top}"
            if skip:  # around what lies between
                way = f"M 310 {start - 15} C 400 {start + 20}, 400 {top - 20}, 310 {top + 15}"
            lines.append(arrow(way, colour))
            if (number, ident) in reads:
                lines += [f'<circle cx="210" cy="{top - 8}" r="7" fill="{PAPER}" stroke="{INK}"/>']
                lines += [text(206.4, top - 4, "g")]
        places[_made(node)] = row
        shape = " × ".join(map(str, program.values[_made(node)].shape))
        rows.append(text(226, top + 48, shape, colour=_colour(graph, _made(node))))
    rows += [text(210, 26, "input", anchor="middle")]
    bottom = 64 + 60 * len(ran)
    lines.append(arrow(f"M 210 {bottom - 30} V {bottom}", FROZEN))
    rows += [text(210, bottom + 16, "output", anchor="middle"), *legend(graph, bottom + 34)]
    return page("The trace of a small residual network", bottom + 62, lines + rows)


def _made(node: object) -> int:
    return next(ident for ident in node.outputs if ident is not None)


def _colour(graph: sc.Graph, ident: int) -> str:
    """Of the group that any axis of a value belongs to."""
    axes = graph.analysis.axes.get(ident, [])
    found = [n for axis in axes for leaf in leaves(axis) for n in graph.groups_of(leaf)]
    return COLOURS[found[0]] if found else FROZEN


# ---------------------------------------------------------------------- the groups
def draw_groups(graph: sc.Graph) -> str:
    """Every axis of every tensor: the group that it goes with, or why it cannot go."""
    roles = {
        (member.tensor, member.dim): (role, COLOURS[number])
        for number, group in enumerate(graph)
        for role in ("writes", "reads", "carries")
        for member in getattr(group, role)
    }
    reasons = {(f.tensor, f.dim): f.reason for f in graph.frozen}
    parts: list[str] = []
    y = 16
    for name, ident in graph.program.tensors.items():
        parts.append(text(16, y + 21, name))
        for dim, size in enumerate(graph.program.values[ident].shape):
            role, colour = roles.get((name, dim), (reasons.get((name, dim), ""), FROZEN))
            x = 150 + (0, 70, 140, 196)[dim]
            width = 64 if dim < 2 else 50
            parts += [box(x, y, width, 34, colour)]
            parts += [text(x + width / 2, y + 15, str(size), colour=PAPER, anchor="middle")]
            word = role.split()[0]
            parts += [text(x + width / 2, y + 28, word, colour=PAPER, anchor="middle")]
        y += 42
    return page("Which axes go together", y + 30, [*parts, *legend(graph, y + 6)])


# ---------------------------------------------------------------------- the cut
def draw_cut(graph: sc.Graph, model: nn.Module, plan: sc.Plan) -> str:
    """What a plan takes of each tensor: the rows that write a unit, the columns that read it."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parts: list[str] = []
    y = beside = lowest = 0
    for name, slices in plan.tensors.items():
        tensor = tensors[name].detach().abs()
        if tensor.dim() > 1:  # each kernel starts a line; its vectors lie beside it
            grid, x, y = tensor.flatten(2).sum(2), 16, lowest + 40
            beside = y
        else:
            grid, x, y = tensor[None], 180, beside
            slices = Slices((1, *slices.shape), {1: slices.removed[0]})
            beside += 38
        parts += [text(x, y - 8, name), *_cells(x, y, grid.numpy(), slices)]
        lowest = max(lowest, y + 14 * grid.shape[0])
    caption = ", ".join(f"{len(idx)} units of '{name}' go" for name, idx in plan.groups.items())
    parts += [box(16, lowest + 16, 12, 12, "url(#gone)", rim="#dc2626", r=0)]
    parts += [text(34, lowest + 27, caption)]
    hatch = (
        '<pattern id="gone" width="4" height="4" patternUnits="userSpaceOnUse">'
        '<path d="M0 4 L4 0" stroke="#dc2626"/></pattern>'
    )
    return page("What a plan takes of each tensor", lowest + 44, [f"<defs>{hatch}</defs>", *parts])


def _cells(x: float, y: float, grid: np.ndarray, slices: Slices) -> Iterator[str]:
    """One square for each output and input of a kernel, the darker the larger its weights."""
    gone = [set(slices.removed.get(dim, [[]])[0]) for dim in (0, 1)]
    shade = np.round(grid / grid.max() if grid.max() else grid, 1)
    for i, j in np.ndindex(*grid.shape):
        cut = i in gone[0] or j in gone[1]
        fill = f'#334155" fill-opacity="{0.1 + 0.8 * shade[i, j]:.2f}'
        yield box(x + 14 * j, y + 14 * i, 13, 13, fill, r=0)
        if cut:
            yield box(x + 14 * j, y + 14 * i, 13, 13, "url(#gone)", rim="#dc2626", r=0)


def pictures() -> dict[str, str]:
    """Every picture, by the name of its file."""
    torch.manual_seed(0)
    model = Residual()
    graph = sc.trace(model, torch.zeros(1, 3, 8, 8))
    scores = sc.score(model, graph, criterion="weight")
    plan = graph.plan({"conv1": scores["conv1"].argsort()[:4]})
    return {
        "trace.svg": draw_trace(graph),
        "groups.svg": draw_groups(graph),
        "cut.svg": draw_cut(graph, model, plan),
    }


def main() -> int:
    IMAGES.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (IMAGES / name).write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
