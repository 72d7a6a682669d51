"""The program of a Keras model, recorded here or, on another backend, in a process of its own.

Keras takes one backend for a process. Where that is not torch, the model is saved without its
compiled state, a child process runs it once on the torch backend, and hands back the program as
plain data: JSON, and safetensors for the constants.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from ..errors import TraceError
from ..trace import rules
from ..trace.data import decode, encode, from_data, to_data
from ..trace.program import Program, Ref
from ..trace.record import record
from .layers import Layer
from .module import Module

_MODEL, _INPUTS, _PROGRAM = "model.keras", "inputs", "program"


def program_of(model: Layer, inputs: Any) -> Program:
    """What one run of a model on these inputs did.

    Raises:
        TraceError: it does not run, or not on the torch backend.
    """
    if keras.backend.backend() == "torch":
        return record(Module(model), inputs, rules.supported)
    return recorded_by_child(model, inputs)


def recorded_by_child(model: Layer, inputs: Any) -> Program:
    """The same, by a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        leaves, spec = pytree.tree_flatten(inputs)
        nest = pytree.tree_unflatten([Ref(i) for i in range(len(leaves))], spec)
        _write(folder, _INPUTS, encode(nest), dict(enumerate(leaves)))
        try:
            model.save(folder / _MODEL)
        except Exception as error:
            raise TraceError(
                f"the model cannot be saved, and on the {keras.backend.backend()} backend it is "
                f"traced from its file in another process: {error}"
            ) from error
        _run_child(folder)
        return from_data(*_read(folder, _PROGRAM))


def _run_child(folder: Path) -> None:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": paths}
    run = subprocess.run(
        [sys.executable, "-m", "secateurs.keras.child", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no message"]
        raise TraceError(
            f"the model does not run on the torch backend, on which it is traced: {lines[-1]}; "
            "layers of your own must be in a module that can be imported, and use keras.ops"
        )


def record_here(folder: Path) -> None:
    """What the child does: load, run, and write down the program."""
    model = keras.models.load_model(folder / _MODEL, compile=False)
    nest, leaves = _read(folder, _INPUTS)
    inputs = pytree.tree_map_only(Ref, lambda ref: leaves[ref.id], decode(nest))
    program = program_of(model, inputs)
    _write(folder, _PROGRAM, to_data(program), program.constants)


def _write(folder: Path, name: str, data: Any, tensors: dict[int, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    kept = {str(i): tensor.detach().clone().contiguous() for i, tensor in tensors.items()}
    save_file(kept, folder / f"{name}.safetensors")


def _read(folder: Path, name: str) -> tuple[Any, dict[int, Any]]:
    data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / f"{name}.safetensors")
    return data, {int(i): tensor for i, tensor in tensors.items()}
