"""Plans are plain data: they validate, travel as JSON, compose, and are applied whole or not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.networks import NETWORKS, network
from tests.support import call, snapshot
from torch import nn

import secateurs as sc
from secateurs.errors import FileError, PlanError

SOME = ["lenet", "residual", "unet", "groupnorm", "hard_view", "literal_slice", "attribute_slice",
        "chunks", "grouped", "tied", "dicts", "layernorm_mlp"]  # fmt: skip


def random_plan(name: str) -> tuple[nn.Module, Any, sc.Graph, sc.Plan]:
    model, inputs = network(name)
    graph = sc.trace(model, inputs)
    return model, inputs, graph, graph.random_plan(0.3, exact_only=False)


# ---------------------------------------------------------------------- as data
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_survives_json_and_a_file(name: str, tmp_path: Path) -> None:
    *_, plan = random_plan(name)
    assert sc.Plan.from_json(plan.to_json()) == plan
    assert sc.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    plan.save(tmp_path / "new" / "plan.json")
    assert sc.Plan.load(tmp_path / "new" / "plan.json") == plan
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("name", SOME)
def test_two_plans_compose_into_one_for_the_original(name: str) -> None:
    model, inputs, graph, first = random_plan(name)
    once = sc.apply(model, first)
    second = sc.trace(once, inputs).random_plan(0.4, seed=5, exact_only=False)
    twice, together = sc.apply(once, second), first.then(second)
    direct = sc.apply(model, sc.Plan.from_json(together.to_json()))
    for wanted, given in zip(call(twice, inputs), call(direct, inputs), strict=True):
        assert torch.equal(wanted, given)
    assert len(together) == len(first) + len(second) > len(first)
    remade = graph.plan(together.groups)
    assert remade.tensors == together.tensors
    assert remade.attributes == together.attributes
    assert set(remade.edits) == set(together.edits)


def test_a_plan_for_something_else_does_not_compose() -> None:
    *_, first = random_plan("lenet")
    with pytest.raises(PlanError, match="does not fit the result of the first"):
        first.then(first)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", "NaN", '"plan"', "[" * 100_000,
        '{"format": "secateurs.plan/1"}', '{"format": "another/1"}',
    ],
)  # fmt: skip
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(FileError):
        sc.Plan.from_json(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["groups"], [1]),
        (["groups", "conv1"], ["x"]),
        (["groups", "conv1"], [1.5]),
        (["groups", "conv1"], [0, 0]),
        (["groups", "conv1"], [6]),
        (["groups", "conv1"], [-1]),
        (["sizes"], {}),
        (["sizes", "conv1"], None),
        (["tensors"], []),
        (["tensors"], {}),
        (["tensors", "conv1.weight", "shape"], "6"),
        (["tensors", "conv1.weight", "removed"], {"0": [[99]]}),
        (["tensors", "conv1.weight", "removed"], {"9": [[1]]}),
        (["tensors", "conv1.weight", "removed"], {"0": []}),
        (["tensors", "conv1.weight", "removed"], {"0": [[0], [0, 1]]}),
        (["tensors", "conv1.weight", "removed"], {"0": [[0.5]]}),
        (["tensors", "conv1.weight", "removed"], {"0": [list(range(6))]}),
        (["attributes", "conv1.out_channels"], [6]),
        (["attributes", "conv1.out_channels"], [6, -1]),
        (["attributes", "conv1.out_channels"], [6, 4.5]),
        (["attributes", "conv1.kernel_size[-1]"], [5, 4]),
        (["edits"], None),
        (["edits"], [["", "forward", "x.view(-1, 8)", 0, 1]]),
        (["edits"], [[1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_a_malformed_plan_is_refused(path: list[str], value: Any) -> None:
    model, _, graph, _ = random_plan("lenet")
    data = json.loads(graph.plan({"conv1": [1, 2]}).to_json())
    before, entry = snapshot(model), data
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(FileError, match="plan is malformed"):
        sc.Plan.from_json(json.dumps(data))
    assert snapshot(model) == before


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    *_, plan = random_plan("lenet")
    whole = plan.to_json()
    (tmp_path / "torn.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("torn.json", "binary.json", "missing.json", "."):
        with pytest.raises(FileError):
            sc.Plan.load(tmp_path / name)


# ---------------------------------------------------------------------- bad input
BAD = [
    ({"cov1": [0]}, "did you mean 'conv1'"),
    ({"conv1": [6]}, "out of range: it has 6 units, 0 to 5"),
    ({"conv1": [-1]}, "out of range"),
    ({"conv1": [1, 1]}, "named twice"),
    ({"conv1": [1], "conv1.weight[0]": [1]}, "named twice"),
    ({"conv1": [1.0]}, "not an integer"),
    ({"conv1": "12"}, "not an integer"),
    ({"conv1": [None]}, "not an integer"),
    ({"conv1": [True, False]}, "mask.nonzero"),
    ({"conv1": torch.tensor([True, False, False, False, False, False])}, "mask.nonzero"),
    ({"conv1": 3}, "conv1"),
    ({"conv1": None}, "conv1"),
    ({3: [1]}, "3"),
    ([("conv1", [1])], "mapping|dict"),
    ({"conv1": range(6)}, "all 6 units"),
    ({"conv1": [0], "fc1": range(20)}, "leave at least one"),
]


@pytest.mark.parametrize(("units", "message"), BAD)
@pytest.mark.parametrize("inplace", [False, True])
def test_bad_units_are_refused_and_nothing_changes(units: Any, message: str, inplace: bool) -> None:
    model, inputs = network("lenet")
    before = snapshot(model)
    with pytest.raises(PlanError, match=message):
        sc.delete_channels(model, units, inputs, inplace=inplace)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("chunks", {"conv": [0]}),
        ("chunks", {"conv": [0, 1, 8]}),
        ("grouped", {"grouped": [0, 8, 16]}),
        ("grouped", {"grouped": [0, 8, 16, 17]}),
    ],
)
def test_unequal_counts_from_balanced_blocks_are_refused(name: str, units: dict) -> None:
    model, inputs = network(name)
    with pytest.raises(PlanError, match=r"balanced: its . blocks must lose equally"):
        sc.trace(model, inputs).plan(units)


def test_a_whole_block_may_not_go() -> None:
    model, inputs = network("chunks")
    graph = sc.trace(model, inputs)
    with pytest.raises(PlanError):
        graph.plan({"conv": range(16)})


def test_slices_that_state_equal_sizes_must_stay_equal() -> None:
    """x[:, :k] and x[:, k:] follow any choice; a fraction outside [0, 1) is none."""
    model, inputs = network("attribute_slice")
    graph = sc.trace(model, inputs)
    assert graph.plan({"conv": [0, 1, 63]}).attributes["k"] == (40, 38)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(PlanError, match="fraction"):
            graph.random_plan(fraction)


def test_integers_of_numpy_and_torch_are_integers() -> None:
    graph = sc.trace(*network("lenet"))
    wanted = graph.plan({"conv1": [1, 3]})
    assert graph.plan({"conv1": np.array([3, 1])}) == wanted
    assert graph.plan({"conv1": torch.tensor([1, 3])}) == wanted


@pytest.mark.parametrize("other", ["residual", "hard_view", "shared"])
def test_a_plan_is_refused_on_another_model(other: str) -> None:
    *_, plan = random_plan("lenet")
    model, inputs = network(other)
    before = snapshot(model)
    for inplace in (False, True):
        with pytest.raises(PlanError, match="does not fit"):
            sc.apply(model, plan, inplace=inplace)
    with pytest.raises(PlanError, match="does not fit"):
        sc.verify(model, model, plan, inputs)
    assert snapshot(model) == before


@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_is_refused_the_second_time(inplace: bool) -> None:
    model, _, graph, _ = random_plan("lenet")
    plan = graph.plan({"conv1": [1]})
    small = sc.apply(model, plan)
    before = snapshot(small)
    with pytest.raises(PlanError, match="cut already"):
        sc.apply(small, plan, inplace=inplace)
    assert snapshot(small) == before


@pytest.mark.parametrize("name", ["hard_view", "attribute_slice", "residual"])
def test_a_changed_attribute_or_method_refuses_the_plan(name: str) -> None:
    model, _, _, plan = random_plan(name)
    if name == "hard_view":
        model.forward = lambda x: x  # no longer the code that was traced
    elif name == "attribute_slice":
        model.k = 39
    else:
        plan = dataclasses.replace(plan, attributes={"stem.absent": (8, 6)})
    before = snapshot(model)
    with pytest.raises(PlanError, match="does not fit"):
        sc.apply(model, plan, inplace=True)
    assert snapshot(model) == before
