"""Layers in compressed rows: the same outputs, chosen by the clock."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import LawError, TraceError
from secateurs.sparse import csr


def sparse(model: nn.Module, kept: float = 0.1) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            gone = torch.rand(module.weight.shape, generator=draw) > kept
            module.weight.data.masked_fill_(gone, 0)
    return model.double().eval()


LAYERS = [
    (nn.Linear(7, 5), (3, 7)),
    (nn.Linear(7, 5, bias=False), (7,)),
    (nn.Linear(7, 5), (2, 3, 4, 7)),
    (nn.Conv2d(3, 4, 3), (2, 3, 9, 8)),
    (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 3, 9, 8)),
    (nn.Conv2d(3, 4, 1, bias=False), (5, 3, 2, 2)),
    (nn.Conv2d(3, 4, 3, padding="valid"), (3, 9, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("kept", [0.0, 0.2, 1.0])
def test_a_layer_in_rows_gives_what_the_dense_one_gives(
    layer: nn.Module, shape: tuple[int, ...], kept: float
) -> None:
    model = sparse(nn.Sequential(copy.deepcopy(layer)), kept)
    x = torch.randn(shape, dtype=torch.float64)
    fast = sc.to_csr(model, x, gain=0)
    assert type(fast[0]) is not type(layer)
    out = fast(x)
    assert out.is_contiguous()
    torch.testing.assert_close(out, model(x), rtol=1e-12, atol=1e-12)


class Clock:
    """In place of the time: as many units as a layer has weights that are not zero."""

    def __init__(self, dense: float):
        self.dense = dense

    def __call__(self, layers: list[nn.Module], *_: object, **__: object) -> list[object]:
        fast = layers[1].weight.values().numel()  # type: ignore[operator]
        times = (self.dense, float(fast))
        return [type("Latency", (), {"median": time}) for time in times]


def test_only_what_is_faster_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse(nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)), 0.02)
    model[2].weight.data.fill_(1.0)
    monkeypatch.setattr(csr, "latency", Clock(1000))
    fast = sc.to_csr(model, torch.randn(3, 40, dtype=torch.float64))
    assert [type(layer) is nn.Linear for layer in fast] == [False, False, True]
    assert "40, 40, kept=" in repr(fast[0])
    assert all(type(layer) in (nn.Linear, nn.ReLU) for layer in model)


def test_it_is_faster_where_it_says_so() -> None:
    """A layer of 1% of its weights, by the clock of this machine: far from the line."""
    model = sparse(nn.Sequential(nn.Linear(2000, 1000)), 0.01).float()
    fast = sc.to_csr(model, torch.randn(64, 2000))
    assert type(fast[0]) is not nn.Linear
    assert fast[0].faster > 1.2


def test_a_shared_layer_stays_shared_and_others_are_left_alone() -> None:
    linear = nn.Linear(6, 6)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    grouped = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 6, 1, groups=2), nn.Flatten())
    model = sparse(nn.Sequential(linear, linear, grouped)).append(normed.double())
    x = torch.randn(2, 6, dtype=torch.float64)
    fast = sc.to_csr(model, x, gain=0)
    assert fast[0] is fast[1]
    assert type(fast[2][1]) is nn.Conv2d
    assert isinstance(fast[3], nn.Linear)
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_without_a_form_here_is_left_dense(dtype: torch.dtype) -> None:
    model = sparse(nn.Sequential(nn.Linear(6, 6))).to(dtype)
    x = torch.randn(2, 6, dtype=dtype)
    fast = sc.to_csr(model, x, gain=0)
    torch.testing.assert_close(fast(x), model(x))


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(input=self.conv(input=x))


def test_layers_may_be_called_by_name_and_on_nothing() -> None:
    model, x = sparse(ByName(), 0.5), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    fast = sc.to_csr(model, x, gain=0)
    assert not any(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in fast.modules())
    torch.testing.assert_close(fast(x), model(x))
    assert fast(x[:0]).shape == model(x[:0]).shape == (0, 3, 3, 5)


def test_what_reads_the_weights_of_its_layers_keeps_them() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = sparse(nn.Sequential(layer, nn.Linear(8, 4)), 0.5)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    fast = sc.to_csr(model, x, gain=0)
    assert type(fast[0].linear1) is type(fast[0].linear2) is nn.Linear
    assert type(fast[1]) is not nn.Linear
    torch.testing.assert_close(fast(x), model(x))


class ReadsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ self.linear.weight[None].mT[0]


def test_what_cannot_be_is_said() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(LawError, match="reads weights by itself"):
        sc.to_csr(sparse(ReadsWeights()), x, gain=0)
    with pytest.raises(LawError, match=r"put it in an nn\.Sequential"):
        sc.to_csr(sparse(nn.Linear(4, 4)), x, gain=0)
    with pytest.raises(TraceError, match="does not run on these inputs"):
        sc.to_csr(sparse(nn.Sequential(nn.Linear(4, 4))), x[:, :3])
