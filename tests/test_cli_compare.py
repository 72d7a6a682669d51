"""`secateurs compare`: flags and keys, what it prints and writes, and how it fails."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from secateurs.cli.app import app
from secateurs.cli.config import CompareSection, make_config
from secateurs.compare.comparison import Comparison
from secateurs.compare.options import CompareOptions, compare_options

HERE = Path(__file__).parent
RUN = (
    "compare", "--model", "cli_fixtures:build", "--input-shape", "1,1,8,8",
    "--train", "cli_fixtures:train", "--evaluate", "cli_fixtures:accuracy", "--metric", "accuracy",
    "--loss", "cross_entropy", "--criteria", "weight", "--criteria", "random", "--budgets", "0.6",
    "--seeds", "3", "--updates", "2", "--sensitivity", "0.5", "--no-progress",
)  # fmt: skip


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != HERE])
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def test_every_option_is_a_flag_and_a_key(cli: Callable[..., Result]) -> None:
    own = {"criteria", "preset", "engine", "jobs"}
    assert set(CompareSection.model_fields) == {*CompareOptions.model_fields, *own}
    text = cli("compare", "--help").stdout
    for name in ("--criteria", "--budgets", "--preset", "--engine", "--jobs", "--resume", "--out"):
        assert name in text


def test_it_prints_writes_and_resumes(cli: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "a"
    result = cli(*RUN, "--out", out)
    assert result.exit_code == 0, result.output
    for said in ("weight", "random", str(out / "comparison.jsonl"), str(out / "comparison.html")):
        assert said in result.stdout
    assert "<html" in (out / "comparison.html").read_text()
    found = Comparison.load(out / "comparison.jsonl")
    assert found.setting.criteria == ["weight", "random"]
    assert (found.setting.seeds, found.setting.budgets) == ([3], [0.6])

    result = cli(*RUN, "--out", out)
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    before = (out / "comparison.jsonl").read_bytes()
    assert cli(*RUN, "--out", out, "--resume").exit_code == 0
    assert (out / "comparison.jsonl").read_bytes() == before
    assert cli(*RUN, "--out", out, "--overwrite", "--no-report").exit_code == 0
    assert (out / "comparison.jsonl").read_bytes() != before  # other seconds


def test_ctrl_c_says_how_to_go_on(cli: Callable[..., Result], tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    try:
        result = cli(*RUN, "--evaluate", "cli_fixtures:ctrl_c", "--out", tmp_path / "a")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "go on with --resume" in result.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--criteria", "tailor"], "did you mean 'taylor'"),
        (["--preset", "quik"], "--preset: must be 'quick' or 'full', not 'quik'"),
        (["--engine", "rai"], "--engine: must be 'none', 'processes' or 'ray', not 'rai'"),
        (["--budgets", "1.5"], "--budgets"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_errors_name_the_flag(
    cli: Callable[..., Result], tmp_path: Path, more: list[str], says: str
) -> None:
    result = cli(*RUN, *more, "--out", tmp_path / "a")
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not (tmp_path / "a").exists()


def test_what_is_set_goes_upon_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "out = 'x'\n[model]\npath = 'a:b'\n[data]\ntrain = 'a:b'\nloss = 'mse_loss'\n"
        "[compare]\npreset = 'full'\nseeds = [7]\n[prune]\nstep = 0.1\n"
    )
    flags: dict[str, Any] = {"compare": {"lr": "0.5", "seeds": None}}
    flags["compare"]["lr"] = 0.5
    given = make_config(path, flags, budget=False).compare
    assert json.loads(json.dumps(given.options)) == {"seeds": [7], "lr": 0.5}
    chosen = compare_options(given.preset, given.options)
    assert (chosen.seeds, chosen.lr) == ((7,), 0.5)
    assert chosen.updates == compare_options("full", {}).updates
