"""A program as plain data, and back: so that one process can record and another analyse.

What belongs to the code that ran (frames, methods, a run in training mode) is left behind: it
serves to mend PyTorch modules in place, and to nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

from .program import Call, Node, Program, Ref, Value
from .tagged import Attribute, Operation, Size, Source, TaggedFloat, TaggedInt, source_of

_KINDS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_OPERATIONS = ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow")


def to_data(program: Program) -> dict[str, Any]:
    """Everything but the constants: dicts, lists, strings and numbers."""
    calls = {id(node.call): node.call for node in program.nodes if node.call is not None}
    number = {key: i for i, key in enumerate(calls)}
    return {
        "values": [[list(v.shape), encode(v.dtype), v.live] for v in program.values],
        "calls": [
            [c.name, [_tagged(i) for i in c.integers], [_tagged(f) for f in c.floats], c.module,
             c.ordinal]
            for c in calls.values()
        ],
        "nodes": [
            [str(n.op), encode(n.args), encode(n.kwargs), list(n.outputs), n.multiple, n.module,
             number.get(id(n.call)), list(n.inputs)]
            for n in program.nodes
        ],
        "inputs": program.inputs,
        "keywords": list(program.keywords),
        "tensors": program.tensors,
        "outputs": encode(program.outputs),
        "attributes": [[*attribute, n] for attribute, n in program.attributes.items()],
        "floats": [[*attribute, x] for attribute, x in program.floats.items()],
        "parameters": {name: list(shape) for name, shape in program.parameters.items()},
        "looks": program.looks,
        "on_shapes": program.on_shapes,
        "states": program.states,
        "apart": program.apart,
    }  # fmt: skip


def from_data(data: Mapping[str, Any], constants: Mapping[int, torch.Tensor]) -> Program:
    """The program that `to_data` described."""
    calls = [
        Call(name, [_untagged(i) for i in integers], [_untagged(f) for f in floats], module, n)
        for name, integers, floats, module, n in data["calls"]
    ]
    return Program(
        values=[Value(tuple(shape), decode(dtype), live) for shape, dtype, live in data["values"]],
        nodes=[
            Node(_op(op), tuple(decode(args)), decode(kwargs), tuple(outputs), multiple, module,
                 None if call is None else calls[call], tuple(inputs))
            for op, args, kwargs, outputs, multiple, module, call, inputs in data["nodes"]
        ],
        inputs=list(data["inputs"]),
        keywords=tuple(data["keywords"]),
        tensors=dict(data["tensors"]),
        constants=dict(constants),
        outputs=decode(data["outputs"]),
        attributes={Attribute(*at): n for *at, n in data["attributes"]},
        floats={Attribute(*at): x for *at, x in data["floats"]},
        parameters={name: tuple(shape) for name, shape in data["parameters"].items()},
        looks=data["looks"],
        on_shapes=data["on_shapes"],
        states=[(given, made) for given, made in data["states"]],
        apart=[(one, other) for one, other in data["apart"]],
    )  # fmt: skip


def encode(thing: Any) -> Any:
    """An argument, or any nest of arguments, as plain data."""
    if isinstance(thing, Ref):
        return {"ref": thing.id}
    if isinstance(thing, _KINDS):
        return {"torch": str(thing).removeprefix("torch."), "kind": type(thing).__name__}
    if isinstance(thing, tuple):
        return {"tuple": [encode(item) for item in thing]}
    if isinstance(thing, list):
        return [encode(item) for item in thing]
    if isinstance(thing, Mapping):
        return {"dict": [[key, encode(value)] for key, value in thing.items()]}
    if isinstance(thing, (int, float, str, type(None))):
        return thing
    raise TypeError(f"an argument of type {type(thing).__name__} is no plain data")


def decode(data: Any) -> Any:
    """What `encode` made plain."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "ref" in data:
        return Ref(data["ref"])
    if "torch" in data:
        name = data["torch"]
        return torch.device(name) if data["kind"] == "device" else getattr(torch, name)
    if "tuple" in data:
        return tuple(map(decode, data["tuple"]))
    return {key: decode(value) for key, value in data["dict"]}


def _op(name: str) -> torch._ops.OpOverload:
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _tagged(number: Any) -> Any:
    if isinstance(number, (TaggedInt, TaggedFloat)):
        return [_plain(number), _source(source_of(number))]
    return number


def _plain(number: Any) -> Any:
    return int(number) if isinstance(number, int) else float(number)


def _untagged(data: Any) -> Any:
    if not isinstance(data, list):
        return data
    number, source = data
    return (TaggedInt if isinstance(number, int) else TaggedFloat)(number, _from_source(source))


def _source(source: Source) -> Any:
    if isinstance(source, Attribute):
        return ["attribute", *source]
    if isinstance(source, Size):
        return ["size", *source]
    if isinstance(source, Operation):
        name = next(n for n in _OPERATIONS if getattr(operator, n) is source.function)
        return [name, _source(source.left), _source(source.right)]
    return _plain(source)


def _from_source(data: Any) -> Source:
    if not isinstance(data, list):
        return data
    kind, *rest = data
    if kind == "attribute":
        return Attribute(*rest)
    if kind == "size":
        return Size(*rest)
    return Operation(getattr(operator, kind), *map(_from_source, rest))
