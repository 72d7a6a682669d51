"""Steps whose weights are shared, tied, computed or normalised, and steps in a class apart."""

from __future__ import annotations

from . import images, tokens, vectors
from .builder import Builder, Value, ingredient, steps

NORMS = ("weight_norm", "spectral_norm")
ROOMS = {"image": images, "tokens": tokens, "vector": vectors}


def nested(b: Builder, x: Value) -> Value:
    """Some steps in a module of their own, which may be called twice."""
    call, y = b.block(x, lambda inner, own: steps(inner, own, still=True))
    y = with_shape(b, call(x), y)
    return b.like(y, call(y)) if y.shape == x.shape and b.coin() else y


def with_shape(b: Builder, made: str, like: Value) -> Value:
    return b.value(made, like.kind, *like.shape)


def looped(b: Builder, x: Value) -> Value:
    """Two layers of a list, one after the other, each with a way around it."""
    kind = f"Conv{x.rank}d" if x.kind == "image" else "Linear"
    size = ", 1" if x.kind == "image" else ""
    made = f"nn.{kind}({x.width}, {x.width}{size}) for _ in range(2)"
    layers = b.keep("layers", f"nn.ModuleList({made})")
    y = b.like(x, f"{x} + 0")
    b.lines(f"for layer in {layers}:", f"    {y} = {y} + torch.tanh(layer({y}))")
    return y


def sequential(b: Builder, x: Value) -> Value:
    kind = f"Conv{x.rank}d" if x.kind == "image" else "Linear"
    size, inner, width = ", 1" if x.kind == "image" else "", b.width(), b.width()
    layers = b.keep("layers", f"nn.Sequential(nn.{kind}({x.width}, {inner}{size}), nn.GELU(), "
                    f"nn.Dropout(), nn.{kind}({inner}, {width}{size}))")  # fmt: skip
    return with_shape(b, f"{layers}({x})", wide(x, width))


def wide(x: Value, width: int) -> Value:
    shape = (x.shape[0], width) if x.kind == "tokens" else (width, *x.shape[1:])
    return Value(x.name, x.kind, shape)


def normalised(b: Builder, x: Value) -> Value:
    """A layer whose weight is normalised whenever it is used."""
    width = b.width()
    kind = f"Conv{x.rank}d" if x.kind == "image" else "Linear"
    size = ", 3, padding=1" if x.kind == "image" else ""
    how = b.pick(*NORMS)
    layer = f"nn.utils.parametrizations.{how}(nn.{kind}({x.width}, {width}{size}))"
    return with_shape(b, f"{b.keep('layer', layer)}({x})", wide(x, width))


def twins(b: Builder, x: Value) -> Value:
    """One layer on two inputs, or two layers with one weight."""
    width = b.width()
    room = ROOMS[x.kind]
    one, two = room.projected(b, x, width), room.projected(b, x, width)
    kind = f"Conv{x.rank}d" if x.kind == "image" else "Linear"
    size, inner = ", 1" if x.kind == "image" else "", b.width()
    first = b.keep("first", f"nn.{kind}({width}, {inner}{size})")
    second = first
    if b.coin():
        second = b.keep("second", f"nn.{kind}({width}, {inner}{size})")
        b.init.append(f"{second}.weight = {first}.weight")
    made = f"{first}({one}) {b.pick('+', '*', '-')} torch.tanh({second}({two}))"
    return with_shape(b, made, wide(x, inner))


for _kind in ROOMS:
    for _step in (nested, looped, sequential, normalised, twins):
        ingredient(_kind)(_step)


# ---------------------------------------------------------------------- computed weights
@ingredient("vector")
def computed(b: Builder, x: Value) -> Value:
    """A weight that is made of others."""
    width = b.width()
    weight = b.pick(
        f"{b.weight(width, 2)} @ {b.weight(2, x.width)}",
        f"torch.cat([{b.weight(width - 1, x.width)}, {b.weight(1, x.width)}])",
        f"{b.weight(x.width, width)}.t()",
        f"{b.weight(width, x.width)} * {b.weight(1, x.width)}",
        f"F.normalize({b.weight(width, x.width)}, dim=0)",
        f"{b.weight(2 * width, x.width)}.chunk(2)[1]",
        f"{b.weight(width * x.width)}.view({width}, -1)",
    )
    return b.value(f"F.linear({x}, {weight})", "vector", width)


@ingredient("vector", lambda x: x.width > 1)
def bilinear(b: Builder, x: Value) -> Value:
    width = b.pick(3, 4, 2)
    layer = b.layer("Bilinear", x.width, x.width, width, f"bias={b.coin()}")
    return b.value(f"{layer}({x}, torch.tanh({x}))", "vector", width)


@ingredient("image", images.plane)
def standardised(b: Builder, x: Value) -> Value:
    """Weight standardisation."""
    width = b.width()
    weight = b.weight(width, x.width, 3, 3)
    over = "((1, 2, 3), keepdim=True)"
    made = f"({weight} - {weight}.mean{over}) / ({weight}.std{over} + 1e-5)"
    return b.value(f"F.conv2d({x}, {made}, padding=1)", "image", *images.widened(x, width))


@ingredient("tokens")
def tied(b: Builder, x: Value) -> Value:
    """There and back by one weight."""
    width = b.width()
    layer = b.layer("Linear", x.width, width, f"bias={b.coin()}")
    return b.like(x, f"F.linear(F.gelu({layer}({x})), {layer}.weight.t())")
