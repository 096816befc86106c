"""Write LLP as Parquet: `python dataset_scripts/llp.py --annotations DIR --media DIR --out DIR`."""

import sys

from caeav_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["build", "llp", *sys.argv[1:]]))
