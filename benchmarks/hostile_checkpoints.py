"""Checkpoints of the authors, broken and malicious: pickles assembled from a grammar, and tricks with archives."""

import io
import random
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_mutators import NUMBERS, STRINGS, Change, Original, mutate_bytes

from caeav_hf.conversion import load_checkpoint


@dataclass(frozen=True)
class _Name:
    """A class or function, by name."""

    module: str
    name: str


@dataclass(frozen=True)
class _Call:
    """A call that unpickling makes; `opcode` is that of `REDUCE`, or `NEWOBJ` for a class."""

    name: _Name
    arguments: Any
    opcode: bytes = b"R"
    state: Any = None


@dataclass(frozen=True)
class _Stored:
    """A reference to a storage: its class, key and number of elements."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class _Nested:
    """Tuples nested by references: of `levels` levels with 2 ** `levels` leaves."""

    levels: int


def _assemble(item: Any) -> bytes:
    """Return the opcodes of a value in protocol 2, which PyTorch writes."""
    if item is None or isinstance(item, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[item]
    if isinstance(item, int):
        if -(2**31) <= item < 2**31:
            return b"J" + struct.pack("<i", item)
        digits = item.to_bytes(item.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(digits)]) + digits
    if isinstance(item, float):
        return b"G" + struct.pack(">d", item)
    if isinstance(item, str):
        text = item.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(item, tuple):
        return b"(" + b"".join(map(_assemble, item)) + b"t"
    if isinstance(item, list):
        return b"](" + b"".join(map(_assemble, item)) + b"e"
    if isinstance(item, dict):
        return b"}(" + b"".join(_assemble(key) + _assemble(value) for key, value in item.items()) + b"u"
    if isinstance(item, _Name):
        return f"c{item.module}\n{item.name}\n".encode()
    if isinstance(item, _Call):
        state = b"" if item.state is None else _assemble(item.state) + b"b"
        return _assemble(item.name) + _assemble(item.arguments) + item.opcode + state
    if isinstance(item, _Stored):
        return _assemble(("storage", _Name("torch", item.kind), item.key, "cpu", item.numel)) + b"Q"
    assert isinstance(item, _Nested)
    # The memo's numbers are out of the way of others.
    levels = b"".join(
        b"r" + struct.pack("<I", 5000 + n) + b"j" + struct.pack("<I", 5000 + n) + b"\x86" for n in range(item.levels)
    )
    return _assemble("x") + levels


def _tensor(rng: random.Random, key: Any, shape: tuple[Any, ...], *, is_good: bool) -> _Call:
    """Return a tensor of a storage of 12 floats, or one that lies about it."""
    stride = tuple(int(np.prod(shape[place + 1 :])) for place in range(len(shape)))
    kind, numel = "FloatStorage", 12
    offset: Any = 0
    if not is_good:
        lie = rng.randrange(6)
        huge = rng.choice([10**6, 2**31 - 1, 10**12, 10**15, 2**62, 2**63 - 1, 2**64])
        if lie == 0:
            shape = rng.choice([(huge,), (huge, huge), (-1, 3), (0, huge), (4, 3.5), ("4", 3), (2,) * 100])
            stride = rng.choice([stride, (1,) * len(shape), (0,) * len(shape)])
        elif lie == 1:
            stride = rng.choice([(-3, 1), (0, 0), (1, 1), (huge, 1), (3,), ()])
        elif lie == 2:
            offset = rng.choice([huge, -1, 11, "0"])
        elif lie == 3:
            kind = rng.choice(
                ["DoubleStorage", "BoolStorage", "ComplexDoubleStorage", "QInt8Storage", "Tensor", "system"]
            )
        elif lie == 4:
            numel = rng.choice([huge, -1, 0, 13, 10**9])
        else:
            key = rng.choice(["9", "../../version", "/etc/passwd", "0\0", "", 0, "data.pkl"])
    arguments = (
        _Stored(kind, key, numel),
        offset,
        shape,
        stride,
        False,
        _Call(_Name("collections", "OrderedDict"), ()),
    )
    return _Call(_Name("torch._utils", "_rebuild_tensor_v2"), arguments)


_TOUCH = "touch hostile"
_CODE_LINE = f"__import__('os').system('{_TOUCH}')"
_CALLS: tuple[tuple[str, str, Any], ...] = (
    ("os", "system", (_TOUCH,)), ("posix", "system", (_TOUCH,)), ("nt", "system", (_TOUCH,)),
    ("builtins", "eval", (_CODE_LINE,)), ("builtins", "exec", (_CODE_LINE,)), ("__builtin__", "eval", (_CODE_LINE,)),
    ("subprocess", "Popen", (["touch", "hostile"],)), ("subprocess", "check_output", (["touch", "hostile"],)),
    ("builtins", "__import__", ("antigravity",)), ("importlib", "import_module", ("antigravity",)),
    ("builtins", "getattr", ("a", "b")), ("builtins", "open", ("hostile", "w")), ("pathlib", "Path.touch",
     ("hostile",)),
    ("torch", "load", ("best.pth",)), ("torch.hub", "load", ("a/b", "c")), ("torch.serialization", "load",
     ("best.pth",)),
    ("torch.jit", "load", ("best.pth",)), ("torch.utils.cpp_extension", "load", ("x", "y")), ("pickle",
     "loads", ("x",)),
    ("caeav_hf.towers.checkpoint_files", "load_checkpoint", ("best.pth",)), ("caeav_hf.cli", "main", (["--help"],)),
    ("caeav_hf.towers.checkpoint_files", "_Inert", ()), ("runpy", "run_path", ("x",)), ("code", "interact", ()),
    ("builtins", "bytearray", (10**12,)), ("builtins", "bytearray", (3 * 10**9,)), ("builtins", "set", ((1, 2),)),
    ("torch", "FloatStorage", (10**12,)), ("torch", "FloatStorage", (2 * 10**9,)), ("torch", "Size", ((10**18,
     10**18),)),
    ("torch", "FloatTensor", (10**10,)), ("torch", "Tensor", (10**10,)), ("torch.nn", "Parameter", ()),
    ("torch._utils", "_rebuild_meta_tensor_no_storage", (_Name("torch", "float32"), (10**6, 10**6), (10**6, 1),
     False)),
    ("torch._utils", "_rebuild_wrapper_subclass", (_Name("torch", "Tensor"), _Name("torch", "float32"), (3,),
     (1,), 0)),
    ("torch._utils", "_rebuild_sparse_tensor", (_Name("torch", "sparse_coo"), ())),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", ([1], _Name("torch", "float32"), "cuda:0", False)),
    ("torch._tensor", "_rebuild_from_type_v2", (_Name("os", "system"), _Name("torch", "Tensor"), (_TOUCH,), {})),
    ("_codecs", "encode", ("x" * 100, "rot13")), ("_codecs", "encode", ("x", "os.system")), ("_codecs",
     "encode", ("x",)),
    ("collections", "Counter", ((_Nested(80),),)), ("collections", "OrderedDict", (((_Nested(80), 1),),)),
    ("collections", "OrderedDict", (5,)), ("builtins", "complex", ("x",)), ("argparse", "Namespace", ()),
    ("numpy.core.multiarray", "_reconstruct", (_Name("numpy", "ndarray"), (10**9,), "b")), ("numpy", "load", ("x",)),
    ("pytorch_lightning.callbacks", "ModelCheckpoint", ()), ("os", "system\n(x", ()), ("", "", ()),
     ("__main__", "main", ()),
)  # fmt: skip


def _evil(rng: random.Random) -> Any:
    """Draw a value that no good checkpoint holds."""
    kind = rng.randrange(10)
    if kind < 6:
        module, name, arguments = rng.choice(_CALLS)
        state: Any = rng.choice([None, None, None, {"a": 1}, (None, {"__class__": 1}), 3, ({}, {"x": 2}), _Nested(3)])
        return _Call(_Name(module, name), arguments, rng.choice([b"R", b"R", b"R", b"\x81"]), state)
    if kind == 6:
        return _Nested(rng.choice([3, 30, 80, 5000]))
    if kind == 7:
        module, name, _ = rng.choice(_CALLS)
        return _Name(module, name)
    return rng.choice([rng.choice(NUMBERS), rng.choice(STRINGS), None, [], {}, {1: 2}, [[[]]], (1,), "x" * 10**6, 1.5])


def _pickled(rng: random.Random) -> bytes:
    """Return a checkpoint's pickle with one to three faults."""
    content: dict[Any, Any] = {f"layer{n}.weight": _tensor(rng, str(n), (4, 3), is_good=True) for n in range(3)}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key = rng.choice(
            [*content, "more", rng.choice([*STRINGS[:20], 3, None, (1, 2), _Nested(80), _Name("os", "system")])]
        )
        is_tensor = rng.random() < 0.5
        content[key] = _tensor(rng, str(rng.randrange(3)), (4, 3), is_good=False) if is_tensor else _evil(rng)
    layout = rng.randrange(6)
    whole: Any = content
    if layout == 0:
        whole = {"state_dict": content, "epoch": 3}
    elif layout == 1:
        whole = {"model": {"state_dict": content}, "args": _evil(rng)}
    elif layout == 2:
        whole = _Call(_Name("collections", "OrderedDict"), (), state=content)
    elif layout == 3:
        whole = rng.choice([[content], (content,), _evil(rng), _tensor(rng, "0", (4, 3), is_good=True)])
    opcodes = b"\x80\x02" + _assemble(whole) + b"."
    if rng.random() < 0.2:
        opcodes = mutate_bytes(rng, opcodes)
    return opcodes


def _archive(rng: random.Random, entries: dict[str, bytes]) -> bytes:
    """Return a zip archive as PyTorch reads it, with or without a trick."""
    file, trick = io.BytesIO(), rng.choice([None, None, None, *range(10)])
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that occur twice
        for name, data in entries.items():
            compression = zipfile.ZIP_STORED
            if trick == 0 and name.endswith(rng.choice(["data.pkl", "data/0", "version"])):
                data, compression = data + b"\0" * rng.choice([10**6, 3 * 10**7]), zipfile.ZIP_DEFLATED
            elif trick == 1:
                compression = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            elif trick == 2:
                name = name.replace("best", rng.choice(["..", "/best", "best/best", "a\\b", "\u202e", ""]))
            archive.writestr(name, data, compression)
            if trick == 3 and rng.random() < 0.5:
                archive.writestr(name, rng.choice([b"", data[::-1], b"x" * 10_000]))
        if trick == 4:
            for number in range(rng.choice([1, 3000])):
                archive.writestr(f"best/data/extra{number}", b"")
    archived = bytearray(file.getvalue())
    end = archived.rfind(b"PK\x05\x06")
    directory = archived.find(b"PK\x01\x02")
    if trick == 5:  # encrypted, or another version or method
        archived[directory + rng.choice([4, 6, 8, 10])] |= rng.choice([1, 8, 99])
    elif trick == 6:  # sizes, offsets
        place = directory + rng.choice([20, 24, 28, 30, 42])
        archived[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1]))
    elif trick == 7:
        place = end + rng.choice([8, 10, 12, 16])
        archived[place : place + 2] = struct.pack("<H", rng.choice([0, 1, 0xFFFF]))
    elif trick == 8:
        archived += rng.choice([b"\0" * 70_000, bytes(archived), b"PK\x05\x06" + b"\xff" * 18, b"x"])
    elif trick == 9:
        archived = bytearray(rng.choice([b"x", b"\x80\x02", b"\0" * 1000])) + archived
    return bytes(archived)


def mutate_checkpoint(rng: random.Random, original: Original) -> Change:
    """Change the only file of `torch.save`."""
    (name,) = original.names("*.pt*", "*.bin")
    return {name: mutate_saved(rng, original.read(name))}


def mutate_saved(rng: random.Random, data: bytes) -> bytes:
    """Change what `torch.save` wrote: its bytes, its pickle or its archive."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    if not zipfile.is_zipfile(io.BytesIO(data)):  # the format before zip archives: pickles, then storages
        begin = data.find(b"\x80\x02}")
        return data[:begin] + _pickled(rng) + data[rng.randrange(begin, len(data)) :]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    kind = rng.randrange(8)
    chosen = rng.choice(list(entries))
    if kind == 0:
        entries[chosen] = mutate_bytes(rng, entries[chosen])
    elif kind == 1:
        del entries[chosen]
    if kind > 2:
        entries[next(entry for entry in entries if entry.endswith("data.pkl"))] = _pickled(rng)
    return _archive(rng, entries)


def make_checkpoints(folder: Path) -> None:
    """Write a small checkpoint in both formats of PyTorch."""
    state = {f"layer{n}.weight": torch.rand(4, 3) for n in range(3)}
    for name, is_zip in (("archive", True), ("stream", False)):
        (folder / name).mkdir()
        torch.save(state, folder / name / "best.pth", _use_new_zipfile_serialization=is_zip)


def open_checkpoint(folder: Path) -> Any:
    """Read the checkpoint, as `caeav convert` does first."""
    return load_checkpoint(folder / "best.pth")
