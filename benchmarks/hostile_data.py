"""The doors of data: captions, annotations, Parquet data sets, caption servers, addresses, names on the terminal."""

import contextlib
import csv
import io
import json
import logging
import os
import random
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_mutators import STRINGS, Change, Door, Original, mutate_bytes, mutate_files, mutate_json, number, weighted

from caeav_hf import data
from caeav_hf.captioning import CaptioningError, CaptionRequest, ClipMaterial, ServerCaptioner, find_clips
from caeav_hf.captioning.table import CaptionTable
from caeav_hf.cli.predict import _read_captions
from caeav_hf.command_line import run_command
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.configuration_ssuformer import SsuFormerConfig
from caeav_hf.constants import MODALITIES
from caeav_hf.data import CaeAvDataset, prepare_clips
from caeav_hf.data.caption_file import CAPTION_SCHEMA, read_captions
from caeav_hf.data.streaming import StreamedClips
from caeav_hf.errors import CaeAvError, printable
from caeav_hf.media.remote import fetch, without_password
from caeav_hf.media.segment_stream import announced_seconds
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.toy import MediaFormat, generate
from caeav_hf.visualization import Annotation, write_audacity, write_csv, write_eaf, write_srt, write_webvtt


_NUM_CLIPS = 4
_MEDIA = MediaFormat(64, 4, 16_000)
# Names as they may stand in annotations, on top of what all doors put into texts.
_NAMES = (
    *STRINGS,
    *("../clip", "a/../../b", "*", "[a]", "clip?", "http://127.0.0.1:9/a.mp4", "file:///etc/hostname", "a" * 10_000),
    *("\r", "a\nb", "a\rb", "\x1b]8;;http://x\x07y", "\u2066a\u2069", "-", "=1+1", "@a", "--help", "x --> y", "]]>"),
)


class Leak(Exception):  # noqa: N818
    """Something happened that must not: a file of elsewhere is read, a key sent on, a control character printed."""


@lru_cache(maxsize=8)
def _processor(task: str) -> CaeAvProcessor:
    config = SsuFormerConfig if task == "ra_ssu" else CaeAvConfig
    return CaeAvProcessor.from_config(config.from_preset(task, size="toy"))


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    datasets.disable_progress_bars()
    # A worker for each input would take most of the time; other benchmarks hand over broken media.
    os.environ["CAEAV_DECODING_WORKER"] = "0"


# Captions

_CAPTIONS = {f"clip{n}": {"visual": f"A dog runs over lawn {n}.", "audio": "It barks, twice."} for n in range(3)}


def _make_captions(folder: Path) -> None:
    for name in ("json", "parquet", "texts"):
        (folder / name).mkdir()
    for name in ("json", "texts"):
        (folder / name / "captions.json").write_text(json.dumps(_CAPTIONS), encoding="utf-8")
    rows = [
        {"clip": clip, **{f"{side}_{kind}": texts[side] for side in MODALITIES for kind in ("caption", "generated")}}
        for clip, texts in _CAPTIONS.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=CAPTION_SCHEMA), folder / "parquet" / "captions.parquet")


def _mutate_captions(rng: random.Random, original: Original) -> Change:
    (name,) = original.names()
    content = original.read(name)
    if name.endswith(".parquet"):
        return {name: _mutate_parquet(rng, content)}
    if original.folder.name == "texts":  # a good file with strange texts
        captions = json.loads(content)
        for caption in captions.values():
            side = rng.choice(MODALITIES)
            text = rng.choice(STRINGS) + rng.choice([" ", "", caption[side]])
            caption[side] = text * min(
                rng.choice([1, 1, 1, 1000, 10**5, 10**6]), 1 + rng.choice([10**6] * 19 + [10**8]) // max(1, len(text))
            )
        return {name: json.dumps(captions).encode()}
    return mutate_files(name)(rng, original)


def _open_captions(folder: Path) -> Any:
    found = sorted(folder.glob("captions.*"))
    path = found[0] if found else folder / "captions.json"
    captions = read_captions(path)
    _read_captions(str(path), MODALITIES)
    processor = _processor("ave")
    for caption in list(captions.values())[:10]:
        texts = {side: caption.get(side) or "" for side in MODALITIES}
        inputs = processor(visual_captions=[texts["visual"]], audio_captions=[texts["audio"]])
        if inputs["visual_caption_ids"].shape[1] != 77:
            raise Leak(f"{inputs['visual_caption_ids'].shape} ids")
    return len(captions)


# The caption file of a running job, and lists of clips


def _make_tables(folder: Path) -> None:
    record = {"file": "a.mp4", "captions": {"visual": "a", "audio": "b"}, "model": "m", "prompt_version": "1"}
    lines = [json.dumps({"clip": f"clip{n}", **record, "settings": "{}"}) for n in range(4)]
    (folder / "journal").mkdir()
    (folder / "journal" / "captions.parquet.journal").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [{"clip": "clip0", "visual_caption": "edited", "visual_generated": "a"}]
    table = pa.Table.from_pylist(rows, schema=CAPTION_SCHEMA)
    pq.write_table(table, folder / "journal" / "captions.parquet")
    (folder / "list").mkdir()
    (folder / "list" / "clips.txt").write_text("a.mp4\nfolder/b.mp4\n/c.mkv\n", encoding="utf-8")


def _mutate_tables(rng: random.Random, original: Original) -> Change:
    name = rng.choice(original.names())
    if name.endswith(".parquet"):
        return {name: _mutate_parquet(rng, original.read(name))}
    if name.endswith(".journal"):
        lines = original.read(name).decode().split("\n")
        place = rng.randrange(len(lines) - 1)
        lines[place] = mutate_json(rng, lines[place]).replace("\n", " ")
        return {name: "\n".join(lines).encode("utf-8", "surrogatepass")}
    return mutate_files(name)(rng, original)


def _open_tables(folder: Path) -> Any:
    if (folder / "captions.parquet").exists() or (folder / "captions.parquet.journal").exists():
        with CaptionTable(folder / "captions.parquet") as table:
            return len(table.rows)
    return len(find_clips(folder / "clips.txt"))


# Annotations

_LAYOUTS: Mapping[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "ave": ("ave", data.AveBuilder, {}),
    "llp": ("avvp", data.LlpBuilder, {}),
    "s4": ("avs_s4", data.AvsBenchBuilder, {"setting": "s4"}),
    "ms3": ("avs_ms3", data.AvsBenchBuilder, {"setting": "ms3"}),
    "music_avqa": ("avqa", data.MusicAvqaBuilder, {}),
    "ra_ssu": ("ra_ssu", data.RaSsuBuilder, {}),
}


def _make_annotations(folder: Path) -> None:
    for name, (layout, _, _) in _LAYOUTS.items():
        place = folder / name / name
        generate(place, layout, num_clips=_NUM_CLIPS, split=(2, 1, 1), media_format=_MEDIA, progress=False)
        (place / "toy.json").unlink()
        if name == "ave":
            ids = [path.stem for path in sorted((place / "media").iterdir())]
            lines = [
                "# YTID, start_seconds, end_seconds, positive_labels",
                *(f'{name}, 30.0, 40.0, "/m/1"' for name in ids),
            ]
            (place / "annotations" / "segments.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if name == "llp":
            (place / "features").mkdir()
            for path in sorted((place / "media").iterdir()):
                np.save(place / "features" / f"{path.stem}.npy", np.zeros((10, 4), np.float32))


def _mutate_names(rng: random.Random, original: Original) -> Change:
    """Put a strange name in the place of a clip's, in all files or in one."""
    names = original.names("*/annotations/*", "*/captions.json")
    clip = rng.choice(sorted({Path(name).stem for name in original.names("*/media/*.mp4")} or {"toy00000000"}))
    strange = rng.choice(_NAMES)
    changed = {}
    for name in names if rng.random() < 0.7 else [rng.choice(names)]:
        text = original.read(name).decode()
        strange_here = json.dumps(strange)[1:-1] if name.endswith(".json") else strange
        changed[name] = text.replace(clip, strange_here).encode("utf-8", "surrogatepass")
    return changed


def _open_annotations(folder: Path) -> Any:
    _quiet()
    (place,) = (path for path in folder.iterdir() if path.name in _LAYOUTS)
    _, builder, options = _LAYOUTS[place.name]
    if place.name == "ave" and (place / "annotations" / "segments.txt").exists():
        options = {"clip_times": [str(place / "annotations" / "segments.txt")]}
    if place.name == "llp":
        options = {"visual_3d": str(place / "features")}
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    found = builder(
        annotations=str(place / "annotations"),
        media=str(place / "media"),
        captions=str(place / "captions.json"),
        cache_dir=str(folder / "cache"),
        **options,
    ).build(folder / "out")
    for shard in (folder / "out" / "data").iterdir():
        for row in pq.read_table(shard).to_pylist():
            for file in (row.get("media"), row.get("audio"), *(row.get("frames") or ()), *(row.get("masks") or ())):
                if file is not None and not Path(file["path"]).resolve().is_relative_to((place / "media").resolve()):
                    raise Leak(f"{file['path']} is not in the media folder")
    return found.written


# Parquet data sets

_WAYS = ("indexed", "streamed", "prepared", "captioned")
_TASKS = {"ave": "ave", "llp": "avvp", "ms3": "avs_ms3", "music_avqa": "avqa", "ra_ssu": "ra_ssu"}


def _make_data_sets(folder: Path) -> None:
    _quiet()
    corpora = folder.parent / "corpora"
    _make_annotations(corpora)
    for name, task in _TASKS.items():
        _, builder, options = _LAYOUTS[name]
        place, out = corpora / name / name, corpora / f"{name}-built"
        builder(
            annotations=str(place / "annotations"),
            media=str(place / "media"),
            captions=str(place / "captions.json"),
            embed_media=True,
            cache_dir=str(corpora / "cache"),
            **options,
        ).build(out)
        for way in _WAYS:
            (folder / f"{name}-{way}" / task / way / "data").mkdir(parents=True)
            (shard,) = (out / "data").glob("train-*.parquet")
            shutil.copy(shard, folder / f"{name}-{way}" / task / way / "data" / "train-00000-of-00001.parquet")
    shutil.rmtree(corpora)


def _mutate_data_set(rng: random.Random, original: Original) -> Change:
    (name,) = original.names()
    return {name: _mutate_parquet(rng, original.read(name))}


def _open_data_set(folder: Path) -> Any:
    _quiet()
    (place,) = folder.glob("*/*")
    processor, way = _processor(place.parent.name), place.name
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
    if way == "captioned":
        return [clip.load(ServerCaptioner("http://127.0.0.1", "m").settings).name for clip in find_clips(place)]
    if way == "prepared":
        return {name: split.rows for name, split in prepare_clips(place, processor, folder / "out").items()}
    if way == "streamed":
        streamed = StreamedClips(place, processor, split="train")
        return len([streamed[row] for batch in streamed.batches(2) for row in batch])
    rows = CaeAvDataset(place, processor, split="train")
    return len([rows[index] for index in range(len(rows))])


def _mutate_parquet(rng: random.Random, content: bytes) -> bytes:
    """Change the columns, the types, the values, the metadata or the bytes of a Parquet file."""
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(rng, content)
    if kind == 1:  # the footer, whose length is in its last bytes
        length = min(int.from_bytes(content[-8:-4], "little"), len(content))
        return content[: -length - 8] + mutate_bytes(rng, content[-length - 8 :])
    table = pq.read_table(io.BytesIO(content))
    for _ in range(rng.choice([1, 1, 1, 2])):
        table = _mutate_table(rng, table)
    file = io.BytesIO()
    try:
        pq.write_table(
            table,
            file,
            compression=rng.choice(["snappy", "zstd", "none", "gzip"]),
            use_dictionary=rng.random() < 0.7,
            store_schema=rng.random() < 0.8,
        )
    except (pa.ArrowException, ValueError, NotImplementedError):  # no Parquet file can hold it
        return mutate_bytes(rng, content)
    return file.getvalue()


_TYPES = (
    *("_", "Strange", "Pdf", "Features", "json", "Any", "Video", "Audio", "Image", "Json", "Array2D", "Translation"),
    *("ClassLabel", "Value", "List", "Sequence", "LargeList", "Nifti", "Mesh"),
)


def _mutate_table(rng: random.Random, table: pa.Table) -> pa.Table:
    place = rng.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place).combine_chunks()
    rows, kind = len(column), rng.randrange(9)
    values = column.to_pylist()
    if kind == 0:
        return table.drop_columns([name])
    if kind == 1:
        new = rng.choice([*table.column_names, *_NAMES]).encode("utf-8", "replace").decode()
        return table.rename_columns([new if old == name else old for old in table.column_names])
    if kind == 2:  # no rows, one row, many rows
        return rng.choice([table.slice(0, 0), table.slice(0, 1), pa.concat_tables([table] * 3)])
    if kind == 3:  # metadata
        metadata = dict(table.schema.metadata or {})
        text = metadata.get(b"huggingface", b'{"info": {"features": {"label": {"_type": "Value"}}}}').decode()
        changed = mutate_json(rng, text)
        if rng.random() < 0.7:
            found = rng.choice(re.findall(r'"_type": "(\w+)"', text) or ["Value"])
            changed = text.replace(f'"{found}"', json.dumps(rng.choice(_TYPES)), rng.choice([1, -1]))
        metadata[rng.choice([b"huggingface"] * 9 + [b"pandas"])] = changed.encode("utf-8", "surrogatepass")
        return table.replace_schema_metadata(metadata)
    if kind == 4:  # nulls
        chosen = [None if rng.random() < 0.7 else value for value in values]
        return table.set_column(place, name, pa.array(chosen, column.type))
    if kind == 5:  # another type
        of_type: list[Callable[[], pa.Array]] = [
            lambda: pa.nulls(rows),
            lambda: pa.array(range(rows)),
            lambda: pa.array([number(rng) for _ in range(rows)], pa.float64()),
            lambda: pa.array([rng.choice(STRINGS).encode("utf-8", "replace").decode()[:9999] for _ in range(rows)]),
            lambda: pa.array([rng.randbytes(50) for _ in range(rows)]),
            lambda: pa.array([[value] for value in values]),
            lambda: pa.array([{"a": value, "path": "x"} for value in values]),
            lambda: pa.array([{"bytes": rng.randbytes(9), "path": rng.choice(STRINGS[:9])} for _ in range(rows)]),
            lambda: column.dictionary_encode(),
            lambda: column.cast(pa.large_string()),
            lambda: pa.array([[1, 2]] * rows, pa.list_(pa.int64(), 2)),
            lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1"] * rows)),
            lambda: pa.array([True] * rows),
            lambda: pa.array([time.struct_time(range(9))[0]] * rows, pa.timestamp("s")),
            lambda: pa.array([b"\xff\xfe"] * rows).view(pa.string()),
        ]
        with contextlib.suppress(pa.ArrowException, TypeError, ValueError, NotImplementedError, OverflowError):
            return table.set_column(place, name, rng.choice(of_type)())
        return table.drop_columns([name])
    return _with_values(rng, table, place, values)


def _with_values(rng: random.Random, table: pa.Table, place: int, values: list[Any]) -> pa.Table:
    """Change values of a column, and keep its type."""
    field = table.schema.field(place)

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            if "bytes" in value and rng.random() < 0.8:
                content = value["bytes"] or b""
                return rng.choice(
                    [
                        {**value, "bytes": mutate_bytes(rng, content)},
                        {**value, "bytes": b""},
                        {"bytes": None, "path": rng.choice(["/etc/passwd", "/dev/zero", "a\0b", "", "http://[::1"])},
                        {"bytes": None, "path": None},
                        {**value, "path": None},
                    ]
                )
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            kind = rng.randrange(4)
            if kind == 0 or not value:
                return []
            if kind == 1:
                return value * rng.choice([2, 50])
            return [change(item) for item in value] if kind == 2 else [None, *value]
        if isinstance(value, bool | int):
            return rng.choice([-1, -100, 0, value + 1, 99, 10**9, 2**62])
        if isinstance(value, float):
            return rng.choice([float("nan"), float("inf"), -1.0, 0.0, 1e300, value * 2])
        if isinstance(value, str):
            text = rng.choice([rng.choice(STRINGS), value * 1000, mutate_json(rng, value) if value[:1] == "{" else ""])
            return text.encode("utf-8", "replace").decode()
        return value

    with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        return table.set_column(place, field, pa.array([change(value) for value in values], field.type))
    return table.slice(0, 1)


# Servers


class _Server:
    """A server of 127.0.0.1 that sends the bytes of an input; what is sent to the other port is seen."""

    def __init__(self, content: bytes, pause: float, repeat: bytes) -> None:
        self.content, self.pause, self.repeat = content, pause, repeat
        self.listener, self.other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.content = content.replace(b"{other}", f"http://127.0.0.1:{self.other.getsockname()[1]}".encode())
        self.seen_by_other = b""
        for listener in (self.listener, self.other):
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def __enter__(self) -> "_Server":
        return self

    def __exit__(self, *error: object) -> None:
        for listener in (self.listener, self.other):
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._answer, args=(connection, listener is self.other), daemon=True).start()

    def _answer(self, connection: socket.socket, is_other: bool) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(3)
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
                head += part
            if is_other:
                self.seen_by_other += head
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                return
            if self.pause:
                for number in range(len(self.content)):
                    connection.sendall(self.content[number : number + 1])
                    time.sleep(self.pause)
            connection.sendall(self.content)
            while self.repeat:
                connection.sendall(self.repeat)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


_HEADS = (
    *(
        "HTTP/1.1 200 OK",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 206 Partial",
    ),
    *("HTTP/1.1 301 Moved", "HTTP/1.1 302 Found", "HTTP/1.1 303 See", "HTTP/1.1 307 Temporary", "HTTP/1.1 308 Gone"),
    *("HTTP/1.1 304 Not Modified", "HTTP/1.1 400 Bad", "HTTP/1.1 401 No", "HTTP/1.1 404 None", "HTTP/1.1 418 Teapot"),
    *("HTTP/1.1 429 Slow", "HTTP/1.1 500 Error", "HTTP/1.1 503 Busy", "HTTP/1.1 999 ?", "HTTP/1.1 -1 x", "HTTP/9 200"),
    *("ICY 200 OK", "HTTP/1.1 101 Switching", "HTTP/1.1 200", "HTTP/1.1 200 \x1b[2J\x07", "SSH-2.0-x", ""),
)
_HEADERS = (
    *("Content-Type: text/html", "Content-Type: application/json; charset=utf-32", "Content-Encoding: gzip"),
    *("Content-Encoding: br", "Content-Encoding: deflate", "Transfer-Encoding: chunked", "Content-Length: 0"),
    *("Content-Length: 5", "Content-Length: 99999999999999", "Content-Length: -1", "Content-Length: a"),
    *(
        "Content-Length: 1\r\nContent-Length: 2",
        "Location: /v1/chat/completions",
        "Location: {other}/x",
        "Location: /",
    ),
    *("Location: file:///etc/passwd", "Location: ftp://127.0.0.1/x", "Location: http://[::1", "Location: \x1b[2J"),
    *("Location: //", "Location: ?a#b", "Retry-After: nan", "Retry-After: 1e999", "Retry-After: Wed, 21 Oct 2015"),
    *(
        "Set-Cookie: a=b; Domain=.com",
        "X: " + "a" * 10_000,
        "X\x00: a",
        "X: \x1b[2J",
        ": a",
        "X",
        " X: a",
        "X: a\r\n b",
    ),
    *("Connection: close", "Content-Range: bytes 5-1/3", "Refresh: 0; url={other}", "WWW-Authenticate: Basic"),
)


def _mutate_response(
    bodies: Callable[[random.Random, Original], bytes],
) -> Callable[[random.Random, Original], Change]:
    def mutate(rng: random.Random, original: Original) -> Change:
        body = bodies(rng, original)
        headers = rng.sample(_HEADERS, rng.choice([0, 0, 1, 1, 2, 3]))
        if rng.random() < 0.5:
            headers.append(f"Content-Length: {len(body)}")
        head = rng.choice(_HEADS[:1] * 20 + _HEADS)
        content = "\r\n".join([head, *headers]).encode("latin-1", "replace") + b"\r\n\r\n" + body
        if rng.random() < 0.15:
            content = mutate_bytes(rng, content)
        pause = rng.choice([0] * 29 + [0.02])
        repeat = rng.choice([""] * 19 + [" " * 65536, "HTTP/1.1 100 Continue\r\n\r\n", "1\r\na\r\n"])
        plan = json.dumps({"pause": pause, "repeat": repeat})
        return {"response.bin": content, "plan.json": plan.encode(), **_other_address(rng, original)}

    return mutate


def _served(folder: Path) -> _Server:
    plan = json.loads((folder / "plan.json").read_text())
    return _Server((folder / "response.bin").read_bytes(), plan["pause"], plan["repeat"].encode())


_CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "A dog."}, "finish_reason": "stop"}]}
_KEY = "sk-the-secret-key"
_CLIP = ClipMaterial("clip", (np.zeros((2, 2, 3), np.uint8),), np.zeros(160, np.float32), 16_000)


def _make_servers(folder: Path) -> None:
    (folder / "chat").mkdir()
    (folder / "chat" / "response.bin").write_bytes(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(_CHAT).encode())
    (folder / "chat" / "plan.json").write_text('{"pause": 0, "repeat": ""}')


def _chat_body(rng: random.Random, original: Original) -> bytes:
    text = json.dumps(_CHAT)
    kind = rng.randrange(8)
    if kind < 5:
        return mutate_json(rng, text).encode("utf-8", "surrogatepass")
    if kind == 5:
        return text.replace("A dog.", json.dumps(rng.choice(_NAMES) * rng.choice([1, 1000]))[1:-1]).encode()
    return rng.choice([b"", b"<html>", b"\x1f\x8b" + bytes(99), b" " * 5_000_000, b"data: {}\n\n", text.encode()])


def _other_address(rng: random.Random, original: Original) -> Change:
    if "address.txt" not in original.names():
        return {}
    path = rng.choice(["/a.mp4"] * 10 + ["", "/", "/a%00b", "/%0d%0aX:y", "/../../a", "//a", "/a?b=../c#d", "/\ud800"])
    address = rng.choice(["{server}"] * 6 + ["{secret}"]) + path
    if rng.random() < 0.25:
        address = rng.choice(
            [*_NAMES, "http://[::1", "http://a:b:c/", "file://host/x", "file:///a%00b", "hf://", "rtp://["]
        )
    return {"address.txt": address.encode("utf-8", "surrogatepass")}


def _open_server(folder: Path) -> Any:
    with _served(folder) as server:
        captioner = ServerCaptioner(server.url, "model", api_key=_KEY, timeout=1.0, attempts=1)
        started = time.monotonic()
        answer: str | CaeAvError
        try:
            (answer,) = captioner.caption([CaptionRequest(_CLIP, "audio")])
            text = str(answer)
        except CaeAvError as error:
            answer, text = error, str(error)
        if _KEY in text or server.seen_by_other:
            raise Leak("the key or the clip went elsewhere")
        if time.monotonic() - started > 10:
            raise Leak("the limit of time did not hold")
    if isinstance(answer, CaptioningError) and answer.reason in ("empty", "refusal"):
        return answer.reason  # of a text that is none, as of a real model
    if isinstance(answer, Exception):
        raise answer
    return answer


def _make_addresses(folder: Path) -> None:
    generate(folder / "toy", "ave", num_clips=1, split=(1, 0, 0), media_format=_MEDIA, progress=False)
    (clip,) = (folder / "toy" / "media").iterdir()
    content = clip.read_bytes()
    shutil.rmtree(folder / "toy")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}/a.ts\n#EXT-X-ENDLIST\n"
    for name, body in {"clip": content, "playlist": playlist}.items():
        for way in ("fetched", "streamed"):
            place = folder / f"{name}-{way}"
            place.mkdir()
            (place / "response.bin").write_bytes(body)
            (place / "plan.json").write_text('{"pause": 0, "repeat": ""}')
            (place / "address.txt").write_text("{server}/a.mp4")
            (place / f"{way}.txt").write_text("")


def _file_body(rng: random.Random, original: Original) -> bytes:
    content = original.read("response.bin")
    if content.startswith(b"#EXTM3U"):
        places = [
            "file:///etc/passwd",
            "/etc/passwd",
            "concat:/etc/passwd",
            "data:,x",
            "subfile,,:/etc/passwd",
            "a.m3u8",
        ]
        content = content.replace(b"{other}/a.ts", rng.choice(places).encode())
    return mutate_bytes(rng, content) if rng.random() < 0.7 else content


def _open_address(folder: Path) -> Any:
    os.environ.update(CAEAV_DOWNLOAD_TIMEOUT="1", CAEAV_DOWNLOAD_MAX_MB="1", NO_PROXY="127.0.0.1")
    with _served(folder) as server:
        secret = server.url.replace("//", "//user:the-password@")
        address = (folder / "address.txt").read_bytes().decode("utf-8", "surrogatepass")
        address = address.replace("{server}", server.url).replace("{secret}", secret)
        try:
            if (folder / "streamed.txt").exists():
                return announced_seconds(address, 1.0)
            return len(fetch(address).read())
        except CaeAvError as error:
            if "the-password" in str(error) or str(CaeAvError(without_password(address)))[:1000] not in str(error):
                raise Leak(f"the message is: {error}") from error
            raise
        finally:
            if b"authorization" in server.seen_by_other.lower():
                raise Leak("the password went to another host")


# Names on the terminal and in exports


def _make_names(folder: Path) -> None:
    (folder / "names").mkdir()
    (folder / "names" / "names.json").write_text(json.dumps(["clip", "Bark", "Is it a dog?", "yes", "set"]))


def _mutate_name_list(rng: random.Random, original: Original) -> Change:
    names = json.loads(original.read("names.json"))
    for place in rng.sample(range(len(names)), rng.choice([1, 2, 5])):
        parts = [
            rng.choice(_NAMES)[:3000],
            names[place],
            chr(rng.choice([*range(32), *range(127, 160), 0x202E, 0xD800])),
        ]
        rng.shuffle(parts)
        names[place] = "".join(parts[: rng.choice([1, 2, 3])])
    return {"names.json": json.dumps(names).encode()}


# What tqdm writes by itself, and what may stand in a text.
_PRINTED = re.compile(
    r"(\x1b\[A|[\n\t\r])*([^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r|\x1b\[A)*"
)


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        yield output


def _open_names(folder: Path) -> Any:
    from tqdm import tqdm

    from caeav_hf.cli import main

    logging.disable(logging.NOTSET)
    clip, label, question, answer, folder_name = json.loads((folder / "names.json").read_text())

    def command() -> int:
        print(f"{clip}: {label}")
        handler = logging.StreamHandler(sys.stderr)
        logger = logging.getLogger("hostile")
        logger.addHandler(handler)
        logger.warning(f"{clip}: {question}")
        logger.removeHandler(handler)
        with tqdm([1], desc=f"{printable(clip)}: {label}") as bar:
            list(bar)
        raise CaeAvError(f"{clip}: expected {answer}, got {folder_name}")

    with _captured() as output:
        run_command("caeav", command, next_step=lambda: question, place=folder_name)
        # Commands that name what they are given.
        main(
            [
                "caption",
                "--server",
                "http://127.0.0.1:9",
                f"--model={label}",
                "--out",
                str(folder / "a.parquet"),
                "--",
                clip + " ",
            ]
        )
        main(["build", "ave", f"--annotations={folder_name}", f"--media={clip}", "--out", str(folder / "out")])
    printed = output.getvalue()
    if not _PRINTED.fullmatch(printed) or printed.count("\n") > 40:
        raise Leak(f"names.json: printed {printed[:1500]!r}")

    found = [Annotation(0.0, 1.0, label, "events", 0.5, clip), Annotation(1.0, 2.0, answer, question, None, clip)]
    for write, suffix in (
        *((write_csv, ".csv"), (write_srt, ".srt"), (write_webvtt, ".vtt")),
        *((write_audacity, ".txt"), (write_eaf, ".eaf")),
    ):
        write(found, folder / f"export{suffix}")
    with (folder / "export.csv").open(encoding="utf-8", newline="") as file:
        csv.field_size_limit(10**9)
        rows = list(csv.reader(file))
    if len(rows) != 3 or any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in rows for cell in row):
        raise Leak(f"export.csv: {rows}"[:1500])
    for name, count in (("export.srt", 2), ("export.vtt", 2)):
        text = (folder / name).read_text(encoding="utf-8")
        if text.count("-->") != count or "\x1b" in text:
            raise Leak(f"{name}: {text[:1500]!r}")
    ElementTree.parse(folder / "export.eaf")
    return len(rows)


DOORS: tuple[Door, ...] = (
    Door("captions", _make_captions, _mutate_captions, _open_captions, share=1.5),
    Door("caption jobs", _make_tables, _mutate_tables, _open_tables, share=1.1),
    Door(
        "annotations",
        _make_annotations,
        weighted([(0.7, mutate_files("*/annotations/*", "*/captions.json", "*/features/*")), (0.3, _mutate_names)]),
        _open_annotations,
        share=3.0,
    ),
    # Media of rows are called by their path, or by their size.
    Door("data sets", _make_data_sets, _mutate_data_set, _open_data_set, share=1.2, names=("toy0", " bytes>")),
    Door(
        "caption servers", _make_servers, _mutate_response(_chat_body), _open_server, share=0.8, names=("127.0.0.1",)
    ),
    # Its messages are compared with the address.
    Door("addresses", _make_addresses, _mutate_response(_file_body), _open_address, share=0.6, names=("",)),
    Door("names", _make_names, _mutate_name_list, _open_names, share=0.8),
)
