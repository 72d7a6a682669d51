"""What reads files: each reader with a whole file of its kind, and how that kind is broken."""

from __future__ import annotations

import gzip
import importlib.util
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.fuzz.changes import CODES, JSON, TENSORS, Change, bomb, idx, inside, toml_value, zipped
from torch import nn

import secateurs as sc
from secateurs.cli.config import make_config
from secateurs.cli.init import template
from secateurs.cli.models import build
from secateurs.cli.saved import recorded
from secateurs.data.images import ImageFolder
from secateurs.data.mnist import read_idx
from secateurs.files.store import save_tensors


# ---------------------------------------------------------------------- what is whole
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 8),
        nn.ReLU(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.tensor([0, 1, 2, 0]))]


def run(out: Path, **more: Any) -> sc.PruneResult:
    """A short run with a checkpoint; what it is given is a new model."""
    loss = nn.CrossEntropyLoss(reduction="none")
    return sc.prune(
        net(), X, train=BATCHES, loss=loss, budget={"units": 8}, step=4, updates=1, final=1,
        lr=0.01, out=out, progress=False, **more,
    )  # fmt: skip


# ---------------------------------------------------------------------- readers
@dataclass(frozen=True)
class Reader:
    """One kind of file: its name in a folder of whole files, and what reads it.

    Attributes:
        name: of the file in the folder, which may be a folder deeper.
        read: reads the folder; gets a model.
        made: changes that know the form of the file, besides those of its bytes.
        fills: whether it is meant to change the model, which it may do only if it succeeds.
    """

    name: str
    read: Callable[[Path, nn.Module], object]
    made: tuple[Change, ...] = ()
    fills: bool = False


def read_plan(folder: Path, model: nn.Module) -> None:
    plan = sc.Plan.load(folder / "plan.json")
    sc.apply(model, plan)


def read_folder(folder: Path, model: nn.Module) -> None:
    sc.load(folder, model)


def read_sparse(folder: Path, model: nn.Module) -> None:
    sc.load(folder / "sparse", model)


def read_record(folder: Path, model: nn.Module) -> None:
    from secateurs.report.record import Record

    Record.load(folder)


def read_checkpoint(folder: Path, model: nn.Module) -> None:
    run(folder, resume=True)


def read_toml(folder: Path, model: nn.Module) -> None:
    make_config(folder / "run.toml", {})


def read_weights(folder: Path, model: nn.Module) -> None:
    """As `--weights` does."""
    build("tests.fuzz.readers:net", folder / "whole.safetensors")


def read_images(folder: Path, model: nn.Module) -> None:
    for _ in map(ImageFolder(folder / "images", (8, 8)).__getitem__, range(2)):
        pass


def read_pt2(folder: Path, model: nn.Module) -> None:
    sc.load(folder / "net.pt2")


# ---------------------------------------------------------------------- the corpus
READERS: dict[str, Reader] = {
    "plan": Reader("plan.json", read_plan, JSON),
    "folder: plan": Reader("plan.json", read_folder, JSON, fills=True),
    "folder: weights": Reader("model.safetensors", read_folder, TENSORS, fills=True),
    "folder: sparse": Reader("sparse/model.safetensors", read_sparse, CODES, fills=True),
    "folder: config": Reader("config.json", lambda f, m: recorded(str(f)), JSON),
    "checkpoint": Reader("checkpoint.safetensors", read_checkpoint, TENSORS),
    "safetensors": Reader("whole.safetensors", read_weights, TENSORS),
    "toml": Reader("run.toml", read_toml, (toml_value,) * 6),
    "mnist": Reader("t10k.gz", lambda f, m: read_idx(f / "t10k.gz", 3), (idx,)),
    "image": Reader("images/a/0.png", read_images, (bomb,)),
    "record": Reader("record.json", read_record, JSON),
    "record: history": Reader("history.json", read_record, JSON),
    "record: scores": Reader("scores.safetensors", read_record, TENSORS),
    "pt2": Reader("net.pt2", read_pt2, (zipped, inside, inside, inside)),
}


def whole(folder: Path, kinds: list[str]) -> None:
    """One whole file of every kind."""
    result = run(folder)
    result.save(folder)
    zeros = net()
    for i, parameter in enumerate(zeros.parameters()):
        kept = np.random.default_rng(i).random(parameter.shape) < 0.2
        parameter.data.masked_fill_(torch.from_numpy(~kept), 0)
    sc.save(zeros, None, folder / "sparse", sparse=True, values="codebook")
    model = {"path": "torchvision:resnet18", "input_shape": [[1, 3, 64, 64]]}
    (folder / "config.json").write_text(json.dumps({"model": model}))
    (folder / "run.toml").write_text(template().replace("\n#", "\n").replace("\n ", "\n# "))
    save_tensors(folder / "whole.safetensors", net().state_dict(), {"format": "pt"})
    pixels = np.arange(16 * 784, dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 16, 28, 28)
    (folder / "t10k.gz").write_bytes(gzip.compress(header + pixels.tobytes(), mtime=0))
    (folder / "images" / "a").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(pixels[: 48 * 48].reshape(48, 48)).save(folder / f"images/a/{i}.png")
    if "pt2" in kinds:
        sc.export_pt2(net(), X, folder / "net.pt2")


def kinds_here() -> list[str]:
    """The kinds that this version reads."""
    absent = set() if importlib.util.find_spec("secateurs.files.pt2") else {"pt2"}
    if not importlib.util.find_spec("secateurs.report"):
        absent |= {kind for kind in READERS if kind.startswith("record")}
    return [kind for kind in READERS if kind not in absent]
