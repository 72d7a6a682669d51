"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli_fixtures import build
from tests.zoo import torchvision_models
from typer.testing import CliRunner, Result

import secateurs as sc
from secateurs.cli.app import app
from secateurs.cli.config import PruneSection
from secateurs.cli.objects import find_loss, importable
from secateurs.process.options import Options

HERE = Path(__file__).parent
SHAPE = ("--input-shape", "1,1,8,8")
QUICK = ("--updates", "3", "--final", "3", "--lr", "0.02", "--no-progress")
WHAT = ("--model", "cli_fixtures:build", *SHAPE, "--train", "cli_fixtures:train")
RUN = ("prune", *WHAT, "--loss", "cross_entropy", *QUICK)
JUDGED = ("--evaluate", "cli_fixtures:accuracy", "--metric", "accuracy")

Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this folder, with the path of imports put back afterwards."""
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != HERE])
    monkeypatch.delenv("SECATEURS_DEBUG", raising=False)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made once."""
    out = tmp_path_factory.mktemp("runs") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)
        patch.setattr(sys, "path", list(sys.path))
        args = [*RUN, *JUDGED, "--budget", "macs=0.5", "--out", str(out)]
        result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return out


def told(result: Result, code: int = 2) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


# ---------------------------------------------------------------------- help
def test_the_help_teaches(cli: Cli) -> None:
    for command in ("inspect", "prune", "report", "verify"):
        text = cli(command, "--help").stdout
        assert f"secateurs {command}" in text
        assert command in cli().stdout
    for name in ("--step", "--exact-only", "--seed", "--budget"):
        assert name in cli("prune", "--help").stdout


def test_every_option_of_the_loop_is_a_flag_and_a_key() -> None:
    assert set(PruneSection.model_fields) == {*Options.model_fields, "criterion"}
    assert PruneSection().options == Options().model_dump()


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"secateurs {sc.__version__}\n"


def test_the_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "secateurs", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"secateurs {sc.__version__}\n"


# ---------------------------------------------------------------------- inspect
@pytest.mark.parametrize("model", ["cli_fixtures:build", "cli_fixtures:ready"])
def test_inspect(cli: Cli, model: str) -> None:
    result = cli("inspect", model, *SHAPE)
    assert result.exit_code == 0, result.output
    for text in ("groups: 3", "conv1", "kernel axis", "60,144", "120,288", "1,215"):
        assert text in result.stdout
    assert "fc2.bias[0]" in cli("inspect", model, *SHAPE, "--frozen").stdout


def test_inspect_as_json(cli: Cli) -> None:
    args = ("inspect", "cli_fixtures:build", "--inputs", "cli_fixtures:inputs", "--json")
    record = json.loads(cli(*args).stdout)
    macs = 2 * 64 * (8 * 9 + 8 * 9 * 12) + 2 * (12 * 16 + 16 * 3)  # a batch of two
    assert record["cost"] == {"params": 1215, "macs": macs, "flops": 2 * macs, "units": 36}
    assert [(g["name"], g["size"]) for g in record["groups"]] == [
        ("conv1", 8),
        ("conv2", 12),
        ("fc1", 16),
    ]
    assert record["groups"][0]["reads"] == ["conv2.weight[1]"]
    assert {"tensor", "dim", "size", "reason"} == set(record["frozen"][0])


def test_inspect_weights_that_fit(cli: Cli, tmp_path: Path) -> None:
    save_file(build().state_dict(), tmp_path / "w.safetensors")
    weights = ("--weights", tmp_path / "w.safetensors")
    assert cli("inspect", "cli_fixtures:build", *SHAPE, *weights).exit_code == 0
    message = told(cli("inspect", "cli_fixtures:other", "--input-shape", "1,4", *weights))
    assert "does not fit cli_fixtures:other" in message
    assert "cannot read" in told(cli("inspect", "cli_fixtures:build", "--weights", "no.file"))


@pytest.fixture
def zoos() -> None:
    """torchvision, also where its C++ operators are missing."""
    torchvision_models()


def test_inspect_a_sparse_file(cli: Cli, tmp_path: Path) -> None:
    model = build()
    for parameter in model.parameters():
        parameter.data.masked_fill_(torch.rand_like(parameter) > 0.1, 0)
    sc.save(model, None, tmp_path, sparse=True)
    args = ("inspect", tmp_path, "--class", "cli_fixtures:build", *SHAPE)
    output = cli(*args).stdout
    size = (tmp_path / "model.safetensors").stat().st_size
    assert f"weights in a sparse file: {size:,} bytes" in output
    assert "gaps" in output
    file = json.loads(cli(*args, "--json").stdout)["file"]
    rows = {row["tensor"]: row for row in file["tensors"]}
    assert rows.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert rows[name]["bytes"] == tensor.nbytes
        if rows[name]["file_bytes"] < tensor.nbytes:
            assert rows[name]["kept"] == int(tensor.count_nonzero())
    assert sum(row["file_bytes"] for row in rows.values()) < size == file["file_bytes"]
    weights = ("--weights", tmp_path / "model.safetensors")
    assert cli("inspect", "cli_fixtures:build", *SHAPE, *weights).exit_code == 0
    message = told(cli("inspect", "cli_fixtures:other", "--input-shape", "1,4", *weights))
    assert "it was not saved from this model" in message
    sc.save(model, None, tmp_path)
    assert "sparse" not in cli(*args).stdout


@pytest.mark.usefixtures("zoos")
def test_inspect_torchvision(cli: Cli) -> None:
    record = json.loads(cli("inspect", "torchvision:resnet18", "--json").stdout)
    assert record["cost"]["params"] == 11_689_512
    assert record["cost"]["macs"] == 1_814_073_344
    assert "did you mean 'resnet18'" in told(cli("inspect", "torchvision:resnet17"))


@pytest.mark.usefixtures("zoos")
def test_inspect_timm_at_its_own_size(cli: Cli) -> None:
    record = json.loads(cli("inspect", "timm:test_vit", "--json").stdout)
    assert record["groups"]
    assert "did you mean 'resnet18'" in told(cli("inspect", "timm:resnet17"))


def test_a_zoo_that_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in told(cli("inspect", "timm:resnet18"))


def test_a_torchvision_that_does_not_match_torch(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    reason = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({reason!r})")
    command = [sys.executable, "-m", "secateurs", "inspect", "torchvision:resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr
    assert "install the two together" in done.stderr


# ---------------------------------------------------------------------- prune and verify
def test_prune_writes_what_verify_accepts(cli: Cli, saved: Path) -> None:
    for name in ("model.safetensors", "plan.json", "history.json", "config.json"):
        assert (saved / name).is_file()
    history = json.loads((saved / "history.json").read_text())
    assert history[-1]["macs"] <= 0.5 * history[0]["macs"]
    for precision in ("--float64", "--float32"):
        result = cli("verify", saved, "cli_fixtures:build", *SHAPE, precision)
        assert result.exit_code == 0, result.output
        assert "the law of the cut holds" in result.stdout
        assert f"{history[-1]['params']:,} parameters, output (1, 3)" in result.stdout


def test_a_finished_folder_is_replaced_only_on_request(
    cli: Cli, saved: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(saved, tmp_path / "a")
    again = ("--budget", "macs=0.6", "--out", out, "--no-report")
    assert "--overwrite" in told(cli(*RUN, *again))
    assert (out / "plan.json").read_text() == (saved / "plan.json").read_text()
    result = cli(*RUN, *again, "--overwrite")
    assert result.exit_code == 0, result.output
    assert (out / "plan.json").read_text() != (saved / "plan.json").read_text()
    assert not (out / "report.html").exists()


def test_prune_writes_a_report_that_names_its_command(cli: Cli, saved: Path) -> None:
    page = (saved / "report.html").read_text()
    run = json.loads((saved / "record.json").read_text())
    command = run["origin"]["command"]
    assert shlex.split(command)[:4] == ["secateurs", "prune", "--model", "cli_fixtures:build"]
    assert command in page
    again = cli("report", saved)
    assert again.exit_code == 0, again.output
    assert (saved / "report.html").read_text() == page


def test_prune_without_a_report(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = (*RUN, "--budget", "macs=0.9")
    assert cli(*run, "--out", tmp_path / "a", "--no-report").exit_code == 0
    assert not (tmp_path / "a" / "report.html").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    quiet = cli(*run, "--out", tmp_path / "b")
    assert quiet.exit_code == 0, quiet.output
    assert "note: no page was written" in quiet.stderr
    assert (tmp_path / "b" / "record.json").exists()
    assert "matplotlib is not installed" in told(cli(*run, "--out", tmp_path / "c", "--report"))
    assert not (tmp_path / "c").exists()


def test_prune_from_a_file_and_flags(cli: Cli, tmp_path: Path) -> None:
    """Relative paths start at the file's folder, and modules beside it are found."""
    (tmp_path / "beside.py").write_text("from tests.cli_fixtures import build, train\n")
    save_file(build().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "run.toml").write_text(
        'out = "runs/b"\n'
        '[model]\npath = "beside:build"\ninput_shape = [1, 1, 8, 8]\nweights = "w.safetensors"\n'
        '[data]\ntrain = "beside:train"\nloss = "cli_fixtures:loss"\n'
        "[budget]\nparams = 0.7\n"
        '[prune]\nupdates = 2\nfinal = 2\nonly = "conv*"\n'
    )
    first = cli("prune", tmp_path / "run.toml", "--no-progress")
    assert first.exit_code == 0, first.output
    assert str(tmp_path / "runs" / "b" / "plan.json") in first.stdout
    plan = sc.Plan.load(tmp_path / "runs" / "b" / "plan.json")
    assert set(plan.groups) <= {"conv1", "conv2"}

    flags = ("--budget", "units=30", "--only", "fc1", "--out", tmp_path / "c", "--seed", 3)
    second = cli("prune", tmp_path / "run.toml", "--no-progress", *flags)
    assert second.exit_code == 0, second.output
    assert set(sc.Plan.load(tmp_path / "c" / "plan.json").groups) == {"fc1"}
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["budget"] == {"macs": None, "params": None, "units": 30}
    assert (config["prune"]["updates"], config["prune"]["seed"]) == (2, 3)


def test_an_interrupted_run_resumes_to_the_same_plan(cli: Cli, saved: Path, tmp_path: Path) -> None:
    same = ("--budget", "macs=0.5", "--out", tmp_path, "--metric", "accuracy")
    stopped = cli(*RUN, *same, "--evaluate", "cli_fixtures:ctrl_c")
    assert stopped.exit_code == 130, stopped.output
    assert "go on with --resume" in stopped.stderr
    assert len(sc.Plan.load(tmp_path / "plan.json")) == 0
    resumed = cli(*RUN, *same, *JUDGED, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "plan.json").read_text() == (saved / "plan.json").read_text()
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, saved))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_ctrl_c_elsewhere_is_quiet(cli: Cli) -> None:
    result = cli("inspect", "cli_fixtures:ctrl_c_at_once")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_verify_finds_a_broken_law(cli: Cli, saved: Path, tmp_path: Path) -> None:
    """One coupled axis loses other indices than the rest."""
    plan = json.loads((saved / "plan.json").read_text())
    removed = plan["tensors"]["conv2.weight"]["removed"]["1"][0]
    kept = [index for index in range(8) if index not in removed]
    plan["tensors"]["conv2.weight"]["removed"]["1"][0] = [*removed[1:], kept[0]]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    result = cli("verify", tmp_path, "cli_fixtures:build", *SHAPE)
    assert result.exit_code == 1
    assert "BROKEN" in result.stdout


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["insect"], "Did you mean 'inspect'"),
        (["inspect"], "MODEL"),
        (["inspect", "nowhere:build"], "no module is called 'nowhere'"),
        (["inspect", "cli_fixtures:biuld"], "did you mean 'build'"),
        (["inspect", "cli_fixtures.py:build"], "write its module, cli_fixtures:build"),
        (["inspect", "resnet18"], "must look like package.module:name"),
        (["inspect", "cli_fixtures:fails"], "cli_fixtures.py, line"),
        (["inspect", "cli_fixtures:train"], "not list"),
        (["inspect", "cli_fixtures:build"], "give --input-shape"),
        (["inspect", "cli_fixtures:build", "--input-shape", "1,a"], "such as 1,3,224,224"),
        (["inspect", "cli_fixtures:build", "--input-shape", "1,2,8,8"], "1 channels"),
        ([*RUN, "--out", "x"], "give --budget"),
        ([*RUN, "--budget", "macs=0.5"], "give --out"),
        (["prune", "--out", "x"], "give --model"),
        ([*RUN, "--out", "x", "--budget", "half"], "must look like macs=0.2"),
        ([*RUN, "--out", "x", "--budget", "mac=0.5"], "did you mean 'macs'"),
        ([*RUN, "--out", "x", "--budget", "macs=0.5", "--mode", "up"], "must be 'max' or 'min'"),
        ([*RUN, "--out", "x", "--budget", "macs=0.5", "--round-to", "0"], "--round-to: must be"),
        ([*RUN, "--out", "x", "--budget", "macs=0.5", "--updates", "x"], "--updates"),
        ([*RUN, "--out", "x", "--budget", "macs=0.5", "--loss", "mse"], "did you mean 'mse_loss'"),
        (["prune", "nowhere.toml"], "nowhere.toml"),
        (["verify", ".", "cli_fixtures:build", *SHAPE], "holds no plan.json"),
    ],
)
def test_an_error_is_one_line(cli: Cli, args: list[str], says: str) -> None:
    assert says in told(cli(*args))
    assert not (HERE / "x").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--budget", "macs=0.0001"], "the smallest reachable is"),
        (["--budget", "macs=1e9"], "above 100%"),
        (["--budget", "macs=0.5", "--criterion", "tailor"], "did you mean 'taylor'"),
        (["--budget", "macs=0.5", "--only", "conv9"], "did you mean 'conv"),
        (["--budget", "macs=0.5", "--floor", "0.5"], "evaluate"),
        (["--budget", "macs=0.5", "--evaluate", "cli_fixtures:ready"], None),
    ],
)
def test_an_error_of_the_loop(cli: Cli, tmp_path: Path, more: list[str], says: str | None) -> None:
    result = cli(*RUN, "--out", tmp_path, *more)
    if says is None:
        assert "unexpected" in told(result, 3)
        assert "run again with --debug" in result.stderr
    else:
        assert says in told(result)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("updates = 2", "updats = 2"), "[prune] has no key 'updats'; did you mean 'updates'"),
        (("updates = 2", "updates = 'many'"), "[prune] updates: must be a valid integer"),
        (
            ("updates = 2", "normalize = 'l3'"),
            "'none', 'l1', 'l2', 'max', 'mean' or 'rank', not 'l3'",
        ),
        (("macs = 0.5", "macs = 'half'"), "[budget] macs: must be a valid number"),
        (("[1, 1, 8, 8]", "[1, 1.5]"), "[model] input_shape"),
        (("[1, 1, 8, 8]", "'1,one'"), "such as 1,3,224,224"),
        (("[budget]", "[bugdet]"), "there is no key 'bugdet'; did you mean 'budget'"),
        (("out =", "train = 'a:b'\nout ="), "it belongs in [data]"),
        (("[budget]\nmacs = 0.5", ""), "nothing says the budget"),
        (("[model]\npath", "model = 1\n[prune]\nlr"), "'model' must be a section: write [model]"),
        (("[model]", "[model"), "is not valid TOML"),
        (("cli_fixtures:train", "cli_fixtures:trian"), "did you mean 'train'"),
    ],
)
def test_an_error_in_the_file_names_the_key(
    cli: Cli, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    text = (
        "out = 'x'\n[model]\npath = 'cli_fixtures:build'\ninput_shape = [1, 1, 8, 8]\n"
        "[data]\ntrain = 'cli_fixtures:train'\nloss = 'cross_entropy'\n"
        "[budget]\nmacs = 0.5\n[prune]\nupdates = 2\n"
    )
    if change[0].startswith("[model]\npath"):
        text = "model = 1\n" + text.replace("[model]\npath = 'cli_fixtures:build'\n", "[other]\n")
    else:
        text = text.replace(*change)
    (tmp_path / "run.toml").write_text(text)
    message = told(cli("prune", tmp_path / "run.toml"))
    assert says in message
    if "trian" not in text:
        assert "run.toml" in message


def test_verify_refuses_what_does_not_belong(cli: Cli, saved: Path, tmp_path: Path) -> None:
    message = told(cli("verify", saved, "cli_fixtures:other", "--input-shape", "1,4"))
    assert "does not fit this model" in message
    (tmp_path / "plan.json").write_text((saved / "plan.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    result = cli("verify", tmp_path, "cli_fixtures:build", *SHAPE)
    assert result.exit_code == 2
    assert "cannot read" in result.stderr
    (tmp_path / "plan.json").write_text('{"format": ')
    assert "not valid JSON" in told(cli("verify", tmp_path, "cli_fixtures:build", *SHAPE))


def test_a_folder_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = told(cli(*RUN, "--budget", "macs=0.5", "--out", tmp_path / "file"))
    assert "give another --out" in message


@pytest.mark.parametrize("how", ["first", "last", "environment"])
def test_a_traceback_only_on_request(cli: Cli, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    args = ["inspect", "cli_fixtures:fails"]
    if how == "environment":
        monkeypatch.setenv("SECATEURS_DEBUG", "1")
    elif how == "first":
        args = ["--debug", *args]
    else:
        args = [*args, "--debug"]
    result = cli(*args)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "always fails" in result.stderr.splitlines()[-1]


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "cli_fixtures:loss"])
@pytest.mark.usefixtures("cli")
def test_a_loss_is_one_value_per_example(name: str) -> None:
    output, target = torch.randn(5, 3), torch.randint(3, (5,))
    wanted: Any = target if name != "mse_loss" else torch.randn(5, 3)
    importable([HERE])
    value = find_loss(name)(output, wanted)
    assert value.shape == (5,)
    whole = (
        torch.nn.functional.mse_loss if name == "mse_loss" else torch.nn.functional.cross_entropy
    )
    torch.testing.assert_close(value.mean(), whole(output, wanted))
