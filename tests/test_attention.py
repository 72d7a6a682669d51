"""Attention: heads, key/value heads and head dims, in every layout, and what goes with them."""

from __future__ import annotations

import copy
import importlib.util
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sc
from secateurs.errors import PlanError
from secateurs.surgery.apply import cut

WIDTH, HEADS, DIM, TOKENS = 24, 4, 6, 5


pytestmark = pytest.mark.usefixtures("in_double")


def spread(group: sc.Group, count: int = 1) -> list[int]:
    """The first `count` units of every block of a group."""
    return [int(unit) for block in group.blocks() for unit in block[:count]]


def check(model: nn.Module, x: Any, units: dict[str, list[int]]) -> nn.Module:
    """The cut model, which obeys the law, trains, and comes back from its plan file."""
    graph = sc.trace(model, x)
    plan = graph.plan(units)
    small = sc.apply(model, plan)
    proof = sc.verify(model, small, plan, x, graph=graph)
    assert proof.max_relative_error < 1e-9, str(proof)
    again = sc.apply(copy.deepcopy(model), sc.Plan.from_json(plan.to_json()))
    assert sc.verify(model, again, plan, x, graph=graph).holds
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return small


# ---------------------------------------------------------------------- nets, written out
class Fused(nn.Module):
    """The common form: one projection, sizes from the input, a fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Textbook(nn.Module):
    """Four projections; the scale is computed from the size of the queries."""

    def __init__(self, kv_heads: int = HEADS, *, rotary: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.heads, self.kv, self.dim = HEADS, kv_heads, DIM
        self.wq, self.wo = nn.Linear(WIDTH, HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH)
        self.wk, self.wv = (nn.Linear(WIDTH, kv_heads * DIM) for _ in range(2))
        self.norm = nn.LayerNorm(DIM) if norm else nn.Identity()
        self.rotary = rotary
        if rotary:
            self.register_buffer("freq", torch.rand(DIM // 2))

    def turn(self, x: Tensor) -> Tensor:
        if not self.rotary:
            return x
        angle = torch.arange(x.shape[2])[:, None] * torch.cat([self.freq, self.freq])
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.norm(self.wq(x).view(b, t, self.heads, self.dim)).transpose(1, 2)
        k, v = (w(x).view(b, t, self.kv, self.dim).transpose(1, 2) for w in (self.wk, self.wv))
        q, k = self.turn(q), self.turn(k)
        if self.kv != self.heads:
            shape = (b, self.kv, self.heads // self.kv, t, self.dim)
            k, v = (y[:, :, None].expand(shape).flatten(1, 2) for y in (k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        y = scores.softmax(-1) @ v
        return self.wo(y.transpose(1, 2).flatten(2))


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(WIDTH, HEADS, DIM)) for _ in "qkv")
        self.wo = nn.Parameter(torch.randn(HEADS, DIM, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhe->bhte", x, w) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bhte,bhse->bhts", q, k) * self.wq.shape[-1] ** -0.5
        return torch.einsum("bhts,bhse,hed->btd", scores.softmax(-1), v, self.wo)


class Encoder(nn.Module):
    """Of PyTorch, between two projections."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
        self.enter, self.leave = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.leave(self.layers(self.enter(x), src_key_padding_mask=padding))


def net(made: nn.Module) -> tuple[nn.Module, Tensor]:
    return randomise(made, weights=True).eval(), torch.randn(2, TOKENS, WIDTH)


def kinds(graph: sc.Graph) -> dict[str, tuple[str, int]]:
    return {group.name: (group.kind, group.size) for group in graph}


# ---------------------------------------------------------------------- what is found
def test_kinds_are_found_from_what_ran() -> None:
    assert kinds(sc.trace(*net(Fused()))) == {
        "qkv": ("head", HEADS), "qkv:head-dim": ("head-dim", 2 * DIM)
    }  # fmt: skip
    assert kinds(sc.trace(*net(Einsum()))) == {
        "wq": ("head", HEADS), "wq:head-dim": ("head-dim", DIM), "wv:head-dim": ("head-dim", DIM)
    }  # fmt: skip
    found = kinds(sc.trace(*net(Encoder())))
    assert found["layers.layers.0.self_attn"] == ("head", HEADS)
    assert found["layers.layers.1.linear1"] == ("neuron", 32)


def test_key_value_heads_take_their_queries_along() -> None:
    model, x = net(Textbook(kv_heads=2))
    graph = sc.trace(model, x)
    assert graph["wq:kv-head"].kind == "kv-head"
    assert graph["wq:kv-head"].size == 2
    small = check(model, x, {"wq:kv-head": [1]})
    assert (small.heads, small.kv, small.wq.out_features) == (2, 1, 2 * DIM)
    assert small.wk.out_features == DIM
    assert torch.equal(small.wq.weight, model.wq.weight[: 2 * DIM])


def test_query_heads_go_equally_from_each_key_value_head() -> None:
    model, x = net(Textbook(kv_heads=2))
    graph = sc.trace(model, x)
    assert graph["wq"].kind == "head"
    assert [block.tolist() for block in graph["wq"].blocks()] == [[0, 1], [2, 3]]
    with pytest.raises(PlanError, match="balanced"):
        graph.plan({"wq": [0]})
    small = check(model, x, {"wq": [1, 2]})  # another one in each
    rows = [*range(DIM), *range(3 * DIM, 4 * DIM)]
    assert torch.equal(small.wq.weight, model.wq.weight[rows])
    assert small.wk.out_features == 2 * DIM


class Interleaved(Fused):
    """The three of every head side by side, each taken by its number."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        qkv = self.qkv(x).view(b, t, self.heads, 3, -1).transpose(1, 3).contiguous()
        q, k, v = (qkv[:, number].transpose(1, 2) for number in range(3))
        scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) * 0.4
        y = scores.softmax(-1) @ v.transpose(1, 2)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("kind", "parts_first"), [(Fused, True), (Interleaved, False)])
def test_a_fused_projection_loses_dims_of_q_and_k_and_others_of_v(
    kind: type[nn.Module], parts_first: bool
) -> None:
    model, x = net(kind())
    group = sc.trace(model, x)["qkv:head-dim"]
    of_qk, of_v = group.blocks()
    small = check(model, x, {group.name: [int(of_qk[1]), int(of_v[4])]})
    stay = torch.tensor([[d for d in range(DIM) if d != gone] for gone in (1, 1, 4)])
    rows = torch.arange(3 * WIDTH)
    rows = rows.view(3, HEADS, DIM) if parts_first else rows.view(HEADS, 3, DIM).transpose(0, 1)
    rows = rows.gather(2, stay[:, None].expand(3, HEADS, DIM - 1))
    rows = (rows if parts_first else rows.transpose(0, 1)).flatten()
    scaled = HEADS * (DIM - 1) if parts_first else 0  # a fused kernel divides by √dim
    assert torch.equal(small.qkv.weight[scaled:], model.qkv.weight[rows][scaled:])
    columns = torch.arange(WIDTH).view(HEADS, DIM)[:, stay[2]].flatten()
    assert torch.equal(small.out.weight, model.out.weight[:, columns])


def test_both_kinds_of_heads_at_once() -> None:
    model, x = net(Textbook(kv_heads=2))
    small = check(model, x, {"wq": [0, 3], "wq:kv-head": [0]})
    assert small.wq.out_features == DIM


# ---------------------------------------------------------------------- the law
NETS = {
    "fused": Fused,
    "textbook": Textbook,
    "grouped": lambda: Textbook(kv_heads=2),
    "multi-query": lambda: Textbook(kv_heads=1),
    "rotary": lambda: Textbook(rotary=True),
    "normed": lambda: Textbook(norm=True),
    "einsum": Einsum,
    "encoder": Encoder,
}


@pytest.mark.parametrize("name", NETS)
def test_every_group_obeys_the_law(name: str) -> None:
    model, x = net(NETS[name]())
    graph = sc.trace(model, x)
    assert {"head", "head-dim"} <= {group.kind for group in graph}
    for group in graph:
        check(model, x, {group.name: spread(group)})
    check(model, x, {group.name: spread(group) for group in graph})


def test_rotary_pairs_go_together() -> None:
    graph = sc.trace(*net(Textbook(rotary=True)))
    group = graph["wq:head-dim"]
    assert len(group.blocks()) == 3
    assert {len(b) for b in group.blocks()} == {DIM // 2}
    plan = graph.plan({group.name: spread(group)})
    first = plan.tensors["wq.weight"].removed[0][0]
    assert first[:2] == [0, DIM // 2]  # both halves
    assert plan.tensors["freq"].removed == {0: [[0]]}


def test_a_norm_over_the_dims_makes_them_inexact() -> None:
    graph = sc.trace(*net(Textbook(norm=True)))
    assert not graph["wq:head-dim"].exact
    assert "normalisation" in graph["wq:head-dim"].why_inexact
    assert sc.trace(*net(Textbook()))["wq:head-dim"].exact


def test_the_scale_is_folded_into_the_queries() -> None:
    """By hand: attention over the dims that stay, with the scale of the full size."""
    model, x = net(Textbook())
    gone, kept = [1, 4], [0, 2, 3, 5]
    graph = sc.trace(model, x)
    group = graph["wq:head-dim"]
    small = sc.apply(
        model, graph.plan({group.name: [int(b[i]) for b in group.blocks() for i in gone]})
    )
    q, k, v = (w(x).view(2, TOKENS, HEADS, DIM)[..., kept] for w in (model.wq, model.wk, model.wv))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(DIM)
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    columns = model.wo.weight.view(WIDTH, HEADS, DIM)[..., kept]
    by_hand = torch.einsum("bthd,ohd->bto", y, columns) + model.wo.bias
    assert torch.allclose(small(x), by_hand, rtol=1e-12, atol=1e-12)
    ratio = math.sqrt(len(kept) / DIM)
    rows = [head * DIM + i for head in range(HEADS) for i in kept]
    assert torch.allclose(small.wq.weight, model.wq.weight[rows] * ratio)


def test_a_scale_that_cannot_be_folded_is_refused() -> None:
    class Shared(Textbook):
        """Queries and keys from one projection: scaling one scales the other."""

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q = self.wq(x).view(b, t, self.heads, self.dim).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q)
            return self.wo(y.transpose(1, 2).flatten(2))

    model, x = net(Shared())
    graph = sc.trace(model, x)
    assert [group.kind for group in graph] == ["head"]
    assert any("cannot be folded" in reason for reason in graph.resolved.reasons)


def test_a_mean_by_hand_is_not_cut_in_silence() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y) + (y.sum(-1) / y.shape[-1])[..., None]

    graph = sc.trace(randomise(Mean(), weights=True), torch.randn(3, 4))
    assert not graph.groups
    assert any("computes from this size" in f.reason for f in graph.frozen)


# ---------------------------------------------------------------------- mending
def test_sizes_that_the_code_computes_are_stated_anew() -> None:
    model, x = net(Fused())
    small = check(model, x, {"qkv": [1, 3]})
    assert small.heads == 2
    assert small.out.in_features == 2 * DIM
    assert model(x).shape == small(torch.randn(7, 9, WIDTH))[:2, :TOKENS].shape  # other inputs
    loss = small(x).square().sum()
    loss.backward()
    assert small.qkv.weight.grad is not None


def test_plans_follow_one_another() -> None:
    model, x = net(Fused())
    first = sc.trace(model, x).plan({"qkv": [1], "qkv:head-dim": [0, 2, DIM + 1, DIM + 2]})
    half = sc.apply(model, first)
    second = sc.trace(half, x).plan({"qkv": [0], "qkv:head-dim": [1, DIM]})
    small = sc.apply(half, second)
    assert sc.verify(half, small, second, x).max_relative_error < 1e-9
    whole = sc.Plan.from_json(first.then(second).to_json())
    assert torch.allclose(sc.apply(model, whole)(x), small(x), rtol=1e-12, atol=1e-12)


def test_attention_of_pytorch_keeps_its_masks_and_weights() -> None:
    """Heads are cut in `nn.MultiheadAttention`; with masks, beside its gated self."""
    model, x = net(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_bias_kv=True))
    mask = torch.rand(TOKENS, TOKENS) > 0.8
    mask[:, 0] = False
    call = {"query": x, "key": x, "value": x, "attn_mask": mask, "need_weights": False}
    group = next(g for g in sc.trace(model, call) if g.kind == "head")
    small = check(model, call, {group.name: [2]})
    assert isinstance(small, nn.MultiheadAttention)
    assert small.num_heads == HEADS - 1
    gated = copy.deepcopy(model)
    gated.out_proj.weight.data.view(WIDTH, HEADS, DIM)[:, 2] = 0
    assert torch.allclose(small(**call)[0], gated(**call)[0], rtol=1e-12, atol=1e-12)


def test_the_fused_path_of_pytorch_is_not_taken_after_a_cut() -> None:
    model, x = net(Encoder())
    small = check(model, x, {"layers.layers.1.self_attn": [0]})
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[0, -2:] = True
    gated = copy.deepcopy(model)
    gated.layers.layers[1].self_attn.out_proj.weight.data.view(WIDTH, HEADS, DIM)[:, 0] = 0
    with torch.no_grad():
        wanted, given = gated(x, padding), small(x, padding)
    assert torch.allclose(given[~padding], wanted[~padding], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- scores
def test_the_oracle_and_criteria_of_heads_and_neurons_are_exact() -> None:
    """Against the naive loop: one run of the gated network for every unit."""
    from tests.zoo import torchvision_models

    vit = torchvision_models().VisionTransformer(64, 32, 1, 2, 16, 24, num_classes=3)
    model, x = randomise(vit, weights=True).eval(), torch.randn(4, 3, 64, 64)
    y = torch.tensor([0, 1, 2, 0])
    graph = sc.trace(model, x)
    groups = [g for g in graph if g.kind in ("head", "neuron")]
    assert {g.kind for g in groups} == {"head", "neuron"}
    scores = sc.score(model, graph, [(x, y)], loss=F.cross_entropy, criterion="oracle")
    with torch.no_grad():
        whole = F.cross_entropy(model(x), y)
        for group in groups:
            for unit in range(group.size):
                gated = sc.apply(model, graph.plan({group.name: [unit]}))
                change = float((F.cross_entropy(gated(x), y) - whole).abs())
                assert float(scores[group.name][unit]) == pytest.approx(change, rel=1e-6, abs=1e-9)


# ---------------------------------------------------------------------- transformers
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers"
)
TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
GROUPED = {**TINY, "vocab_size": 40, "num_key_value_heads": 2, "head_dim": 8}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 40,
      "decoder_start_token_id": 0}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "Llama": ("LlamaForCausalLM", GROUPED, {"num_attention_heads": 2, "intermediate_size": 36}),
    "Qwen3": ("Qwen3ForCausalLM", GROUPED, {"num_attention_heads": 2, "intermediate_size": 36}),
    "Phi3": ("Phi3ForCausalLM", {**GROUPED, "pad_token_id": 0},
             {"num_attention_heads": 2, "intermediate_size": 36}),
    "Bert": ("BertForSequenceClassification", {**TINY, "vocab_size": 40},
             {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 36}),
    "ViT": ("ViTForImageClassification", {**TINY, "image_size": 16, "patch_size": 8},
            {"num_attention_heads": 3, "head_dim": 8, "intermediate_size": 36}),
    "T5": ("T5ForConditionalGeneration", T5, {"num_heads": 3, "d_ff": 36}),
}  # fmt: skip


def tiny(name: str) -> tuple[Any, dict[str, Tensor]]:
    from tests.zoo import torchvision_models

    torchvision_models()  # its wheel for CUDA keeps transformers from being imported
    import transformers

    build, options, _ = MODELS[name]
    model = getattr(transformers, build)(getattr(transformers, f"{name}Config")(**options))
    if name == "ViT":
        return model.double().eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}
    ids = torch.randint(0, 40, (2, 6))
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if name == "T5" else {})}
    return model.double().eval(), inputs


def evenly(graph: sc.Graph, *, width: bool) -> dict[str, list[int]]:
    """A quarter of every family of heads and neurons, of the same size in all layers."""
    out = {}
    for group in graph:
        if group.kind == "head" or (
            group.kind == "neuron" and (width or "pooler" not in group.name)
        ):
            out[group.name] = spread(group, max(1, len(group.blocks()[0]) // 4))
        elif group.kind == "width" and width:
            out[group.name] = list(range(group.size // 4))
    return out


def save_cut(name: str, directory: Path) -> None:
    """Cut a tiny model evenly, save it as its library does, with what it gives."""
    model, inputs = tiny(name)
    graph = sc.trace(model, inputs)
    plan = graph.plan(evenly(graph, width=name == "Bert"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        small = sc.apply(model, plan)
    assert sc.verify(model, small, plan, inputs, graph=graph).max_relative_error < 1e-9
    _, options, wanted = MODELS[name]
    assert {field: getattr(small.config, field) for field in wanted} == wanted
    assert model.config.to_dict().items() >= options.items()  # the original's is as it was
    small.save_pretrained(directory)
    with torch.no_grad():
        torch.save({"inputs": inputs, "output": small(**inputs)[0]}, directory / "run.pt")


LOAD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tests.zoo import torchvision_models
torchvision_models()
import transformers
for build, directory in zip(sys.argv[2::2], sys.argv[3::2]):
    run = torch.load(directory + "/run.pt")
    build = getattr(transformers, build)
    model = build.from_pretrained(directory, dtype=torch.float64).eval()
    with torch.no_grad():
        out = model(**run["inputs"])[0]
    assert torch.equal(out, run["output"]), (build, (out - run["output"]).abs().max())
"""


@needs_transformers
def test_transformers_round_trip_in_a_fresh_process(tmp_path: Path) -> None:
    arguments = [str(Path(__file__).parents[1])]
    for name, (build, _, _) in MODELS.items():
        save_cut(name, tmp_path / name)
        arguments += [build, str(tmp_path / name)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_transformers
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "T5"])
def test_a_cut_transformer_generates_with_its_cache(name: str) -> None:
    model, inputs = tiny(name)
    graph = sc.trace(model, inputs)
    small = sc.apply(model, graph.plan(evenly(graph, width=False)))
    ids = inputs["input_ids"]
    runs = [
        small.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*runs)


@needs_transformers
def test_a_config_that_cannot_say_the_cut_stays_and_warns() -> None:
    model, inputs = tiny("Llama")
    plan = sc.trace(model, inputs).plan({"model.layers.0.mlp.gate_proj": [0, 1]})
    with pytest.warns(UserWarning, match=r"plan\.json"):
        small = sc.apply(model, plan)
    assert small.config.to_dict() == model.config.to_dict()
    fresh = type(model)(model.config).double().eval()
    fresh.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="config"):
        again = sc.apply(fresh, sc.Plan.from_json(plan.to_json()))
    assert torch.equal(again(**inputs)[0], small(**inputs)[0])


@needs_transformers
def test_a_llama_without_query_heads_takes_padding_that_its_trace_had_not() -> None:
    """The fused kernel repeats the keys by itself; with a mask the code does."""
    model, inputs = tiny("Llama")
    graph = sc.trace(model, inputs)
    plan = graph.plan({g.name: spread(g) for g in graph if g.kind == "head"})
    small = sc.apply(model, plan)
    assert small.model.layers[1].self_attn.num_key_value_groups == 1
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :2] = 0
    padded = {**inputs, "attention_mask": mask}
    assert sc.verify(model, small, plan, padded).max_relative_error < 1e-9


@needs_transformers
def test_sizes_from_a_configuration_are_stated_anew() -> None:
    """Phi-3 slices its projection at heads of the config times an attribute."""
    model, inputs = tiny("Phi3")
    graph = sc.trace(model, inputs)
    for kind in ("head", "kv-head"):
        plan = graph.plan({g.name: spread(g) for g in graph if g.kind == kind})
        assert {stated.function for stated in plan.restated} == {"__getitem__"}
        small = cut(model, plan)
        assert sc.verify(model, small, plan, inputs, graph=graph).max_relative_error < 1e-9


@needs_transformers
def test_the_config_of_t5_says_its_head_dims(tmp_path: Path) -> None:
    model, inputs = tiny("T5")
    graph = sc.trace(model, inputs)
    dims = {group.name: spread(group) for group in graph if group.kind == "head-dim"}
    small = check(model, inputs, dims)
    assert (small.config.d_kv, model.config.d_kv) == (7, 8)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert torch.equal(again(**inputs)[0], small(**inputs)[0])


class Turning(nn.Module):
    """A rotary table that no file holds: it is computed for the size of a head."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("freq", 1 / 100 ** torch.linspace(0, 1, dim // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.freq
        left, right = x.chunk(2, -1)
        pair = left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()
        return torch.cat(pair, -1)


@needs_transformers
def test_a_config_does_not_say_what_its_model_computes_anew() -> None:
    from tests.zoo import torchvision_models

    torchvision_models()
    import transformers

    class Config(transformers.PretrainedConfig):
        def __init__(self, head_dim: int = DIM, **rest: Any):
            super().__init__(**rest)
            self.head_dim = head_dim

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config):
            super().__init__(config)
            self.dim = config.head_dim
            self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * self.dim) for _ in "qkv")
            self.turn, self.out = Turning(self.dim), nn.Linear(HEADS * self.dim, WIDTH)
            self.post_init()

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (w(x).unflatten(-1, (HEADS, self.dim)).transpose(1, 2)
                       for w in (self.q, self.k, self.v))  # fmt: skip
            y = (self.turn(q) @ self.turn(k).transpose(-2, -1)).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2))

    model, x = net(Model(Config()))
    graph = sc.trace(model, x)
    dims = {group.name: spread(group) for group in graph if group.kind == "head-dim"}
    with pytest.warns(UserWarning, match=r"compute turn\.freq anew"):
        small = check(model, x, dims)
    assert small.config.head_dim == DIM
    assert small.dim < DIM
    model, inputs = tiny("ViT")  # 1/√dim is an attribute
    graph = sc.trace(model, inputs)
    dims = {group.name: spread(group) for group in graph if group.kind == "head-dim"}
    with pytest.warns(
        UserWarning, match=r"compute .*0\.attention\.scaling, .*1\.attention\.scaling"
    ):
        check(model, inputs, dims)


@needs_transformers
def test_a_config_does_not_say_what_is_written_in_the_code() -> None:
    from tests.zoo import torchvision_models

    torchvision_models()
    import transformers

    class Config(transformers.PretrainedConfig):
        def __init__(self, neurons: int = 16, **rest: Any):
            super().__init__(**rest)
            self.neurons = neurons

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config):
            super().__init__(config)
            self.a, self.b = nn.Linear(WIDTH, config.neurons), nn.Linear(config.neurons, WIDTH)
            self.post_init()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(-1, 16).relu())

    model, x = net(Model(Config()))
    with pytest.warns(UserWarning, match="other code"):
        small = check(model, x, {"a": [0, 1, 5, 9]})
    assert (small.a.out_features, small.config.neurons) == (12, 16)


@needs_transformers
def test_head_dims_of_llama_span_its_layers() -> None:
    model, inputs = tiny("Llama")
    group = next(g for g in sc.trace(model, inputs) if g.kind == "head-dim")
    assert [len(block) for block in group.blocks()] == [4] * 5  # rotary pairs; two halves a layer
    with pytest.warns(UserWarning, match=r"compute model\.rotary_emb\.inv_freq anew"):
        small = check(model, inputs, {group.name: spread(group)})
    assert small.model.layers[0].self_attn.head_dim == 6
    assert np.isclose(small.model.layers[0].self_attn.scaling, 8**-0.5)
