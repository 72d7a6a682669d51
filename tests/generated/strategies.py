"""Hypothesis strategies for whole networks."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from . import heads, images, parts, states, tokens, vectors, weights  # noqa: F401 - steps
from .builder import Builder, Value, steps
from .network import Network

STEPS = 8  # at most, in one network


def image(b: Builder) -> Value:
    """An image of one, two or three axes, or a plane of four by four."""
    space = b.pick((4, 4), (8, 8), (6,), (2, 2, 2))
    sizes = (3, *space)
    return b.argument(f"torch.randn(2, {', '.join(map(str, sizes))})", "image", *sizes)


def plane(b: Builder) -> Value:
    return b.argument("torch.randn(2, 3, 8, 8)", "image", 3, 8, 8)


def sequence(b: Builder) -> Value:
    time, width = b.pick(3, 5), b.pick(4, 6)
    if b.coin():
        return b.argument(f"torch.randn(2, {time}, {width})", "tokens", time, width)
    ids = b.argument(f"torch.randint(7, (2, {time}))", "ids", time)
    return b.value(f"{b.layer('Embedding', 7, width)}({ids})", "tokens", time, width)


def vector(b: Builder) -> Value:
    return b.argument("torch.randn(2, 5)", "vector", 5)


def mapped(b: Builder, x: Value) -> Value:
    """One layer that reads the input, so that there is something to cut."""
    return weights.ROOMS[x.kind].projected(b, x, b.width())


def as_vector(b: Builder, x: Value) -> Value:
    """Means over all but the features."""
    if x.kind == "vector":
        return x
    axes = (1,) if x.kind == "tokens" else tuple(range(2, x.rank + 2))
    return b.value(f"{x}.mean({axes})", "vector", x.width)


def head(b: Builder, x: Value) -> Value:
    return vectors.projected(b, as_vector(b, x), 3)


@st.composite
def networks(draw: Any) -> Network:
    """Any network: one or two inputs, up to eight steps, one or two outputs."""
    b = Builder(draw, STEPS)
    x = mapped(b, b.pick(vector, image, sequence)(b))
    x = steps(b, x)
    if b.pick(0, 0, 0, 1):  # what another input says is added
        y = as_vector(b, steps(b, mapped(b, b.pick(vector, sequence)(b))))
        x = as_vector(b, x)
        x = b.like(x, f"{x} {b.pick('+', '*')} {vectors.projected(b, y, x.width)}")
    outputs = [x] if b.pick(0, 0, 0, 1) else [head(b, x)]
    if b.pick(0, 0, 0, 1):
        outputs.append(head(b, x))
    return b.done(*outputs)


@st.composite
def image_networks(draw: Any) -> Network:
    """Networks on planes of eight by eight that end in three outputs."""
    b = Builder(draw, STEPS)
    x = images.projected(b, plane(b), b.width())
    return b.done(head(b, steps(b, x, still=True)), plain=True)
