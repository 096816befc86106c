"""
What it costs to import caeav_hf, and to ask `caeav` for its help: CPU seconds, user and system, of fresh processes.

    python benchmarks/imports.py [--repeats 5]

Importing is compared with `from transformers import AutoModel, AutoProcessor, pipeline`, alone and together with it,
since caeav_hf registers its classes once Transformers is there. Processes take turns, so that what else the machine
does meets all of them; each row shows the least of all repeats, which such disturbances change least.
"""

import argparse
import os
import subprocess
import sys


TRANSFORMERS = "from transformers import AutoModel, AutoProcessor, pipeline"
PROCESSES = {
    TRANSFORMERS: ["-c", TRANSFORMERS],
    "import caeav_hf": ["-c", "import caeav_hf"],
    "import caeav_hf, then Transformers": ["-c", f"import caeav_hf; {TRANSFORMERS}"],
    "Transformers, then import caeav_hf": ["-c", f"{TRANSFORMERS}; import caeav_hf"],
    "from caeav_hf import CaeAvModel, CaeAvProcessor": ["-c", "from caeav_hf import CaeAvModel, CaeAvProcessor"],
    "caeav --help": ["-m", "caeav_hf.cli", "--help"],
    "caeav --version": ["-m", "caeav_hf.cli", "--version"],
    "caeav predict --help": ["-m", "caeav_hf.cli", "predict", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system seconds of one process and its children."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes a row (default: %(default)s)")
    repeats = parser.parse_args().repeats
    for arguments in PROCESSES.values():
        cpu_seconds(arguments)  # fills the disk's cache and compiles to byte code
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(repeats):
        for name, arguments in PROCESSES.items():
            seconds[name].append(cpu_seconds(arguments))
    reference = min(seconds[TRANSFORMERS])
    print("| process | CPU seconds | of Transformers alone |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| `{name}` | {min(values):.2f} | {min(values) / reference:.2f} |")


if __name__ == "__main__":
    main()
