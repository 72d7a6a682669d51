"""Which tensor of a run is which value of the program that is being written."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import TraceError
from .program import Program, Ref, Value
from .shadow import META, Shadow, storage
from .tagged import Size, TaggedFloat, TaggedInt

SCALARS = frozenset({int, float, bool, str, type(None)})


class Values:
    """The values of a program, and which tensors they are while a model runs.

    Args:
        program: the program, to which values are added.
        tensors: the tensors of the model, by path.
        shadow: what runs the operations, where the run is on shapes alone.
    """

    def __init__(
        self, program: Program, tensors: Mapping[str, torch.Tensor], shadow: Shadow | None
    ):
        self.program, self.shadow = program, shadow
        self.device = torch.device("cpu")
        self.memory: dict[int, int] = {}  # which storage a value is in, by its id
        self.names: dict[int, str] = {}
        self._refs: dict[int, tuple[Ref, object]] = {}  # by the id of a tensor; what watches it
        self._weak: list[StorageWeakRef] = []
        for name, tensor in tensors.items():
            first = self.names.setdefault(id(tensor), name)
            if isinstance(tensor, nn.Parameter):
                program.parameters[first] = tuple(tensor.shape)
        if shadow is not None:
            shadow.own.update(self.names)

    def take(self, tensor: torch.Tensor) -> None:
        """Make a tensor an input of the program, and its device the one of the run."""
        self.program.inputs.append(self.bind(tensor, live=True).id)
        self.device = self.shadow.device if self.shadow else tensor.device

    def bind(self, tensor: torch.Tensor, live: bool) -> Ref:
        """A new value for a tensor, which from now on is known by it."""
        ref = Ref(len(self.program.values))
        self.program.values.append(Value(tuple(tensor.shape), tensor.dtype, live))
        key, shadow = id(tensor), self.shadow
        if tensor.is_meta or key in self.names:  # holds no memory, or is held by the model
            self._refs[key] = (ref, tensor)
        else:
            gone = functools.partial(self._forget, key, ref)
            self._refs[key] = (ref, weakref.ref(tensor, gone))
        try:
            self.memory[ref.id] = storage(tensor) if shadow is None else shadow.storage(tensor)
            if not tensor.is_meta:  # else another memory could get its number when it is freed
                self._weak.append(StorageWeakRef(tensor.untyped_storage()))
        except (RuntimeError, NotImplementedError):
            pass  # not every tensor has one
        return ref

    def _forget(self, key: int, ref: Ref, _: object) -> None:
        if key in self._refs and self._refs[key][0] is ref:
            del self._refs[key]

    def value(self, tensor: torch.Tensor) -> Ref:
        """The value that a tensor is; a tensor of the model or a constant if not met before."""
        known = self._refs.get(id(tensor))
        if known is not None:
            return known[0]
        ref = self.bind(tensor, live=False)
        name = self.names.get(id(tensor))
        if name is not None:
            self.program.tensors[name] = ref.id
        elif self.shadow is not None and tensor.is_meta:
            raise TraceError("a constant was made on the device of a shadow; its values are lost")
        else:
            self.program.constants[ref.id] = tensor
        return ref

    def reference(self, arg: Any, found: list[torch.Tensor]) -> Any:
        """An argument with its tensors as references; the tensors are added to `found`."""
        if isinstance(arg, torch.Tensor):
            found.append(arg)
            return self.value(arg)
        if type(arg) in (list, tuple):
            return [i if type(i) in SCALARS else self.reference(i, found) for i in arg]
        if isinstance(arg, torch.device) and arg == META:
            return self.device
        if isinstance(arg, TaggedFloat):
            return float(arg)
        return int(arg) if isinstance(arg, TaggedInt) else arg

    def known(self, arg: Any) -> Any:
        """An argument with its tensors as references, -1 where one was not met before."""
        if type(arg) in SCALARS:
            return arg
        if isinstance(arg, torch.Tensor):
            own = self._refs.get(id(arg))
            if own is not None:
                return own[0]
            return self.value(arg) if id(arg) in self.names else Ref(-1)
        if isinstance(arg, (list, tuple)):
            return [i if type(i) in SCALARS else self.known(i) for i in arg]
        if type(arg) is dict:
            return {key: self.known(item) for key, item in arg.items()}
        return arg

    def tag_shape(self, tensor: torch.Tensor, shape: torch.Size) -> torch.Size:
        """The shape of a tensor, of integers that know whose sizes they are."""
        if isinstance(tensor, FakeTensor):
            return shape  # a note in a program of torch.export on what it takes, not of this run
        ident = self.value(tensor).id
        return torch.Size([TaggedInt(n, Size(ident, d)) for d, n in enumerate(shape)])

    def tag_size(self, args: Any, kwargs: Any, result: Any) -> Any:
        """The same of what `Tensor.size` returned."""
        if isinstance(result, torch.Size):
            return self.tag_shape(args[0], result)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return TaggedInt(result, Size(self.value(args[0]).id, dim % args[0].dim()))
