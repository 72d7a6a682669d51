"""Steps from images: convolutions, norms, pools, shuffles, branches, and ways out of space."""

from __future__ import annotations

import math

from .builder import Builder, Value, activation, ingredient, steps

WIDEST = 24
LARGEST = 64  # pixels


def even(x: Value) -> bool:
    return x.width % 2 == 0


def splits(x: Value) -> bool:
    """The width has a divisor."""
    return any(x.width % d == 0 for d in range(2, x.width))


def roomy(x: Value) -> bool:
    return min(x.space) > 1


def plane(x: Value) -> bool:
    return x.rank == 2


def widened(x: Value, width: int) -> tuple[int, ...]:
    return (width, *x.space)


def projected(b: Builder, x: Value, width: int) -> Value:
    """A convolution to this width that leaves space as it is."""
    k = b.pick(1, 3)
    made = b.layer(f"Conv{x.rank}d", x.width, width, k, f"padding={k // 2}", f"bias={b.coin()}")
    return b.value(f"{made}({x})", "image", *widened(x, width))


# ---------------------------------------------------------------------- convolutions
@ingredient("image")
def convolution(b: Builder, x: Value) -> Value:
    return projected(b, x, b.width())


@ingredient("image", splits)
def grouped(b: Builder, x: Value) -> Value:
    groups = b.divisor(x.width)
    width = groups * b.pick(1, 2, 3)
    made = b.layer(f"Conv{x.rank}d", x.width, width, 3, "padding=1", f"groups={groups}")
    return b.value(f"{made}({x})", "image", *widened(x, width))


@ingredient("image")
def depthwise(b: Builder, x: Value) -> Value:
    width = x.width * b.pick(1, 2) if x.width <= WIDEST // 2 else x.width
    made = b.layer(f"Conv{x.rank}d", x.width, width, 3, "padding=1", f"groups={x.width}")
    return b.value(f"{made}({x})", "image", *widened(x, width))


@ingredient("image")
def transposed(b: Builder, x: Value) -> Value:
    groups = b.pick(1, *(d for d in range(2, x.width + 1) if x.width % d == 0))
    width = groups * b.pick(1, 2)
    width = width if width <= WIDEST else groups
    name = f"ConvTranspose{x.rank}d"
    made = b.layer(name, x.width, width, 3, "padding=1", f"groups={groups}")
    return b.value(f"{made}({x})", "image", *widened(x, width))


@ingredient("image", roomy, still=False)
def strided(b: Builder, x: Value) -> Value:
    width = b.width()
    made = b.layer(f"Conv{x.rank}d", x.width, width, 2, "stride=2")
    return b.value(f"{made}({x})", "image", width, *(n // 2 for n in x.space))


@ingredient("image", plane)
def functional(b: Builder, x: Value) -> Value:
    """A convolution whose kernel is a parameter by itself, or computed from one."""
    width = b.width()
    weight = b.weight(width, x.width, 3, 3)
    weight = b.pick(weight, f"torch.tanh({weight})", f"{weight} * {b.weight(width, 1, 1, 1)}")
    return b.value(f"F.conv2d({x}, {weight}, padding=1)", "image", *widened(x, width))


@ingredient("image")
def channels_last(b: Builder, x: Value) -> Value:
    width = b.width()
    made = b.layer("Linear", x.width, width)
    return b.value(f"{made}({x}.movedim(1, -1)).movedim(-1, 1)", "image", *widened(x, width))


@ingredient("image", plane)
def contracted(b: Builder, x: Value) -> Value:
    width = b.width()
    weight = b.weight(width, x.width)
    made = f"torch.einsum('bchw,dc->bdhw', {x}, {weight})"
    return b.value(made, "image", *widened(x, width))


@ingredient("image")
def shared(b: Builder, x: Value) -> Value:
    """One layer, two or three times."""
    made = b.layer(f"Conv{x.rank}d", x.width, x.width, 3, "padding=1")
    x = b.like(x, f"torch.tanh({made}({x}))")
    if b.coin():
        return b.like(x, f"{x} + {made}({x})")
    b.lines(f"for _ in range({b.pick(1, 2)}):", f"    {x} = torch.tanh({made}({x}))")
    return x


# ---------------------------------------------------------------------- one by one
@ingredient("image")
def active(b: Builder, x: Value) -> Value:
    if b.coin():
        return b.like(x, f"{b.layer('PReLU', x.width)}({x})")
    return b.like(x, activation(b, x))


@ingredient("image")
def batch_norm(b: Builder, x: Value) -> Value:
    return b.like(x, f"{b.layer(f'BatchNorm{x.rank}d', x.width, f'affine={b.coin()}')}({x})")


@ingredient("image", splits)
def group_norm(b: Builder, x: Value) -> Value:
    return b.like(x, f"{b.layer('GroupNorm', b.divisor(x.width), x.width)}({x})")


@ingredient("image", lambda x: math.prod(x.space) > 1)
def instance_norm(b: Builder, x: Value) -> Value:
    return b.like(x, f"{b.layer(f'InstanceNorm{x.rank}d', x.width, 'affine=True')}({x})")


@ingredient("image")
def layer_norm(b: Builder, x: Value) -> Value:
    made = b.layer("LayerNorm", x.width)
    return b.like(x, f"{made}({x}.movedim(1, -1)).movedim(-1, 1)")


@ingredient("image")
def scaled(b: Builder, x: Value) -> Value:
    weight = b.weight(x.width, *(1 for _ in x.space))
    return b.like(x, f"{x} {b.pick('*', '+', '-')} {weight}")


@ingredient("image")
def over_channels(b: Builder, x: Value) -> Value:
    """Statistics over the channels."""
    made = b.pick(f"{x} - {x}.mean(1, keepdim=True)", f"F.softmax({x}, 1)", f"F.normalize({x})",
                  f"{x} / (1 + {x}.amax(1, keepdim=True).abs())")  # fmt: skip
    return b.like(x, made)


@ingredient("image")
def over_space(b: Builder, x: Value) -> Value:
    made = b.pick(f"{x} - {x}.mean(2, keepdim=True)", f"F.softmax({x}, -1)", f"{x}.cumsum(2)")
    return b.like(x, made)


@ingredient("image")
def squeezed(b: Builder, x: Value) -> Value:
    """Squeeze and excitation."""
    inner, space = b.width(), tuple(range(2, x.rank + 2))
    name = f"Conv{x.rank}d"
    down, up = b.layer(name, x.width, inner, 1), b.layer(name, inner, x.width, 1)
    s = b.value(f"{x}.mean({space}, keepdim=True)", "image", x.width, *(1 for _ in x.space))
    return b.like(x, f"{x} * torch.sigmoid({up}(F.relu({down}({s}))))")


# ---------------------------------------------------------------------- branches
@ingredient("image")
def residual(b: Builder, x: Value) -> Value:
    y = steps(b, x, still=True)
    if y.shape != x.shape or b.coin():
        y = projected(b, y, x.width)
    return b.like(x, f"{x} {b.pick('+', '*')} {y}")


@ingredient("image", lambda x: x.width <= WIDEST // 2)
def concatenated(b: Builder, x: Value) -> Value:
    y = steps(b, x, still=True)
    if x.width + y.width > WIDEST:
        y = projected(b, y, 2)
    pair = b.pick((x, y), (y, x))
    made = f"torch.cat([{pair[0]}, {pair[1]}], 1)"
    return b.value(made, "image", *widened(x, x.width + y.width))


@ingredient("image")
def stacked(b: Builder, x: Value) -> Value:
    y = projected(b, x, x.width)
    dim = b.pick(0, 1, 2)
    return b.like(x, f"torch.stack([{x}, {y}], {dim}).{b.pick('sum', 'mean', 'prod')}({dim})")


@ingredient("image", even)
def gated(b: Builder, x: Value) -> Value:
    """Equal halves, one of which gates the other."""
    one, two, half = b.name("x"), b.name("x"), x.width // 2
    how = b.pick(f"{x}.chunk(2, 1)", f"{x}.split({b.said(half)}, 1)", f"{x}.tensor_split(2, 1)",
                 f"({x}[:, :{half}], {x}[:, {half}:])")  # fmt: skip
    b.lines(f"{one}, {two} = {how}")
    return b.value(f"{one} * torch.sigmoid({two})", "image", *widened(x, half))


@ingredient("image", lambda x: x.width > 3)
def parted(b: Builder, x: Value) -> Value:
    """Two parts, one of which goes through more, and together again."""
    first = b.pick(2, x.width - 2, x.width // 2)
    one, two = b.name("x"), b.name("x")
    end = b.said(first)
    b.lines(b.pick(f"{one}, {two} = {x}.split([{first}, {x.width - first}], 1)",
                   f"{one}, {two} = {x}[:, :{end}], {x}[:, {end}:]"))  # fmt: skip
    y = projected(b, Value(one, "image", widened(x, first)), first)
    pair = b.pick((y, two), (two, y))
    return b.like(x, f"torch.cat([{pair[0]}, {pair[1]}], 1)")


# ---------------------------------------------------------------------- movement
@ingredient("image", lambda x: plane(x) and splits(x))
def shuffled(b: Builder, x: Value) -> Value:
    groups = b.divisor(x.width)
    inner = b.pick("-1", b.said(x.width // groups, f"{x}.shape[1] // {groups}"))
    height, wide = x.space
    y = b.value(
        f"{x}.view({x}.shape[0], {b.said(groups)}, {inner}, {height}, {wide}).transpose(1, 2)",
        "image", x.width // groups, groups, *x.space,
    )  # fmt: skip
    return b.like(x, b.pick(f"{y}.flatten(1, 2)", f"{y}.reshape({x}.shape)"))


@ingredient("image")
def moved(b: Builder, x: Value) -> Value:
    made = b.pick(f"{x}.flip(2)", f"{x}.flip(1)", f"{x}.roll(1, 2)", f"{x}.roll(1, 1)",
                  f"{x}.transpose(2, -1)" if len(set(x.space)) == 1 else f"{x}.contiguous()",
                  f"{x}.unsqueeze(1).squeeze(1)")  # fmt: skip
    return b.like(x, made)


@ingredient("image", lambda x: x.width <= WIDEST - 2)
def padded(b: Builder, x: Value) -> Value:
    """Channels of zeros are added."""
    zeros = "0, 0, " * x.rank
    before = b.pick(0, 1)
    made = f"F.pad({x}, ({zeros}{before}, 1))"
    return b.value(made, "image", *widened(x, x.width + before + 1))


@ingredient("image", lambda x: x.width <= WIDEST // 2)
def repeated(b: Builder, x: Value) -> Value:
    ones = "1, " * x.rank
    made = b.pick(f"{x}.repeat(1, 2, {ones})", f"{x}.repeat_interleave(2, 1)")
    return b.value(made, "image", *widened(x, 2 * x.width))


@ingredient("image", lambda x: plane(x) and x.width % 4 == 0 and math.prod(x.space) * 4 <= LARGEST,
            still=False)  # fmt: skip
def pixel_shuffled(b: Builder, x: Value) -> Value:
    height, wide = x.space
    return b.value(f"F.pixel_shuffle({x}, 2)", "image", x.width // 4, 2 * height, 2 * wide)


@ingredient("image", lambda x: plane(x) and x.width <= 6 and all(n % 2 == 0 for n in x.space),
            still=False)  # fmt: skip
def pixel_unshuffled(b: Builder, x: Value) -> Value:
    height, wide = x.space
    return b.value(f"F.pixel_unshuffle({x}, 2)", "image", 4 * x.width, height // 2, wide // 2)


@ingredient("image", roomy, still=False)
def pooled(b: Builder, x: Value) -> Value:
    name = b.pick("max_pool", "avg_pool")
    return b.value(f"F.{name}{x.rank}d({x}, 2)", "image", x.width, *(n // 2 for n in x.space))


@ingredient("image", lambda x: math.prod(x.space) * 2**x.rank <= LARGEST, still=False)
def enlarged(b: Builder, x: Value) -> Value:
    mode = b.pick("nearest", "linear bilinear trilinear".split()[x.rank - 1])
    made = f"F.interpolate({x}, scale_factor=2, mode={mode!r})"
    return b.value(made, "image", x.width, *(2 * n for n in x.space))


# ---------------------------------------------------------------------- out of space
@ingredient("image", still=False)
def means(b: Builder, x: Value) -> Value:
    space = tuple(range(2, x.rank + 2))
    made = b.pick(f"{x}.mean({space})", f"{x}.amax({space})", f"{x}.sum({space})",
                  f"F.adaptive_avg_pool{x.rank}d({x}, 1).flatten(1)")  # fmt: skip
    return b.value(made, "vector", x.width)


@ingredient("image", lambda x: math.prod(x.shape) <= 96, still=False)
def flattened(b: Builder, x: Value) -> Value:
    n = math.prod(x.shape)
    made = b.pick(f"{x}.flatten(1)", f"{x}.reshape(-1, {b.said(n)})",
                  f"{x}.reshape({x}.shape[0], -1)",
                  f"{x}.movedim(1, -1).reshape({x}.shape[0], -1)")  # fmt: skip
    return b.value(made, "vector", n)


@ingredient("image", lambda x: math.prod(x.space) <= 16, still=False)
def as_tokens(b: Builder, x: Value) -> Value:
    made = f"{x}.flatten(2).transpose(1, 2)"
    return b.value(made, "tokens", math.prod(x.space), x.width)
