"""
Checks of files written by `torch.save` before PyTorch reads them.

With `weights_only=True` PyTorch runs no code of a file. A file of a few hundred bytes can still make it hash tuples of
tuples for years, allocate terabytes, or decompress zeros.
"""

import io
import mmap
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from ..errors import CaeAvError


# Most values in a tuple, those of tuples within it included. A tuple that is referred to twice counts twice, as it
# does when a tuple is hashed.
_MOST_VALUES = 100_000

# Opcodes that PyTorch reads, by what they do to the stack: push a value without parts, or pop some.
_PUSH = {
    *("NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1"),
    *("BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1", "GLOBAL"),
}
_POP = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TO_MARK = ("APPENDS", "SETITEMS")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = ("REDUCE", "NEWOBJ")


def check_saved(path: Path) -> None:
    """
    Check a file written by `torch.save`, in its zip archive or in the format before that.

    Raises:
        CaeAvError: Entries are compressed, or a pickle has what no checkpoint needs: deeply nested tuples, or calls
            that allocate any number of bytes.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            # A map, since reading as many bytes as a pickle claims would first allocate them.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as opened:
                # A number, the version, the system, the content, the keys of its storages.
                for _ in range(5):
                    _check_pickle(path, cast(BinaryIO, opened))
            return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise CaeAvError(f"{path}: its entry {entry.filename!r} is compressed; expected stored tensors")
    reader = torch._C.PyTorchFileReader(str(path))
    # Again as PyTorch finds it, which need not be where `zipfile` does.
    if reader.get_record_size("data.pkl") > size:
        raise CaeAvError(f"{path}: its entry 'data.pkl' is compressed; expected stored tensors")
    _check_pickle(path, io.BytesIO(reader.get_record("data.pkl")))


def _check_pickle(path: Path, file: BinaryIO) -> None:
    """Follow the opcodes of a pickle up to its end, or to one that PyTorch refuses, without building anything."""
    # The number of values of each item on the stack, and the name of a class or function.
    stack: list[tuple[int, str]] = []
    marks: list[list[tuple[int, str]]] = []
    memo: dict[Any, tuple[int, str]] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _PUSH:
            stack.append((1, str(argument) if name == "GLOBAL" else ""))
        elif name in _POP:
            del stack[-_POP[name] :]
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in _TO_MARK:
            stack = marks.pop()
        elif name == "TUPLE":
            values, stack = stack, marks.pop()
            stack.append(_tuple(path, values))
        elif name in _TUPLES:
            values = stack[-_TUPLES[name] :]
            stack[-_TUPLES[name] :] = [_tuple(path, values)]
        elif name in _CALLS:
            (arguments, _), (_, function) = stack.pop(), stack.pop()
            # Tensors are views of storages, which are referred to by their keys and never built by a call.
            if arguments > 1 and function.endswith((" bytearray", "Storage", "Tensor")):
                raise CaeAvError(f"{path}: calls {function.replace(' ', '.')}; expected stored tensors")
            stack.append((1, ""))
        elif name == "BINPERSID":
            stack[-1] = (1, "")
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name != "PROTO":
            return  # the end, or what PyTorch refuses


def _tuple(path: Path, values: list[tuple[int, str]]) -> tuple[int, str]:
    count = 1 + sum(number for number, _ in values)
    if count > _MOST_VALUES:
        raise CaeAvError(f"{path}: holds tuples of more than {_MOST_VALUES:,} values; expected tensors")
    return count, ""
