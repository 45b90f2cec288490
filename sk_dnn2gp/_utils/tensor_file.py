"""Files of tensors by name and of one JSON text: whole or not at all, and no code in them.

The format is that of safetensors, so that its readers open these files too: eight bytes of length,
a header in JSON with each tensor's kind, shape and place, then the numbers. What is no tensor is
the text ``sk_dnn2gp`` in the header's metadata. Reading makes numbers, texts, lists and dicts, and
nothing else.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Reader", "Writer", "read", "whole_or_not_at_all", "write"]

_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}
_TEXT = "sk_dnn2gp"


def write(stream: BinaryIO, content: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a JSON text and tensors, the widest numbers first: each lies at a multiple of its size.

    ValueError if a tensor is of a kind that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": {_TEXT: json.dumps(content, allow_nan=False)}}
    place, order = 0, sorted(tensors, key=lambda name: -tensors[name].element_size())
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} is of the kind {tensor.dtype}, which files do not hold.")
        end = place + tensor.numel() * tensor.element_size()
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**entry, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().view(-1)
        stream.write(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def read(stream: BinaryIO) -> tuple[Any, dict[str, Tensor]]:
    """What :func:`write` wrote. ValueError if it is something else, or a part of it."""
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        rest = stream.read()
        header = json.loads(rest[:length])
        content = json.loads(header.pop("__metadata__")[_TEXT])
        data = rest[length:]
        return content, {name: _tensor(entry, data) for name, entry in header.items()}
    except (struct.error, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"no file of tensors and text, or half of one: {error}") from error


def _tensor(entry: Mapping[str, Any], data: bytes) -> Tensor:
    kind, shape = _KINDS[entry["dtype"]], [int(n) for n in entry["shape"]]
    begin, end = entry["data_offsets"]
    count = math.prod(shape)
    if not 0 <= begin <= end <= len(data) or end - begin != count * kind.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not lie in bytes {begin} to {end}.")
    if count == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data[begin:end]), dtype=kind).view(shape)


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Any]:
    """A stream beside ``path`` that takes its place at the end, or vanishes."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with open(part, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Writer:
    """Values to JSON; the tensors among them are collected by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def value(self, value: Any, where: str) -> Any:
        """What stands for a value; ValueError if it is of a class that is not known here."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float | np.floating):
            return {"float": float(value).hex()}
        if isinstance(value, np.generic):
            return self.value(value.item(), where)
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), where)
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if isinstance(value, tuple | list):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.value(v, where) for v in value]}
        if isinstance(value, Mapping):
            pairs = [[self.value(k, where), self.value(v, where)] for k, v in value.items()]
            return {"dict": pairs}
        return self.other(value, where)

    def other(self, value: Any, where: str) -> Any:
        """What stands for an object: here nothing does."""
        cls = type(value)
        raise ValueError(
            f"{where} is {value!r}: a {cls.__module__}.{cls.__qualname__} is no number, text, list "
            "or setting of this package, and would be code in the file. Replace it, or use pickle."
        )

    def _tensor(self, tensor: Tensor, where: str) -> Any:
        """By name; by columns where it lies so, as factors do: products round by the order."""
        if tensor.ndim > 1 and not tensor.is_contiguous() and tensor.mT.is_contiguous():
            return {"columns": self._named(tensor.mT, where)}
        return {"tensor": self._named(tensor, where)}

    def _named(self, tensor: Tensor, where: str) -> str:
        name, number = where, 1
        while name in self.tensors:
            name, number = f"{where}.{number}", number + 1
        self.tensors[name] = tensor
        return name

    def _array(self, array: NDArray, where: str) -> Any:
        if array.dtype == object:
            return {"objects": [self.value(v, where) for v in array.tolist()]}
        if array.dtype.kind == "U":
            return {"texts": array.tolist()}
        native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        try:
            return {"array": self._named(torch.from_numpy(native), where)}
        except TypeError as error:
            raise ValueError(f"{where} is an array of {array.dtype}: {error}") from error


class Reader:
    """JSON to values, with the tensors of the file; KeyError where it is none of a Writer's."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.kinds: dict[str, Callable[[Any], Any]] = {
            "float": float.fromhex,
            "tensor": lambda name: tensors[name],
            "columns": lambda name: self.value({"tensor": name}).mT,
            "array": lambda name: tensors[name].numpy(),
            "texts": np.array,
            "objects": self._objects,
            "tuple": lambda values: tuple(map(self.value, values)),
            "list": lambda values: list(map(self.value, values)),
            "dict": lambda pairs: {self.value(k): self.value(v) for k, v in pairs},
        }

    def value(self, content: Any) -> Any:
        """The value that ``content`` stands for."""
        if not isinstance(content, dict):
            return content
        ((kind, inner),) = content.items()
        return self.kinds[kind](inner)

    def _objects(self, values: list) -> NDArray:
        array = np.empty(len(values), dtype=object)
        array[:] = [self.value(v) for v in values]
        return array
