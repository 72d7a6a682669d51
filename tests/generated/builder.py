"""What a generated network is written with: values, layers, and ways to say a size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from hypothesis import strategies as st

from .network import Module, Network

T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """A tensor of the network: `shape` is without the batch, which comes first.

    An image is (channels, *space) with one to three axes of space; tokens are (time, width); a
    vector is (width,).
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def width(self) -> int:
        """Channels, or features."""
        return self.shape[-1] if self.kind == "tokens" else self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def rank(self) -> int:
        """How many axes of space an image has."""
        return len(self.shape) - 1


class Builder:
    """A network in the making; every choice in it is one of Hypothesis.

    Attributes:
        steps: how many more there may be.
        init, forward: lines of the module's two methods.
        inputs: name of each argument -> the expression that makes it.
        blocks: the classes of modules inside it.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], steps: int):
        self._draw = draw
        self.steps = steps
        self.blocks: list[Module] = []
        self.init: list[str] = []
        self.forward: list[str] = []
        self.inputs: list[tuple[str, str]] = []
        self._names = 0

    # ------------------------------------------------------------------ choices
    def pick(self, *options: T) -> T:
        """One of these; a failing example shrinks towards the first."""
        return self._draw(st.sampled_from(options))

    def coin(self) -> bool:
        return self._draw(st.booleans())

    def more(self) -> bool:
        """Whether another step follows: there are no more than `steps` in all."""
        if self.steps <= 0 or self._draw(st.integers(0, 5)) == 0:
            return False
        self.steps -= 1
        return True

    def divisor(self, n: int) -> int:
        """A divisor of n, one and n aside."""
        return self.pick(*(d for d in range(2, n) if n % d == 0))

    # ------------------------------------------------------------------ lines
    def name(self, hint: str) -> str:
        self._names += 1
        return f"{hint}{self._names}"

    def keep(self, hint: str, made: str) -> str:
        """An attribute of the module that holds this."""
        name = self.name(hint)
        self.init.append(f"self.{name} = {made}")
        return f"self.{name}"

    def layer(self, kind: str, *given: object) -> str:
        """A layer of torch.nn with these arguments."""
        return self.keep(kind.lower(), f"nn.{kind}({', '.join(map(str, given))})")

    def weight(self, *shape: int) -> str:
        """A parameter by itself."""
        return self.keep("weight", f"nn.Parameter(torch.randn({', '.join(map(str, shape))}))")

    def value(self, made: str, kind: str, *shape: int) -> Value:
        """A line that makes a tensor."""
        name = self.name("x")
        self.forward.append(f"{name} = {made}")
        return Value(name, kind, shape)

    def like(self, x: Value, made: str) -> Value:
        """A line that makes a tensor of the shape of x."""
        return self.value(made, x.kind, *x.shape)

    def lines(self, *lines: str) -> None:
        self.forward.extend(lines)

    def argument(self, made: str, kind: str, *shape: int) -> Value:
        """An input of the network."""
        name = self.name("x")
        self.inputs.append((name, made))
        return Value(name, kind, shape)

    def block(self, x: Value, make: Step) -> tuple[Callable[[Value], str], Value]:
        """A module of a class of its own, whose forward does these steps.

        Returns:
            The expression that calls it with a value, and what it gives.
        """
        inner = Builder(self._draw, self.steps)
        inner._names, inner.blocks = self._names, self.blocks
        own = Value(inner.name("x"), x.kind, x.shape)
        y = make(inner, own)
        self.steps, self._names = inner.steps, inner._names
        kind, more = self.name("Block"), tuple(name for name, _ in inner.inputs)
        forward = (*inner.forward, f"return {y}")
        self.blocks.append(Module(kind, tuple(inner.init), forward, (own.name, *more)))
        self.inputs += inner.inputs
        layer = self.keep("block", f"{kind}()")
        return (lambda given: f"{layer}({', '.join((str(given), *more))})"), y

    # ------------------------------------------------------------------ sizes
    def width(self) -> int:
        """Of a new layer."""
        return self.pick(4, 2, 3, 6, 8, 12)

    def said(self, n: int, live: str = "") -> str:
        """A size, as people write it: from a shape, an attribute, or as a number."""
        how = self.pick("attribute", "number", *(["live"] if live else []))
        if how == "attribute":
            return self.keep("size", str(n))
        return live if how == "live" else str(n)

    def done(self, *outputs: Value, plain: bool = False) -> Network:
        """The network that returns these: as they are, or in some form."""
        form = ", ".join(map(str, outputs))
        if len(outputs) == 1 and not plain:
            form = self.pick(form, f"[{form}]", f"{{'out': {form}}}")
        lines = (*self.forward, f"return {form}")
        names = tuple(name for name, _ in self.inputs)
        whole = Module("Net", tuple(self.init), lines, names)
        return Network((*self.blocks, whole), tuple(self.inputs))


Step: TypeAlias = Callable[[Builder, Value], Value]
Fits: TypeAlias = Callable[[Value], bool]


@dataclass(frozen=True)
class Ingredient:
    """A step of a network.

    Attributes:
        kind: of the values that it takes.
        step: writes its lines, and gives the new value.
        fits: whether it can take a value.
        still: whether the new value differs in its width alone, if it does.
    """

    kind: str
    step: Step
    fits: Fits
    still: bool


INGREDIENTS: list[Ingredient] = []


def ingredient(
    kind: str, fits: Fits = lambda x: True, *, still: bool = True
) -> Callable[[Step], Step]:
    """Register a step for values of a kind."""

    def register(step: Step) -> Step:
        INGREDIENTS.append(Ingredient(kind, step, fits, still))
        return step

    return register


def step(b: Builder, x: Value, *, still: bool = False) -> Value:
    """One more step, of those that fit."""
    known = [i for i in INGREDIENTS if i.kind == x.kind and i.fits(x) and (i.still or not still)]
    return b.pick(*known).step(b, x)


def steps(b: Builder, x: Value, *, still: bool = False) -> Value:
    """Some more steps, one after the other."""
    while b.more():
        x = step(b, x, still=still)
    return x


def activation(b: Builder, x: Value) -> str:
    """An elementwise function of x, as an expression."""
    made = b.pick("torch.tanh", "F.relu", "F.silu", "F.gelu", "torch.sigmoid", "F.relu_",
                  "F.hardswish", "F.softplus", "torch.abs")  # fmt: skip
    if made == "F.relu_":  # in place: of a tensor that nothing else holds
        return f"F.relu_({x} + 0.1)"
    return f"{made}({x})"
