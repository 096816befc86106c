"""
Messages between a process and its decoding worker: a header of JSON, then arrays and bytes as they are in memory.

Nothing is pickled: a worker has read bytes that may have taken it over, and what it sends must not run code. Besides
plain values, arrays and bytes, a message holds the dataclasses and named tuples that its receiver expects. Objects
that stay in the sending process, such as open files, are replaced by a description, from which the receiver makes a
stand-in.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import IO, Any

import numpy as np


# Maximum bytes of a header.
_MOST_HEADER = 64_000_000
_PLAIN = (bool, int, float, str)
# Booleans, signed and unsigned integers, floats: not objects, whose bytes would be pointers.
_KINDS = "biuf"


class Channel:
    """
    One end of a connection.

    Args:
        reader, writer: Unbuffered binary files.
        describe: Returns a description, of plain values, of an object that the messages do not carry.
        restore: Returns a stand-in for such a description.
    """

    def __init__(
        self,
        reader: IO[bytes],
        writer: IO[bytes],
        describe: Callable[[Any], Any] | None = None,
        restore: Callable[[Any], Any] | None = None,
    ) -> None:
        self.reader, self.writer, self.describe, self.restore = reader, writer, describe, restore

    def send(self, value: Any) -> None:
        """
        Send a value.

        Raises:
            OSError: The other end is gone.
            TypeError: The value holds an object that messages do not carry.
        """
        buffers: list[memoryview] = []
        packed = self._pack(value, buffers)
        header = json.dumps([packed, [buffer.nbytes for buffer in buffers]]).encode()
        self._write(memoryview(len(header).to_bytes(8, "little") + header))
        for buffer in buffers:
            self._write(buffer)

    def receive(self, records: Iterable[type] | None = None, most: float = math.inf) -> Any:
        """
        Return the next value.

        Args:
            records: Dataclasses and named tuples that it may hold; `None` for any, which it may import.
            most: Maximum bytes of its arrays.

        Raises:
            EOFError: The other end is gone.
            ValueError: What came is no message, or is larger.
        """
        length = int.from_bytes(self._read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        packed, sizes = json.loads(bytes(self._read(length)))
        if any(size < 0 for size in sizes) or sum(sizes) > most:
            raise ValueError(f"a message of {sum(sizes)} bytes")
        buffers = [self._read(size) for size in sizes]
        allowed = None if records is None else {name_of(record): record for record in records}
        return self._unpack(packed, buffers, allowed)

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self.writer.write(data) :]

    def _read(self, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        rest = data.data
        while rest:
            count = self.reader.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            rest = rest[count:]
        return data

    def _pack(self, value: Any, buffers: list[memoryview]) -> Any:
        if value is None or type(value) in _PLAIN:
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, list):
            return [self._pack(item, buffers) for item in value]
        if isinstance(value, dict):
            return {"dict": [[self._pack(key, buffers), self._pack(item, buffers)] for key, item in value.items()]}
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in _KINDS:
                raise TypeError(f"an array of {value.dtype}")
            data = np.ascontiguousarray(value)
            buffers.append(data.reshape(-1).view(np.uint8).data)
            return {"array": [data.dtype.str, list(value.shape)], "buffer": len(buffers) - 1}
        if isinstance(value, bytes | bytearray | memoryview):
            buffers.append(memoryview(value).cast("B"))
            return {"bytes": True, "buffer": len(buffers) - 1}
        if hasattr(value, "_asdict"):
            return {"record": name_of(type(value)), "fields": self._pack(value._asdict(), buffers)}
        if is_dataclass(value) and not isinstance(value, type):
            held = {field.name: getattr(value, field.name) for field in fields(value)}
            return {"record": name_of(type(value)), "fields": self._pack(held, buffers)}
        if isinstance(value, tuple):
            return {"tuple": [self._pack(item, buffers) for item in value]}
        if self.describe is None:
            raise TypeError(f"a {type(value).__name__}")
        return {"object": self._pack(self.describe(value), buffers)}

    def _unpack(self, packed: Any, buffers: list[np.ndarray], records: dict[str, type] | None) -> Any:
        if isinstance(packed, list):
            return [self._unpack(item, buffers, records) for item in packed]
        if not isinstance(packed, dict):
            return packed
        if "dict" in packed:
            return {
                self._unpack(key, buffers, records): self._unpack(item, buffers, records)
                for key, item in packed["dict"]
            }
        if "tuple" in packed:
            return tuple(self._unpack(packed["tuple"], buffers, records))
        if "array" in packed:
            dtype = np.dtype(packed["array"][0])
            if dtype.kind not in _KINDS:
                raise ValueError(f"an array of {dtype}")
            return buffers[packed["buffer"]].view(dtype).reshape(packed["array"][1])
        if "bytes" in packed:
            return buffers[packed["buffer"]].tobytes()
        if "record" in packed:
            record = imported(packed["record"]) if records is None else records.get(packed["record"])
            if record is None:
                raise ValueError(f"a {packed['record']}")
            return record(**self._unpack(packed["fields"], buffers, records))
        if "object" in packed and self.restore is not None:
            return self.restore(self._unpack(packed["object"], buffers, records))
        raise ValueError(f"a value with {sorted(packed)}")


def name_of(value: Any) -> str:
    """Return the name by which [`imported`] finds a function or class of a module."""
    return f"{value.__module__}:{value.__qualname__}"


def imported(name: str) -> Any:
    """Return the function or class of a name, from its module."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value
