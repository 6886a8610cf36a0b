"""Comparing a learner's answer with the expected one, and describing both in a line.

`first_difference` says in words what is different, or returns None when nothing is.
It never lets a NaN pass, accepts every dtype of the right kind, and loosens its tolerance
only as far as a half-precision answer needs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

SHOWN_IN_FULL = 16  # a tensor with more values than this is shown by its first few
SHOWN_AT_LEAST = 6


def clone(value: Any) -> Any:
    """Copy tensors and the containers that hold them; models and everything else are passed on."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if _is_factored(value):
        return type(value)(clone(value.A), clone(value.B))
    if type(value) in (list, tuple):
        return type(value)(clone(item) for item in value)
    if type(value) is dict:
        return {key: clone(item) for key, item in value.items()}
    return value


def number(value: float | int | bool, digits: int = 4) -> str:
    """A number in a few characters: four significant digits, ordinary zero, no long exponents."""
    if isinstance(value, (bool, int)):
        return str(value)
    if value == 0:
        return "0"
    return f"{value:.0f}" if digits == 4 and 1e4 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def told_apart(got: float | int | bool, expected: float | int | bool) -> str:
    """ "… is got; expected was expected", with as many digits as it takes for the two to look different."""
    pairs = ((number(got, digits), number(expected, digits)) for digits in (4, 6, 9, 12, 17))
    first, second = next((pair for pair in pairs if pair[0] != pair[1]), (number(got), number(expected)))
    return f"is {first}; {second} was expected"


def describe(value: Any) -> str:
    """One line that shows a value: for a tensor its dtype, shape and a few rounded values."""
    try:
        return _described(value)
    except Exception as error:  # raised by the value itself, in its repr say
        return f"{_a(type(value).__name__)} that cannot be shown: {type(error).__name__}"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return _describe_tensor(value)
    if _is_factored(value):
        return f"FactoredMatrix of {describe(value.AB)}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(describe(item) for item in value[:SHOWN_AT_LEAST])
        more = ", …" if len(value) > SHOWN_AT_LEAST else ""
        return f"({inside}{more})" if isinstance(value, tuple) else f"[{inside}{more}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    return without_addresses(repr(value))[:200]


def without_addresses(text: str) -> str:
    """The text without memory addresses, which change from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _describe_tensor(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if without := _unreadable(tensor):
        return f"Tensor {dtype}, {without}"
    head = f"Tensor {dtype} {list(tensor.shape)}"
    if tensor.numel() == 0:
        return f"{head}, empty"
    if tensor.numel() <= SHOWN_IN_FULL:
        return f"{head}: {_nested(tensor.tolist())}"
    start = tensor.detach().flatten()[:SHOWN_AT_LEAST].tolist()
    return f"{head}: " + ", ".join(number(item) for item in start) + ", …"


def _unreadable(tensor: Tensor) -> str | None:
    """Why a tensor's values cannot be compared as they are; None when they can."""
    reasons = {
        "nested": tensor.is_nested, "quantized": tensor.is_quantized,
        "on the meta device, which holds no values": tensor.is_meta,
        "sparse (`.to_dense()` makes an ordinary tensor of it)":
            tensor.layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _nested(values: Any) -> str:
    return "[" + ", ".join(map(_nested, values)) + "]" if isinstance(values, list) else number(values)


def first_difference(
    got: Any, expected: Any, *, atol: float = 1e-5, rtol: float = 1e-4, loose_scalars: bool = False,
    exact_dtype: bool = False, where: str = "the answer",
) -> str | None:
    """Say what is different between an answer and the expected one; None when they agree.

    Tensors must agree in shape, kind of dtype (any float for a float; the same dtype if `exact_dtype`) and device, in
    having a gradient if the expected one has, and in every value to |got − expected| ≤ atol + rtol·|expected|. NaN
    never agrees with anything.
    `loose_scalars` accepts a Python number for a tensor of shape [] and the other way round.
    A list is accepted for a tuple and a tuple for a list; for a dataclass, any object with the same fields.
    """
    options: dict[str, Any] = {
        "atol": atol, "rtol": rtol, "loose_scalars": loose_scalars, "exact_dtype": exact_dtype}
    if loose_scalars:
        got, expected = _plain_scalar(got), _plain_scalar(expected)
    if _is_factored(expected):
        return _factored_difference(got, expected, options, where)
    if isinstance(expected, Tensor):
        return _tensor_difference(got, expected, atol, rtol, exact_dtype, where)
    if isinstance(expected, (bool, int, float)):
        return _number_difference(got, expected, atol, rtol, where)
    if isinstance(expected, Mapping):
        return _mapping_difference(got, expected, options, where)
    if isinstance(expected, (list, tuple)):
        return _sequence_difference(got, expected, options, where)
    if dataclasses.is_dataclass(expected):
        return _fields_difference(got, expected, options, where)
    if type(got) is not type(expected):
        return f"{where} is {_a(_type_name(got))}; {_a(_type_name(expected))} was expected"
    return None if got == expected else f"{where} is {describe(got)}; {describe(expected)} was expected"


def _is_factored(value: Any) -> bool:
    """Whether a value is a TransformerLens FactoredMatrix: two thin factors in place of a large matrix."""
    return all(isinstance(getattr(value, name, None), Tensor) for name in ("A", "B", "AB"))


def _factored_difference(got: Any, expected: Any, options: dict, where: str) -> str | None:
    """The factors may differ: what counts is their product."""
    if not _is_factored(got):
        wanted = "FactoredMatrix(left, right) was expected, which keeps the thin factors"
        return f"{where} is {_a(_type_name(got))}; {wanted}"
    return first_difference(got.AB, expected.AB, where=where, **options)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, Tensor) and _unreadable(value):
        return value
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _type_name(value: Any) -> str:
    return "torch.Tensor" if isinstance(value, Tensor) else type(value).__name__


def _a(name: str) -> str:
    """The name with its article."""
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "int"


def _tensor_difference(
    got: Any, expected: Tensor, atol: float, rtol: float, exact_dtype: bool, where: str
) -> str | None:
    if not isinstance(got, Tensor):
        return f"{where} is {_a(_type_name(got))}; a torch.Tensor was expected"
    if reason := _unreadable(got):
        return f"{where} is {reason}; a tensor with plain values was expected"
    if got.shape != expected.shape:
        return f"{where} has shape {list(got.shape)}; {list(expected.shape)} was expected"
    if _kind(got.dtype) != _kind(expected.dtype) or (exact_dtype and got.dtype != expected.dtype):
        name = expected.dtype if exact_dtype else f"{_a(_kind(expected.dtype))} dtype"
        return f"{where} has dtype {got.dtype}; {name} was expected"
    if got.device.type != expected.device.type:
        return f"{where} is on {got.device}; {expected.device} was expected"
    if expected.requires_grad and not got.requires_grad:
        return f"{where} has lost its gradient: no detach(), no_grad(), numpy or .item() on the way"
    return _value_difference(got.detach(), expected.detach(), atol, rtol, where)


def _value_difference(got: Tensor, expected: Tensor, atol: float, rtol: float, where: str) -> str | None:
    if got.is_floating_point() and got.dtype.itemsize < 4 and expected.numel():  # half precision: its own eps
        eps = torch.finfo(got.dtype).eps
        finite = expected[expected.isfinite()].abs()
        rtol, atol = max(rtol, 8 * eps), max(atol, eps * float(finite.max() if finite.numel() else 0))
    if _kind(expected.dtype) in ("int", "bool"):
        wrong = got != expected
    else:
        common = torch.complex128 if expected.is_complex() else torch.float64
        if expected.device.type == "mps":  # float64 does not exist there
            got, expected = got.cpu(), expected.cpu()
        wrong = ~torch.isclose(got.to(common), expected.to(common), atol=atol, rtol=rtol)
    if not wrong.any():
        return None
    first = tuple(wrong.nonzero()[0].tolist())
    nan = " (the answer contains NaN)" if got.isnan().any() else ""
    place = f"{where}{list(first)}" if first else where
    pair = f"{place} {told_apart(got[first].item(), expected[first].item())}"
    if wrong.numel() == 1:
        return pair + nan
    return f"{int(wrong.sum())} of {wrong.numel()} values differ{nan}; the first: {pair}"


def _number_difference(got: Any, expected: Any, atol: float, rtol: float, where: str) -> str | None:
    allowed: Any = {bool: bool, int: Integral, float: Real}[type(expected)]
    if not isinstance(got, allowed) or (isinstance(got, bool) and not isinstance(expected, bool)):
        hint = " (`.item()` makes a number of it)" if getattr(got, "ndim", None) == 0 else ""
        wanted = {bool: "True or False", int: "a whole number", float: "a number"}[type(expected)]
        return f"{where} is {_a(_type_name(got))}; {wanted} was expected{hint}"
    same = got == expected  # also for infinities, whose difference is NaN
    if isinstance(expected, float):
        same = same or abs(got - expected) <= atol + rtol * abs(expected)
    return None if same else f"{where} {told_apart(got, expected)}"


def _mapping_difference(got: Any, expected: Mapping, options: dict, where: str) -> str | None:
    if not isinstance(got, Mapping):
        return f"{where} is {_a(_type_name(got))}; a dict was expected"
    if set(got) != set(expected):
        keys, wanted = (", ".join(sorted(map(repr, each))) for each in (got, expected))
        return f"{where} has the keys {keys}; {wanted} were expected"
    found = (first_difference(got[key], expected[key], where=f"{where}[{key!r}]", **options) for key in expected)
    return next(filter(None, found), None)


def _sequence_difference(got: Any, expected: list | tuple, options: dict, where: str) -> str | None:
    if not isinstance(got, (list, tuple)):
        return f"{where} is {_a(_type_name(got))}; {_a(_type_name(expected))} was expected"
    if len(got) != len(expected):
        items = f"{len(got)} item{'s' * (len(got) != 1)}"
        return f"{where} has {items}; {len(expected)} were expected"
    pairs = enumerate(zip(got, expected))
    found = (first_difference(a, b, where=f"{where}[{i}]", **options) for i, (a, b) in pairs)
    return next(filter(None, found), None)


def _fields_difference(got: Any, expected: Any, options: dict, where: str) -> str | None:
    names = [field.name for field in dataclasses.fields(expected)]
    missing = [name for name in names if not hasattr(got, name)]
    if missing:
        return f"{where} has no field {missing[0]!r}; {_a(_type_name(expected))} was expected"
    pairs = ((name, getattr(got, name), getattr(expected, name)) for name in names)
    found = (first_difference(a, b, where=f"{where}.{name}", **options) for name, a, b in pairs)
    return next(filter(None, found), None)
