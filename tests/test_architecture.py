"""The shape of the house: who may import whom, and what every file keeps."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateurs as sc

ROOT = Path(sc.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# The rooms from the ground up; a room may import those below it and its own.
FLOORS = [
    {"errors", "tables", "atomic", "version"},
    {"trace"},
    {"members", "units", "selection", "grouping", "groups", "blocks", "plan", "plan_schema",
     "planning", "composing", "slices", "reach", "gates", "cost", "latency", "budget", "surgery",
     "criteria", "exact", "score", "scores", "ranking", "batches", "frontend", "watch", "sites",
     "infos", "curvature", "mendable", "unseen", "ways", "draws"},
    {"process", "files", "data", "report", "compare", "sparse", "oracle", "oracle_result"},
    {"keras"},
    {"__init__", "verbs"},
    {"cli", "__main__"},
]  # fmt: skip
# Within a floor: criteria know no model, plans know no gates, reports read records.
FORBIDDEN = {
    "criteria": {"groups", "plan", "gates", "cost", "surgery", "score", "ranking", "trace"},
    "cost": {"gates", "surgery", "criteria", "score", "ranking"},
    "groups": {"gates", "cost", "surgery", "criteria", "score", "ranking"},
    "plan": {"gates", "cost", "criteria", "score", "ranking", "planning"},
    "planning": {"gates", "cost", "criteria", "score", "ranking"},
    "composing": {"gates", "cost", "criteria", "score", "ranking", "planning"},
    "report": {"trace", "groups", "gates", "surgery", "process"},
}


def floor(room: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    if not found:
        pytest.fail(f"the room {room!r} is on no floor: put it in FLOORS")
    return found[0]


def imports(path: Path) -> Iterator[str]:
    """The modules of secateurs that a file imports, dotted, relative to the package."""
    package = ["secateurs", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = [stem]
            if stem == "secateurs" or not node.module:
                names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "secateurs":
                yield name.removeprefix("secateurs").strip(".")


def room_of(module: str) -> str:
    room = module.split(".")[0]
    return (
        room if (room and (ROOT / room).is_dir()) or (ROOT / f"{room}.py").exists() else "__init__"
    )


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_down_only(name: str) -> None:
    path = ROOT / name
    own = Path(name).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imports(path):
        room = room_of(module)
        if room == own:
            continue
        assert floor(room) <= floor(own), f"{name} imports {module}"
        assert room not in FORBIDDEN.get(own, ()), f"{name} imports {module}"


READERS = {f"compare.{name}" for name in "comparison record recommend statistics wording".split()}


@pytest.mark.parametrize("module", sorted(READERS))
def test_a_comparison_is_read_without_what_makes_it(module: str) -> None:
    for name in imports(ROOT / f"{module.replace('.', '/')}.py"):
        allowed = name in READERS or room_of(name) in {"atomic", "errors", "report"}
        assert allowed, f"{module} imports {name}"


def test_the_import_reader_sees_what_is_there() -> None:
    """The negative control: a reader that finds nothing would forbid nothing."""
    seen = {room_of(module) for path in FILES for module in imports(path)}
    assert {"errors", "trace", "groups", "plan", "gates", "surgery", "criteria"} <= seen
    assert "trace.labels" in set(imports(ROOT / "groups.py"))
    assert "atomic" in set(imports(ROOT / "plan.py"))


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = tuple(
        "keras ray matplotlib jinja2 onnx scipy accelerate pydantic rich typer torchvision".split()
    )
    code = f"import sys, secateurs; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_library_code_neither_asserts_nor_prints(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno} asserts"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "hasattr", "breakpoint"}, f"{name}:{node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name}:{node.lineno} catches everything"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_unpickled(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(modules)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load"), f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_is_for(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(("cli", "__main__"))])
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = ".".join(["secateurs", *Path(name).with_suffix("").parts]).removesuffix(".__init__")
    result = doctest.testmod(
        importlib.import_module(module),
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.failed == 0
