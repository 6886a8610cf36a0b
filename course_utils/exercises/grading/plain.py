"""Values as plain data: how an answer leaves the process whose code gave it. Nothing runs when it is read.

`packed` makes bytes of a message: JSON, and behind it its tensors as safetensors. `encoded` makes plain data of a
value.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import struct
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformer_lens import FactoredMatrix

ANSWER_BYTES = 100_000_000  # a larger answer is not sent
TEXT_BYTES = 5_000_000  # nor one with more than this beside its tensors


class TooLarge(ValueError):
    """The message has more bytes than are read."""


def packed(message: Any) -> bytes:
    """JSON, and behind it the tensors as safetensors."""
    tensors: dict[str, Tensor] = {}

    def numbered(tensor: Tensor) -> dict[str, str]:
        tensors[name := str(len(tensors))] = tensor.contiguous()
        return {"tensor": name}

    text = json.dumps(message, default=numbered).encode(errors="backslashreplace")
    return struct.pack("<Q", len(text)) + text + save(tensors)


def unpacked(message: bytes) -> Any:
    """The message that these bytes are.

    Raises:
        TooLarge: when there is too much text.
        ValueError: when they are something else.
    """
    if len(message) < 8 or (end := 8 + struct.unpack("<Q", message[:8])[0]) > 8 + TEXT_BYTES:
        raise TooLarge(f"more than {TEXT_BYTES:,} bytes of text")
    try:
        tensors = load(message[end:])
    except SafetensorError as error:
        raise ValueError(f"tensors that cannot be read: {error}") from error
    return json.loads(message[8:end], object_hook=lambda each: tensors[each["tensor"]] if "tensor" in each else each)


def encoded(value: Any) -> tuple:
    """A value as nested tuples of a kind and plain data; of an unknown object, its type's name and its repr."""
    if isinstance(value, (Tensor, np.ndarray)) and value.nbytes > ANSWER_BYTES:
        raise TooLarge(f"an answer of {value.nbytes:,} bytes; at most {ANSWER_BYTES:,} are read")
    if isinstance(value, Tensor):
        return "tensor", value.detach().cpu().clone(), value.requires_grad
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return "array", torch.from_numpy(value.copy())
    if isinstance(value, FactoredMatrix):
        return "factored", encoded(value.A), encoded(value.B)
    if value is ...:
        return ("ellipsis",)
    if isinstance(value, str) and len(value) > TEXT_BYTES:
        raise TooLarge(f"a text of {len(value):,} characters; at most {TEXT_BYTES:,} are read")
    if value is None or isinstance(value, (bool, str)):
        return "plain", value
    if isinstance(value, Integral):
        return "plain", int(value)
    if isinstance(value, Real):
        return "plain", float(value)
    if isinstance(value, (list, tuple)):
        return "list" if isinstance(value, list) else "tuple", [encoded(item) for item in value]
    if isinstance(value, dict):
        return "dict", [(encoded(key), encoded(item)) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return "object", type(value).__name__, repr(value)[:200], fields
    return "object", type(value).__name__, repr(value)[:200], {}


def decoded(data: Any) -> Any:
    """The value; of an unknown object, one whose type has the same name and that has the same repr and fields."""
    kind, *rest = data
    if kind == "tensor":
        return rest[0].requires_grad_(rest[1])
    if kind == "array":
        return rest[0].numpy()
    if kind == "factored":
        return FactoredMatrix(*map(decoded, rest))
    if kind == "ellipsis":
        return ...
    if kind == "plain":
        return rest[0]
    if kind == "dict":
        return {decoded(key): decoded(item) for key, item in rest[0]}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(map(decoded, rest[0]))
    name, text, fields = rest
    value = type(name, (), {"__repr__": lambda self: text})()
    vars(value).update((field, decoded(item)) for field, item in fields.items())
    return value


def raised(error: BaseException) -> dict[str, Any]:
    """An exception: the names of its class and bases, and its message."""
    try:
        message = str(error)[:2000]
    except Exception:
        message = ""
    return {"raised": [each.__name__ for each in type(error).__mro__], "message": message}


def exception(names: list[str], message: str) -> Exception:
    """An exception of the nearest built-in class among `names` (a class and its bases), under its own name."""
    places = (builtins, torch.linalg, np.linalg)
    known = (getattr(place, name.lstrip("_"), None) for name in names for place in places)  # PyTorch: _LinAlgError
    base = next((each for each in known if isinstance(each, type) and issubclass(each, Exception)), Exception)
    try:
        of_that_name = type(names[0], (base,), {"__str__": lambda self: message})
        return of_that_name()
    except TypeError:  # it cannot be made without arguments, as UnicodeDecodeError cannot
        return type(names[0], (Exception,), {})(message)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among a function's inputs, and the weights of models among them, always in the same order."""
    if isinstance(value, torch.nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, FactoredMatrix):
        yield from (value.A, value.B)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
