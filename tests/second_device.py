"""A GPU without a GPU: a second device whose tensors may not meet the CPU's.

Code that was only ever run on a CPU has one fault that only a GPU shows: a tensor made on the CPU meets one of the
model. Here that can be seen anywhere. A `DeviceTensor` says that it lives on another device, and keeps its values in
a CPU tensor that only this module touches. PyTorch hands every operation on it to `compute`, which first asks what CUDA
would ask, *are all of you on one device?*, then computes on the CPU: the values are those of a CPU.

    with second_device():
        model = load_model("tiny", device=DEVICE)
        model(tokens)         # RuntimeError: Expected all tensors to be on the same device, but found …

What it cannot show: rounding on a GPU, its memory, its own random numbers, and operations that CUDA does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")     # a name that PyTorch knows, without a driver, and that nothing here uses otherwise
ON_CPU = torch.nn.functional.scaled_dot_product_attention
aten = torch.ops.aten
COPIES = (aten.copy_, aten._to_copy, aten.fill_)                                    # from one device to the other
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)     # (self, indices, [values])
# Which argument may be a number in a tensor, of any device; in elementwise operations each may.
NUMBER = {aten.masked_fill: 2, aten.masked_fill_: 2, aten.index_fill: 3, aten.index_fill_: 3,
          **dict.fromkeys(INDEXING[1:], 2)}


class DeviceTensor(Tensor):
    """A tensor on DEVICE: its `value` is the CPU tensor that stands for the device's memory."""

    @staticmethod
    def __new__(cls, value: Tensor) -> DeviceTensor:
        return Tensor._make_wrapper_subclass(cls, value.shape, strides=value.stride(), dtype=value.dtype, device=DEVICE,
                                             storage_offset=value.storage_offset())

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl                         # nothing above the operations

    # What PyTorch does for a tensor on CUDA, and refuses for a subclass:

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
                        "to host memory first.")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else super().__format__(spec)

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{repr(self.detach().cpu())[:-1]}, device='{self.device}')"

    @property
    def data(self) -> DeviceTensor:
        return self.detach()

    @data.setter
    def data(self, new: DeviceTensor) -> None:
        Tensor.data.__set__(self, new)
        self.value = new.value


class _Everything(TorchDispatchMode):
    """Hands over the operations too that no tensor comes into, such as `torch.zeros(3, device=DEVICE)`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within the block DEVICE can be used like "cuda:0"."""
    optimizer = import_module("torch.optim.optimizer")              # it asks by name who has a fused Adam
    fused = [*optimizer._get_fused_kernels_supported_devices(), DEVICE.type]
    autocast = torch.autocast                                       # the values are rounded as the CPU's autocast does
    with (mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: fused),
          mock.patch.object(torch, "autocast", lambda kind, **how: autocast(kind.replace(DEVICE.type, "cpu"), **how)),
          mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention),
          _Everything()):
        torch._C._set_only_lift_cpu_tensors(True)                   # `torch.tensor` makes a CPU tensor, then moves it
        try:
            yield DEVICE
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


def attention(*tensors: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
    """PyTorch's attention by the CPU's kernel: on a device that it does not know it takes other steps."""
    given = [each for each in (*tensors, attn_mask) if each is not None]
    ours = [each for each in given if isinstance(each, DeviceTensor)]
    if not ours:
        return ON_CPU(*tensors, attn_mask=attn_mask, **how)
    if len(ours) < len(given):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found both {DEVICE} and cpu")
    mask = None if attn_mask is None else attn_mask.value
    return DeviceTensor(ON_CPU(*(each.value for each in tensors), attn_mask=mask, **how))


def compute(function: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation: refused if its tensors are on two devices, else computed with the values, on the CPU."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    ours = {id(each.value): each for each in tensors if isinstance(each, DeviceTensor)}
    asked_for = kwargs.get("device")
    if asked_for is None:
        goes_to_us = isinstance(tensors[0], DeviceTensor) if function.overloadpacket in COPIES else bool(ours)
    else:
        goes_to_us, kwargs = torch.device(asked_for).type == DEVICE.type, {**kwargs, "device": torch.device("cpu")}
    if ours:
        check_devices(function, args, tensors)
    if kwargs.get("generator") is not None and goes_to_us:          # (there are none of this device)
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu'")
    args, kwargs = tree_map(lambda each: each.value if isinstance(each, DeviceTensor) else each, (args, kwargs))
    answer = function(*args, **kwargs)
    if torch.Tag.inplace_view in function.tags and goes_to_us:      # such as `squeeze_`: our shape changes, too
        tensors[0].data = DeviceTensor(tensors[0].value)
    if not goes_to_us:
        return answer

    def ours_again(each: Any) -> Any:                               # in place: the very tensor that was given
        return ours[id(each)] if id(each) in ours else DeviceTensor(each) if isinstance(each, Tensor) else each

    return tree_map(ours_again, answer)


def check_devices(function: torch._ops.OpOverload, args: tuple, tensors: list[Tensor]) -> None:
    """Raise RuntimeError, as CUDA does, if these tensors, of which one is ours, may not meet in this operation."""
    kind, strangers = function.overloadpacket, [each for each in tensors if not isinstance(each, DeviceTensor)]
    if kind in COPIES:
        return
    if kind in INDEXING and isinstance(args[0], DeviceTensor):      # into a tensor of ours, the CPU's indices may point
        strangers = [each for each in args[2:3] if not isinstance(each, DeviceTensor)]
    if torch.Tag.pointwise in function.tags and (isinstance(args[0], DeviceTensor) or not function._schema.is_mutable):
        strangers = [each for each in strangers if each.ndim]
    elif kind in NUMBER:
        strangers = [each for each in strangers if each.ndim or each is not args[NUMBER[kind]]]
    if strangers:
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, "
                           f"{DEVICE} and {strangers[0].device}! (in {function})")
