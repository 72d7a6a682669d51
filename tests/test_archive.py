"""`.pt2` files from strangers: plain data is read, all else is refused before PyTorch sees it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.networks import LeNet
from torch import nn

import secateurs as sc
from secateurs.errors import FileError
from secateurs.files.archive import inspected

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
Parts = dict[str, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pt2") / "good.pt2"
    return sc.export_pt2(LeNet(), torch.randn(1, 1, 28, 28), path).path


def parts_of(path: Path) -> Parts:
    with zipfile.ZipFile(path) as archive:
        return {i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()}


def write(parts: Parts, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"model/{name}", data)
    return path


def edit(parts: Parts, name: str, change: Callable[[Any], object]) -> None:
    data = json.loads(parts[name])
    change(data)
    parts[name] = json.dumps(data).encode()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(marker), buffer)
    return buffer.getvalue()


def python(marker: Path) -> str:
    """An expression that writes a file."""
    return f"open({str(marker)!r}, 'w').close()"


# ---------------------------------------------------------------------- what runs in torch.export
def in_the_example_inputs(parts: Parts, marker: Path) -> None:
    parts["data/sample_inputs/model.pt"] = pickled(marker)


def in_a_weight(parts: Parts, marker: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["conv1.weight"]["use_pickle"] = True

    edit(parts, WEIGHTS, change)
    parts["data/weights/weight_0"] = pickled(marker)


def in_an_old_weights_file(parts: Parts, marker: Path) -> None:
    parts["data/weights/model.pt"] = pickled(marker)


def in_an_opaque_object(parts: Parts, marker: Path) -> None:
    import pickle

    def change(config: Any) -> None:
        config["config"]["c"] = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }  # fmt: skip

    edit(parts, CONSTANTS, change)
    parts["data/constants/opaque_obj_0"] = pickle.dumps(Evil(marker))


def in_a_size(parts: Parts, marker: Path) -> None:
    def change(program: Any) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = f"({python(marker)}, Integer(2))[1]"

    edit(parts, PROGRAM, change)


def in_a_guard(parts: Parts, marker: Path) -> None:
    edit(parts, PROGRAM, lambda p: p["guards_code"].append(f"[{python(marker)}]"))


def in_a_string_input(parts: Parts, marker: Path) -> None:
    """A constant input that ends the string which PyTorch puts it in."""
    text = f"' or {python(marker)} or '"

    def change(program: Any) -> None:
        module = program["graph_module"]
        module["graph"]["inputs"].append({"as_string": text})
        module["signature"]["input_specs"].append(
            {"constant_input": {"name": "flag", "value": {"as_string": "a"}}}
        )
        signature = module["module_call_graph"][0]["signature"]
        protocol, spec = json.loads(signature["in_spec"])
        spec["children_spec"][0]["children_spec"] *= 2
        signature["in_spec"] = json.dumps([protocol, spec])
        signature["forward_arg_names"].append("flag")

    edit(parts, PROGRAM, change)


def in_the_name_of_a_value(parts: Parts, marker: Path) -> None:
    """A name that is pasted into source code as it stands."""
    name = f"linear_1; {python(marker)}; linear_1"
    parts[PROGRAM] = parts[PROGRAM].replace(b'"linear_1"', json.dumps(name).encode())


def in_a_call(parts: Parts, marker: Path) -> None:
    """A node that calls any function that can be reached from `torch`."""

    def change(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        command = {"name": "command", "arg": {"as_string": f"touch {marker}"}, "kind": 1}
        node = {"target": "torch.os.system", "inputs": [command], "name": "n", "metadata": {},
                "outputs": [{"as_none": True}], "is_hop_single_tensor_return": None}  # fmt: skip
        graph["nodes"].insert(0, node)

    edit(parts, PROGRAM, change)


def in_an_operation_on_files(parts: Parts, marker: Path) -> None:
    def change(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        arguments = {
            "filename": {"as_string": str(marker)}, "shared": {"as_bool": True},
            "size": {"as_int": 4},
        }  # fmt: skip
        inputs = [{"name": n, "arg": arg, "kind": 1} for n, arg in arguments.items()]
        node = {"target": "torch.ops.aten.from_file.default", "inputs": inputs, "name": "n",
                "outputs": [{"as_tensor": {"name": "n"}}], "metadata": {},
                "is_hop_single_tensor_return": None}  # fmt: skip
        graph["nodes"].insert(0, node)
        graph["tensor_values"]["n"] = graph["tensor_values"]["linear_1"]

    edit(parts, PROGRAM, change)


def in_a_container(parts: Parts, marker: Path) -> None:
    """A nest of outputs that imports a module when it is read."""
    (marker.parent / "evil_module.py").write_text(python(marker))
    context = {
        "default_factory_module": "evil_module", "default_factory_name": "x", "dict_context": [],
    }  # fmt: skip
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}

    def change(program: Any) -> None:
        entry = program["graph_module"]["module_call_graph"][0]
        entry["signature"]["out_spec"] = json.dumps([1, spec])

    edit(parts, PROGRAM, change)


ATTACKS = [
    in_the_example_inputs, in_a_weight, in_an_old_weights_file, in_an_opaque_object, in_a_size,
    in_a_guard, in_a_string_input, in_an_operation_on_files, in_a_container,
]  # fmt: skip


def refused(attack: Callable[[Parts, Path], None], good: Path, folder: Path) -> Parts:
    """The parts of an archive that sc.load has refused, with nothing run."""
    parts, marker = parts_of(good), folder / "ran"
    attack(parts, marker)
    with pytest.raises(FileError, match=r"evil.pt2 is refused: .*torch.export.load"):
        sc.load(write(parts, folder / "evil.pt2"))
    assert not marker.exists()
    return parts


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.filterwarnings("ignore")
def test_code_is_refused_that_torch_would_run(
    attack: Callable[[Parts, Path], None],
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = refused(attack, good, tmp_path)
    x = torch.randn(2, 1, 28, 28)
    args = (x, "a") if attack is in_a_string_input else (x,)
    if attack in (in_a_guard, in_a_string_input):  # they run where there are example inputs
        torch.save((args, {}), buffer := io.BytesIO())
        parts["data/sample_inputs/model.pt"] = buffer.getvalue()
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.suppress(Exception):  # the control: the refusal is not for nothing
        torch.export.load(write(parts, tmp_path / "evil.pt2")).module()(*args)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("attack", [in_the_name_of_a_value, in_a_call])
def test_what_torch_guards_against_too(
    attack: Callable[[Parts, Path], None], good: Path, tmp_path: Path
) -> None:
    refused(attack, good, tmp_path)


# ---------------------------------------------------------------------- foreign and malformed
def second_program(parts: Parts) -> None:
    parts["models/other.json"] = parts[PROGRAM]


def library(parts: Parts) -> None:
    parts["data/aotinductor/model/a.so"] = b"\x7fELF"


def path_outside(parts: Parts) -> None:
    edit(parts, WEIGHTS, lambda c: c["config"]["conv1.weight"].update(path_name="../../x"))


def huge_without_bytes(parts: Parts) -> None:
    meta = {"sizes": [{"as_int": 2**40}]}
    edit(parts, WEIGHTS, lambda c: c["config"]["conv1.bias"]["tensor_meta"].update(meta))
    parts["data/weights/weight_1"] = b""


def not_tensors(parts: Parts) -> None:
    parts[WEIGHTS] = b'{"config": {"conv1.weight": []}}'


def not_json(parts: Parts) -> None:
    parts[PROGRAM] = b"{"


def not_a_program(parts: Parts) -> None:
    parts[PROGRAM] = b"[1, 2]"


def too_deep(parts: Parts) -> None:
    parts[PROGRAM] = b"[" * 100_000 + b"]" * 100_000


def endless_power(parts: Parts) -> None:
    text = "Pow(Integer(9), Pow(Integer(9), Integer(99)))"
    parts[PROGRAM] = parts[PROGRAM].replace(
        b"Symbol('s77', positive=True, integer=True)", text.encode()
    )


def no_number(parts: Parts) -> None:
    parts[PROGRAM] = parts[PROGRAM].replace(
        b"Symbol('s77', positive=True, integer=True)", b"Integer()"
    )


def big_endian(parts: Parts) -> None:
    parts["byteorder"] = b"big"


def no_weights(parts: Parts) -> None:
    del parts[WEIGHTS]


def short_weight(parts: Parts) -> None:
    parts["data/weights/weight_0"] = parts["data/weights/weight_0"][:-4]


def other_version(parts: Parts) -> None:
    edit(parts, PROGRAM, lambda p: p["schema_version"].update(major=99))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (second_program, "a second program"),
        (library, "a compiled library"),
        (path_outside, "stands where a name belongs"),
        (huge_without_bytes, "no bytes, but a size"),
        (not_tensors, "does not describe tensors"),
        (not_json, "is not JSON"),
        (not_a_program, "is not a program"),
        (too_deep, "is not JSON"),
        (endless_power, "more than arithmetic on sizes"),
        (no_number, "more than arithmetic on sizes"),
        (big_endian, "its byteorder is b'big'"),
        (no_weights, "it lacks"),
        (short_weight, "cannot load"),
        (other_version, "written by another version"),
    ],
)
def test_foreign_archives(
    change: Callable[[Parts], None], message: str, good: Path, tmp_path: Path
) -> None:
    parts = parts_of(good)
    change(parts)
    with pytest.raises(FileError, match=message):
        sc.load(write(parts, tmp_path / "a.pt2"))


def test_a_second_entry_of_a_name(good: Path, tmp_path: Path) -> None:
    path = write(parts_of(good), tmp_path / "a.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"model/{PROGRAM}", b"{}")
    with pytest.raises(FileError, match="different names"):
        sc.load(path)


def test_a_compressed_entry(good: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts_of(good).items():
            archive.writestr(f"model/{name}", data)
    with pytest.raises(FileError, match=r"is compressed|larger than the file"):
        sc.load(tmp_path / "a.pt2")


def test_other_files_and_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        sc.load(tmp_path / "none.pt2")
    torch.save({"a": 1}, tmp_path / "a.pt2")
    with pytest.raises(FileError, match="is refused"):
        sc.load(tmp_path / "a.pt2")
    with pytest.raises(FileError, match="pass a new instance"):
        sc.load(tmp_path)
    with pytest.raises(FileError, match="without a model"):
        sc.load(tmp_path / "a.pt2", nn.Identity())


def test_pytorchs_own_file_with_example_inputs(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.randn(3, 2),))
    torch.export.save(program, tmp_path / "a.pt2")
    with pytest.raises(FileError, match="pickled example inputs"):
        sc.load(tmp_path / "a.pt2")


# ---------------------------------------------------------------------- broken
def test_a_file_cut_anywhere(good: Path, tmp_path: Path) -> None:
    data, path = good.read_bytes(), tmp_path / "a.pt2"
    for end in [*range(0, len(data), 1024), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(FileError):
            sc.load(path)


@given(st.data())
@settings(max_examples=60)
def test_a_flipped_bit_is_found_or_does_not_matter(good: Path, data: st.DataObject) -> None:
    whole = bytearray(good.read_bytes())
    place = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[place // 8] ^= 1 << place % 8
    path = good.with_name(f"flipped{os.getpid()}.pt2")
    path.write_bytes(whole)
    try:
        parts = inspected(path)
    except FileError:
        return
    assert parts == inspected(good)


def test_what_is_read_is_what_was_written(good: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(inspected(good))
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(sc.load(good)(x), sc.load(tmp_path / "a.pt2")(x))
