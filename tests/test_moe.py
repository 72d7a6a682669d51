"""Mixtures of experts against a naive mixture written here: a loop over tokens and experts."""

from __future__ import annotations

import copy
from collections.abc import Set

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import PlanError

from .support import call, doubled, relative_error
from .zoo import torchvision_models


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Looped(nn.Module):
    """Top-k routing to a list of experts, the tokens of each gathered and added back."""

    def __init__(self, experts: int = 4, k: int = 2):
        super().__init__()
        self.inner, self.router, self.k = nn.Linear(5, 6), nn.Linear(6, experts), k
        self.experts = nn.ModuleList(Expert(6, 8) for _ in range(experts))
        self.outer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        weights, chosen = self.router(x).softmax(-1).topk(self.k)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token):
                out.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return self.outer(x + out)


class Stacked(nn.Module):
    """The same with the experts' weights in one tensor each, picked by number."""

    def __init__(self, experts: int = 5, k: int = 2):
        super().__init__()
        self.inner, self.router, self.k = nn.Linear(5, 6), nn.Linear(6, experts), k
        self.up = nn.Parameter(torch.randn(experts, 8, 6))
        self.down = nn.Parameter(torch.randn(experts, 6, 8))
        self.outer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        weights, chosen = self.router(x).softmax(-1).topk(self.k)
        hidden = torch.einsum("td,tkhd->tkh", x, self.up[chosen]).relu()
        out = torch.einsum("tkh,tkdh->tkd", hidden, self.down[chosen])
        return self.outer(x + (out * weights[..., None]).sum(1))


@torch.no_grad()
def naive(net: Stacked, x: Tensor, gone: Set[int], silent: Set[int]) -> Tensor:
    """Token by token; no token goes to an expert in `gone`, nothing reads a neuron in `silent`."""
    rows = []
    for token in net.inner(x):
        logits = [
            -torch.inf if e in gone else float(net.router.weight[e] @ token + net.router.bias[e])
            for e in range(len(net.up))
        ]
        shares = torch.tensor(logits, dtype=x.dtype).softmax(0).tolist()
        out = token.clone()
        for e in sorted(range(len(shares)), key=lambda e: -shares[e])[: net.k]:
            hidden = (net.up[e] @ token).relu()
            hidden[list(silent)] = 0
            out += shares[e] * (net.down[e] @ hidden)
        rows.append(net.outer(out))
    return torch.stack(rows)


def tokens(n: int = 12) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_whole_experts_go_with_their_router_rows() -> None:
    net, x = doubled(Stacked()), tokens()
    graph = sc.trace(net, x)
    group = graph["router"]
    assert (group.kind, group.size, group.exact) == ("expert", 5, False)
    plan = graph.plan({"router": [0, 3]})
    small = sc.apply(net, plan)
    assert (small.up.shape[0], small.down.shape[0], small.router.out_features) == (3, 3, 3)
    wanted = naive(net, x, {0, 3}, set())
    assert relative_error([wanted], call(small, x)) < 1e-12
    assert relative_error(call(net, x), call(small, x)) > 1e-3  # the routing did change
    assert sc.verify(net, small, plan, x).max_relative_error < 1e-12


def test_neurons_inside_stacked_experts() -> None:
    net, x = doubled(Stacked()), tokens()
    graph = sc.trace(net, x)
    group = next(g for g in graph if "up[1]" in map(str, g.axes))
    assert (group.kind, group.exact) == ("neuron", True)
    plan = graph.plan({group.name: [1, 2, 7]})
    small = sc.apply(net, plan)
    assert relative_error([naive(net, x, set(), {1, 2, 7})], call(small, x)) < 1e-12
    assert sc.verify(net, small, plan, x).holds


def test_no_fewer_experts_than_are_chosen() -> None:
    graph = sc.trace(doubled(Stacked()), tokens())
    with pytest.raises(PlanError, match="topk"):
        graph.plan({"router": [0, 1, 2, 3]})


def test_experts_in_a_loop_and_what_routes_to_them() -> None:
    torch.manual_seed(0)  # with which every expert is reached
    net, x = doubled(Looped()), tokens()
    graph = sc.trace(net, x)
    units = {"inner": [0, 4], "experts.0.up": [1], "experts.3.up": [0, 7]}
    plan = graph.plan(units)
    small = sc.apply(net, plan)
    wanted = doubled(Looped())
    wanted.load_state_dict(net.state_dict())
    with torch.no_grad():  # zeros where the weights read; the routing follows by itself
        for weight, gone in (
            (wanted.router.weight, [0, 4]),
            *((expert.up.weight, [0, 4]) for expert in wanted.experts),
            (wanted.experts[0].down.weight, [1]),
            (wanted.experts[3].down.weight, [0, 7]),
            (wanted.outer.weight, [0, 4]),
        ):
            weight[:, gone] = 0
    assert relative_error(call(wanted, x), call(small, x)) < 1e-12
    assert sc.verify(net, small, plan, x).max_relative_error < 1e-12


def test_what_unreached_experts_may_read_is_refused() -> None:
    graph = sc.trace(doubled(Looped(8, 1)), tokens(1))
    with pytest.raises(PlanError, match="not reached"):
        graph.plan({"inner": [0]})
    (reached,) = (g.name for g in graph)
    assert reached.startswith("experts.")


@pytest.mark.parametrize("form", ["eager", "batched_mm", "grouped_mm"])
def test_mixtral(form: str) -> None:
    transformers = pytest.importorskip("transformers")
    torchvision_models()  # transformers imports it, and it needs help without its own library
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    config = transformers.MixtralConfig(**sizes, **heads, num_local_experts=4)
    config._experts_implementation = form
    torch.manual_seed(0)
    net = transformers.MixtralForCausalLM(config).eval()
    x = {"input_ids": torch.randint(0, 50, (2, 9))}
    graph = sc.trace(net, x)
    kinds = {g.kind: g for g in graph}
    assert ("expert" in kinds) == (form != "eager")  # there the code indexes them one by one
    for kind in {"neuron", "expert"} & kinds.keys():
        group = kinds[kind]
        step = group.multiple if kind == "neuron" else 1
        plan = graph.plan({group.name: range(step)})
        proof = sc.verify(net, sc.apply(net, plan), plan, x)
        assert proof.max_relative_error < 1e-5


@pytest.mark.parametrize(
    ("name", "sizes", "neurons"),
    [
        ("Qwen2Moe", {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 12}, [8, 12]),
        ("Qwen3Moe", {"moe_intermediate_size": 8, "head_dim": 8}, [8]),
        ("GptOss", {"intermediate_size": 8, "head_dim": 8}, [8]),
    ],
)
def test_mixtures_of_transformers(name: str, sizes: dict[str, int], neurons: list[int]) -> None:
    """Fused experts with their router rows; a shared expert; gates beside values."""
    transformers = pytest.importorskip("transformers")
    torchvision_models()
    common = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 50, "num_experts_per_tok": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts" if name == "GptOss" else "num_experts": 6}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**common, **heads, **experts, **sizes)
    net = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    x = {"input_ids": torch.randint(0, 50, (2, 9))}
    graph = sc.trace(net, x)
    wide = [g for g in graph if g.kind == "neuron"]
    (whole,) = (g for g in graph if g.kind == "expert")
    assert (sorted(g.size for g in wide), whole.size) == (neurons, 6)
    plans = [
        graph.plan({g.name: range(g.multiple) for g in wide}),
        graph.plan({whole.name: [1, 4]}),
    ]
    for plan in plans:
        small = sc.apply(net, plan)
        assert sc.verify(net, small, plan, x).max_relative_error < 1e-5
    router = small.get_parameter(
        next(str(m.tensor) for m in whole.axes if "experts" not in m.tensor)
    )
    assert len(router) == 4
    looped = copy.deepcopy(small)  # the experts one by one: the cut holds there too
    for module in looped.modules():
        if isinstance(getattr(module, "config", None), transformers.PretrainedConfig):
            module.config._experts_implementation = "eager"
    assert relative_error(call(small, x), call(looped, x)) < 1e-5
    reasons = {str(f) for f in sc.trace(looped, x).frozen if "experts" in f.tensor}
    assert any("single indices" in reason for reason in reasons)  # it did take the other way
