"""
Measure the cost of importing caeav_hf and of `caeav --help`: CPU seconds, user and system, of fresh processes.

    python benchmarks/imports.py [--repeats 5]

Importing is compared with `from transformers import AutoModel, AutoProcessor, pipeline`, alone and combined, since
caeav_hf registers its classes once Transformers is imported. Processes take turns, so that other load affects all of
them alike; each row shows the minimum over all repeats, which is affected least.
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
    """Run one process and return its user and system seconds, including its children's."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes per row (default: %(default)s)")
    repeats = parser.parse_args().repeats
    for arguments in PROCESSES.values():
        cpu_seconds(arguments)  # warms up the disk cache and compiles byte code
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
