"""The program of a Keras model, recorded here or, on another backend, in a process of its own.

Keras takes one backend for a process. Where that is not torch, the model is saved, a child process
runs it once on the torch backend, without its compiled state, and hands back the program as plain
data: JSON, and safetensors for the constants. The child waits for further models.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import keras
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import TraceError
from ..trace import rules
from ..trace.data import encode, from_data
from ..trace.program import Program, Ref
from ..trace.record import record
from .layers import Layer, variables_of
from .module import Module

MODEL, INPUTS, PROGRAM = "model.keras", "inputs", "program"


def program_of(model: Layer, inputs: Any) -> Program:
    """What one run of a model on these inputs did.

    Raises:
        TraceError: it does not run, or not on the torch backend.
    """
    if keras.backend.backend() == "torch":
        return recorded_here(model, inputs)
    return recorded_by_child(model, inputs)


def recorded_here(model: Layer, inputs: Any, names: Iterable[str] | None = None) -> Program:
    """The same on the torch backend; `names` are those of the model's variables in the program."""
    module, leaving = Module(model, names), _Leaving()
    with leaving:
        program = record(module, inputs, rules.supported)
    if leaving.seen:
        other = record(module, pytree.tree_map_only(torch.Tensor, _others, inputs), rules.supported)
        made = [list(one.constants.values()) for one in (program, other)]
        if len(made[0]) != len(made[1]) or not all(map(torch.equal, *made)):
            raise TraceError(
                "a layer takes its input out of PyTorch and computes with it there (NumPy, "
                "TensorFlow, JAX), which cannot be followed; write it with keras.ops"
            )
    return program


class _Leaving(TorchFunctionMode):
    """Sees whether values of a tensor are taken out of PyTorch."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= getattr(func, "__name__", "") in _OUT
        return func(*args, **(kwargs or {}))


_OUT = frozenset({"__array__", "__dlpack__", "numpy", "tolist"})


def _others(tensor: torch.Tensor) -> torch.Tensor:
    """Other values that could have stood in the place of these."""
    turned = tensor.flatten().roll(1).view_as(tensor)
    return turned / 2 + 0.25 if tensor.is_floating_point() else turned


def recorded_by_child(model: Layer, inputs: Any) -> Program:
    """The same, by a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        leaves, spec = pytree.tree_flatten(inputs)
        nest = pytree.tree_unflatten([Ref(i) for i in range(len(leaves))], spec)
        write(folder, INPUTS, encode(nest), dict(enumerate(leaves)))
        try:
            model.save(folder / MODEL)
            objects = dict(_objects(keras.saving.serialize_keras_object(model)))
        except Exception as error:
            raise TraceError(
                f"the model cannot be saved, and on the {keras.backend.backend()} backend it is "
                f"traced from its file in another process: {error}"
            ) from error
        _recorder().record(folder, list(variables_of(model)), objects)
        return from_data(*read(folder, PROGRAM))


class Recorder:
    """A process on the torch backend that records one model after another, until this one ends."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "secateurs.keras.child"],
            env={**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(_paths())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.end = weakref.finalize(self, _end, self._process)

    def record(
        self, folder: Path, names: list[str], objects: Mapping[str, tuple[str, str]]
    ) -> None:
        """Record the model in a folder.

        Args:
            folder: holds the model and its inputs, and will hold the program.
            names: of its variables, which may go by other paths when it is read again.
            objects: name in the file -> (module, qualified name) of what is not of Keras in it.

        Raises:
            TraceError: it does not run on the torch backend.
        """
        request = {"folder": str(folder), "paths": _paths(), "names": names, "objects": objects}
        with self._turn:
            try:
                answer = self._ask(request)
            except (OSError, ValueError) as error:
                self.end()
                raise TraceError(
                    f"the process that traces on the torch backend ended: {self._last_words()}"
                ) from error
            except BaseException:
                self.end()  # its answer would be taken for that about the next model
                raise
        if answer:
            raise TraceError(
                f"the model does not run on the torch backend, on which it is traced: {answer}; "
                "layers of your own must be in a module that can be imported, and use keras.ops"
            )

    def _ask(self, request: Mapping[str, Any]) -> str:
        """What went wrong; empty if nothing did."""
        requests = cast("IO[str]", self._process.stdin)
        answers = cast("IO[str]", self._process.stdout)
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return json.loads(answers.readline())["error"]

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no message")


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError), process:  # closes its pipes, and waits for it
        process.kill()


@functools.cache
def _kept() -> Recorder:
    return Recorder()


def _recorder() -> Recorder:
    """The one of this process; a new one if that has ended."""
    if _kept().end.alive:
        return _kept()
    _kept.cache_clear()
    return _kept()


def _paths() -> list[str]:
    return [path or os.getcwd() for path in sys.path]


def _objects(config: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    """(name, (module, qualified name)) of the classes and functions in it that are not of Keras."""
    registered = keras.saving.get_custom_objects()
    if isinstance(config, Mapping):
        module = config.get("module")
        if module and module.partition(".")[0] not in ("keras", "builtins"):
            yield config["registered_name"] or config["class_name"], (module, config["class_name"])
        for value in config.values():
            yield from _objects(value)
    elif isinstance(config, (list, tuple)):
        for item in config:
            yield from _objects(item)
    elif isinstance(config, str) and config in registered:
        found = registered[config]
        yield config, (found.__module__, found.__qualname__)


def write(folder: Path, name: str, data: Any, tensors: Mapping[int, Any]) -> None:
    """Keep plain data and numbered tensors in a folder."""
    (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    kept = {str(i): tensor.detach().clone().contiguous() for i, tensor in tensors.items()}
    save_file(kept, folder / f"{name}.safetensors")


def read(folder: Path, name: str) -> tuple[Any, dict[int, Any]]:
    """What `write` kept."""
    data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / f"{name}.safetensors")
    return data, {int(i): tensor for i, tensor in tensors.items()}
