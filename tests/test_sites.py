"""Where activations are read, and which weights a group shows on each side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.networks import network
from tests.references import close, scored

import secateurs as sc
from secateurs.criteria import GroupInfo, Obd
from secateurs.errors import UnscoredError
from secateurs.sites import sites

SITES = {
    "lenet": {"conv1": "conv1 → relu", "conv2": "conv2 → relu", "fc1": "fc1 → relu"},
    "residual": {"stem": "stem → relu", "a": "a → relu"},
    "unet": {
        "down1": "down1 → relu", "down2": "down2 → relu", "up": "what out reads",
        "out": "out → relu",
    },
    "hard_view": {"conv1": "conv1 → relu", "conv2": "conv2 → relu"},
    "chunks": {"conv": "conv → convolution"},
    "shuffled": {"conv": "conv → relu"},
    "instance1d": {"conv": "conv → _prelu_kernel (act)"},
    "conv3d": {"conv": "conv → relu"},
    "in_place": {"a": "a → relu (act)"},
    "layernorm_mlp": {"a": "what b reads", "b": "b → gelu"},
    "bare_parameter": {"first": "first → sigmoid"},
}  # fmt: skip


@pytest.mark.parametrize("name", SITES)
def test_activations_are_read_where_the_papers_read_them(name: str) -> None:
    graph = sc.trace(*network(name))
    assert {group: site.name for group, site in sites(graph).items()} == SITES[name]
    x = network(name)[1]
    found = sc.score(network(name)[0], graph, [(x, None)], criterion="activation")
    assert found.sites == SITES[name]


def test_a_map_is_kept_from_what_works_on_it_in_place() -> None:
    net, x = network("in_place")
    with torch.no_grad():
        wanted = F.relu(net.a(x)).mean((0, 2, 3))
    found = sc.score(net, sc.trace(net, x), [x], criterion="activation")
    close(found, {"a": wanted}, 1e-9)


def test_units_that_are_shuffled_on_the_way_are_seen_one_by_one() -> None:
    """A unit of the convolution is four neighbours of the shuffled map."""
    net, x = network("shuffled")
    with torch.no_grad():
        seen = F.relu(net.shuffle(net.conv(x)))
    found = sc.score(net, sc.trace(net, x), [x], criterion="activation-std")
    wanted = seen.transpose(0, 1).flatten(1).std(1, correction=0)
    close(found, {"conv": wanted}, 1e-9)


def test_a_group_names_its_weights_on_each_side() -> None:
    seen: dict[str, GroupInfo] = {}

    class Look(Obd):
        needs = frozenset()

        def init(self, group: GroupInfo) -> Any:
            seen[group.name] = group
            raise UnscoredError("only looked at")

    with pytest.raises(UnscoredError, match="only looked at"):
        scored(Look())
    shapes = {
        name: [[tuple(t.shape) for t in own] for own in (g.writes, g.reads, g.scales)]
        for name, g in seen.items()
    }
    assert shapes["stem"] == [[(4, 18), (4, 45)], [(4, 45), (4, 27), (4, 2)], [(4, 1)]]
    assert shapes["right"] == [[(2, 4)], [(2, 4)], []]
    assert shapes["mix"] == [[(4, 5), (4, 36)], [(4, 36), (4, 24)], []]
