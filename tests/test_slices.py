"""Cutting a tensor, against selection index by index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateurs import slices as module
from secateurs.slices import Slices


def naive(tensor: torch.Tensor, slices: Slices) -> torch.Tensor:
    """Every kept row, cut by the lists of its block."""
    out = []
    for row in range(tensor.shape[0]):
        if row in slices.removed.get(0, [[]])[0]:
            continue
        part = tensor[row]
        for dim in sorted(set(slices.removed) - {0}):
            blocks = slices.removed[dim]
            gone = set(blocks[row * len(blocks) // tensor.shape[0]])
            stay = [i for i in range(tensor.shape[dim]) if i not in gone]
            part = part.movedim(dim - 1, 0)[stay].movedim(0, dim - 1)
        out.append(part)
    return torch.stack(out)


@st.composite
def cuts(draw: st.DrawFn) -> Slices:
    blocks = draw(st.sampled_from([1, 1, 2, 3]))
    shape = [blocks * draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 6), max_size=3))]
    removed = {}
    for dim, size in enumerate(shape):
        count = draw(st.integers(0, size - 1))
        lists = blocks if dim == 1 else 1
        gone = [sorted(draw(st.permutations(range(size)))[:count]) for _ in range(lists)]
        if count:
            removed[dim] = gone
    return Slices(tuple(shape), removed or {0: [[]]})


@given(cuts(), st.sampled_from([1, 40, 1 << 21]), st.sampled_from([1, 1 << 22]))
def test_any_cut_selects_what_stays(slices, cached, huge):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CACHED", cached)
        patch.setattr(module, "_HUGE", huge)
        tensor = torch.randn(slices.shape)
        cut = slices.cut(tensor)
        assert torch.equal(cut, naive(tensor, slices))
        assert cut.shape == slices.new_shape
        assert cut.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex128, torch.bool])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_every_dtype_and_layout(monkeypatch, dtype, layout):
    monkeypatch.setattr(module, "_CACHED", 64)
    monkeypatch.setattr(module, "_HUGE", 64)
    tensor = torch.randint(0, 2, (12, 10)).to(dtype)
    tensor = tensor if layout == "rows" else tensor.t().contiguous().t()
    slices = Slices((12, 10), {0: [[3, 7]], 1: [[0, 1, 4]]})
    cut = slices.cut(tensor)
    assert cut.dtype == dtype
    assert torch.equal(cut, naive(tensor, slices))
    cut.zero_()
    assert tensor.any(), "the cut has memory of its own"
