"""`secateurs export`: a model as ONNX, or as a `.pt2` program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from . import flags
from .models import build, example_inputs, parse_shape
from .objects import importable


def export_model(
    model: flags.Model,
    input_shape: flags.InputShape = None,
    inputs: flags.Inputs = None,
    weights: flags.Weights = None,
    original: flags.Original = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write ONNX: runs anywhere, without PyTorch and without the class."
        ),
    ] = None,
    pt2: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a program of torch.export, for people who trust you."
        ),
    ] = None,
    batch_dim: Annotated[
        int, typer.Option(help="The dim of every input that counts the examples.")
    ] = 0,
) -> None:
    """Write a model in a form that runs without its class, for batches of any size.

    What was written is read back and run at batch 1, 3 and that of the example input; it must
    give what the model gives.

    ```
    secateurs export torchvision:resnet18 --onnx resnet18.onnx
    secateurs export runs/a --onnx small.onnx
    secateurs export my_model:build --input-shape 1,1,28,28 --onnx small.onnx --pt2 small.pt2
    ```
    """
    from .. import export_onnx, export_pt2

    if onnx is None and pt2 is None:
        raise ConfigError("say what to write: --onnx FILE, --pt2 FILE, or both")
    importable([Path.cwd()])
    shapes = [parse_shape(text) for text in input_shape or ()]
    network = build(model, weights, original=original)
    example = example_inputs(model, network, shapes, inputs)
    for write, path in ((export_onnx, onnx), (export_pt2, pt2)):
        if path is not None:
            typer.echo(write(network, example, path, batch_dims=batch_dim))
