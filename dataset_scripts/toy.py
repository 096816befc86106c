"""Generate the toy corpus: `python dataset_scripts/toy.py --layout avs_ms3 --out DIR --misalignment-rate 0.5`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["toy-corpus", *sys.argv[1:]]))
