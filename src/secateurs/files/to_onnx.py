"""ONNX: the file for strangers, with no class, no pickle and no code of ours in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..atomic import replacing
from ..errors import ExportError
from .exported import BatchDims, Exported, Inputs, capture, check, first_words, quiet

# protobuf cannot hold a larger message
LIMIT = 2**31 - 2**20


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    batch_dims: BatchDims = 0,
    batches: Sequence[int] = (1, 3),
) -> Exported:
    """Write a model as ONNX with a dynamic batch, and check it in onnxruntime.

    The file holds the network in eval mode, weights and all. It takes its place only after
    onnxruntime gives the outputs of the model from it, within 1e-4 of the largest (float32).
    Needs the extra: pip install 'secateurs[onnx]'.

    Args:
        model: any module that `torch.export` can follow; it is left as it was.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        path: a file; replaced if it is there.
        batch_dims: the dim of every input tensor that counts the examples; or one for each
            argument (a tuple, or a dict of names), None for an argument without a batch.
        batches: the batch sizes to compare at, besides that of the example.

    Returns:
        What was written: path, opset, batch sizes, largest relative error, bytes.

    Raises:
        ExportError: the extra is missing, the exporter fails, or the outputs differ; a file that
            was there stays as it was.

    >>> import tempfile, torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> done = sc.export_onnx(net, torch.randn(1, 4), tempfile.mkdtemp() + "/net.onnx")
    >>> done.batches, done.max_relative_error < 1e-4
    ((1, 3), True)
    """
    _require_extra()
    size = sum(t.nbytes for t in {id(t): t for t in model.state_dict().values()}.values())
    if size > LIMIT:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2; halve "
            "them with model.half(), or use sc.export_pt2"
        )
    inputs = Inputs(example_inputs, batch_dims)
    program = _translate(model, inputs)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
        sizes, error = check(model, _runner(temporary), inputs, batches)
        written = temporary.stat().st_size
    return Exported(Path(path), "onnx", program.model.opset_imports[""], sizes, error, written)


def _require_extra() -> None:
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ExportError(
            f"ONNX needs {' and '.join(missing)}; install the extra: pip install 'secateurs[onnx]'"
        )


def _translate(model: nn.Module, inputs: Inputs) -> torch.onnx.ONNXProgram:
    """The program of a model in the operators of ONNX."""
    captured = capture(model, inputs)
    try:
        with quiet():
            # the shapes again, for the name of the batch
            shapes = inputs.shapes(torch.export.Dim("batch"))
            program = torch.onnx.export(captured, dynamo=True, dynamic_shapes=shapes, verbose=False)
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot write {type(model).__name__}: {first_words(error)}; replace "
            "what ONNX has no operator for, or use sc.export_pt2"
        ) from error
    if program is None:
        raise ExportError("torch.onnx gave no program back; is this torch 2.6 or newer?")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # its lines of source code, with their paths on this machine
    return program


def _runner(path: Path) -> Callable[..., list[Tensor]]:
    """A function that runs an ONNX file in onnxruntime, called like the model.

    Raises:
        ExportError: onnxruntime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime refuses the exported file: {first_words(error)}") from error
    names = [value.name for value in session.get_inputs()]

    def onnxruntime_session(*args: Any, **kwargs: Any) -> list[Tensor]:
        leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        feed = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return onnxruntime_session
