"""Recurrences: cells in loops, and PyTorch's recurrent layers."""

from __future__ import annotations

from .builder import Builder, Value, ingredient


# ---------------------------------------------------------------------- cells
@ingredient("vector")
def iterated(b: Builder, x: Value) -> Value:
    """A cell in a loop over the same input, or one step of it."""
    hidden = b.width()
    cell = b.layer(b.pick("RNNCell", "GRUCell"), x.width, hidden, f"bias={b.coin()}")
    h = b.value(f"{x}.new_zeros({x}.shape[0], {b.said(hidden)})", "vector", hidden)
    b.lines(f"for _ in range({b.pick(1, 2, 3)}):", f"    {h} = {cell}({x}, {h})")
    return h


@ingredient("vector")
def once(b: Builder, x: Value) -> Value:
    """One step of a cell, whose state PyTorch makes, or a parameter is."""
    hidden = b.width()
    kind = b.pick("RNNCell", "GRUCell", "LSTMCell")
    cell = b.layer(kind, x.width, hidden)
    if kind == "LSTMCell":
        return b.value(f"{cell}({x})[{b.pick(0, 1)}]", "vector", hidden)
    start = b.pick("", f", {b.weight(hidden)}.expand({x}.shape[0], -1)")
    return b.value(f"{cell}({x}{start})", "vector", hidden)


@ingredient("tokens", still=False)
def looped(b: Builder, x: Value) -> Value:
    """A cell written out, in a loop over time."""
    hidden = b.width()
    enter = b.layer("Linear", x.width, hidden)
    again = b.layer("Linear", hidden, hidden, f"bias={b.coin()}")
    h = b.value(f"torch.tanh({enter}({x}[:, 0]))", "vector", hidden)
    b.lines(f"for t in range(1, {x.shape[0]}):",
            f"    {h} = torch.tanh({enter}({x}[:, t]) + {again}({h}))")  # fmt: skip
    return h


@ingredient("tokens", still=False)
def cells(b: Builder, x: Value) -> Value:
    """LSTM cells in a loop over time."""
    hidden = b.pick(3, 2, 4)
    cell = b.layer("LSTMCell", x.width, hidden)
    h = b.value(f"{x}.new_zeros({x}.shape[0], {b.said(hidden)})", "vector", hidden)
    b.lines(f"c = torch.zeros_like({h})", f"for t in range({x.shape[0]}):",
            f"    {h}, c = {cell}({x}[:, t], ({h}, c))")  # fmt: skip
    return h


@ingredient("tokens")
def gates(b: Builder, x: Value) -> Value:
    """A minimal LSTM written out, all gates from one layer; every state is given out."""
    hidden = b.pick(3, 2, 4)
    layer = b.layer("Linear", x.width + hidden, 4 * hidden, f"bias={b.coin()}")
    h, out = b.name("h"), b.name("x")
    how = b.pick("chunk(4, 1)", f"split({b.said(hidden)}, 1)", "view(len(x), 4, -1).unbind(1)")
    b.lines(f"{h} = c = {x}.new_zeros({x}.shape[0], {b.said(hidden)})", f"{out} = []",
            f"for x in {x}.unbind(1):",
            f"    i, f, g, o = {layer}(torch.cat([x, {h}], 1)).{how}",
            "    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)",
            f"    {h} = torch.sigmoid(o) * torch.tanh(c)",
            f"    {out}.append({h})")  # fmt: skip
    return b.value(f"torch.stack({out}, 1)", "tokens", x.shape[0], hidden)


# ---------------------------------------------------------------------- layers
@ingredient("tokens")
def recurrent(b: Builder, x: Value) -> Value:
    """PyTorch's recurrent layers, over time or over its first step alone."""
    hidden, both, layers = b.pick(3, 2, 4), b.coin(), b.pick(1, 2)
    layer = b.layer(b.pick("GRU", "LSTM", "RNN"), x.width, hidden, "batch_first=True",
                    f"num_layers={layers}", f"bidirectional={both}", f"bias={b.coin()}",
                    )  # fmt: skip
    time, part = b.pick((x.shape[0], ""), (1, "[:, :1]"))
    return b.value(f"{layer}({x}{part})[0]", "tokens", time, hidden * (1 + both))


@ingredient("tokens")
def time_first(b: Builder, x: Value) -> Value:
    """A recurrent layer with its defaults."""
    hidden = b.pick(3, 2, 4)
    layer = b.layer(b.pick("RNN", "GRU", "LSTM"), x.width, hidden)
    made = f"{layer}({x}.transpose(0, 1))[0].transpose(0, 1)"
    return b.value(made, "tokens", x.shape[0], hidden)


@ingredient("tokens")
def narrowed(b: Builder, x: Value) -> Value:
    """An LSTM that projects its states."""
    hidden, narrow, both = b.pick(4, 3), b.pick(2, 1), b.coin()
    layer = b.layer("LSTM", x.width, hidden, "batch_first=True", f"proj_size={narrow}",
                    f"bidirectional={both}", f"num_layers={b.pick(1, 2)}")  # fmt: skip
    return b.value(f"{layer}({x})[0]", "tokens", x.shape[0], narrow * (1 + both))


@ingredient("tokens", still=False)
def last_state(b: Builder, x: Value) -> Value:
    """The last states of a recurrent layer, which begins from parameters or from zeros."""
    hidden, both, layers = b.pick(3, 2, 4), b.coin(), b.pick(1, 2)
    kind = b.pick("GRU", "RNN", "LSTM")
    layer = b.layer(kind, x.width, hidden, "batch_first=True", f"num_layers={layers}",
                    f"bidirectional={both}")  # fmt: skip
    count = layers * (1 + both)
    start = ""
    if kind != "LSTM" and b.coin():
        start = f", {b.weight(count, 1, hidden)}.expand(-1, {x}.shape[0], -1)"
    state = f"{layer}({x}{start})[1]" + ("[0]" if kind == "LSTM" else "")
    made, width = b.pick((f"{state}[-1]", hidden), (f"{state}.mean(0)", hidden),
                         (f"{state}.transpose(0, 1).flatten(1)", count * hidden),
                         (f"torch.cat([*{state}], 1)", count * hidden))  # fmt: skip
    return b.value(made, "vector", width)


@ingredient("tokens")
def two_layers(b: Builder, x: Value) -> Value:
    """The states of one layer begin another, as an encoder's begin a decoder."""
    hidden, kind = b.pick(3, 2, 4), b.pick("GRU", "RNN", "LSTM")
    one, two = (b.layer(kind, x.width, hidden, "batch_first=True") for _ in range(2))
    return b.value(f"{two}({x}, {one}({x})[1])[0]", "tokens", x.shape[0], hidden)
