"""Steps from sequences of tokens: attention in its many spellings, MLPs, norms, mixers."""

from __future__ import annotations

import math

from .builder import Builder, Value, activation, ingredient, steps

WIDEST = 24


def splits(x: Value) -> bool:
    """The width has a divisor."""
    return any(x.width % d == 0 for d in range(2, x.width))


def narrow(x: Value) -> bool:
    return x.width <= WIDEST


def projected(b: Builder, x: Value, width: int) -> Value:
    made = b.layer("Linear", x.width, width, f"bias={b.coin()}")
    return b.value(f"{made}({x})", "tokens", x.shape[0], width)


@ingredient("tokens")
def linear(b: Builder, x: Value) -> Value:
    return projected(b, x, b.width())


@ingredient("tokens")
def active(b: Builder, x: Value) -> Value:
    return b.like(x, activation(b, x))


@ingredient("tokens")
def contracted(b: Builder, x: Value) -> Value:
    width = b.width()
    made = f"torch.einsum('btc,dc->btd', {x}, {b.weight(width, x.width)})"
    return b.value(made, "tokens", x.shape[0], width)


# ---------------------------------------------------------------------- norms
@ingredient("tokens")
def layer_norm(b: Builder, x: Value) -> Value:
    if b.coin():
        return b.like(x, f"{b.layer('LayerNorm', x.width)}({x})")
    return b.like(x, f"F.layer_norm({x}, ({b.said(x.width, f'{x}.shape[-1]')},))")


@ingredient("tokens")
def rms_norm(b: Builder, x: Value) -> Value:
    """As transformers write it."""
    weight = b.weight(x.width)
    return b.like(x, f"{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-6) * {weight}")


@ingredient("tokens")
def positions(b: Builder, x: Value) -> Value:
    return b.like(x, f"{x} + {b.weight(*x.shape)}")


# ---------------------------------------------------------------------- attention
def attended(b: Builder, q: str, k: str, v: str, size: int) -> str:
    """Attention of (batch, heads, time, size), as an expression."""
    root = b.pick(f"{size**-0.5:.6f}", f"{q}.shape[-1] ** -0.5", f"{b.said(size)} ** -0.5")
    return b.pick(
        f"F.softmax({q} @ {k}.transpose(-2, -1) * {root}, -1) @ {v}",
        f"F.scaled_dot_product_attention({q}, {k}, {v})",
        f"torch.einsum('bhts,bhsd->bhtd', "
        f"F.softmax(torch.einsum('bhtd,bhsd->bhts', {q}, {k}), -1), {v})",
    )


def joined(b: Builder, x: Value, made: str, heads: int, size: int, width: int) -> Value:
    """(batch, heads, time, size) put together and projected."""
    time = x.shape[0]
    y = b.value(made, "heads", heads, time, size)
    whole = b.said(heads * size)
    y = b.value(
        b.pick(f"{y}.transpose(1, 2).flatten(2)",
               f"{y}.transpose(1, 2).reshape({x}.shape[0], {x}.shape[1], {whole})",
               f"{y}.transpose(1, 2).reshape({x}.shape[0], {x}.shape[1], -1)"),
        "tokens", time, heads * size,
    )  # fmt: skip
    return projected(b, y, width)


def with_rest(b: Builder, x: Value, y: Value) -> Value:
    return b.like(x, f"{x} + {y}") if x.shape == y.shape and b.coin() else y


def in_heads(b: Builder, x: Value, made: str, heads: int, size: int) -> str:
    """(batch, time, heads * size) as (batch, heads, time, size)."""
    sizes = b.pick(f"{b.said(heads)}, -1", f"-1, {b.said(size)}", f"{b.said(heads)}, {size}")
    name = b.name("x")
    b.lines(f"{name} = {made}.view({x}.shape[0], {x}.shape[1], {sizes}).transpose(1, 2)")
    return name


@ingredient("tokens")
def separate(b: Builder, x: Value) -> Value:
    """Query, key and value of their own; keys and values may be shared by several heads."""
    heads, repeats, size = b.pick(2, 3), b.pick(1, 2), b.pick(2, 4, 3)
    made = []
    for count, role in ((heads * repeats, "query"), (heads, "key"), (heads, "value")):
        layer = b.keep(role, f"nn.Linear({x.width}, {count * size}, bias={b.coin()})")
        made.append(in_heads(b, x, f"{layer}({x})", count, size))
    q, k, v = made
    if b.coin():
        q, k = turned(b, q, size), turned(b, k, size)
    if repeats > 1:
        times = b.said(repeats)
        k, v = f"{k}.repeat_interleave({times}, 1)", f"{v}.repeat_interleave({times}, 1)"
    y = joined(b, x, attended(b, q, k, v, size), heads * repeats, size, x.width)
    return with_rest(b, x, y)


def turned(b: Builder, x: str, size: int) -> str:
    """Rotary positions: halves of each head are turned by angles."""
    if size % 2:
        return x
    one, two, out = b.name("x"), b.name("x"), b.name("x")
    b.lines(f"{one}, {two} = {x}.chunk(2, -1)",
            f"angle = torch.arange({x}.shape[2]).to({x})[:, None] * 0.3",
            f"{out} = torch.cat([{one} * angle.cos() - {two} * angle.sin(), "
            f"{one} * angle.sin() + {two} * angle.cos()], -1)")  # fmt: skip
    return out


@ingredient("tokens")
def fused(b: Builder, x: Value) -> Value:
    """One projection to query, key and value."""
    heads, size = b.pick(2, 3), b.pick(2, 4)
    layer = b.keep("qkv", f"nn.Linear({x.width}, {3 * heads * size}, bias={b.coin()})")
    q, k, v = (b.name("x") for _ in range(3))
    h, n = b.said(heads), f"{x}.shape[0], {x}.shape[1]"
    how = b.pick(
        f"{layer}({x}).reshape({n}, 3, {h}, -1).permute(2, 0, 3, 1, 4).unbind(0)",
        f"{layer}({x}).view({n}, {h}, 3, -1).permute(3, 0, 2, 1, 4)",
        f"(t.view({n}, {h}, -1).transpose(1, 2) for t in {layer}({x}).chunk(3, -1))",
        f"(t.transpose(1, 2) for t in {layer}({x}).view({n}, {h}, {3 * size}).chunk(3, -1))",
    )
    b.lines(f"{q}, {k}, {v} = {how}")
    return with_rest(b, x, joined(b, x, attended(b, q, k, v, size), heads, size, x.width))


@ingredient("tokens", splits)
def multihead(b: Builder, x: Value) -> Value:
    """PyTorch's own."""
    layer = b.layer("MultiheadAttention", x.width, b.divisor(x.width), "batch_first=True")
    y = b.like(x, f"{layer}({x}, {x}, {x}, need_weights={b.coin()})[0]")
    return with_rest(b, x, y)


@ingredient("tokens", splits)
def encoder(b: Builder, x: Value) -> Value:
    """A whole layer of PyTorch's transformer."""
    layer = b.layer("TransformerEncoderLayer", x.width, b.divisor(x.width), b.width(),
                    "batch_first=True", f"norm_first={b.coin()}")  # fmt: skip
    return b.like(x, f"{layer}({x})")


# ---------------------------------------------------------------------- MLPs and mixers
@ingredient("tokens")
def residual(b: Builder, x: Value) -> Value:
    y = steps(b, x, still=True)
    if y.shape != x.shape or b.coin():
        y = projected(b, y, x.width)
    return b.like(x, f"{x} + {y}")


@ingredient("tokens")
def gated_mlp(b: Builder, x: Value) -> Value:
    """Two projections, one of which gates the other; separate or fused."""
    inner = b.width()
    if b.coin():
        up, gate = projected(b, x, inner), projected(b, x, inner)
        return projected(b, b.like(up, f"{up} * F.silu({gate})"), x.width)
    y = projected(b, x, 2 * inner)
    return projected(b, b.value(f"F.glu({y}, -1)", "tokens", x.shape[0], inner), x.width)


@ingredient("tokens")
def mixed(b: Builder, x: Value) -> Value:
    """A layer over time."""
    inner = b.width()
    one, two = b.layer("Linear", x.shape[0], inner), b.layer("Linear", inner, x.shape[0])
    return b.like(x, f"{x} + {two}(F.gelu({one}({x}.transpose(1, 2)))).transpose(1, 2)")


@ingredient("tokens", lambda x: x.shape[0] < 16, still=False)
def class_token(b: Builder, x: Value) -> Value:
    token = b.weight(1, 1, x.width)
    made = f"torch.cat([{token}.expand({x}.shape[0], -1, -1), {x}], 1)"
    return b.value(made, "tokens", x.shape[0] + 1, x.width)


@ingredient("tokens")
def concatenated(b: Builder, x: Value) -> Value:
    y = projected(b, x, b.pick(2, 3, 4))
    if x.width + y.width > WIDEST:
        return y
    return b.value(f"torch.cat([{x}, {y}], -1)", "tokens", x.shape[0], x.width + y.width)


# ---------------------------------------------------------------------- other shapes
@ingredient("tokens", still=False)
def pooled(b: Builder, x: Value) -> Value:
    made = b.pick(f"{x}.mean(1)", f"{x}[:, 0]", f"{x}.amax(1)", f"{x}[:, -1]", f"{x}.sum(1)",
                  f"{x}.logsumexp(1)")  # fmt: skip
    return b.value(made, "vector", x.width)


@ingredient("tokens", lambda x: math.prod(x.shape) <= 96, still=False)
def flattened(b: Builder, x: Value) -> Value:
    made = b.pick(f"{x}.flatten(1)", f"{x}.reshape({x}.shape[0], -1)")
    return b.value(made, "vector", math.prod(x.shape))


@ingredient("tokens", still=False)
def as_line(b: Builder, x: Value) -> Value:
    """Tokens as an image of one axis."""
    return b.value(f"{x}.transpose(1, 2)", "image", x.width, x.shape[0])
