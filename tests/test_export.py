"""ONNX and `.pt2`: they give what the model gives, at any batch, or are not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tests.networks import LeNet, Residual
from tests.support import call, randomise, relative_error, snapshot
from tests.test_cli import SHAPE, Cli, cli, told  # noqa: F401
from torch import Tensor, nn

import secateurs as sc
from secateurs.files import to_onnx

BATCHES = (1, 3, 64)


class Depthwise(nn.Module):
    """An inverted bottleneck with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.gate = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.deep(F.relu6(self.wide(x)))))
        return self.head((x * F.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))).mean((2, 3)))


class Attention(nn.Module):
    """Index inputs, a mask with infinities, a shared table without a batch, a nest of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, keep: Tensor, *, places: Tensor) -> dict[str, Any]:
        x = self.embed(ids) + places
        scores = (x @ x.mT).masked_fill(~keep[:, None], float("-inf"))
        x = scores.softmax(-1) @ x
        return {"classes": self.head(x.mean(1)), "rest": (x.flatten(1), ids)}


def attention_inputs(examples: int = 2) -> dict[str, Tensor]:
    keep = torch.arange(5) < 4
    return {  # not in the order of the signature
        "places": torch.randn(5, 8),
        "keep": keep.expand(examples, 5),
        "ids": torch.randint(11, (examples, 5)),
    }


NETWORKS = {
    "LeNet": (LeNet, (1, 28, 28)),
    "Residual": (Residual, (3, 16, 16)),
    "Depthwise": (Depthwise, (3, 8, 8)),
}


def pruned(name: str, example: int) -> tuple[nn.Module, Tensor]:
    """A network with a third of its units gone, and an example batch of this size."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = randomise(make()), torch.randn(example, *shape)
    return sc.apply(model, sc.trace(model, x).random_plan(0.3, seed=1)), x


def run_onnx(path: Path, *arrays: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, arrays, strict=True)}
    return [torch.from_numpy(np.asarray(out)) for out in session.run(None, feed)]


# ---------------------------------------------------------------------- equal outputs
@pytest.mark.parametrize("example", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_networks_as_onnx_and_pt2(name: str, example: int, tmp_path: Path) -> None:
    small, x = pruned(name, example)
    onnx = sc.export_onnx(small, x, tmp_path / "a.onnx")
    pt2 = sc.export_pt2(small, x, tmp_path / "a.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.pt2"]
    assert onnx.batches == pt2.batches == tuple(sorted({1, 3, example}))
    assert (onnx.path, onnx.size) == (tmp_path / "a.onnx", (tmp_path / "a.onnx").stat().st_size)
    loaded = sc.load(pt2.path)
    for batch in BATCHES:
        y = torch.randn(batch, *x.shape[1:])
        wanted = call(small, y)
        assert relative_error(wanted, run_onnx(onnx.path, y)) < 1e-4
        with torch.no_grad():
            assert relative_error(wanted, [loaded(y)]) < 1e-4


def test_nests_keywords_masks_and_an_input_without_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention()
    dims = {"ids": 0, "keep": 0, "places": None}
    sc.export_onnx(model, attention_inputs(), tmp_path / "a.onnx", batch_dims=dims)
    path = sc.export_pt2(model, attention_inputs(), tmp_path / "a.pt2", batch_dims=dims).path
    inputs = attention_inputs(7)
    wanted, loaded = call(model, inputs), sc.load(path)
    assert relative_error(wanted, run_onnx(tmp_path / "a.onnx", *inputs.values())) < 1e-4
    with torch.no_grad():
        given = loaded(**inputs)
    assert list(given) == ["classes", "rest"]
    assert relative_error(wanted, [given["classes"], *given["rest"]]) < 1e-4


def test_a_batch_in_another_dim(tmp_path: Path) -> None:
    model = nn.LSTM(4, 5)  # (time, batch, features)
    state = (torch.randn(1, 2, 5), torch.randn(1, 2, 5))
    example = (torch.randn(3, 2, 4), state)
    sc.export_pt2(model, example, tmp_path / "a.pt2", batch_dims=1)
    loaded = sc.load(tmp_path / "a.pt2")
    with torch.no_grad():
        state = (torch.randn(1, 6, 5), torch.randn(1, 6, 5))
        assert loaded(torch.randn(3, 6, 4), state)[0].shape == (3, 6, 5)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = Residual().train()
    model.norm.eval()
    before = snapshot(model)
    sc.export_onnx(model, torch.randn(2, 3, 16, 16), tmp_path / "a.onnx")
    sc.export_pt2(model, torch.randn(2, 3, 16, 16), tmp_path / "a.pt2")
    assert snapshot(model) == before


def test_the_files_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    secret = 0.73194625
    x = torch.full((2, 1, 28, 28), secret)
    for write, name in ((sc.export_onnx, "a.onnx"), (sc.export_pt2, "a.pt2")):
        data = write(LeNet(), x, tmp_path / name).path.read_bytes()
        assert b".py" not in data
        assert str(Path(__file__).parent).encode() not in data
        assert np.float32(secret).tobytes() * 4 not in data


# ---------------------------------------------------------------------- what cannot be written
class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Forgetful(nn.Module):
    """Another answer at every call."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class OneIsSpecial(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else 2 * x


class NoOperator(nn.Module):
    """In ATen, and not in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x)


FAILURES = {
    Branches: r"cannot follow Branches: .*data-dependent.* \(test_export.py, line \d+\)",
    FixedBatch: "cannot follow FixedBatch: .*specialized it to be a constant",
    Forgetful: "differs from the model by .*draw at random",
    OneIsSpecial: "at batch 1 the exported network differs",
}


@pytest.mark.parametrize("make", FAILURES)
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_failures_are_named_and_leave_the_old_file(
    make: type[nn.Module], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text("old")
    write = {"onnx": sc.export_onnx, "pt2": sc.export_pt2}[suffix]
    with pytest.raises(sc.errors.ExportError, match=FAILURES[make]):
        write(make(), torch.randn(2, 4), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "old")]


def test_an_operation_that_onnx_lacks(tmp_path: Path) -> None:
    with pytest.raises(sc.errors.ExportError, match=r"torch.onnx cannot write NoOperator.*airy"):
        sc.export_onnx(NoOperator(), torch.randn(2, 4), tmp_path / "a.onnx")
    sc.export_pt2(NoOperator(), torch.randn(2, 4), tmp_path / "a.pt2")


class Cond(nn.Module):
    """Branches that are programs of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def test_a_program_that_load_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(sc.errors.ExportError, match=r"as plain data: .*(as_graph|no operation of)"):
        sc.export_pt2(Cond(), torch.randn(2, 4), tmp_path / "a.pt2")


def test_the_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = to_onnx.importlib.util.find_spec
    monkeypatch.setattr(
        to_onnx.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else found(n)
    )
    with pytest.raises(sc.errors.ExportError, match=r"needs onnxruntime; .*secateurs\[onnx\]"):
        sc.export_onnx(LeNet(), torch.randn(1, 1, 28, 28), tmp_path / "a.onnx")


def test_more_than_one_file_holds(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(2**16, 2**13)
    with pytest.raises(sc.errors.ExportError, match=r"2\.0 GiB.*sc\.export_pt2"):
        sc.export_onnx(model, torch.randn(1, 2), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("inputs", "dims", "message"),
    [
        ((torch.randn(2, 4), torch.randn(3, 4)), 0, "disagree about the size of the batch"),
        ((torch.randn(2, 4), torch.randn(2, 4)), (0,), "says nothing of input 1"),
        ({"x": torch.randn(2, 4)}, {"y": 0}, "says nothing of input x"),
        (torch.randn(2, 4), None, "no input has a batch|says nothing"),
        (torch.randn(0, 4), 0, "hold no example"),
    ],
)
def test_inputs_that_have_no_batch(inputs: Any, dims: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(sc.errors.ExportError, match=message):
        sc.export_pt2(nn.Identity(), inputs, tmp_path / "a.pt2", batch_dims=dims)


def test_a_name_that_load_would_not_know(tmp_path: Path) -> None:
    with pytest.raises(sc.errors.ExportError, match=r"must end in \.pt2"):
        sc.export_pt2(nn.Identity(), torch.randn(1, 2), tmp_path / "a.bin")


# ---------------------------------------------------------------------- where it is used
def test_a_result_saves_onnx_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(4, 3, 16, 16)
    result = sc.prune(
        model, x, train=[(x, torch.zeros(4, dtype=torch.long))], budget={"macs": 0.7},
        loss=nn.CrossEntropyLoss(reduction="none"), updates=1, final=1, progress=False,
    )  # fmt: skip
    folder = result.save(tmp_path / "out", onnx=True)
    assert relative_error(call(result.model, x), run_onnx(folder / "model.onnx", x)) < 1e-4
    result.example_inputs = None
    with pytest.raises(sc.errors.ExportError, match="knows no example inputs"):
        result.save(tmp_path / "out", onnx=True)


def test_the_command(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    onnx, pt2 = tmp_path / "a.onnx", tmp_path / "a.pt2"
    result = cli("export", "cli_fixtures:ready", *SHAPE, "--onnx", onnx, "--pt2", pt2)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("outputs equal at batch 1 and 3") == 2
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert relative_error([sc.load(pt2)(x)], run_onnx(onnx, x)) < 1e-4
    assert "--onnx FILE" in told(cli("export", "cli_fixtures:ready", *SHAPE))
    assert "must end in .pt2" in told(
        cli("export", "cli_fixtures:ready", *SHAPE, "--pt2", tmp_path / "a.bin")
    )
