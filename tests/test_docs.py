"""The docs: every code block runs, every public name is told of, and the pictures are real."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from docs import names, pictures
from typer.testing import CliRunner

import secateurs as sc
from secateurs.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"] + [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.name != "commands.md"  # written by `make docs`, from the help of the commands
]

Run = Callable[[str], dict[str, Any]]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of every fenced block."""
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.S | re.M):
        yield match[1], match[2]


def run_blocks(text: str, page: str) -> dict[str, Any]:
    """Run the blocks of a page in the current folder, in order, in one namespace.

    A Python block that starts with '# NAME.py' is saved under that name, and not run. A bash block
    holds `secateurs` and `python` commands; what cannot be run here is written as sh.
    """
    known: dict[str, Any] = {}
    for language, code in blocks(text):
        file = re.match(r"# (\w+\.py)\n", code)
        if language == "python" and file:
            Path(file[1]).write_text(code)
        elif language == "python":
            exec(compile(code, page, "exec"), known)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run_command(shlex.split(line, comments=True))
    return known


def run_command(words: list[str]) -> None:
    if not words:
        return
    if words[0] == "secateurs":
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
    elif words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    else:
        pytest.fail(f"{words[0]!r} is not run by this test: put it into a block of sh")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a page in an empty folder; the path and the modules of imports are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    torch.manual_seed(0)
    yield lambda page: run_blocks((ROOT / page).read_text(), page)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# ---------------------------------------------------------------------- code
def check_readme(known: dict[str, Any], told: str) -> None:
    assert "the law of the cut holds" in told
    assert known["result"].after["macs"] <= 0.5 * known["result"].before["macs"]


def check_contributing(known: dict[str, Any], told: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x = torch.randn(16, 4)
    scores = sc.score(net, sc.trace(net, x), [x], criterion=known["Spread"]())
    expected = net[:2](x).abs().mean(0).detach().double()
    assert torch.from_numpy(scores["0"]).numpy() == pytest.approx(expected.numpy(), rel=1e-6)


def check_quick_start(known: dict[str, Any], told: str) -> None:
    assert "the law of the cut holds" in told
    assert float(re.findall(r"accuracy ([\d.]+)$", told, flags=re.M)[-1]) > 0.97
    whole = sum(p.numel() for p in known["digits"].build().parameters())
    assert sum(p.numel() for p in known["small"].parameters()) < whole / 5
    assert {path.name for path in Path("smaller").iterdir()} > {"model.safetensors", "plan.json"}


# What a page must show beyond running to its end.
CHECKS = {
    "README.md": check_readme,
    "CONTRIBUTING.md": check_contributing,
    "docs/quickstart.md": check_quick_start,
}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_every_page_runs(
    run: Run, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = run(page)
    if page in CHECKS:
        CHECKS[page](known, capsys.readouterr().out)


@pytest.mark.parametrize(
    "text",
    ["```python\n1 / 0\n```\n", "```bash\nsecateurs prun\n```\n", "```bash\ncurl x\n```\n"],
)
def test_a_block_that_fails_is_seen(tmp_path: Path, text: str) -> None:
    """The negative control."""
    with pytest.raises((ZeroDivisionError, AssertionError, pytest.fail.Exception)):
        run_blocks(f"words\n\n{text}", "page")


# ---------------------------------------------------------------------- names
def test_every_public_name_is_explained() -> None:
    assert names.silent() == set()


def test_every_public_name_has_a_place_on_the_pages() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    shown = set(re.findall(r"^\.\. auto(?:function|class):: (?:secateurs\.)?(\w+)", pages, re.M))
    assert set(sc.__all__) <= shown


def test_a_silent_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: take docstrings away, and they are missed."""
    monkeypatch.setattr(sc.Plan.save, "__doc__", None)
    monkeypatch.setattr(sc.Proof, "__doc__", "One line.")
    monkeypatch.setattr(sc.trace, "__doc__", None)
    assert {"Plan.save", "Proof.tolerance", "trace"} <= names.silent()


def test_every_command_and_flag_has_help() -> None:
    from typer.main import get_command

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


# ---------------------------------------------------------------------- pictures
def test_the_pictures_are_those_of_the_trace() -> None:
    for name, picture in pictures.pictures().items():
        assert (pictures.IMAGES / name).read_text() == picture, f"{name}: run make pictures"
