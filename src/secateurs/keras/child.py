"""Run by `recorded.py` in a process of its own: record models in folders, with torch.

A line of standard input names a folder; a line of standard output says what went wrong there, or
nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import operator
import sys
from collections.abc import Mapping
from pathlib import Path

import keras
from torch.utils import _pytree as pytree

from ..trace.data import decode, to_data
from ..trace.program import Ref
from .recorded import INPUTS, MODEL, PROGRAM, read, recorded_here, write


def record_in(folder: Path, names: list[str], objects: Mapping[str, tuple[str, str]]) -> None:
    """Load the model in a folder, run it, and write down the program."""
    custom = {
        name: operator.attrgetter(own)(importlib.import_module(module))
        for name, (module, own) in objects.items()
    }
    model = keras.models.load_model(folder / MODEL, custom_objects=custom, compile=False)
    nest, leaves = read(folder, INPUTS)
    inputs = pytree.tree_map_only(Ref, lambda ref: leaves[ref.id], decode(nest))
    program = recorded_here(model, inputs, names)
    write(folder, PROGRAM, to_data(program), program.constants)


def main() -> None:
    """Answer requests until there are no more."""
    answers = sys.stdout
    for line in sys.stdin:
        request, error = json.loads(line), ""
        sys.path[:] = request["paths"]
        with contextlib.redirect_stdout(sys.stderr):  # whatever a model prints
            try:
                record_in(Path(request["folder"]), request["names"], request["objects"])
            except Exception as why:  # noqa: BLE001 - it is handed on, whatever it is
                error = f"{type(why).__name__}: {str(why).strip()}"
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
