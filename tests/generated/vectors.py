"""Steps from vectors: layers, norms, products, mixtures."""

from __future__ import annotations

import math

from .builder import Builder, Value, activation, ingredient, steps

WIDEST = 24


def splits(x: Value) -> bool:
    """The width has a divisor."""
    return any(x.width % d == 0 for d in range(2, x.width))


def projected(b: Builder, x: Value, width: int) -> Value:
    made = b.layer("Linear", x.width, width, f"bias={b.coin()}")
    return b.value(f"{made}({x})", "vector", width)


@ingredient("vector")
def linear(b: Builder, x: Value) -> Value:
    return projected(b, x, b.width())


@ingredient("vector")
def active(b: Builder, x: Value) -> Value:
    return b.like(x, activation(b, x))


@ingredient("vector")
def normed(b: Builder, x: Value) -> Value:
    return b.like(x, f"{b.layer(b.pick('BatchNorm1d', 'LayerNorm'), x.width)}({x})")


@ingredient("vector")
def residual(b: Builder, x: Value) -> Value:
    y = steps(b, x, still=True)
    if y is x or y.shape != x.shape or b.coin():
        y = projected(b, y, x.width)
    return b.like(x, f"{x} {b.pick('+', '*', '-')} {y}")


@ingredient("vector", lambda x: x.width <= WIDEST)
def concatenated(b: Builder, x: Value) -> Value:
    y = projected(b, x, b.pick(2, 3, 4))
    return b.value(f"torch.cat([{x}, torch.tanh({y})], 1)", "vector", x.width + y.width)


@ingredient("vector", lambda x: x.width % 2 == 0)
def gated(b: Builder, x: Value) -> Value:
    return b.value(f"F.glu({x}, 1)", "vector", x.width // 2)


@ingredient("vector")
def bilinear(b: Builder, x: Value) -> Value:
    """A product of every pair of two small projections."""
    one, two = projected(b, x, b.pick(2, 3)), projected(b, x, b.pick(3, 2))
    made = f"({one}[:, :, None] * {two}[:, None, :]).flatten(1)"
    return b.value(made, "vector", one.width * two.width)


@ingredient("vector")
def tied(b: Builder, x: Value) -> Value:
    """There and back by one weight."""
    width = b.width()
    made = b.layer("Linear", x.width, width, f"bias={b.coin()}")
    y = b.value(f"torch.tanh({made}({x}))", "vector", width)
    return b.like(x, f"F.linear({y}, {made}.weight.t())")


@ingredient("vector")
def mixture(b: Builder, x: Value) -> Value:
    """Two experts and a router of soft choices."""
    experts = [projected(b, x, x.width) for _ in range(2)]
    gate = b.value(f"F.softmax({projected(b, x, 2)}, -1)", "vector", 2)
    return b.like(x, " + ".join(f"{gate}[:, {i}:{i + 1}] * {e}" for i, e in enumerate(experts)))


# ---------------------------------------------------------------------- other shapes
@ingredient("vector", splits, still=False)
def as_tokens(b: Builder, x: Value) -> Value:
    time = b.divisor(x.width)
    made = b.pick(f"{x}.view(-1, {time}, {b.said(x.width // time)})",
                  f"{x}.unflatten(1, ({time}, -1))")  # fmt: skip
    return b.value(made, "tokens", time, x.width // time)


@ingredient("vector", lambda x: x.width % 4 == 0 and x.width > 4, still=False)
def as_image(b: Builder, x: Value) -> Value:
    width = x.width // 4
    made = b.pick(f"{x}.view(-1, {b.said(width)}, 2, 2)", f"{x}.reshape({x}.shape[0], -1, 2, 2)")
    return b.value(made, "image", width, 2, 2)


@ingredient("vector", lambda x: math.prod(x.shape) <= 12, still=False)
def planted(b: Builder, x: Value) -> Value:
    """Every feature over a small plane."""
    return b.value(f"{x}[:, :, None, None].expand(-1, -1, 2, 2)", "image", x.width, 2, 2)
