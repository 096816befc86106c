"""Broken inputs by seed: the record of a door, and mutators of bytes, text, JSON, YAML and CSV for all doors."""

import copy
import csv
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Link:
    """A symbolic link in an input."""

    target: str


# What differs from the original by path in its folder: content, a link, or `None` for a file that is missing.
Change = Mapping[str, bytes | Link | None]


@dataclass(frozen=True)
class Original:
    """A good input: a folder of files."""

    folder: Path

    def names(self, *patterns: str) -> list[str]:
        """Return the paths of its files that match a pattern, sorted."""
        return [name for name in _names(self.folder) if any(fnmatch(name, pattern) for pattern in patterns or "*")]

    def read(self, name: str) -> bytes:
        return _read(self.folder / name)


@lru_cache(maxsize=256)
def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@lru_cache(maxsize=64)
def _read(path: Path) -> bytes:
    return path.read_bytes()


@dataclass(frozen=True)
class Door:
    """
    A way by which something handed over gets into the package.

    Attributes:
        name: Name in the table and of the option `--only`.
        make: Writes the good originals into an empty folder, each as a folder of files. Called once per run.
        mutate: Returns how an input differs from an original. Depends on nothing but its arguments.
        open: Hands the folder of an input, a copy of the original with the changes, to the package.
        share: Number of inputs, relative to the other doors'.
        seconds: Time limit of an input.
        memory: Limit in MB of what an input may take, beyond what the process holds before.
        allowed: Errors of libraries that count as clear where they name a file of the input.
        names: What else than the names of its files a message may name, such as an argument.
    """

    name: str
    make: Callable[[Path], None]
    mutate: Callable[[random.Random, Original], Change]
    open: Callable[[Path], Any]
    share: float = 1.0
    seconds: float = 20.0
    memory: int = 1500
    allowed: tuple[type[Exception], ...] = ()
    names: tuple[str, ...] = ()


def mutate_files(*patterns: str) -> Callable[[random.Random, Original], Change]:
    """Return a mutator that changes one of the files that match, sometimes two, by its kind."""

    def mutate(rng: random.Random, original: Original) -> Change:
        names = original.names(*patterns)
        chosen = rng.sample(names, min(len(names), 1 + (rng.random() < 0.1)))
        return {name: mutate_file(rng, name, original.read(name)) for name in chosen}

    return mutate


def mutate_file(rng: random.Random, name: str, data: bytes) -> bytes | Link | None:
    """Change a file by its kind, which its suffix names; sometimes it is missing, empty or a link to itself."""
    if rng.random() < 0.02:
        return rng.choice([None, b"", Link(name.rpartition("/")[2]), Link(".")])
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    suffix = name.rpartition(".")[2].lower()
    if suffix in _BY_SUFFIX:
        text = _BY_SUFFIX[suffix](rng, data.decode("utf-8"))
        return encode(rng, text)
    if suffix in ("txt", "md"):
        return encode(rng, mutate_text(rng, data.decode("utf-8")))
    return mutate_bytes(rng, data)


# Bytes


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change bytes one to four times: flip, cut, splice, repeat, overwrite numbers."""
    changed = bytearray(data)
    for _ in range(_few(rng)):
        place = rng.randrange(len(changed) + 1)
        length = min(len(changed) - place, int(2 ** rng.uniform(0, 12)))
        kind = rng.randrange(8)
        if kind == 0 and changed:  # flip bits
            for _ in range(_few(rng)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:  # splice
            source = rng.randrange(len(changed) + 1)
            changed[place:place] = changed[source : source + length]
        elif kind == 4:  # a long run
            times = rng.choice([length, 9999])
            changed[place : place + length] = rng.choice([b"\0", b"\xff", b"A", b"[", b"\n"]) * times
        elif kind == 5:
            changed[place : place + length] = rng.randbytes(length)
        elif kind == 6:  # a number, perhaps a length
            size = rng.choice([1, 2, 4, 8])
            length = rng.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
            changed[place : place + size] = (length % 2 ** (8 * size)).to_bytes(size, rng.choice(["little", "big"]))
        else:
            changed[place:place] = rng.choice(STRINGS).encode("utf-8", "surrogatepass")[:2000]
    return bytes(changed)


def _few(rng: random.Random) -> int:
    """Draw a small number, mostly 1, so that most inputs have one fault."""
    return rng.choice([1, 1, 1, 1, 2, 2, 3, 4])


# Text

STRINGS = (
    *("", " ", "\n", "\r\n", "\t", "\0", "a\0b", "\x1b[2J\x1b]0;title\a", "\x9b31m", "\u202eevil", "\ufeff", "\ufffe"),
    *("\ud800", "a\udcff", "\U0010ffff", "e\u0301" * 500, "\u0130", "a" * 100_000, "\u1e9e" * 4000, "\u0663"),
    *(
        "None",
        "null",
        "nan",
        "inf",
        "-1",
        "1e400",
        "0x10",
        "1_000",
        "true",
        "True",
        "'",
        '"',
        "--help",
        "#",
        "a,b",
        "a;b",
    ),
    *(
        "..",
        "../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "CON",
        "a/b",
        "a\\b",
        "~root",
        "$HOME",
    ),
    *("file:///etc/passwd", "http://127.0.0.1:9/x", "https://example.invalid/x", "<script>alert(1)</script>"),
    *(
        "$(touch x)",
        "`touch x`",
        "; touch x",
        "{0.__class__}",
        "{}",
        "%s%n",
        "{{7*7}}",
        "${HOME}",
        "=cmd|' /C calc'!A0",
    ),
    *("os.system", "__class__", "__init__", "builtins.eval", "torch.load", "!!python/name:os.system"),
    *("<|endoftext|>", "<pad>", "[MASK]", "(a+)+$"),
)


def mutate_text(rng: random.Random, text: str) -> str:
    """Change lines one to four times: drop, repeat, swap, cut, insert strange strings."""
    lines = text.split("\n")
    for _ in range(_few(rng)):
        place = rng.randrange(len(lines))
        line = lines[place]
        cut = rng.randrange(len(line) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            del lines[place]
            lines = lines or [""]
        elif kind == 1:
            lines[place:place] = [line] * rng.choice([1, 1, 2, 5000])
        elif kind == 2:
            other = rng.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == 3:
            lines[place] = line[:cut]
        elif kind == 4:
            lines[place] = line[:cut] + rng.choice(STRINGS) + line[cut:]
        elif kind == 5:
            lines[place] = rng.choice(STRINGS)
        else:
            words = line.split(" ")
            words[rng.randrange(len(words))] = rng.choice([rng.choice(STRINGS), str(number(rng))])
            lines[place] = " ".join(words)
    return "\n".join(lines)


def encode(rng: random.Random, text: str) -> bytes:
    """Encode as UTF-8, seldom with another encoding, a byte order mark, or bytes that are not UTF-8."""
    if rng.random() < 0.94:
        return text.encode("utf-8", "surrogatepass")
    kind = rng.randrange(5)
    if kind == 0:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
    if kind == 1:
        return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"]), "replace")
    if kind == 2:
        return text.replace("\n", "\r\n").encode("utf-8", "surrogatepass")
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x80", b"\0"]) * rng.choice([1, 1000])
    return bytes(data)


# Trees of JSON and YAML


class Pairs(list[tuple[str, Any]]):
    """An object as pairs, which may hold a key twice."""


class Raw(str):
    """Text that is written as it is."""


NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e300, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63),
    *(2**64, -(2**63) - 1, 10**6, 10**9, 10**12, 10**18, 10**30),
)


def number(rng: random.Random) -> float:
    """Draw a number that is likely to be out of range."""
    return rng.choice(NUMBERS)


_RAW = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "0" * 20,
        "+1",
        "1.",
        "'a'",
    ),
    *(
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 900 + "]" * 900,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "undefined",
        "",
        "]",
    ),
    *("[" + "0," * 200_000 + "0]", '["' + "a" * 1_000_000 + '"]', '"\\ud800"', '"\\u0000"', '"\\x"', "/*c*/1"),
)


_SIMPLE: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    [None],
    [[]],
    [[1], "a"],
    Pairs(),
    Pairs([("a", 1)]),
    Pairs([("", None)]),
)


def value(rng: random.Random) -> Any:
    """Draw a value of any type."""
    kind = rng.randrange(8)
    if kind < 2:
        return number(rng)
    if kind < 4:
        return rng.choice(STRINGS)
    if kind == 4:
        return Raw(rng.choice(_RAW))
    return copy.deepcopy(rng.choice(_SIMPLE))


def _places(tree: Any) -> list[tuple[Any, int]]:
    """Return all places of values: the list or pairs that holds it, and the index in there."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        for index, item in enumerate(node):
            found.append((node, index))
            child = item[1] if isinstance(node, Pairs) else item
            if isinstance(child, list):
                waiting.append(child)
    return found


def mutate_tree(rng: random.Random, tree: Any, values: Callable[[random.Random], Any] = value) -> Any:
    """
    Change a tree of lists and `Pairs` one to four times: other values and types, keys that are missing, unknown or
    twice, long and deep lists.

    Args:
        rng: Source of chance.
        tree: The tree; changed in place.
        values: Draws a value to put in.
    """
    for _ in range(_few(rng)):
        places = _places(tree) if isinstance(tree, list) else []
        if not places or rng.random() < 0.02:
            return values(rng)
        # Half of the time near the root, where what is read stands.
        holder, index = rng.choice(places[: max(1, len(places) // 8)] if rng.random() < 0.5 else places)
        key, old = holder[index] if isinstance(holder, Pairs) else (None, holder[index])
        kind = rng.randrange(10)
        new: list[Any]
        if kind == 0:
            new = []
        elif kind == 1:
            new = [old] * rng.choice([2, 2, 3, 1000])
        elif kind == 2 and key is not None:  # another key
            holder[index : index + 1] = [(rng.choice([*STRINGS, key.upper(), key + " ", key[:-1]]), old)]
            continue
        elif kind == 3:  # a value of elsewhere
            other, at = rng.choice(places)
            new = [copy.deepcopy(other[at][1] if isinstance(other, Pairs) and at < len(other) else old)]
        elif kind == 4:
            new = [[old], Pairs([("a", old)])][: 1 + rng.randrange(2)][-1:]
        elif kind == 5 and isinstance(old, int | float):
            new = [rng.choice([-old, old + 1, old - 1, old * 1000, old / 3, str(old), not old])]
        elif kind == 6 and isinstance(old, str):
            new = [rng.choice([old + rng.choice(STRINGS), old.upper(), old[::-1], old * 100, old.split(), len(old)])]
        elif kind == 7 and isinstance(old, list):
            rng.shuffle(old)
            continue
        else:
            new = [values(rng)]
        if key is None:
            holder[index : index + 1] = new
        else:
            holder[index : index + 1] = [(key, item) for item in new]
    return tree


def write_tree(tree: Any) -> str:
    """Write a tree as JSON, which is YAML too."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{_string(key)}: {write_tree(item)}" for key, item in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(write_tree, tree)) + "]"
    return _string(tree) if isinstance(tree, str) else json.dumps(tree)


def _string(text: str) -> str:
    """Write a string; what cannot be UTF-8 is escaped."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)


def to_tree(values: Any) -> Any:
    """Convert dictionaries to `Pairs`."""
    if isinstance(values, dict):
        return Pairs((str(key), to_tree(item)) for key, item in values.items())
    return [to_tree(item) for item in values] if isinstance(values, list | tuple) else values


def read_tree(text: str) -> Any:
    """Read JSON as a tree."""
    return json.loads(text, object_pairs_hook=Pairs)


def mutate_json(rng: random.Random, text: str) -> str:
    if rng.random() < 0.05:
        return mutate_text(rng, text)
    return write_tree(mutate_tree(rng, read_tree(text)))


def mutate_json_lines(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    place = rng.randrange(len(lines))
    if rng.random() < 0.3 or not lines[place].strip():
        return mutate_text(rng, text)
    lines[place] = write_tree(mutate_tree(rng, read_tree(lines[place]))).replace("\n", " ")
    return "\n".join(lines)


_YAML_VALUES = (
    *("!!python/object/apply:os.system ['touch x']", "!!python/name:os.system", "!!python/module:os", "!unknown 1"),
    *("&a [*a]", "*missing", "&a {b: *a}", "2024-13-45", "2001-02-30T25:61:61Z", "!!int abc", "!!float abc"),
    *("!!bool x", "!!binary '!'", "!!binary aGk=", "!!timestamp x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]"),
    *(
        "{? [a]: b}",
        "{? {a: b}: c}",
        "{<<: 3}",
        "{<<: [1]}",
        "{1: 2}",
        "{null: 1}",
        "{true: 1}",
        "{1.5: 2}",
        "<<",
        "=",
    ),
    *(".nan", ".inf", "-.inf", "yes", "~", "'", '"', "|\n  a", ">-\n  a\n  b", "- - - -", "? ? ? ?", "%YAML 9.9"),
    *("---\n---", "...", "\t", "@a", "`a`", "1_0", "1:60:60", "0o17", "0b2", "2024-01-01", "12:30:45", "[" * 3000),
    *("- " * 3000, "{a: " * 3000, "1" + "0" * 5000, "0x" + "f" * 5000, "1:" * 3000 + "1"),
)


def billion_laughs(levels: int = 12) -> str:
    """Return YAML of a few hundred bytes whose aliases stand for 10 ** `levels` strings."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def mutate_yaml(rng: random.Random, text: str) -> str:
    """Change YAML as a tree, as text, or by what YAML has beyond JSON: tags, anchors, dates, strange keys."""
    kind = rng.randrange(8)
    if kind == 0:
        return mutate_text(rng, text)
    if kind == 1:
        return billion_laughs(rng.choice([3, 7, 12])) + text

    def values(rng: random.Random) -> Any:
        return Raw(rng.choice(_YAML_VALUES)) if rng.random() < 0.4 else value(rng)

    tree = to_tree(yaml.safe_load(text))
    if kind < 5 and isinstance(tree, Pairs):  # in block style
        tree = mutate_tree(rng, tree, values)
        if isinstance(tree, Pairs):
            return "".join(f"{key}: {write_tree(item)}\n" for key, item in tree)
        return write_tree(tree)
    return write_tree(mutate_tree(rng, tree, values))


def mutate_csv(rng: random.Random, text: str, delimiter: str = ",") -> str:
    """Change CSV by its cells, or as text."""
    if rng.random() < 0.2:
        return mutate_text(rng, text)
    rows: list[list[Any]] = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    rows = mutate_tree(
        rng, rows, lambda rng: rng.choice([rng.choice(STRINGS), number(rng), "NaN", '"', "a" * 200_000])
    )
    file = io.StringIO()
    writer = csv.writer(file, delimiter=rng.choice([delimiter] * 9 + [";"]), lineterminator="\n")
    for row in rows if isinstance(rows, list) else [rows]:
        cells = row if isinstance(row, list) else [row]
        writer.writerow([cell if isinstance(cell, str) else write_tree(cell) for cell in cells])
    text = file.getvalue()
    return text.replace('"', "", 1) if rng.random() < 0.05 else text


def mutate_tsv(rng: random.Random, text: str) -> str:
    return mutate_csv(rng, text, "\t")


_BY_SUFFIX: Mapping[str, Callable[[random.Random, str], str]] = {
    "json": mutate_json,
    "jsonl": mutate_json_lines,
    "yaml": mutate_yaml,
    "yml": mutate_yaml,
    "csv": mutate_csv,
    "tsv": mutate_tsv,
}


def weighted(
    choices: Sequence[tuple[float, Callable[[random.Random, Original], Change]]],
) -> Callable[[random.Random, Original], Change]:
    """Return a mutator that draws one of several, given with their weights."""
    weights, mutators = zip(*choices, strict=True)

    def mutate(rng: random.Random, original: Original) -> Change:
        return rng.choices(mutators, weights)[0](rng, original)

    return mutate


def find(doors: Iterable[Door], name: str) -> Door:
    """Return the door of a name."""
    return next(door for door in doors if door.name == name)
