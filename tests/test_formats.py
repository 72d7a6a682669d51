"""What the command line takes: saved folders, .pt2 files, MNIST, folders of images, a template."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli_fixtures import Small
from tests.zoo import torchvision_models
from typer.testing import CliRunner, Result

import secateurs as sc
from secateurs.cli.app import app
from secateurs.cli.config import SECTIONS, Config, keys, make_config
from secateurs.data import mnist
from secateurs.data.images import ImageFolder
from secateurs.errors import ConfigError, DataError, FileError
from secateurs.process.options import Options

HERE = Path(__file__).parent
ROOT = HERE.parent
SHAPE = ("--input-shape", "1,1,8,8")
QUICK = ("--updates", "2", "--final", "2", "--step", "0.5", "--no-progress")
BUILT = ("--class", "cli_fixtures:build")

Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this folder, with the path of imports put back afterwards."""
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def good(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def macs(text: str) -> int:
    return int(json.loads(text)["cost"]["macs"])


# ---------------------------------------------------------------------- a saved folder
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line on a model of the user's own."""
    out = tmp_path_factory.mktemp("runs") / "a"
    args = ["--model", "cli_fixtures:build", *SHAPE, "--train", "cli_fixtures:train", *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)
        patch.setattr(sys, "path", list(sys.path))
        run = [*args, "--loss", "cross_entropy", "--budget", "macs=0.5", "--out", str(out)]
        good(CliRunner().invoke(app, ["prune", *run]))
    return out


def test_a_saved_folder_is_a_model(cli: Cli, saved: Path) -> None:
    history = json.loads((saved / "history.json").read_text())
    found = good(cli("inspect", saved, *BUILT, "--json"))  # the shape is the folder's own
    assert macs(found) == history[-1]["macs"] < history[0]["macs"]
    assert "the law of the cut holds" in good(cli("verify", saved, "cli_fixtures:build"))


def test_a_folder_does_not_decide_which_code_runs(cli: Cli, saved: Path) -> None:
    assert "give --class cli_fixtures:build" in bad(cli("inspect", saved))
    assert "give MODEL cli_fixtures:build" in bad(cli("verify", saved))


def test_a_folder_without_a_record_asks_for_the_class(cli: Cli, saved: Path, tmp_path) -> None:
    for name in ("model.safetensors", "plan.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    assert "give --class package.module:callable" in bad(cli("inspect", tmp_path, *SHAPE))
    assert "give --input-shape" in bad(cli("inspect", tmp_path, *BUILT))
    good(cli("inspect", tmp_path, *BUILT, *SHAPE))


def test_a_folder_of_a_zoo_needs_nothing_said(cli: Cli, tmp_path: Path) -> None:
    torchvision_models()
    name, shape = "torchvision:squeezenet1_1", "1,3,64,64"
    build = torchvision_models().squeezenet1_1
    model = build(weights=None)
    plan = sc.trace(model, torch.zeros(1, 3, 64, 64)).random_plan(0.3)
    sc.save(sc.apply(model, plan), plan, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"path": name}}))
    small, whole = (good(cli("inspect", m, "--input-shape", shape, "--json"))
                    for m in (tmp_path, name))  # fmt: skip
    assert macs(small) < macs(whole)
    assert "the saved weights load and run" in good(
        cli("verify", tmp_path, *("--input-shape", shape))
    )
    (tmp_path / "config.json").write_text('{"model": 3}')
    assert "is not the configuration of a run" in bad(cli("inspect", tmp_path))


def test_pruning_a_pruned_folder_stands_by_itself(cli: Cli, saved: Path, tmp_path: Path) -> None:
    """The new plan leads from the class, not from the older folder."""
    more = ["--train", "cli_fixtures:train", "--loss", "cross_entropy", *QUICK]
    good(cli("prune", "--model", saved, *BUILT, *more, *SHAPE, "--budget", "macs=0.6",
             "--out", tmp_path / "b"))  # fmt: skip
    first, second = (sc.Plan.load(folder / "plan.json") for folder in (saved, tmp_path / "b"))
    assert all(set(gone) <= set(second.groups[name]) for name, gone in first.groups.items())
    assert len(second) > len(first)
    good(cli("verify", tmp_path / "b", "cli_fixtures:build"))
    assert "give --class cli_fixtures:build" in bad(cli("inspect", tmp_path / "b"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["inspect", "runs/nowhere"], "is no folder, .pt2, .keras or .h5 file"),
        (["inspect", "cli_fixtures.py"], "is no folder, .pt2, .keras or .h5 file"),
        (["inspect", "cli_fixtures:build", *BUILT], "--class is for a saved folder"),
        (["inspect", ".", *BUILT], "cannot read plan.json: it does not exist"),
    ],
)
def test_what_is_no_model(cli: Cli, args: list[str], says: str) -> None:
    assert says in bad(cli(*args))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_pt2_file_is_a_model(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """sc.load is replaced here by a program that was written and read back."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    images = (torch.zeros(2, 1, 8, 8),)
    program = torch.export.export(Small().eval(), images, dynamic_shapes=shapes)
    program._guards_code = []  # as in a file that holds no code
    torch.export.save(program, file := io.BytesIO())
    load = sc.load

    def read(path: str, *model: torch.nn.Module) -> torch.nn.Module:
        if model:
            return load(path, *model)
        return torch.export.load(io.BytesIO(file.getvalue())).module()

    monkeypatch.setattr(sc, "load", read)
    found = json.loads(good(cli("inspect", "small.pt2", *SHAPE, "--json")))
    assert found["cost"]["macs"] == 60_144
    assert [group["name"] for group in found["groups"]] == ["conv1", "conv2", "fc1"]
    assert "give --input-shape" in bad(cli("inspect", "small.pt2"))

    more = ["--train", "cli_fixtures:train", "--loss", "cross_entropy", *QUICK]
    good(cli("prune", "--model", "small.pt2", *SHAPE, *more, "--budget", "macs=0.5",
             "--out", tmp_path))  # fmt: skip
    assert macs(good(cli("inspect", tmp_path, "--json"))) <= 30_072

    def refuse(path: str) -> None:
        raise FileError(f"{path} is refused: it holds a pickle")

    monkeypatch.setattr(sc, "load", refuse)
    assert "it holds a pickle" in bad(cli("inspect", "small.pt2", *SHAPE))


# ---------------------------------------------------------------------- data
def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A hundred images in the form of MNIST, whose brightness is their class."""
    for prefix, count in (("train", 100), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to(25 * labels[:, None, None], (count, 28, 28)).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of images: dark ones and bright ones, of several sizes and kinds."""
    folder = tmp_path / "photos"
    for label, level in (("dark", 40), ("light", 220)):
        (folder / label / "more").mkdir(parents=True)
        for i, (kind, size) in enumerate((("png", (20, 30)), ("jpg", (64, 40)), ("bmp", (9, 9)))):
            colour = (level, level // 2, level // 3)
            Image.new("RGB", size, colour).save(folder / label / "more" / f"{i}.{kind}")
        Image.new("L", (16, 16), level).save(folder / label / "grey.PNG")
        (folder / label / "notes.txt").write_text("not an image")
    return folder


def test_mnist_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mnist.FOLDER_VARIABLE, raising=False)
    images, labels = mnist.load("test")
    assert images.shape == (10_000, 1, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(images.mean())) < 0.01


def test_mnist_is_looked_for_where_one_says(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mnist.load("train", digits)[1].shape == (100,)
    monkeypatch.setenv(mnist.FOLDER_VARIABLE, str(digits))
    assert mnist.load("test")[1].shape == (30,)
    monkeypatch.setenv(mnist.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="name their folder, mnist:DIR, or set SECATEURS_MNIST"):
        mnist.load("test")


def test_an_installed_wheel_says_what_is_missing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv(mnist.FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist, "__file__", str(tmp_path / "site-packages/secateurs/data/mnist.py"))
    with pytest.raises(DataError, match="mnist:DIR"):
        mnist.find_folder()


def test_mnist_trains_and_judges(cli: Cli, digits: Path, tmp_path: Path) -> None:
    spec = f"mnist:{digits}"
    out = good(cli("prune", "--model", "cli_fixtures:build", "--input-shape", "1,1,28,28",
                   "--train", spec, "--evaluate", spec, "--loss", "cli_fixtures:loss3",
                   *QUICK, "--batch-size", "10", "--budget", "units=30",
                   "--out", tmp_path / "run"))  # fmt: skip
    assert "accuracy" in out
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert all(0 <= step["metric"] <= 1 for step in history)


def test_a_folder_of_images(photos: Path) -> None:
    images = ImageFolder(photos, (8, 12))
    assert images.classes == ["dark", "light"]
    assert len(images) == 8
    mean, std = images.mean.flatten().tolist(), images.std.flatten().tolist()
    for image, label in images:
        level = (40, 220)[label]
        colours = [[level, level // 2, level // 3], [level] * 3]
        expected = [[(c / 255 - m) / s for c, m, s in zip(colour, mean, std, strict=True)]
                    for colour in colours]  # fmt: skip
        assert image.shape == (3, 8, 12)
        assert image.dtype is torch.float32
        found = image.mean((1, 2)).tolist()
        assert any(np.allclose(found, wanted, atol=0.05) for wanted in expected)
    grey = ImageFolder(photos, (8, 8), channels=1, mean=(0.0,), std=(1.0,))
    assert grey[0][0].shape == (1, 8, 8)


def test_a_crop_keeps_the_middle_and_a_random_one_moves(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (64, 64))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "x" / "ramp.png")
    plain = {"size": (16, 16), "channels": 1, "mean": (0.0,), "std": (1.0,)}
    image = ImageFolder(tmp_path, crop=0.5, **plain)[0][0] * 255
    assert image.min() >= 4 * 15
    assert image.max() <= 4 * 49
    assert image.mean() == pytest.approx(4 * 31.5, abs=3)
    torch.manual_seed(0)
    random = ImageFolder(tmp_path, augment=True, **plain)
    drawn = [random[0][0] for _ in range(8)]
    assert len({float(d.mean()) for d in drawn}) > 1
    assert len({bool(d[0, 0, 0] < d[0, 0, -1]) for d in drawn}) == 2  # some are mirrored
    torch.manual_seed(0)
    assert torch.equal(random[0][0], drawn[0])


def test_images_train_and_judge(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'out = "run"\n[model]\npath = "cli_fixtures:build"\ninput_shape = [1, 1, 8, 8]\n'
        f'[data]\ntrain = "images:{photos}"\nevaluate = "images:{photos}"\nloss = "cross_entropy"\n'
        "mean = [0.5]\nstd = [0.5]\nbatch_size = 4\naugment = true\n"
        "[budget]\nunits = 30\n[prune]\nupdates = 2\nfinal = 2\nstep = 0.5\n"
    )
    assert "accuracy" in good(cli("prune", tmp_path / "run.toml", "--no-progress"))
    message = bad(cli("prune", tmp_path / "run.toml", "--mean", "0.5,0.5", "--no-progress"))
    assert "one number for each of 1 channels" in message


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("images:nowhere", "there is no folder nowhere"),
        ("images:weights", "'empty' holds no image"),
        (".", "write images:."),
        ("mnist:nowhere", "MNIST is not in nowhere"),
        ("mnits", "must look like package.module:name"),
    ],
)
def test_data_that_is_not_there(cli: Cli, monkeypatch, tmp_path: Path, spec, says) -> None:
    (tmp_path / "weights" / "empty").mkdir(parents=True)
    args = ("--model", "cli_fixtures:build", *SHAPE, "--loss", "cross_entropy", *QUICK)
    cli("inspect", "cli_fixtures:build", *SHAPE)  # imports the fixtures
    monkeypatch.chdir(tmp_path)
    result = cli("prune", *args, "--train", spec, "--budget", "macs=0.5", "--out", "out")
    assert says in bad(result)
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_named(photos: Path) -> None:
    (photos / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(DataError, match=r"broken\.png"):
        ImageFolder(photos, (8, 8))[0]


def test_pillow_is_an_extra(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"secateurs\[images\]"):
        ImageFolder(photos, (8, 8))


# ---------------------------------------------------------------------- secateurs init
def uncommented(text: str) -> str:
    return re.sub(r"^#(\w+ = )", r"\1", text, flags=re.M)


def test_init_writes_every_key_with_its_default(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    assert str(path) in good(cli("init", path))
    text = path.read_text()
    for section, model in {"": Config, **SECTIONS}.items():
        part = text.partition(f"[{section}]")[2] if section else text.partition("\n[")[0]
        part = part.partition("\n[")[0]
        for key, field in keys(model).items():
            if key in SECTIONS:
                continue
            assert len(re.findall(rf"^#?{key} = ", part, flags=re.M)) == 1, (section, key)
            words = " ".join((field.description or "").split())
            assert words, f"[{section}] {key} has no description"
            assert words in " ".join(part.replace("\n# ", " ").split())
    assert "is there already" in bad(cli("init", path))
    assert path.read_text() == text


def test_what_init_writes_is_valid_as_it_stands_and_uncommented(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    good(cli("init", path))
    config = make_config(path, {})
    assert config.prune.options == Options().model_dump()
    path.write_text(uncommented(path.read_text()))
    full = make_config(path, {})
    assert full.prune.floor is not None
    assert full.model.original == "my_model:build"
    for name, field in Options.model_fields.items():  # a default is what the line shows
        if field.default not in (None, ()):
            assert getattr(full.prune, name) == field.default


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lr = true", "[prune] lr: must be a valid number, not True"),
        ("lr = inf", "[prune] lr: must be a finite number, not inf"),
        ("updates = 1.0", "[prune] updates: must be a valid integer, not 1.0"),
        ("updates = '3'", "[prune] updates: must be a valid integer, not '3'"),
        ("seed = -1", "[prune] seed: must be greater than or equal to 0, not -1"),
        ("exact_only = 1", "[prune] exact_only: must be a valid boolean, not 1"),
        ("only = [3]", "[prune] only.0: must be a valid string, not 3"),
        ("precision = 'fp8'", "must be 'no', 'fp16' or 'bf16', not 'fp8'"),
        ("updates = " + "9" * 5000, "is not valid TOML"),
        ("updates = " + "[" * 5000, "is not valid TOML"),
        ("precison = 'no'", "[prune] has no key 'precison'; did you mean 'precision'"),
        ("updates = 1\nupdates = 2", "is not valid TOML"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(cli: Cli, tmp_path, line, says) -> None:
    path = tmp_path / "run.toml"
    good(cli("init", path))
    path.write_text(path.read_text().replace("[prune]\n", f"[prune]\n{line}\n", 1))
    message = bad(cli("prune", path))
    assert says in message
    assert len(message) < 500
