"""The reproduction of dynamic network surgery: its network, its stages and its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_references_are_of_the_papers_sizes():
    from small_nets import lenet_300_100

    import lenet

    sizes = [sum(p.numel() for p in net.parameters()) for net in (lenet_300_100(), lenet.lenet5())]
    assert sizes == [266_610, 431_080]


def test_the_rate_holds_and_then_falls_to_nothing():
    from splicing import falling

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = falling(optimizer, 200, hold=0.5), []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert set(rates[:100]) == {1.0}
    assert rates[150] == pytest.approx(0.5)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-3


def test_gradients_are_clipped_before_the_step():
    from splicing import ClippedSGD

    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 40.0])
    ClippedSGD([weight], clip=1.0, lr=1.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]) * 1.9)  # Nesterov


def record(**values):
    return {
        "net": "lenet-300-100",
        "compression": 80.0,
        "splice": True,
        "seed": 0,
        "validation": False,
        "base": 1.5,
        "error": 1.6,
        "total": 266_610,
        "kept": 3000,
        "layers": {"1": 0.01, "3": 0.02, "5": 0.2},
        "updates": 100,
        "seconds": 60.0,
        **values,
    }


def test_the_page_gives_mean_and_worst_and_pairs_by_seed():
    from splicing_page import document

    page = document(
        [
            record(),
            record(seed=1, base=1.7, error=1.9),
            record(splice=False, error=2.0, kept=3333),
            record(splice=False, seed=1, base=1.7, error=2.4),
            record(compression=1.0, error=1.4, kept=266_610),
            record(compression=1.0, seed=1, base=1.7, error=1.7, kept=266_610),
        ],
        "make splicing",
        {"lenet-300-100": "The recipe."},
        planned=7,
    )
    assert "6 of 7 runs are done" in page
    assert "| spliced, 80× | 88.9× | 1.60 | 1.90 | 1.75 ± 0.21 | 1.90 | +0.15 | +0.20 |" in page
    assert "| base | 1.0× | 1.50 | 1.70 | 1.60 ± 0.14 | 1.70 |  |  |" in page
    assert "| 80× | 1.75 ± 0.21 | 2.20 ± 0.28 | +0.45 ± 0.05 |" in page
    assert "| spliced, 80× | 88.9× | 1.00 | 2.00 | 20.00 |" in page
    assert "dense, trained on for as long" in page
