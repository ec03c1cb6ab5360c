"""Pickles of plain values and tensors, read without running anything in them.

Every opcode is looked at before the first value is made, and the only names that are known are the
three in a pickled tensor; they mean what is said here.
"""

import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from schemas.errors import DecodeError

MAX_PICKLE_BYTES = 2**18
"""Far more than a few numbers, texts and small tensors take."""

_OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE"),
    )
)
"""All that pickles of plain values and tensors are made of."""

_OBJECT_OPCODES = ("BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX")


def read_plain_pickle(path: Path) -> dict[Any, Any]:
    """A dict of plain values from a pickle; tensors stay ``PickledTensor``, nothing is called.

    Args:
        path: a regular file; a pipe would be waited for.

    Raises:
        DecodeError: it cannot be read, is too long or damaged, or wants more than plain values.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PICKLE_BYTES + 1)
    except OSError as error:
        raise DecodeError("unreadable", f"{path} cannot be read: {error.strerror}") from error
    try:
        _check_opcodes(data)
        values = _PlainUnpickler(io.BytesIO(data)).load()
        if not isinstance(values, dict):
            raise pickle.UnpicklingError(f"it holds {type(values).__name__}, expected dict")
    except Exception as error:  # damaged or hostile bytes can raise nearly anything
        raise DecodeError(
            "unreadable",
            f"{path} was not unpickled: {str(error) or repr(error)}. Expected a dict of plain "
            "values and tensors; nothing in it was run.",
        ) from error
    return values


def _check_opcodes(data: bytes) -> None:
    """Refuse, before anything is made, what could make objects or reserve memory by itself."""
    if len(data) > MAX_PICKLE_BYTES:
        raise pickle.UnpicklingError(f"it is over {MAX_PICKLE_BYTES} bytes long")
    num_memos = 0
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(
                f"it uses the opcode {opcode.name}, as numpy arrays and objects of classes do"
                if opcode.name in _OBJECT_OPCODES
                else f"it uses the opcode {opcode.name}"
            )
        is_put = opcode.name in ("BINPUT", "LONG_BINPUT")
        if is_put and int(argument or 0) > num_memos:
            raise pickle.UnpicklingError(f"it asks for {argument} memo entries and has {num_memos}")
        num_memos += is_put or opcode.name == "MEMOIZE"


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """What a pickle says of a tensor; nothing is made of it before it is asked for."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    def integers(self) -> list[int]:
        """The three values of a ``(1, 3)`` int64 tensor."""
        if self.size != (1, 3):
            raise ValueError(f"a tensor of size {self.size}, expected (1, 3)")
        storage = torch.load(io.BytesIO(self.storage), map_location="cpu", weights_only=True)
        empty = torch.empty(0, dtype=torch.int64)
        return [int(n) for n in empty.set_(storage, self.offset, self.size, self.stride)[0]]


class _PlainUnpickler(pickle.Unpickler):
    """Makes plain values; the three names in a pickled tensor mean what is said here."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _pickled_tensor,
            ("torch.storage", "_load_from_bytes"): _storage_bytes,
            ("collections", "OrderedDict"): _no_hooks,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]


def _pickled_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> PickledTensor:
    return PickledTensor(storage, offset, size, stride)


def _storage_bytes(data: Any) -> Any:
    return data


def _no_hooks() -> None:
    """Stands for the backward hooks of a tensor; saved features have none."""
