"""Record one run of a model as a program, without changing the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import TraceError
from .callers import Sites
from .calls import Calls
from .model import as_call, input_tensors, modules_of, own_attributes, tensors_of
from .modes import as_written, evaluating, in_mode
from .observe import observed
from .operations import Operations
from .program import Program, Run
from .shadow import Shadow
from .structures import open_dataclasses
from .tagged import noting_comparisons, tagged_roots
from .values import Values


class Recorder:
    """What writes a program while a model runs: on shapes alone, or for real.

    Args:
        model: the model.
        supported: whether an operation is followed.
        shadow: executes the operations of a run on shapes alone; None for a real run.
    """

    def __init__(
        self, model: nn.Module, supported: Callable[[Any], bool], shadow: Shadow | None = None
    ):
        self.program = Program()
        self.modules = {path: (m, own_attributes(m)) for path, m in modules_of(model).items()}
        self.paths = {id(m): path for path, (m, _) in reversed(self.modules.items())}
        self.values = Values(self.program, tensors_of(self.modules), shadow)
        sites = Sites(self.paths, {path: own for path, (_, own) in self.modules.items()})
        self.calls = Calls(self.values, sites)
        self.operations = Operations(self.values, self.calls, supported)

    def every_module(self) -> list[nn.Module]:
        return [module for module, _ in self.modules.values()]

    def run(self, model: nn.Module, call: Any) -> None:
        """One run on these inputs, written into the program."""
        program = self.program
        if not program.inputs:
            for leaf in pytree.tree_leaves(call):
                if isinstance(leaf, torch.Tensor):
                    self.values.take(leaf)
        with (
            torch.no_grad(),
            as_written(),
            tagged_roots(),
            noting_comparisons(program.compared),
            observed(self.modules, self.calls),
            self.operations,
            self.calls,
        ):
            args, kwargs = call
            program.keywords = tuple(kwargs)
            output = model(*args, **kwargs)
            open_dataclasses(output)
            program.outputs = pytree.tree_map_only(torch.Tensor, self.values.value, output)

    def raised_in(self, error: Exception) -> str:
        """The path of the innermost module in whose code an error was raised."""
        where, frame = "", error.__traceback__
        while frame is not None:
            where = self.paths.get(id(frame.tb_frame.f_locals.get("self")), "") or where
            frame = frame.tb_next
        return where


def record(model: nn.Module, example_inputs: Any, supported: Callable[[Any], bool]) -> Program:
    """Run the model once in eval mode and return what it did; the model is left untouched.

    The run is on shapes alone; where that cannot be (the code looks at a value), it is for real,
    in the memory of one plain inference.

    Raises:
        TraceError: the forward raised, or returned no tensor.
    """
    open_dataclasses(example_inputs)
    call = as_call(example_inputs)
    inputs = input_tensors(example_inputs)
    if not inputs:
        raise TraceError("example_inputs holds no tensor; pass what model(...) is called with")
    try:
        shadow = Shadow(inputs[0].device)
        twins = pytree.tree_map_only(torch.Tensor, shadow.twin, call)
        recorder = Recorder(model, supported, shadow)
        with in_mode(recorder.every_module(), training=False):
            recorder.run(model, twins)
    except Exception:  # noqa: BLE001 - whatever it is, the real run will tell
        recorder = Recorder(model, supported)
        try:
            with evaluating(model):
                recorder.run(model, call)
        except Exception as error:
            raise TraceError(_why(model, recorder, inputs, error)) from error
    program = recorder.program
    if not program.output_ids():
        raise TraceError("the model returned no tensor, so there is nothing to follow")
    recorder.operations.finish()
    program.on_shapes = recorder.values.shadow is not None
    if program.on_shapes and not program.parameters.keys() <= program.tensors.keys():
        _run_training(model, recorder, twins)
    return program


def _run_training(model: nn.Module, recorder: Recorder, call: Any) -> None:
    """Follow what runs in training mode alone (an auxiliary head), so that a cut fits it too."""
    program = recorder.program
    evaluated, tensors = (program.nodes, program.outputs), dict(program.tensors)
    program.nodes, dead = [], [*program.aside.nodes]
    try:
        with in_mode(recorder.every_module(), training=True), torch.random.fork_rng(devices=[]):
            recorder.run(model, call)
        recorder.operations.finish()
        program.aside = Run([*dead, *program.nodes], program.output_ids())
    except Exception:  # noqa: BLE001 - it may need more than these inputs, its targets for one
        program.tensors, program.aside = tensors, Run(dead)
    finally:
        program.nodes, program.outputs = evaluated


def _why(model: nn.Module, recorder: Recorder, inputs: list[torch.Tensor], error: Exception) -> str:
    """A message for a forward that raised: where, and the likely mend."""
    where = recorder.raised_in(error) or type(model).__name__
    given = ", ".join(
        f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}" for t in inputs
    )
    own = next(iter(model.parameters()), None)
    hint = ""
    if own is not None:
        dtype = str(own.dtype).removeprefix("torch.")
        hint = f" (the model's parameters are {dtype} on {own.device})"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"the model's forward raised {type(error).__name__} in {where!r}: {first}; "
        f"it was called with {given}{hint}; check that model(example_inputs) runs"
    )
