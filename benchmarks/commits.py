"""
Compare the speed and memory of two or more revisions of this package by benchmarks/throughput.py, in turns.

    python benchmarks/commits.py 142885c HEAD --turns 2 --out commits.json -- --formulation paper --repeats 2

Everything behind `--` goes to throughput.py, which is this checkout's for all revisions: only the package changes.
Each turn measures each revision in a process of its own, with the bare towers of the same process as the floor. The
table has the medians over the turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parents[1]
VALUES = ("seconds", "ratio", "limit_seconds", "peak_gb")


def measure(source: Path, options: list[str], out: Path) -> dict[str, Any]:
    """Run throughput.py on the package in folder `source`; return the cases of each precision."""
    command = [sys.executable, str(ROOT / "benchmarks" / "throughput.py"), "--out", str(out), *options]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(source)}, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())["precisions"]


def medians(turns: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the medians of `VALUES` over turns, by precision and case."""
    return {
        f"{precision} {case}": {
            value: statistics.median(turn[precision][case][value] for turn in turns) for value in VALUES
        }
        for precision, cases in turns[0].items()
        for case in cases
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="+", help="commits of this repository")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    # argparse gives what follows `--` to the positional arguments.
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    git = ["git", "-C", str(ROOT)]
    turns: dict[str, list[dict[str, Any]]] = {revision: [] for revision in arguments.revisions}
    with TemporaryDirectory() as folder:
        for index, revision in enumerate(arguments.revisions):
            archive = subprocess.run([*git, "archive", revision, "src"], check=True, stdout=subprocess.PIPE).stdout
            (Path(folder) / str(index)).mkdir()
            subprocess.run(["tar", "-x", "-C", str(Path(folder) / str(index))], input=archive, check=True)
        for _ in tqdm(range(arguments.turns), desc="turns"):
            for index, revision in enumerate(arguments.revisions):
                source = Path(folder) / str(index) / "src"
                turns[revision].append(measure(source, options, Path(folder) / "result.json"))
    result = {revision: medians(measured) for revision, measured in turns.items()}
    print(f"{'':44}" + "".join(f"{value:>15}" for value in VALUES))
    for case in next(iter(result.values())):
        for revision, values in result.items():
            print(f"{case:32}{revision[:10]:12}" + "".join(f"{values[case][value]:15.2f}" for value in VALUES))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"medians": result, "turns": turns}, indent=2) + "\n")


if __name__ == "__main__":
    main()
