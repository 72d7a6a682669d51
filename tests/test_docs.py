"""Every Python block of README, CONTRIBUTING and the guides runs as it stands, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import secateurs as sc

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    known: dict = {}
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), known)
    assert "the law of the cut holds" in capsys.readouterr().out
    assert known["result"].after["macs"] <= 0.5 * known["result"].before["macs"]


@pytest.mark.parametrize("guide", sorted(p.name for p in (ROOT / "docs/guides").glob("*.md")))
def test_the_guides_run(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    known: dict = {}
    for block in blocks(f"docs/guides/{guide}"):
        exec(compile(block, guide, "exec"), known)


def test_the_criterion_of_the_guide_works():
    known: dict = {}
    exec(compile(blocks("CONTRIBUTING.md")[0], "CONTRIBUTING.md", "exec"), known)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x = torch.randn(16, 4)
    scores = sc.score(net, sc.trace(net, x), [x], objective=lambda m, b: m(b).sum(1),
                      criterion=known["Spread"]())  # fmt: skip
    expected = net[:2](x).abs().mean(0).detach().double()
    assert torch.from_numpy(scores["0"]).numpy() == pytest.approx(expected.numpy(), rel=1e-6)
