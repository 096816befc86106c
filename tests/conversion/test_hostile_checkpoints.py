"""Files of `torch.save` that make a reader hang, allocate terabytes or run code."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from caeav_hf import CaeAvError
from caeav_hf.conversion import from_official, load_checkpoint
from caeav_hf.towers import checkpoint_files


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def call(name: str, arguments: bytes, opcode: bytes = b"R") -> bytes:
    return f"c{name}\n".encode() + b"(" + arguments + b"t" + opcode


# Tuples of two references to the tuple before: 100 bytes, whose hash visits 2 ** 20 or more values.
NESTED = b"N" + b"".join(bytes([ord("q"), n, ord("h"), n, 0x86]) for n in range(80))
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x0ctQ"
COUNT = b"J" + struct.pack("<i", 2 * 10**9)


def tensor(shape: bytes, stride: bytes) -> bytes:
    hooks = call("collections\nOrderedDict", b"")
    return call("torch._utils\n_rebuild_tensor_v2", STORAGE + b"K\x00(" + shape + b"t(" + stride + b"t\x89" + hooks)


def write(path: Path, value: bytes, key: bytes = text("weight"), compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive whose pickle is a dictionary of one entry."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", b"\x80\x02}(" + key + value + b"u.", compression)
        archive.writestr("best/version", b"3\n")
        archive.writestr("best/data/0", struct.pack("<12f", *range(12)))
    return path


def test_the_archives_of_these_tests_are_read(tmp_path: Path) -> None:
    state = load_checkpoint(write(tmp_path / "best.pth", tensor(b"K\x04K\x03", b"K\x03K\x01")))
    assert torch.equal(state["weight"], torch.arange(12.0).reshape(4, 3))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        pytest.param(b"N", NESTED, id="key of nested tuples"),
        pytest.param(call("collections\nCounter", b"(" + NESTED + b"t"), text("a"), id="nested tuples in a call"),
        pytest.param(call("builtins\nbytearray", COUNT), text("a"), id="bytearray"),
        pytest.param(call("torch\nFloatStorage", COUNT), text("a"), id="storage"),
        pytest.param(call("torch\nFloatTensor", COUNT, b"\x81"), text("a"), id="tensor of a size"),
        pytest.param(tensor(COUNT + b"K\x03", b"K\x00K\x00"), text("a"), id="expanded"),
        pytest.param(tensor(b"K\x04K\x03", b"J\xff\xff\xff\xffK\x01"), text("a"), id="negative stride"),
        pytest.param(call("_codecs\nencode", text("x") + text("os.system")), text("a"), id="unknown codec"),
        pytest.param(b"h\x07", text("a"), id="unknown reference"),
        pytest.param(b"u", text("a"), id="no stack"),
        pytest.param(
            call("torch._utils\n_rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n(K\x04t(K\x01t\x89"),
            text("a"),
            id="without values",
        ),
    ],
)
def test_what_no_checkpoint_holds(tmp_path: Path, value: bytes, key: bytes) -> None:
    with pytest.raises(CaeAvError, match=r"best\.pth"):
        load_checkpoint(write(tmp_path / "best.pth", value, key))


def test_compressed_entries(tmp_path: Path) -> None:
    path = write(tmp_path / "best.pth", text("a" * 1_000_000), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    with pytest.raises(CaeAvError, match="compressed"):
        load_checkpoint(path)


def test_a_stream_that_claims_gigabytes(tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_bytes(b"\x80\x02X\xff\xff\xff\xffabc")
    with pytest.raises(CaeAvError, match=r"best\.pth"):
        load_checkpoint(tmp_path / "best.pth")


def test_a_placeholder_keeps_nothing(tmp_path: Path) -> None:
    # What stands for an unknown class takes neither arguments nor a state, which could set any attribute.
    state = b"(N}(" + text("__class__") + b"K\x01ut"
    path = write(tmp_path / "best.pth", call("trainer\nCallback", text("a"), b"\x81") + state + b"b")
    with pytest.raises(CaeAvError, match="expected tensors by name"):
        load_checkpoint(path)
    (placeholder,) = checkpoint_files._load_torch(path).values()
    with pytest.raises(AttributeError):
        placeholder.anything = 1


def test_functions_are_not_called(tmp_path: Path) -> None:
    for name in ("os\nsystem", "builtins\neval", "subprocess\nPopen"):
        path = write(tmp_path / "best.pth", call(name, text(f"open({str(tmp_path / 'ran')!r}, 'w')")))
        with pytest.raises(CaeAvError, match=r"best\.pth"):
            load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 2, 3, 4, 5)])
def test_shapes_that_no_checkpoint_has(shape: tuple[int, ...]) -> None:
    names = ("swin.patch_embed.proj.weight", "htsat.patch_embed.proj.weight", "vis_adapter_blocks_p1.0.fc.weight")
    for method in (None, "dg_sct", "stg_cma", "lavish"):
        with pytest.raises(CaeAvError):
            from_official({name: torch.zeros(shape) for name in names}, "ave", method=method)
