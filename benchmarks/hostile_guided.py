"""
Look for inputs that a door handles badly, guided by the code that they reach.

    pip install atheris
    python benchmarks/hostile_guided.py --door recipes --seconds 60 --out guided

Where `hostile.py` draws changes by chance, Atheris keeps those that reach new lines or branches of the package and of
parsers in Python, and changes them further. The files of a door's originals are where it begins; in each input one of
them has other bytes. Findings are those of `hostile.py`, stored in `--out` and handed over again by its `--replay`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import atheris


with atheris.instrument_imports(include=["caeav_hf", "yaml", "csv"]):
    import hostile
    from hostile_mutators import Original, find


# Larger files are not changed byte by byte.
_MOST_BYTES = 4096


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Look for inputs that a door handles badly, guided by coverage.")
    parser.add_argument("--door", required=True, choices=[door.name for door in hostile.DOORS], help="which door")
    parser.add_argument("--seconds", type=float, default=60, help="time (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the findings")
    parser.add_argument("--seed", type=int, default=1, help="seed of the changes (default: %(default)s)")
    options = parser.parse_args()
    door, out = find(hostile.DOORS, options.door), options.out.resolve()
    work_folder = Path(tempfile.mkdtemp())
    originals = work_folder / "originals"
    originals.mkdir()
    door.make(originals)
    # Each file that may change, in a copy of its original.
    targets: list[Path] = []
    (work_folder / "begin").mkdir()
    for original in sorted(path for path in originals.iterdir() if path.is_dir()):
        for name in Original(original).names():
            if (original / name).stat().st_size <= _MOST_BYTES and len(targets) < 256:
                folder = work_folder / "inputs" / f"input-{len(targets)}"
                shutil.copytree(original, folder)
                content = bytes([len(targets)]) + (original / name).read_bytes()
                (work_folder / "begin" / str(len(targets))).write_bytes(content)
                targets.append(folder / name)
    traces = hostile.Traces(work_folder)
    kinds: Counter[str] = Counter()
    found: dict[tuple[str, ...], int] = {}
    started = time.perf_counter()

    def hand_over(data: bytes) -> None:
        if time.perf_counter() - started > options.seconds:
            print(f"{door.name}: {sum(kinds.values()):,} inputs, {dict(kinds)}, {len(found)} findings", flush=True)
            shutil.rmtree(work_folder, ignore_errors=True)
            os._exit(0)  # libFuzzer would report any other end as a crash
        path = targets[data[0] % len(targets) if data else 0]
        path.write_bytes(data[1:])
        folder = work_folder / "inputs" / path.relative_to(work_folder / "inputs").parts[0]
        outcome = hostile.hand_over(door, folder, traces)
        kinds[outcome.kind] += 1
        key = outcome.kind, outcome.error, outcome.place
        if outcome.kind in hostile.BAD and len(data) < found.get(key, len(data) + 1):
            found[key] = len(data)
            place = out / f"{outcome.kind.replace(' ', '-')}-{list(found).index(key) + 1}"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder, place / "input", symlinks=True)
            outcome.number = targets.index(path)
            (place / "finding.json").write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")

    arguments = [
        f"-seed={options.seed}",
        f"-max_len={_MOST_BYTES}",
        f"-timeout={3 * door.seconds:.0f}",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(work_folder / "begin")], hand_over)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
