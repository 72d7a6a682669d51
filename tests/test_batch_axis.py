"""Examples stay apart through whatever moves or pads the batch, or the model says it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs.errors import DataError

MOVES = {
    "pad": lambda x: F.pad(x, (1, 0, 1, 0)),
    "flip": lambda x: x.flip(-1),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "roll": lambda x: x.roll(1, -1),
    "grid_sample": lambda x: F.grid_sample(
        x, torch.linspace(-1, 1, 18, dtype=x.dtype).reshape(1, 3, 3, 2).expand(len(x), -1, -1, -1),
        align_corners=False,
    ),
}  # fmt: skip


class Moved(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.move = move
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(self.move(x)))).mean((2, 3))


@pytest.mark.parametrize("name", MOVES)
def test_taylor_sees_one_example_at_a_time(name):
    torch.manual_seed(0)
    net = Moved(MOVES[name]).double()
    if name == "grid_sample":
        net.a, net.b = nn.Conv2d(2, 4, 1).double(), nn.Conv2d(4, 3, 1).double()
    x, y = torch.randn(6, 2, 6, 6).double(), torch.randint(3, (6,))
    loss = nn.CrossEntropyLoss(reduction="none")
    whole = sc.score(net, sc.trace(net, x), [(x, y)], loss=loss)
    single = sc.trace(net, x[:1])
    each = [sc.score(net, single, [(x[i : i + 1], y[i : i + 1])], loss=loss) for i in range(6)]
    for group in whole:
        np.testing.assert_allclose(
            whole[group], np.mean([s[group] for s in each], axis=0), rtol=1e-9
        )


def test_examples_that_the_model_mixes_are_refused():
    class Siamese(Moved):
        def forward(self, x):
            return self.b(torch.relu(self.a(torch.cat([x, x.flip(3)])))).mean((2, 3))[: len(x)]

    net = Siamese(None)
    x, y = torch.randn(4, 2, 6, 6), torch.randint(3, (4,))
    with pytest.raises(DataError, match="cannot be told apart"):
        sc.score(net, sc.trace(net, x), [(x, y)], loss=nn.CrossEntropyLoss(reduction="none"))


def test_a_group_that_the_loss_does_not_reach_scores_zero():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 5)
            self.d = nn.Linear(5, 2)

        def forward(self, x):
            return self.b(self.a(x).relu()), self.d(self.c(x).relu())

    net, x = Heads(), torch.randn(7, 4)
    scores = sc.score(net, sc.trace(net, x), [x], objective=lambda m, b: m(b)[0].sum(1))
    assert (scores["c"] == 0).all()
    assert (scores["a"] > 0).any()


def test_a_call_of_a_submodule_cannot_be_scored():
    net, x = Moved(MOVES["flip"]), torch.randn(2, 2, 6, 6)
    with pytest.raises(DataError, match="must call model"):
        sc.score(net, sc.trace(net, x), [x], objective=lambda m, b: m.a(b).sum((1, 2, 3)))
