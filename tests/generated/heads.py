"""More spellings of attention: shared heads, biases, masks, windows, other sequences."""

from __future__ import annotations

from .builder import Builder, Value, ingredient
from .tokens import in_heads, joined, projected, splits, with_rest


def queries(b: Builder, x: Value, heads: int, kept: int, size: int) -> tuple[str, str, str]:
    """Query, key and value as (batch, heads, time, size); `kept` heads of keys and values."""
    made = []
    for count, role in ((heads, "query"), (kept, "key"), (kept, "value")):
        layer = b.keep(role, f"nn.Linear({x.width}, {count * size}, bias={b.coin()})")
        made.append(in_heads(b, x, f"{layer}({x})", count, size))
    return made[0], made[1], made[2]


@ingredient("tokens")
def few_keys(b: Builder, x: Value) -> Value:
    """Keys and values shared by several heads, as Llama repeats them, or by the kernel."""
    kept, times, size = b.pick(1, 2, 3), b.pick(2, 3), b.pick(2, 4)
    q, k, v = queries(b, x, kept * times, kept, size)
    if b.coin():
        made = f"F.scaled_dot_product_attention({q}, {k}, {v}, enable_gqa=True)"
    else:
        wide = f"[:, :, None].expand({x}.shape[0], {kept}, {times}, {x}.shape[1], {size})"
        for name in (k, v):
            b.lines(f"{name} = {name}{wide}.reshape({x}.shape[0], -1, {x}.shape[1], {size})")
        made = f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={b.coin()})"
    return with_rest(b, x, joined(b, x, made, kept * times, size, x.width))


@ingredient("tokens")
def turned(b: Builder, x: Value) -> Value:
    """Rotary positions by the halves of each head, after a norm over it."""
    heads, size = b.pick(2, 3), b.pick(4, 2)
    q, k, v = queries(b, x, heads, heads, size)
    if b.coin():
        for name in (q, k):
            b.lines(f"{name} = F.rms_norm({name}, ({b.said(size, f'{name}.shape[-1]')},))")
    half = b.pick(f"{q}.shape[-1] // 2", b.said(size // 2))
    b.lines(f"angle = torch.arange({x}.shape[1]).to({x})[:, None] * 0.3")
    for name in (q, k):
        b.lines(f"other = torch.cat([-{name}[..., {half}:], {name}[..., :{half}]], -1)",
                f"{name} = {name} * angle.cos() + other * angle.sin()")  # fmt: skip
    made = f"F.scaled_dot_product_attention({q}, {k}, {v})"
    return with_rest(b, x, joined(b, x, made, heads, size, x.width))


@ingredient("tokens")
def biased(b: Builder, x: Value) -> Value:
    """A bias for each head and pair of positions, and a mask."""
    heads, size, time = b.pick(2, 3), b.pick(2, 4), x.shape[0]
    q, k, v = queries(b, x, heads, heads, size)
    table = b.weight(2 * time - 1, heads)
    place = b.keep("place", f"(torch.arange({time})[:, None] - torch.arange({time}) + {time - 1})")
    bias = b.pick(b.weight(heads, time, time), f"{table}[{place}].permute(2, 0, 1)",
                  f"{b.weight(heads, 1, 1)} * {place}")  # fmt: skip
    scores = f"{q} @ {k}.transpose(-2, -1) / {size}**0.5 + {bias}"
    if b.coin():
        seen = f"torch.ones({time}, {time}, dtype=torch.bool).tril()"
        scores = f"({scores}).masked_fill(~{seen}, -1e9)"
    return with_rest(b, x, joined(b, x, f"F.softmax({scores}, -1) @ {v}", heads, size, x.width))


@ingredient("tokens")
def linear_attention(b: Builder, x: Value) -> Value:
    heads, size = b.pick(2, 3), b.pick(2, 4)
    q, k, v = queries(b, x, heads, heads, size)
    made = f"F.softmax({q}, -1) @ (F.softmax({k}, -2).transpose(-2, -1) @ {v})"
    return with_rest(b, x, joined(b, x, made, heads, size, x.width))


@ingredient("tokens", splits)
def crossed(b: Builder, x: Value) -> Value:
    """What another sequence says."""
    width, heads = b.pick(4, 6), b.divisor(x.width)
    other = b.argument(f"torch.randn(2, 4, {width})", "tokens", 4, width)
    y = projected(b, other, b.pick(4, 6, 8))
    layer = b.layer("MultiheadAttention", x.width, heads, "batch_first=True", f"kdim={y.width}",
                    f"vdim={y.width}")  # fmt: skip
    return with_rest(b, x, b.like(x, f"{layer}({x}, {y}, {y})[0]"))


@ingredient("tokens", splits)
def decoder(b: Builder, x: Value) -> Value:
    """A whole layer of PyTorch's decoder, which attends to a projection of its own input."""
    layer = b.layer("TransformerDecoderLayer", x.width, b.divisor(x.width), b.width(),
                    "batch_first=True", f"norm_first={b.coin()}")  # fmt: skip
    return b.like(x, f"{layer}({x}, {projected(b, x, x.width)})")


@ingredient("tokens", lambda x: x.shape[0] % 2 == 0)
def windowed(b: Builder, x: Value) -> Value:
    """Attention inside windows of two tokens, perhaps shifted by one."""
    heads, size, time = b.pick(2, 3), b.pick(2, 4), x.shape[0]
    shift = b.coin()
    y = b.like(x, f"{x}.roll(-1, 1)") if shift else x
    y = b.value(f"{y}.reshape({x}.shape[0] * {time // 2}, 2, {b.said(x.width, f'{x}.shape[2]')})",
                "tokens", 2, x.width)  # fmt: skip
    q, k, v = queries(b, y, heads, heads, size)
    y = joined(b, y, f"F.scaled_dot_product_attention({q}, {k}, {v})", heads, size, x.width)
    y = b.like(x, f"{y}.reshape({x}.shape[0], {time}, -1)")
    return with_rest(b, x, b.like(x, f"{y}.roll(1, 1)") if shift else y)


@ingredient("tokens", still=False)
def asked(b: Builder, x: Value) -> Value:
    """Learned queries attend to the tokens."""
    count = b.pick(1, 2, 3)
    ask = b.weight(count, x.width)
    made = f"F.softmax({ask} @ {x}.transpose(1, 2), -1) @ {x}"
    return b.value(made, "tokens", count, x.width)


@ingredient("tokens")
def experts(b: Builder, x: Value) -> Value:
    """Experts in two stacked weights, all of them run, and the best two kept."""
    count, inner = b.pick(3, 4), b.pick(4, 2, 3)
    gate = b.value(f"F.softmax({projected(b, x, count)}, -1)", "tokens", x.shape[0], count)
    if b.coin():
        b.lines(f"best = torch.topk({gate}, 2, -1).indices",
                f"{gate} = torch.zeros_like({gate}).scatter(-1, best, {gate}.gather(-1, best))",
                )  # fmt: skip
    one, two = b.weight(count, x.width, inner), b.weight(count, inner, x.width)
    y = b.name("x")
    b.lines(f"{y} = F.gelu(torch.einsum('bti,eih->beth', {x}, {one}))")
    return b.like(x, f"torch.einsum('beth,eho,bte->bto', {y}, {two}, {gate})")
