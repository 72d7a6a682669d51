"""`.pt2`: a traced program with its weights, for people one trusts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic import replacing
from ..errors import ExportError, FileError
from .archive import inspected, judged
from .exported import BatchDims, Exported, Inputs, capture, check, first_words, quiet


def export_pt2(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    batch_dims: BatchDims = 0,
    batches: Sequence[int] = (1, 3),
) -> Exported:
    """Write a model as a `.pt2` program of `torch.export`, with a dynamic batch.

    The file holds the network in eval mode, on the CPU, without the example inputs. It takes its
    place only after `secateurs.load` has read it and what it gives is what the model gives. It is
    a file for people who trust one another: others would read it with `torch.export.load`, which
    can run code that a file holds.

    Args:
        model: any module that `torch.export` can follow; it is left as it was.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        path: a file that ends in .pt2; replaced if it is there.
        batch_dims, batches: as for `export_onnx`.

    Returns:
        What was written: path, batch sizes, largest relative error, bytes.

    Raises:
        ExportError: the exporter fails, or the outputs differ; a file that was there stays as it
            was.

    >>> import tempfile, torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> done = sc.export_pt2(net, torch.randn(1, 4), tempfile.mkdtemp() + "/net.pt2")
    >>> sc.load(done.path)(torch.randn(5, 4)).shape
    torch.Size([5, 2])
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ExportError(f"{path} must end in .pt2, which is how sc.load knows it")
    inputs = Inputs(example_inputs, batch_dims)
    program = _on_cpu(capture(model, inputs))
    program.example_inputs = None
    # Python that repeats what the shapes say: PyTorch makes it anew from them
    program._guards_code = []
    with replacing(path) as temporary:
        try:
            with quiet():
                torch.export.save(program, buffer := io.BytesIO())
            temporary.write_bytes(buffer.getvalue())
            temporary.write_bytes(judged(temporary))
            written = read_pt2(temporary)
        except Exception as error:
            raise ExportError(
                f"torch.export cannot write {type(model).__name__} as plain data: "
                f"{first_words(error)}; use sc.export_onnx or sc.save"
            ) from error
        sizes, difference = check(model, written, inputs, batches)
        size = temporary.stat().st_size
    return Exported(path, "pt2", None, sizes, difference, size)


def _on_cpu(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    from torch.export.passes import move_to_device_pass

    if all(tensor.device.type == "cpu" for tensor in program.state_dict.values()):
        return program
    return move_to_device_pass(program, "cpu")


def read_pt2(path: str | Path) -> nn.Module:
    """The module of a `.pt2` archive that holds nothing but plain data; see `archive.inspected`.

    Raises:
        FileError: the archive is missing, broken, or holds code or pickle.
    """
    plain = inspected(path)
    try:
        with quiet():
            return torch.export.load(io.BytesIO(plain)).module()
    except Exception as error:
        raise FileError(
            f"torch {torch.__version__} cannot load {path}: {first_words(error)}; was it written "
            "by another version?"
        ) from error
