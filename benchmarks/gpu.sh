#!/usr/bin/env bash
# Measure every preset on an NVIDIA GPU from a bare checkout, in under ten minutes and into one JSON file:
#
#     bash benchmarks/gpu.sh                     # install the package into .venv of the checkout, then measure
#     bash benchmarks/gpu.sh --here --minutes 60 # measure with the current environment, for longer
#
# All options but --here are those of benchmarks/gpu.py. The seconds of installing count towards its --minutes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
if [ "${1:-}" = --here ]; then
    shift
else
    "$python" -m venv "$root/.venv"
    python=$root/.venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$root"
fi
exec "$python" "$root/benchmarks/gpu.py" --spent "$SECONDS" --out gpu.json --plot gpu_loss_curves.png "$@"
