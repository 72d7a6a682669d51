"""A network that says by hand where its units are read and seen, and a naive reference a criterion.

The references go through the data one example at a time and share nothing with the library.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tests.support import doubled
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

import secateurs as sc
from secateurs.criteria import Criterion

EXAMPLES = 24
Values = dict[str, Tensor]


class Gated(nn.Module):
    """A network that says where its units are read and seen, and which weights touch them.

    Attributes:
        sizes: group -> how many units it has.
        reads: group -> its readers.
        gates: (reader, group) -> the gates there, (units,); none are ones.
        places: (reader, group) -> how many elements of one example each unit has there.
        maps: group -> its activation, (examples, units, …).
    """

    sizes: ClassVar[dict[str, int]]
    reads: ClassVar[dict[str, list[str]]]

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[tuple[str, str], Tensor] = {}
        self.places: dict[tuple[str, str], int] = {}
        self.maps: dict[str, Tensor] = {}

    def read(self, reader: str, group: str, x: Tensor, times: int = 1) -> Tensor:
        """What a reader reads of a group, (examples, units · times, …), gated."""
        self.places[reader, group] = times * x[0, 0].numel()
        gate = self.gates.get((reader, group))
        if gate is None:
            return x
        return x * gate.repeat_interleave(times).reshape(1, -1, *[1] * (x.dim() - 2))

    def see(self, group: str, x: Tensor) -> Tensor:
        self.maps[group] = x
        return x

    def weights(self, side: str) -> dict[str, Callable[[int], list[Tensor]]]:
        """group -> unit -> the weights that write it, or read it; listed by hand."""
        raise NotImplementedError

    def scales(self) -> Values:
        """group -> the scale of the BatchNorm on each unit."""
        return {}


class Everything(Gated):
    """BatchNorm, a residual sum, a concatenation, pooling, a layer used twice, and a flatten."""

    sizes: ClassVar = {"stem": 4, "a": 5, "left": 3, "right": 2, "mix": 4, "fc1": 6}
    reads: ClassVar = {
        "stem": ["a", "left", "right"], "a": ["b"], "left": ["mix"], "right": ["mix"],
        "mix": ["twice", "again", "fc1"], "fc1": ["fc2"],
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm_stem = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.norm_a = nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.mix, self.twice = nn.Conv2d(5, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        read = self.read
        x = self.see("stem", F.relu(self.norm_stem(self.stem(x))))
        y = self.see("a", F.relu(self.norm_a(self.a(read("a", "stem", x)))))
        x = F.relu(x + self.b(read("b", "a", y)))
        left = F.max_pool2d(self.see("left", F.relu(self.left(read("left", "stem", x)))), 2)
        right = self.see("right", F.avg_pool2d(self.right(read("right", "stem", x)), 2))
        x = torch.cat([read("mix", "left", left), read("mix", "right", right)], 1)
        x = self.see("mix", F.relu(self.mix(x)))
        x = F.relu(self.twice(read("twice", "mix", x)))
        x = F.max_pool2d(F.relu(self.twice(read("again", "mix", x))), 2)
        x = self.see("fc1", torch.tanh(self.fc1(read("fc1", "mix", x).flatten(1))))
        return self.fc2(read("fc2", "fc1", x))

    def weights(self, side: str) -> dict[str, Callable[[int], list[Tensor]]]:
        if side == "reads":
            return {
                "stem": lambda u: [m.weight[:, u] for m in (self.a, self.left, self.right)],
                "a": lambda u: [self.b.weight[:, u]],
                "left": lambda u: [self.mix.weight[:, u]],
                "right": lambda u: [self.mix.weight[:, 3 + u]],
                "mix": lambda u: [self.twice.weight[:, u], self.fc1.weight[:, 4 * u : 4 * u + 4]],
                "fc1": lambda u: [self.fc2.weight[:, u]],
            }
        return {
            "stem": lambda u: [self.stem.weight[u], self.b.weight[u]],
            "a": lambda u: [self.a.weight[u]],
            "left": lambda u: [self.left.weight[u]],
            "right": lambda u: [self.right.weight[u]],
            "mix": lambda u: [self.mix.weight[u], self.twice.weight[u]],
            "fc1": lambda u: [self.fc1.weight[u]],
        }

    def scales(self) -> Values:
        return {"stem": self.norm_stem.weight.detach(), "a": self.norm_a.weight.detach()}


def everything() -> Everything:
    torch.manual_seed(0)
    return doubled(Everything())


def pairs(n: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 2, 8, 8, dtype=torch.float64, generator=draw)
    return x, torch.randint(3, (n,), generator=draw)


LOSS = nn.CrossEntropyLoss(reduction="none")


# ---------------------------------------------------------------------- naive references
def gated(net: Gated, x: Tensor, gates: Values) -> Tensor:
    """The output with the same gates at every reader of a group."""
    net.gates = {(reader, g): gate for g, gate in gates.items() for reader in net.reads[g]}
    output = net(x)
    net.gates = {}
    return output


def ones(*counts: int) -> tuple[Tensor, ...]:
    return tuple(torch.ones(n, dtype=torch.float64) for n in counts)


def cost(net: Gated, x: Tensor, y: Tensor) -> Callable[..., Tensor]:
    """The loss of one example as a function of the gates of all groups."""
    return lambda *gates: LOSS(gated(net, x, dict(zip(net.sizes, gates, strict=True))), y).sum()


def per_example(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]


def slopes(net: Gated, x: Tensor, y: Tensor) -> Values:
    """∂C_n/∂g by group, (examples, units)."""
    rows = [jacobian(cost(net, *one), ones(*net.sizes.values())) for one in per_example(x, y)]
    return {g: torch.stack([row[i] for row in rows]) for i, g in enumerate(net.sizes)}


def taylor(net: Gated, x: Tensor, y: Tensor) -> Values:
    totals = {g: torch.zeros(n, dtype=torch.float64) for g, n in net.sizes.items()}
    keys = [(reader, g) for g in net.sizes for reader in net.reads[g]]
    for one, label in per_example(x, y):

        def loss(*gates: Tensor, one: Tensor = one, label: Tensor = label) -> Tensor:
            net.gates = dict(zip(keys, gates, strict=True))
            return LOSS(net(one), label).sum()

        found = jacobian(loss, ones(*(net.sizes[g] for _, g in keys)))
        net.gates = {}
        sums = {g: torch.zeros(n, dtype=torch.float64) for g, n in net.sizes.items()}
        for (reader, g), slope in zip(keys, found, strict=True):
            sums[g] += slope / net.places[reader, g]
        for g in net.sizes:
            totals[g] += sums[g].abs() / len(x)
    return totals


def taylor_second(net: Gated, x: Tensor, y: Tensor) -> Values:
    """(g − ½ H·1)² with the whole Hessian of the mean loss, written out."""
    parts = list(net.sizes.values())

    def mean(flat: Tensor) -> Tensor:
        gates = dict(zip(net.sizes, flat.split(parts), strict=True))
        return LOSS(gated(net, x, gates), y).mean()

    at = torch.ones(sum(parts), dtype=torch.float64)
    scores = (jacobian(mean, at) - hessian(mean, at).sum(1) / 2) ** 2
    return dict(zip(net.sizes, scores.split(parts), strict=True))


def obd(net: Gated, x: Tensor, y: Tensor) -> Values:
    totals = {g: torch.zeros(n, dtype=torch.float64) for g, n in net.sizes.items()}
    for one, label in per_example(x, y):
        output = net(one)
        bend = hessian(lambda o, label=label: LOSS(o, label).sum(), output.detach())[0, :, 0, :]
        for g, n in net.sizes.items():
            lines = jacobian(lambda gate, g=g, one=one: gated(net, one, {g: gate})[0], *ones(n))
            for i in range(n):
                totals[g][i] += 0.5 * lines[:, i] @ bend @ lines[:, i] / len(x)
    return totals


def values_of(net: Gated, x: Tensor) -> dict[str, list[list[list[float]]]]:
    """group -> unit -> example -> the values at its positions."""
    out: dict[str, list[list[list[float]]]]
    out = {g: [[] for _ in range(n)] for g, n in net.sizes.items()}
    for i in range(len(x)):
        with torch.no_grad():
            net(x[i : i + 1])
        for g, n in net.sizes.items():
            for unit in range(n):
                out[g][unit].append(net.maps[g][0, unit].flatten().tolist())
    return out


def of_maps(one: Callable[[list[list[float]]], float]) -> Callable[..., Values]:
    def reference(net: Gated, x: Tensor, y: Tensor) -> Values:
        return {
            g: torch.tensor([one(unit) for unit in units], dtype=torch.float64)
            for g, units in values_of(net, x).items()
        }

    return reference


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(maps: list[list[float]]) -> float:
    flat = [v for values in maps for v in values]
    return math.sqrt(mean([(v - mean(flat)) ** 2 for v in flat]))


def entropy(symbols: list[Any]) -> float:
    counts, n = Counter(symbols), len(symbols)
    plain = -sum(c / n * math.log(c / n) for c in counts.values())
    return plain + (len(counts) - 1) / (2 * n)


def information_gain(net: Gated, x: Tensor, y: Tensor, bins: int = 8) -> Values:
    out = {}
    labels = y.tolist()
    for g, units in values_of(net, x).items():
        out[g] = torch.zeros(net.sizes[g], dtype=torch.float64)
        for i, maps in enumerate(units):
            means = [mean(values) for values in maps]
            rising = sorted(means)
            at = [k * len(rising) // bins for k in range(1, bins)]
            edges = [(rising[k - 1] + rising[k]) / 2 for k in at]
            cells = [sum(edge < v for edge in edges) for v in means]
            both = list(zip(cells, labels, strict=True))
            out[g][i] = entropy(cells) + entropy(labels) - entropy(both)
    return out


def vectors(net: Gated, side: str) -> dict[str, list[Tensor]]:
    """group -> unit -> all its weights, one vector."""
    return {
        g: [torch.cat([t.detach().flatten() for t in of(u)]) for u in range(net.sizes[g])]
        for g, of in net.weights(side).items()
    }


def of_weights(side: str, one: Callable[[Tensor, list[Tensor]], float]) -> Callable[..., Values]:
    def reference(net: Gated, x: Tensor, y: Tensor) -> Values:
        return {
            g: torch.tensor([float(one(u, units)) for u in units], dtype=torch.float64)
            for g, units in vectors(net, side).items()
        }

    return reference


def lamp(unit: Tensor, units: list[Tensor]) -> float:
    energy = float(unit @ unit)
    return energy / sum(float(v @ v) for v in units if float(v @ v) >= energy)


def of_slopes(one: Callable[[Tensor], Tensor]) -> Callable[..., Values]:
    return lambda net, x, y: {g: one(rows) for g, rows in slopes(net, x, y).items()}


def changes(net: Gated, x: Tensor, y: Tensor) -> Values:
    """C(g_i = 0) − C(1) of the mean loss, a whole forward for each unit."""
    out = {g: torch.zeros(n, dtype=torch.float64) for g, n in net.sizes.items()}
    with torch.no_grad():
        whole = LOSS(net(x), y).mean()
        for g, n in net.sizes.items():
            for i in range(n):
                gate = 1 - torch.eye(n, dtype=torch.float64)[i]
                out[g][i] = LOSS(gated(net, x, {g: gate}), y).mean() - whole
    return out


def random(net: Gated, x: Tensor, y: Tensor) -> Values:
    draws = {g: torch.Generator().manual_seed(zlib.crc32(f"0/{g}".encode())) for g in net.sizes}
    return {g: torch.rand(n, generator=draws[g], dtype=torch.float64) for g, n in net.sizes.items()}


REFERENCES: dict[str, Callable[[Gated, Tensor, Tensor], Values]] = {
    "taylor": taylor,
    "taylor-gate": of_slopes(lambda rows: rows.abs().mean(0)),
    "taylor-squared": of_slopes(lambda rows: rows.mean(0) ** 2),
    "taylor-second": taylor_second,
    "fisher": of_slopes(lambda rows: (rows**2).mean(0) / 2),
    "obd": obd,
    "obd-hutchinson": obd,  # what it estimates
    "activation": of_maps(lambda maps: mean([mean(v) for v in maps])),
    "activation-abs": of_maps(lambda maps: mean([mean([abs(u) for u in v]) for v in maps])),
    "activation-std": of_maps(deviation),
    "apoz": of_maps(lambda maps: 1 - mean([sum(u == 0 for u in v) / len(v) for v in maps])),
    "information-gain": information_gain,
    "bn-scale": lambda net, x, y: {g: scale.abs() for g, scale in net.scales().items()},
    "oracle": lambda net, x, y: {g: rows.abs() for g, rows in changes(net, x, y).items()},
    "oracle-loss": changes,
    "random": random,
}  # fmt: skip
for _side, _suffix in (("writes", ""), ("reads", "-reads")):
    REFERENCES |= {
        f"weight{_suffix}": of_weights(_side, lambda u, _: (u**2).mean()),
        f"l1{_suffix}": of_weights(_side, lambda u, _: u.abs().sum()),
        f"l2{_suffix}": of_weights(_side, lambda u, _: (u**2).sum().sqrt()),
        f"fpgm{_suffix}": of_weights(_side, lambda u, us: sum((u - v).norm() for v in us)),
        f"lamp{_suffix}": of_weights(_side, lamp),
    }


def scored(
    criterion: str | Criterion, data: Any = None, net: Gated | None = None, **options: Any
) -> sc.Scores:
    net = everything() if net is None else net
    x, y = pairs()
    graph = sc.trace(net, x[:2])
    assert {g.name: g.size for g in graph} == net.sizes
    data = [(x, y)] if data is None else data
    return sc.score(net, graph, data, loss=LOSS, criterion=criterion, **options)


def close(found: sc.Scores, wanted: Values, tolerance: float) -> None:
    assert set(found) == set(wanted)
    for group, values in wanted.items():
        given = torch.from_numpy(found[group])
        assert given.shape == values.shape
        allowed = tolerance * values.abs().max()
        if found.error:
            allowed = 5 * torch.from_numpy(found.error[group])
        assert bool(((given - values).abs() <= allowed).all()), (group, given, values)


def as_tensors(scores: sc.Scores) -> Values:
    return {group: torch.from_numpy(scores[group]) for group in scores}
