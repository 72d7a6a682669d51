"""What a `.pt2` archive may hold: every byte is judged here before PyTorch sees any of them.

`torch.export.load` unpickles what an archive marks as pickled, evaluates its sizes and guards as
Python, calls any function of `torch` that a node names, and pastes names into source code. Here
an archive is read as plain data; what is none of the few plain things listed is refused, and
PyTorch is given a new archive of what was judged, and of nothing else.
"""

from __future__ import annotations

import ast
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..atomic import check_file
from ..errors import FileError

PROGRAM = "models/model.json"
CONFIGS = {
    "data/weights/model_weights_config.json": "data/weights/",
    "data/constants/model_constants_config.json": "data/constants/",
}
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
PLAIN = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
NOTES = (".data/version", ".data/serialization_id")
RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
# What else such archives are known to hold, and why it is not read.
REFUSED = {
    "data/sample_inputs/": "pickled example inputs",
    "data/constants/custom_obj_": "a pickled object",
    "data/constants/opaque_obj_": "a pickled object",
    "data/weights/": "pickled weights of an older format",
    "data/constants/": "pickled constants of an older format",
    "data/aotinductor/": "a compiled library",
    "models/": "a second program",
}

NAME = re.compile(r"\w[\w.-]*")
TEXT = re.compile(r"[^\"'\\\x00-\x1f\x7f]*")
SYMBOL = re.compile(r"[su]\d+")
TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
# The arithmetic of sizes, as the functions that a graph may call and as they are written in sizes.
ARITHMETIC = {
    *(f"_operator.{n}" for n in "add sub mul floordiv mod neg eq ne lt le gt ge and_ or_".split()),
    *(f"torch.sym_{n}" for n in "max min not int float sum".split()),
}
SIZES = {"Add", "Mul", "FloorDiv", "Mod", "PythonMod", "CeilDiv", "Max", "Min"}
# A nest of plain containers; others import modules.
CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}
# What zipfile raises on an archive that is not whole.
BROKEN = (
    OSError,
    zipfile.BadZipFile,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)
# What reading plain data of another shape than expected raises.
MALFORMED = (KeyError, TypeError, IndexError, AttributeError)
# Parts of a program that hold code, or need it.
CODE = {"as_graph", "as_operator", "as_custom_obj", "custom_obj", "guards_code"}


def inspected(path: str | Path) -> bytes:
    """An archive with nothing in it but the parts of this one that were found to be plain data.

    Raises:
        FileError: it is missing, truncated or no such archive, or holds anything that would be
            unpickled, evaluated, loaded or called when it is read; says what.
    """
    try:
        return judged(path)
    except RefusedError as refusal:
        raise FileError(
            f"{path} is refused: {refusal}. sc.load reads what sc.export_pt2 writes; if you trust "
            "whoever made this file, torch.export.load reads it, and runs what is in it"
        ) from None
    except KeyError as error:
        raise FileError(f"cannot read {path} as a .pt2 archive: it lacks {error}") from error
    except BROKEN as error:
        raise FileError(f"cannot read {path} as a .pt2 archive: {error}") from error


def judged(path: str | Path) -> bytes:
    """The same, with the errors as they come."""
    parts = _entries(check_file(path))
    plain = {PROGRAM: _program(_json(parts[PROGRAM], PROGRAM))}
    for name, folder in CONFIGS.items():
        plain[name] = _json(parts[name], name)
        _payload(plain[name], parts, folder, name)
    return _archive({**parts, **{name: json.dumps(data).encode() for name, data in plain.items()}})


class RefusedError(Exception):
    """Why an archive is not read."""


def _refuse(what: str) -> NoReturn:
    raise RefusedError(what)


# ---------------------------------------------------------------------- the zip file
def _entries(path: str | Path) -> dict[str, bytes]:
    """The entries of the archive, by their names below its one folder."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > Path(path).stat().st_size:
            _refuse("its entries are larger than the file")
        names = [info.filename.partition("/")[2] for info in infos]
        if len(set(names)) < len(names) or len({i.filename.partition("/")[0] for i in infos}) > 1:
            _refuse("it is not one folder of entries with different names")
        for name, info in zip(names, infos, strict=True):
            if info.compress_type != zipfile.ZIP_STORED:
                _refuse(f"its entry {name!r} is compressed")
            _known(name, info.file_size)
        parts = {name: archive.read(info) for name, info in zip(names, infos, strict=True)}
    for name, value in PLAIN.items():
        if parts.get(name, value) != value:
            _refuse(f"its {name} is {parts[name][:80]!r}, not {value!r}")
    return parts


def _known(name: str, size: int) -> None:
    known = (PROGRAM, *CONFIGS, *PLAIN, *NOTES)
    if name in known or RAW.fullmatch(name) or (name == SAMPLE_INPUTS and not size):
        return
    why = next((why for start, why in REFUSED.items() if name.startswith(start)), "not known here")
    _refuse(f"it holds {name!r}, {why}")


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{name} is not JSON: {error}") from error


def _archive(parts: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**parts, **PLAIN, SAMPLE_INPUTS: b"", ".data/version": b"6\n"}.items():
            archive.writestr(f"model/{name}", data)
    return out.getvalue()


# ---------------------------------------------------------------------- tensors
def _payload(config: Any, parts: dict[str, bytes], folder: str, where: str) -> None:
    """Every tensor is raw bytes of the archive."""
    _walk(config, where)
    try:
        for name, entry in config["config"].items():
            if entry["use_pickle"] is not False:
                _refuse(f"tensor {name!r} is pickled")
            file = f"{folder}{entry['path_name']}"
            if not RAW.fullmatch(file) or file not in parts:
                _refuse(f"tensor {name!r} lies in {file!r}, which is not in the archive")
            if not parts[file] and {"as_int": 0} not in entry["tensor_meta"]["sizes"]:
                _refuse(f"tensor {name!r} has no bytes, but a size")
    except MALFORMED as error:
        raise RefusedError(f"{where} does not describe tensors") from error


# ---------------------------------------------------------------------- the program
def _program(program: Any) -> Any:
    """The program without its notes, all strings in it judged by what they are for."""
    try:
        module = program["graph_module"]
        for node in module["graph"]["nodes"]:
            node["metadata"] = {}  # where it came from: of no use to who runs it
        module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
        module["module_call_graph"] = [e for e in module["module_call_graph"] if e["fqn"] == ""]
    except MALFORMED as error:
        raise RefusedError(f"{PROGRAM} is not a program of torch.export") from error
    try:
        _walk(program, PROGRAM)
    except RecursionError as error:
        raise RefusedError(f"{PROGRAM} is nested too deeply") from error
    return program


def _walk(value: Any, key: str) -> None:
    """Judge every string below a key by the key that it stands under; and every key."""
    if key in CODE and value:
        _refuse(f"its program holds {key!r}, which is code or needs some")
    if isinstance(value, dict):
        for name, item in value.items():
            _name(name)
            _walk(item, name)
    elif isinstance(value, list):
        for item in value:
            _walk(item, key)
    elif isinstance(value, str):
        JUDGES.get(key, _name)(value)


def _name(text: str) -> None:
    """A dotted name, such as 'layer1.0.weight', none of Python's own; it may be empty."""
    if text and (not NAME.fullmatch(text) or any(p.startswith("__") for p in text.split("."))):
        _refuse(f"{text[:80]!r} stands where a name belongs")


def _text(text: str) -> None:
    """What cannot end a string in source code."""
    if not TEXT.fullmatch(text):
        _refuse(f"the text {text[:80]!r} holds quotes or control characters")


def _float(text: str) -> None:
    """A number that JSON has no word for."""
    if text not in ("Infinity", "-Infinity", "NaN"):
        _refuse(f"{text[:80]!r} stands where a number belongs")


def _target(text: str) -> None:
    """An ATen operation that touches no file, or arithmetic on sizes."""
    if text in ARITHMETIC:
        return
    match = TARGET.fullmatch(text)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    op = getattr(packet, match[2], None) if match and packet is not None else None
    if not isinstance(op, torch._ops.OpOverload):
        _refuse(f"it calls {text[:80]!r}, which is no operation of ATen")
    if any(argument.name == "filename" for argument in op._schema.arguments):
        _refuse(f"it calls {text!r}, which opens a file")


def _size(text: str) -> None:
    """Sums, products and quotients of whole numbers and symbols."""
    try:
        tree = ast.parse(text, mode="eval").body if len(text) < 2000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _is_size(tree):
        _refuse(f"the expression {text[:80]!r} is more than arithmetic on sizes")


def _is_size(node: ast.expr) -> bool:
    match node:
        case ast.Call(ast.Name("Symbol"), [ast.Constant(str(name))], flags):
            return bool(SYMBOL.fullmatch(name)) and all(map(_is_flag, flags))
        case ast.Call(ast.Name("Integer"), [number], []):
            return _is_number(number)
        case ast.Call(ast.Name(name), args, []) if name in SIZES:
            return all(map(_is_size, args))
    return False


def _is_flag(keyword: ast.keyword) -> bool:
    return isinstance(keyword.value, ast.Constant) and keyword.value.value is True


def _is_number(node: ast.expr) -> bool:
    match node:
        case ast.Constant(int(n)) | ast.UnaryOp(ast.USub(), ast.Constant(int(n))):
            return n < 2**63
    return False


def _nest(text: str) -> None:
    """How arguments or outputs nest: tuples, lists and dicts with plain keys."""
    try:
        _, top = json.loads(text)
        for spec in _specs(top):
            keys = json.loads(spec["context"]) if spec["context"] is not None else None
            plain = keys is None or all(isinstance(key, (str, int)) for key in keys)
            if spec["type"] not in CONTAINERS or not plain:
                _refuse(f"inputs or outputs are a {spec['type']!r}, not plain containers")
            for key in keys or ():
                _name(str(key))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RefusedError(f"the nest of inputs or outputs is malformed: {text[:80]!r}") from error


def _specs(spec: Any) -> Iterable[Any]:
    yield spec
    for child in spec["children_spec"]:
        yield from _specs(child)


JUDGES: dict[str, Callable[[str], None]] = {
    "target": _target,
    "expr_str": _size,
    "in_spec": _nest,
    "out_spec": _nest,
    "as_string": _text,
    "as_strings": _text,
    "torch_version": _text,
    "as_float": _float,
    "as_floats": _float,
}
