"""The part of the coverage table that is quick: `make zoo` measures every network of its list."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.support import call, relative_error

import secateurs as sc

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = (BENCHMARKS / "coverage.txt").read_text().split()
QUICK = [name for name in NAMES if name.startswith("plain.")]
TRANSFORMERS = ["hf.bert_cls", "hf.gpt2", "hf.llama_gqa", "hf.swin", "hf.t5", "hf.vit"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.filterwarnings("ignore:the config of")  # widths are drawn layer by layer
@pytest.mark.parametrize("name", [*QUICK, *TRANSFORMERS])
def test_cut_with_the_law_kept_and_trained(name: str) -> None:
    if name.startswith("hf."):
        pytest.importorskip("transformers")
    from coverage_models import Sample, sample
    from coverage_one import train
    from coverage_stage import doubled

    made = sample(name)
    model, inputs = made.model.double(), doubled(made.inputs)
    graph = sc.trace(model, inputs)
    plan = graph.random_plan(0.3, seed=1)
    assert len(plan) > 0
    small = sc.apply(model, plan)
    proof = sc.verify(model, small, plan, inputs, graph=graph)
    assert proof.exact
    assert proof.max_relative_error <= 1e-9
    assert relative_error(call(model, inputs), call(small, inputs)) > 1e-6  # the units mattered
    before = copy.deepcopy(small.state_dict())
    train(small, Sample(small, inputs))
    assert any(not torch.equal(t, before[name]) for name, t in small.state_dict().items())


def test_every_network_of_the_list_has_a_builder() -> None:
    from coverage_models import TRANSFORMERS as CONFIGURATIONS
    from coverage_nets import NETS
    from vision import torchvision_models

    models = torchvision_models()
    import timm  # it imports torchvision

    known = {
        "plain": set(NETS),
        "hf": set(CONFIGURATIONS),
        "timm": set(timm.list_models()),
        "tv": {n for room in (models, models.detection, models.segmentation, models.video)
               for n in dir(room)},
    }  # fmt: skip
    assert len(set(NAMES)) == len(NAMES) > 110
    assert [n for n in NAMES if n.partition(".")[2] not in known[n.partition(".")[0]]] == []


@pytest.mark.parametrize("name", ["plain.unet", "plain.flatten_view", "plain.tied_embed"])
def test_the_share_that_can_go_is_what_the_single_cuts_touch(name: str) -> None:
    from coverage_models import sample
    from coverage_one import prunable

    made = sample(name)
    graph = sc.trace(made.model, made.inputs)
    touched = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in made.model.named_parameters()}
    for group in graph:
        for unit in range(group.size):
            for path, slices in graph.plan({group.name: [unit]}).tensors.items():
                for dim, blocks in slices.removed.items():
                    if path in touched:
                        touched[path].index_fill_(dim, torch.tensor(blocks[0]), True)
    assert prunable(graph) == sum(int(mask.sum()) for mask in touched.values())


def test_named_axes_are_told_by_how_many_slices_go_with_a_unit() -> None:
    from coverage_models import sample
    from coverage_named import named, offered

    made = sample("plain.unet")
    graph = sc.trace(made.model, made.inputs)
    assert offered("plain.unet", graph) == {
        "channels on the way down": [3, 3],
        "channels on the way up": [4, 4],
    }
    assert offered("plain.se", graph) is None
    assert set(named()) <= set(NAMES)
    graph.give_up({"mid": "a trial"})
    assert offered("plain.unet", graph)["channels on the way down"] == [2, 3]


RECORD = {
    "name": "plain.se", "part": "ours", "stage": "done", "groups": 3, "prunable": 0.9, "gone": 4,
    "law": 1e-15, "dtype": "float64", "mended": 2, "trains": "yes", "seconds": 0.5, "peak_mib": 1.0,
    "frozen": {"kernel axis": 9, "no rule follows aten.topk in a.3": 2},
    "named": {"channels": [1, 2]},
}  # fmt: skip
PEER = {"name": "plain.se", "part": "theirs", "seconds": 1.0, "left": 0.5, "shape": True}


@pytest.mark.parametrize(
    ("change", "said", "good"),
    [
        ({}, "mended (2)", True),
        ({"mended": 0}, "in place", True),
        ({"mended": 0, "replay": True}, "replay", True),
        ({"gone": 0}, "nothing offered", False),
        ({"law": 1e-6}, "mended (2)", False),
        ({"dtype": "float32"}, "mended (2)", False),
        ({"trains": "RuntimeError: no"}, "mended (2)", False),
        ({"failed": "law", "error": "LawError: is BROKEN"}, "wrong", False),
        ({"failed": "law", "error": "LawError: does not run"}, "does not run", False),
        ({"failed": "plan", "error": "MendError: x", "refused": True}, "refused", False),
        ({"failed": "trace", "error": "KeyError: x", "refused": False}, "failed", False),
    ],
)
def test_the_page_says_how_a_network_was_cut(change: dict, said: str, good: bool) -> None:
    import coverage_page

    record = {**RECORD, **change}
    if "failed" in change:
        del record["trains"]
    assert coverage_page.verdict(record) == said
    assert coverage_page.good(record) is good
    text = coverage_page.page(["plain.se", "plain.unet"], [record, PEER])
    assert f"| {said}" in text
    assert f"{int(good)} ({int(good):.0%}) were cut" in text
    assert ("do not cut these yet" in text) is (said == "wrong")
    assert "| 2 | no rule follows aten.topk in a.N |" in text
    assert "| all |  | 2 | 1 (50%) |" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "ok"),
        ({"left": 1.0}, "cuts nothing"),
        ({"shape": False}, "cuts the output"),
        ({"wrong": 2, "checked": 5}, "wrong in 2 of 5 groups"),
        ({"failed": "cut", "error": "TimeoutError: more than 60 seconds"}, "no end"),
        ({"failed": "run", "error": "RuntimeError: shape"}, "does not run after it"),
        ({"failed": "cut", "error": "IndexError: x"}, "fails"),
    ],
)
def test_the_page_says_what_the_peer_did(change: dict, said: str) -> None:
    import coverage_page

    assert coverage_page.peer_verdict({**PEER, **change}) == said


def test_a_stage_that_takes_too_long_ends_and_is_noted(tmp_path: Path) -> None:
    from coverage_stage import Record, StopError

    record = Record("x", tmp_path / "record.json")

    def spin() -> None:
        with record.stage("spin", seconds=0.05):
            while True:
                pass

    with pytest.raises(StopError):
        spin()
    assert record["failed"] == "spin"
    assert "TimeoutError: more than 0.05 seconds" in (tmp_path / "record.json").read_text()
