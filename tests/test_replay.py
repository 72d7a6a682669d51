"""What cannot be mended in the model is served by replay, marked so, or refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import doubled, snapshot
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import MendError, PlanError, TraceError
from secateurs.surgery import replay
from secateurs.trace import static

SIZES = {"heads": 4, "width": 24, "hidden": 16}  # where no trace can find the numbers


class Unmendable(nn.Module):
    """Attention and a branch whose sizes are in a dictionary of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.up, self.down, self.head = nn.Linear(24, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 0.3) -> Any:
        b, t = x.shape[:2]
        q, k, v = self.qkv(x).view(b, t, 3, SIZES["heads"], -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * scale
        if mask is not None:
            scores = scores + mask
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, SIZES["width"]))
        y = self.up(x).reshape(b * t, SIZES["hidden"])
        y = self.drop(self.norm(y)).relu().view(b, t, -1)
        return {"logits": self.head(x + self.down(y)).mean(1), "steps": t}


def net(batch: int = 2, tokens: int = 5) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return doubled(Unmendable()), torch.randn(batch, tokens, 24).double()


def served() -> tuple[nn.Module, Any, sc.Plan, Tensor]:
    model, x = net()
    plan = sc.trace(model, x, replay=True).plan({"qkv": [1], "up": [0, 3, 5]})
    return model, sc.apply(model, plan), plan, x


def test_without_replay_such_groups_are_frozen_and_say_what_to_do() -> None:
    graph = sc.trace(*net())
    assert not {"qkv", "up"} & {group.name for group in graph}
    with pytest.raises(PlanError, match="serves such a cut"):
        graph.plan({"up": [0]})


def test_the_law_holds_at_every_shape_of_the_inputs() -> None:
    model, small, plan, x = served()
    assert plan.replay
    assert plan.exact
    for inputs in (x, *(net(b, t)[1] for b, t in ((1, 5), (7, 3), (2, 1)))):
        assert sc.verify(model, small, plan, inputs).max_relative_error <= 1e-12
        assert small(inputs)["steps"] == inputs.shape[1]
    masked = {"x": x, "mask": torch.randn(5, 5).double()}
    assert sc.verify(model, small, plan, masked).max_relative_error <= 1e-12
    assert torch.equal(small(masked["x"], mask=masked["mask"])["logits"], small(**masked)["logits"])
    assert not torch.equal(small(x, scale=3.0)["logits"], small(x)["logits"])


def test_every_group_of_it_at_once_keeps_the_law() -> None:
    model, x = net()
    graph = sc.trace(model, x, replay=True)
    for seed in range(3):
        plan = graph.random_plan(0.4, seed, exact_only=False)
        proof = sc.verify(model, sc.apply(model, plan), plan, x, graph=graph)
        assert proof.max_relative_error <= 1e-12
        assert "by replay" in str(proof)


def test_it_is_marked_and_the_model_is_left_as_it_was() -> None:
    model, x = net()
    before = snapshot(model)
    graph = sc.trace(model, x, replay=True)
    assert {group.name for group in graph if group.replayed} == {
        "qkv", "qkv:head-dim", "up"
    }  # fmt: skip
    assert "by replay" in str(graph)
    small = sc.apply(model, graph.plan({"up": [2]}))
    assert isinstance(small, sc.Replayed)
    assert isinstance(small, Unmendable)
    assert str(small).startswith("ReplayedUnmendable(\n  a static program")
    assert small.up.weight.shape == (15, 24)
    small(x)
    assert snapshot(model) == before
    assert type(model) is Unmendable


def test_what_can_be_mended_is_mended() -> None:
    model = doubled(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    plan = sc.trace(model, torch.randn(2, 4).double(), replay=True).plan({"0": [1]})
    assert not plan.replay
    assert type(sc.apply(model, plan)) is nn.Sequential


def test_it_trains_under_the_old_names() -> None:
    model, _, plan, x = served()
    model.out.requires_grad_(requires_grad=False)
    small = sc.apply(model, plan).train()
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in small.named_parameters()] == names
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(x)["logits"].square().sum().backward()
    without = {name for name, p in small.named_parameters() if p.grad is None}
    assert without == {"out.weight", "out.bias"}
    before = small(x)["logits"].detach()
    optimizer.step()
    after = small(x)["logits"].detach()
    assert not torch.allclose(before, after)
    assert torch.equal(after, small.eval()(x)["logits"])  # no dropout, no new statistics


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    _, small, plan, x = served()
    assert sc.Plan.from_json(plan.to_json()) == plan
    small.down.weight.data.mul_(2)
    fresh, _ = net()
    loaded = sc.load(sc.save(small, plan, tmp_path), fresh)
    assert loaded is fresh
    assert isinstance(loaded, sc.Replayed)
    assert torch.equal(loaded(x)["logits"], small(x)["logits"])


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_their_own(twin: Any) -> None:
    _, small, _, x = served()
    before = small(x)["logits"]
    other = twin(small)
    assert type(other) is type(small)
    assert torch.equal(other(x)["logits"], before)
    other.head.weight.data.zero_()
    assert torch.equal(small(x)["logits"], before)


def test_other_precisions_and_autocast_are_followed() -> None:
    _, small, _, x = served()
    x = x.float()
    single = small.float()(x)["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = small(x[:1])["logits"]
    assert mixed.dtype == torch.bfloat16 or (mixed - single[:1]).abs().max() > 0
    assert torch.allclose(mixed.float(), single[:1], rtol=0.1, atol=0.1)
    assert torch.equal(small(x[:1])["logits"], small(x[:1].clone())["logits"])
    half = small.bfloat16()(x.bfloat16())["logits"]
    assert torch.allclose(half.float(), single, rtol=0.1, atol=0.1)


def test_a_program_of_torch_export_can_be_made_of_it() -> None:
    _, small, _, x = served()
    wanted = small(x)["logits"]
    program = torch.export.export(small, (x,)).module()
    assert torch.allclose(program(x)["logits"], wanted)


def test_recordings_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "KEPT", 2)
    _, small, _, _ = served()
    for tokens in (1, 2, 3, 1):
        small(net(1, tokens)[1])
    assert len(small.recordings) == 2


# ---------------------------------------------------------------------- what is refused
class Looks(Unmendable):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 0.3) -> Any:
        return super().forward(x if x.mean() > 5 else -x, mask, scale=scale)


class Opaque(Unmendable):
    """Returns a thing that no recording can keep."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 0.3) -> Any:
        return super().forward(x, mask, scale=scale), object()


def test_code_that_looks_at_values_is_not_served() -> None:
    graph = sc.trace(doubled(Looks()), net()[1], replay=True)
    with pytest.raises(PlanError) as error:
        graph.plan({"up": [0]})
    assert "serves such a cut" not in str(error.value)


def test_outputs_that_are_no_plain_data_are_not_served() -> None:
    graph = sc.trace(doubled(Opaque()), net()[1], replay=True)
    with pytest.raises(MendError, match="returns a object"):
        graph.plan({"up": [0]})


def test_inputs_that_are_no_plain_data_are_not_served() -> None:
    _, small, _, x = served()
    with pytest.raises(TraceError, match="cannot be given a object"):
        small(x, mask=object())


def test_wrappers_and_second_cuts_are_refused() -> None:
    model, small, plan, x = served()
    before = snapshot(model)
    wrapped = nn.DataParallel(model)
    inner = sc.trace(wrapped, x, replay=True).plan({"module.up": [0]})
    for inplace in (False, True):
        with pytest.raises(PlanError, match="model that it wraps"):
            sc.apply(wrapped, inner, inplace=inplace)
    assert snapshot(model) == before
    with pytest.raises(TraceError, match="static program"):
        sc.trace(nn.Sequential(small), x)
    with pytest.raises(PlanError, match="stands alone"):
        plan.then(plan)


def test_a_size_left_as_it_was_is_seen_before_anything_is_cut() -> None:
    model, x = net()
    graph = sc.trace(model, x, replay=True)
    selection = graph.select({"up": [2]})
    small = static.shrunk(graph.analysis, selection)
    shapes = {
        name: tuple(t.shape)
        for name, t in sc.apply(model, graph.plan({"up": [2]})).state_dict().items()
    }
    static.check(graph.analysis, selection, small, shapes)
    node = next(n for n in small.nodes if n.args[1:2] == ([10, 15],))
    node.args = (node.args[0], [10, 16])
    with pytest.raises(MendError, match="cannot serve this cut"):
        static.check(graph.analysis, selection, small, shapes)
