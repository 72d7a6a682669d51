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
EXPORTS = {
    "name": "plain.se", "part": "exports", "processor": 90.0, "pt2": "yes",
    "failed": "onnx", "error": "the process ended with -9",
}  # fmt: skip
PEER = {"name": "plain.se", "part": "theirs", "seconds": 1.0, "left": 0.5, "shape": True}


@pytest.mark.parametrize(
    ("change", "said", "good"),
    [
        ({}, "mended (2)", True),
        ({"mended": 0}, "in place", True),
        ({"mended": 0, "replay": True, "unmended": "a reason"}, "replay", True),
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
    text = coverage_page.page(["plain.se", "plain.unet"], [record, EXPORTS, PEER])
    assert f"| {said}" in text
    assert f"{int(good)} ({int(good):.0%}) were cut" in text
    assert ("do not cut these yet" in text) is (said == "wrong")
    assert "| 2 | no rule follows aten.topk in a.N |" in text
    assert "| all |  | 2 | 1 (50%) |" in text
    assert "torch.export, of 1 networks: yes 1.\n\nONNX, of 1 networks: no 1." in text
    assert ". onnx: the process ended with -9" in text
    assert "2 minutes of processor time: ours 0, exports 2, theirs 0." in text


FIXED = {"hidden": 8}


class Fixed(torch.nn.Sequential):
    """Its width is stated where no cut reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](x).view(-1, FIXED["hidden"]))


def test_replay_is_tried_where_nothing_can_be_mended(tmp_path: Path) -> None:
    from coverage_models import Sample
    from coverage_one import cut, law
    from coverage_stage import Record

    made = Sample(Fixed(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(2, 4))
    record = Record("fixed", tmp_path / "record.json")
    graph, plan, small = cut(record, made)
    assert record["replay"]
    assert record["gone"] == len(plan) > 0
    assert "is given the size 8, which the cut would make 6" in record["unmended"]
    assert isinstance(small, sc.Replayed)
    law(record, made, graph, plan)
    assert record["law"] < 1e-9


def test_a_process_that_dies_leaves_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import coverage_table

    text = "import os, signal\ndef main(name, out):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "that_dies.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(coverage_table.PARTS, "ours", ("that_dies", {}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    coverage_table.PROCESSES.set_forkserver_preload(["coverage_table"])  # no need of the rest
    results, page = tmp_path / "zoo.jsonl", tmp_path / "page.md"
    coverage_table.main(results, str(page), jobs=2, only="plain.s*", parts="ours")
    assert results.read_text().count("ended with -9") == 3
    assert page.read_text().count("ended with -9") == 1  # one note for all three
    monkeypatch.setitem(coverage_table.PARTS, "ours", ("not_run_again", {}))
    coverage_table.main(results, "", jobs=2, only="plain.s*", parts="ours")
    assert results.read_text().count("ended with -9") == 3


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
