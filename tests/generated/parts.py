"""Steps that take an axis apart in other ways: slices, splits, indices, folds, windows, rolls."""

from __future__ import annotations

import math

from .builder import Builder, Value, ingredient
from .images import LARGEST, WIDEST, even, plane, projected, widened


def features(x: Value) -> tuple[int, str]:
    """Where the features of a value are, and what stands before them in an index."""
    dim = 2 if x.kind == "tokens" else 1
    return dim, ":, " * dim


def with_width(b: Builder, x: Value, made: str, width: int) -> Value:
    shape = (x.shape[0], width) if x.kind == "tokens" else (width, *x.shape[1:])
    return b.value(made, x.kind, *shape)


def in_two(b: Builder, x: Value) -> Value:
    """A part of the features, by a slice."""
    dim, before = features(x)
    first = b.pick(1, 2, x.width - 2)
    rest = x.width - first
    how = b.pick(f"{x}[{before}{first}:]", f"{x}[{before}{-rest}:]",
                 f"{x}.narrow({dim}, {b.said(first)}, {b.said(rest)})",
                 f"{x}.split([{first}, {rest}], {dim})[1]",
                 f"{x}.tensor_split([{first}], {dim})[1]")  # fmt: skip
    return with_width(b, x, how, rest)


def in_three(b: Builder, x: Value) -> Value:
    """Thirds, put together in another order or multiplied with each other."""
    dim, _ = features(x)
    third = x.width // 3
    parts = [b.name("x") for _ in range(3)]
    how = b.pick(f"{x}.chunk(3, {dim})", f"{x}.tensor_split(3, {dim})",
                 f"{x}.split({b.said(third)}, {dim})",
                 f"{x}.unflatten({dim}, (3, {b.pick('-1', b.said(third))})).unbind({dim})",
                 )  # fmt: skip
    b.lines(f"{', '.join(parts)} = {how}")
    one, two, three = parts
    if b.coin():
        return b.like(x, f"torch.cat([{three}, torch.tanh({one}), {two}], {dim})")
    return with_width(b, x, f"{one} * torch.sigmoid({two}) + {three}", third)


def unequal(b: Builder, x: Value) -> Value:
    """Pieces of other sizes than each other, all but the first of which are dropped."""
    dim, before = features(x)
    how = b.pick((f"{x}.tensor_split(2, {dim})[0]", -(-x.width // 2)),
                 (f"{x}.chunk(2, {dim})[0]", -(-x.width // 2)),
                 (f"{x}[{before}::2]", -(-x.width // 2)),
                 (f"{x}[{before}:-1]", x.width - 1))  # fmt: skip
    return with_width(b, x, *how)


def placed(b: Builder, x: Value) -> Value:
    """Another order, by numbers in the code or in a buffer."""
    dim, before = features(x)
    order = [*range(x.width)][::-1] if b.coin() else [*range(1, x.width), 0]
    index = f"torch.tensor({order})"
    held = b.name("order")
    if b.coin():
        b.init.append(f"self.register_buffer('{held}', {index})")
        index = f"self.{held}"
    return b.like(x, b.pick(f"{x}[{before}{order}]", f"{x}.index_select({dim}, {index})",
                            f"{x}.roll({b.pick(1, 2)}, {dim})", f"{x}.flip({dim})"))  # fmt: skip


def shuffled(b: Builder, x: Value) -> Value:
    """The features as a grid, turned."""
    dim, _ = features(x)
    rows = b.divisor(x.width)
    sizes = b.pick(f"({b.said(rows)}, -1)", f"(-1, {x.width // rows})",
                   f"({rows}, {b.said(x.width // rows)})")  # fmt: skip
    made = f"{x}.unflatten({dim}, {sizes}).transpose({dim}, {dim + 1})"
    return b.like(x, f"{made}.flatten({dim}, {dim + 1})")


def summed(b: Builder, x: Value) -> Value:
    """The features as a grid, one side of which is summed over."""
    dim, _ = features(x)
    rows = b.divisor(x.width)
    over, left = b.pick((dim, x.width // rows), (dim + 1, rows))
    made = f"{x}.unflatten({dim}, ({rows}, {b.pick('-1', b.said(x.width // rows))}))"
    return with_width(b, x, f"torch.{b.pick('sum', 'mean', 'amax')}({made}, {over})", left)


def sized(b: Builder, x: Value) -> Value:
    """A number that is computed from a size."""
    dim, _ = features(x)
    size = b.pick(f"{x}.shape[{dim}]", f"{x}.size({dim})", b.said(x.width))
    how = b.pick(f"{x} / {size} ** 0.5", f"{x} * ({size} ** -0.5)",
                 f"{x} - torch.sum({x}, {dim}, keepdim=True) / {size}")  # fmt: skip
    return b.like(x, how)


for _kind in ("vector", "image", "tokens"):
    for _step, _fits in (
        (in_two, lambda x: x.width > 3), (in_three, lambda x: x.width % 3 == 0 and x.width > 3),
        (unequal, lambda x: x.width > 2), (placed, lambda x: x.width > 2),
        (shuffled, lambda x: x.width in (4, 6, 8, 9, 12, 16, 24)),
        (summed, lambda x: x.width in (4, 6, 8, 9, 12, 16, 24)), (sized, lambda x: True),
    ):  # fmt: skip
        ingredient(_kind, _fits)(_step)


# ---------------------------------------------------------------------- planes
def halves(x: Value) -> bool:
    return plane(x) and all(n % 2 == 0 for n in x.space)


@ingredient("image", lambda x: halves(x) and x.width <= 6)
def folded(b: Builder, x: Value) -> Value:
    """Patches, a layer on each, and back."""
    height, wide = x.space
    n = 4 * x.width
    layer = b.layer("Linear", n, n, f"bias={b.coin()}")
    y = b.name("x")
    b.lines(f"{y} = F.unfold({x}, 2, stride=2)",
            f"{y} = {layer}({y}.transpose(1, 2)).transpose(1, 2)")  # fmt: skip
    return b.like(x, f"F.fold({y}, ({height}, {wide}), 2, stride=2)")


@ingredient("image", lambda x: halves(x) and x.width <= 6, still=False)
def patches(b: Builder, x: Value) -> Value:
    """Patches as tokens."""
    height, wide = x.space
    made = b.pick(
        f"{x}.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)",
        f"{x}.view({x}.shape[0], {x}.shape[1], {height // 2}, 2, {wide // 2}, 2)"
        f".permute(0, 2, 4, 3, 5, 1).reshape({x}.shape[0], -1, {b.said(4 * x.width)})",
        f"F.unfold({x}, 2, stride=2).transpose(1, 2)",
    )
    return b.value(made, "tokens", math.prod(x.space) // 4, 4 * x.width)


@ingredient("image", lambda x: plane(x) and x.width <= 6 and 4 * math.prod(x.space) <= LARGEST,
            still=False)  # fmt: skip
def enlarged(b: Builder, x: Value) -> Value:
    """A convolution to four times the channels, which become pixels."""
    width = b.pick(2, 3, 4)
    y = projected(b, x, 4 * width)
    made = b.pick(f"{b.layer('PixelShuffle', 2)}({y})", f"F.pixel_shuffle({y}, 2)")
    return b.value(made, "image", width, *(2 * n for n in x.space))


@ingredient("image", lambda x: plane(x) and x.width in (4, 6, 8, 12))
def channel_shuffled(b: Builder, x: Value) -> Value:
    groups = b.divisor(x.width)
    return b.like(x, f"{b.layer('ChannelShuffle', groups)}({x})")


@ingredient("image", plane)
def attended(b: Builder, x: Value) -> Value:
    """Every pixel attends to every other; or a mask made of statistics over the channels."""
    if b.coin():
        conv = b.layer("Conv2d", 2, 1, 3, "padding=1")
        y = f"torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], 1)"
        return b.like(x, f"{x} * torch.sigmoid({conv}({y}))")
    inner = b.pick(2, 4, 3)
    q, k, v = (projected(b, x, n) for n in (inner, inner, x.width))
    weights = f"F.softmax({q}.flatten(2).transpose(1, 2) @ {k}.flatten(2), -1)"
    return b.like(x, f"{x} + ({v}.flatten(2) @ {weights}.transpose(1, 2)).view_as({x})")


@ingredient("image")
def modulated(b: Builder, x: Value) -> Value:
    """Scale and shift of every channel, made by one layer from the means."""
    layer = b.layer("Linear", x.width, 2 * x.width)
    axes, ones = tuple(range(2, x.rank + 2)), ", None" * x.rank
    one, two = b.name("x"), b.name("x")
    b.lines(f"{one}, {two} = {layer}({x}.mean({axes})).chunk(2, 1)")
    return b.like(x, f"{x} * {one}[:, :{ones}] + {two}[:, :{ones}]")


@ingredient("image", lambda x: x.width <= WIDEST // 3)
def dense(b: Builder, x: Value) -> Value:
    """Every layer reads all before it."""
    grown = b.pick(2, 3)
    y = projected(b, x, grown)
    both = b.value(f"torch.cat([{x}, {y}], 1)", "image", *widened(x, x.width + grown))
    z = projected(b, both, grown)
    made = f"torch.cat([{x}, {y}, F.relu({z})], 1)"
    return b.value(made, "image", *widened(x, x.width + 2 * grown))


@ingredient("image", even)
def grouped(b: Builder, x: Value) -> Value:
    """A grouped kernel that is a parameter by itself, or padding that mirrors."""
    if plane(x) and b.coin():
        weight = b.weight(x.width, x.width // 2, 3, 3)
        return b.like(x, f"F.conv2d({x}, {weight}, padding=1, groups={b.said(2)})")
    mode = b.pick("circular", "replicate", *(["reflect"] if min(x.space) > 1 and plane(x) else []))
    layer = b.layer(f"Conv{x.rank}d", x.width, x.width, 3, "padding=1", "groups=2",
                    f"padding_mode={mode!r}")  # fmt: skip
    return b.like(x, f"{layer}({x})")
