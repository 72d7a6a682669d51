"""Networks of at most sixteen slices, for the search by brute force.

They are made of what runs at any size, since their code is not mended there, and of smooth
functions, so that no two different cuts agree by chance. No view splits an axis in two: there the
library offers whole rows and whole columns of the grid, by design, and a search finds any set that
leaves a grid.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .builder import Builder, Value
from .network import Network


def linear(b: Builder, x: Value, width: int) -> Value:
    layer = b.layer("Linear", x.width, width, f"bias={b.pick(False, True)}")
    return b.value(f"{layer}({x})", x.kind, *x.shape[:-1], width)


def widths(b: Builder) -> int:
    return b.pick(2, 3, 4)


def smooth(b: Builder, x: Value) -> Value:
    return b.like(x, f"{b.pick('torch.tanh', 'torch.sigmoid', 'F.silu')}({x})")


def deeper(b: Builder, x: Value) -> Value:
    return linear(b, smooth(b, x), widths(b))


def scaled(b: Builder, x: Value) -> Value:
    return b.like(x, f"{x} {b.pick('*', '+')} {b.weight(x.width)}")


def normed(b: Builder, x: Value) -> Value:
    return b.like(x, f"{b.layer('BatchNorm1d', x.width, f'affine={b.pick(False, True)}')}({x})")


def residual(b: Builder, x: Value) -> Value:
    return b.like(x, f"{x} {b.pick('+', '*')} {linear(b, smooth(b, x), x.width)}")


def beside(b: Builder, x: Value) -> Value:
    """Concatenated with itself, or with what a layer makes of it."""
    y = b.pick(smooth, lambda b, x: linear(b, x, 2))(b, x)
    return b.value(f"torch.cat([{x}, {y}], -1)", x.kind, x.width + y.width)


def gated(b: Builder, x: Value) -> Value:
    if x.width % 2:
        x = linear(b, x, 4)
    return b.value(f"F.glu({x}, -1)", x.kind, x.width // 2)


def halves(b: Builder, x: Value) -> Value:
    """Equal halves, each with a reader of its own."""
    x = linear(b, x, 4)
    one, two = b.name("x"), b.name("x")
    b.lines(f"{one}, {two} = torch.tanh({x}).chunk(2, -1)")
    parts = [linear(b, Value(half, x.kind, (2,)), 1) for half in (one, two)]
    return b.value(f"{parts[0]} * {parts[1]}", x.kind, 1)


def paired(b: Builder, x: Value) -> Value:
    """Every pair of two layers."""
    one, two = linear(b, x, 2), linear(b, x, 2)
    made = f"({one}[:, :, None] * {two}[:, None]).flatten(1)"
    return b.value(made, x.kind, 4)


def tied(b: Builder, x: Value) -> Value:
    layer = b.layer("Linear", x.width, widths(b), "bias=False")
    return b.like(x, f"F.linear(torch.tanh({layer}({x})), {layer}.weight.t())")


def turned(b: Builder, x: Value) -> Value:
    return b.like(x, b.pick(f"{x}.flip(-1)", f"{x}.unsqueeze(1).squeeze(1)"))


def statistic(b: Builder, x: Value) -> Value:
    """A cut changes what stays."""
    if x.width == 1:
        return x  # nothing would depend on it
    return b.like(x, b.pick(f"F.softmax({x}, -1)", f"{x} - {x}.mean(-1, keepdim=True)"))


STEPS = (deeper, scaled, normed, residual, beside, gated, halves, paired, tied, turned, statistic)


@st.composite
def small_networks(draw: Any) -> Network:
    """A number in, a number out, and up to three steps between."""
    b = Builder(draw, 3)
    if b.pick(0, 0, 0, 1):
        return attention(b)
    x = linear(b, b.argument("torch.randn(6, 1)", "vector", 1), widths(b))
    while b.more():
        x = b.pick(*STEPS)(b, x)
    return b.done(linear(b, smooth(b, x), 1), plain=True)


def attention(b: Builder) -> Network:
    """Queries and keys go in pairs; values with what reads them.

    There are no biases: a softmax does not see that of the keys.
    """
    x = b.argument("torch.randn(5, 3, 1)", "tokens", 3, 1)
    shared, own = widths(b), widths(b)
    q, k, v = (plain(b, x, size) for size in (shared, shared, own))
    y = b.like(v, f"F.softmax({q} @ {k}.transpose(-2, -1), -1) @ {v}")
    return b.done(plain(b, y, 1), plain=True)


def plain(b: Builder, x: Value, width: int) -> Value:
    return b.value(f"{b.layer('Linear', x.width, width, 'bias=False')}({x})", "tokens", 3, width)
